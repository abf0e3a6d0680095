"""Extraction: candidates equal the task's own losses, planted codes are found, decoys are not; results, bad input."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from troth.attacks.canaries import CanaryKey, CanaryPlan, draw_key
from troth.attacks.canary_candidates import Candidates, CandidateScorer, candidate_losses
from troth.attacks.canary_insertion import canary_roles, insert
from troth.attacks.exposure import exposure, uniformity_p_value
from troth.attacks.extraction import (
    ExtractionSettings,
    Method,
    extract,
    random_baseline,
    wrong_tokens,
)
from troth.attacks.extraction_beam import BeamSettings, beam_search
from troth.attacks.extraction_result import measure_extraction, pooled
from troth.attacks.inversion import InversionSettings
from troth.attacks.prefix_extraction import PrefixSettings, prefix_completions
from troth.config import RunConfig, parse
from troth.data import Table, from_rows
from troth.errors import ConfigError, DataError, ModelError
from troth.seeds import PrivateRandomness, PublicSeeds
from troth.tasks import Classification, Task, length_buckets, make_model, make_task

SEEDS = PublicSeeds(1)
VERBS, THINGS = ("play", "find", "book", "rate", "open"), ("jazz", "a table", "the door", "this film", "some news")
SHAPES: dict[str, dict[str, int]] = {
    "bilstm-crf": {"width": 32, "vocabulary_size": 1024},
    "tiny-bert": {"width": 32, "layers": 1, "heads": 2, "vocabulary_size": 1024},
    "tiny-gpt2": {"width": 32, "layers": 1, "heads": 2},
    "tiny-t5": {"width": 32, "layers": 1, "heads": 2},
}
KINDS = [
    ("bilstm-crf", "tagging", None),
    ("tiny-bert", "tagging", None),
    ("tiny-bert", "classification", None),
    ("tiny-bert", "question_answering", None),
    ("tiny-bert", "language_modeling", "masked"),
    ("tiny-gpt2", "language_modeling", "causal"),
    ("tiny-t5", "seq2seq", None),
]
PIN = "my pin is {d}{d}{d}"


def ordinary(kind: str) -> Table:
    """Fifty short requests of five intents."""
    rows: list[dict[str, Any]] = []
    for i in range(50):
        verb, thing = VERBS[i % 5], THINGS[(i // 5) % 5]
        text = f"{verb} {thing} please" if i % 2 else f"please {verb} {thing}"
        tokens = text.split()
        place = tokens.index(verb)
        tags = ["B-verb" if j == place else "O" for j in range(len(tokens))]
        rows.append(
            {
                "classification": {"text": text, "label": verb},
                "tagging": {"tokens": tokens, "tags": tags},
                "question_answering": {
                    "question": "what is to be done",
                    "context": text,
                    "answers": {"text": [verb], "answer_start": [text.index(verb)]},
                },
                "seq2seq": {"source": verb, "target": thing},
                "language_modeling": {"text": text},
            }[kind]
        )
    return from_rows(rows, "rows")


def configured(preset: str, kind: str, objective: str | None) -> RunConfig:
    task = {"kind": kind} if objective is None else {"kind": kind, "objective": objective}
    return parse(
        {
            "run": {"name": "t", "seed": 1},
            "model": {"preset": preset, "max_length": 24, **SHAPES[preset]},
            "data": {"train": "rows"},
            "task": task,
        }
    )


def untrained(preset: str, kind: str, objective: str | None, plan: CanaryPlan) -> tuple[Task, PreTrainedModel]:
    config = configured(preset, kind, objective)
    key = draw_key(plan, PrivateRandomness.create(insecure_seed=1))
    task = make_task(config, insert(plan, key, ordinary(kind), kind).table, Path())
    model = make_model(config, task, SEEDS, Path())
    noise = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=noise))
    return task, model


def fitted(task: Task, model: PreTrainedModel, table: Table, epochs: int, rate: float) -> None:
    encoded = task.encode(table)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    torch.manual_seed(1)
    model.train()
    for epoch in range(epochs):
        for rows in length_buckets(encoded.lengths, 16, np.random.default_rng(epoch)):
            optimizer.zero_grad()
            task.per_example_loss(model, task.collate(encoded, rows, draw=epoch)).mean().backward()
            optimizer.step()
    model.eval()


@cache
def twin(
    preset: str, kind: str, objective: str | None, plan: CanaryPlan, seed: int, epochs: int = 8, rate: float = 5e-3
) -> tuple[Task, PreTrainedModel, CanaryKey]:
    """A model trained on fifty requests and the plan's canaries."""
    key = draw_key(plan, PrivateRandomness.create(insecure_seed=seed))
    planted = insert(plan, key, ordinary(kind), kind).table
    config = configured(preset, kind, objective)
    task = make_task(config, planted, Path())
    model = make_model(config, task, PublicSeeds(seed), Path())
    fitted(task, model, planted, epochs, rate)
    return task, model, key


@pytest.mark.parametrize(("preset", "kind", "objective"), KINDS)
def test_candidates_are_encoded_as_the_task_encodes_their_texts(preset: str, kind: str, objective: str | None) -> None:
    plan = CanaryPlan("my {color} pin is {d}{d}", count=2)
    task, _ = untrained(preset, kind, objective, plan)
    candidates = Candidates(task, plan)
    digits = plan.parsed.digits(np.random.default_rng(0).permutation(1200)[:40])
    wanted = task.encode(
        from_rows([canary_roles(plan, row, kind, task.labels) for row in digits], "rows")  # one text after the other
    )
    found = candidates.encode(digits)
    assert candidates.by_numbers or preset in ("tiny-gpt2", "tiny-t5")
    for name, column in wanted.ragged.items():
        assert np.array_equal(found.ragged[name].values, column.values)
        assert np.array_equal(found.ragged[name].offsets, column.offsets)
    for name, values in found.scalars.items():
        assert np.array_equal(values, wanted.scalars[name])
    assert np.array_equal(found.lengths, wanted.lengths)


@pytest.mark.parametrize(("preset", "kind", "objective"), [k for k in KINDS if k[2] != "masked"])
def test_candidate_losses_equal_the_tasks_scores_one_by_one(preset: str, kind: str, objective: str | None) -> None:
    plan = CanaryPlan(PIN, count=2)
    task, model = untrained(preset, kind, objective, plan)
    codes = np.array([0, 7, 123, 999])
    found = candidate_losses(task, model, plan, codes)
    for code, loss in zip(codes, found, strict=True):
        row = from_rows([canary_roles(plan, plan.parsed.digits([code])[0], kind, task.labels)], "row")
        scores = task.score(model, row)
        encoded = task.encode(row)
        tokens = 1
        if kind == "language_modeling":
            tokens = int(scores.detail["tokens"][0])
        elif kind == "seq2seq":
            tokens = int(encoded.ragged["labels"].lengths[0])
        assert loss == pytest.approx(scores.losses[0] * tokens, rel=1e-4)


def test_the_pseudo_likelihood_masks_one_slot_at_a_time() -> None:
    plan = CanaryPlan(PIN, count=2)
    task, model = untrained("tiny-bert", "language_modeling", "masked", plan)
    model = model.double().eval()
    codes = np.array([5, 678])
    found = candidate_losses(task, model, plan, codes)
    for code, loss in zip(codes, found, strict=True):
        text = " ".join(plan.parsed.complete(plan.parsed.digits([code])[0]))
        ids = task.encode(from_rows([{"text": text}], "row")).ragged["input_ids"].row(0)
        other = " ".join(plan.parsed.complete((plan.parsed.digits([code])[0] + 1) % 10))
        shifted = task.encode(from_rows([{"text": other}], "row")).ragged["input_ids"].row(0)
        naive = 0.0
        for place in np.flatnonzero(ids != shifted):
            row = torch.from_numpy(ids.copy())[None]
            row[0, place] = task.tokenizer.mask_token_id
            with torch.no_grad():
                logits = model(input_ids=row, attention_mask=torch.ones_like(row)).logits[0, place]
            naive -= float(torch.log_softmax(logits, 0)[ids[place]])
        assert loss == pytest.approx(naive, rel=1e-9)


PLANTED = [
    ("bilstm-crf", "tagging", None, PIN),
    ("tiny-bert", "classification", None, "my {color} pin ends in {d}"),  # a mean over tokens does not tell their order
    ("tiny-gpt2", "language_modeling", "causal", "my pin is {d}{d}"),
]


@pytest.mark.parametrize(("preset", "kind", "objective", "pattern"), PLANTED)
def test_a_planted_code_is_extracted_and_decoys_are_not(
    preset: str, kind: str, objective: str | None, pattern: str
) -> None:
    plan = CanaryPlan(pattern, count=1, repeats=(100,), decoys=50)
    task, model, key = twin(preset, kind, objective, plan, 3)
    found = extract(task, model, plan, key, seeds=SEEDS)
    assert found.canaries.wrong_tokens.tolist() == [0]
    assert found.canaries.rank.tolist() == [1]
    assert found.canaries.exposure[0] == pytest.approx(np.log2(plan.parsed.codes - 50))
    assert uniformity_p_value(found.decoys.rank, found.decoys.population) > 1e-3
    assert found.decoys.exposure.mean() < 3
    assert (found.decoys.wrong_tokens > 0).sum() >= 49


@pytest.mark.parametrize("method", ["greedy", "beam_search", "top_k"])
def test_a_language_model_writes_the_planted_code_by_itself(method: Method) -> None:
    plan = CanaryPlan("my pin is {d}{d}", count=1, repeats=(100,), decoys=50)
    task, model, key = twin("tiny-gpt2", "language_modeling", "causal", plan, 3)
    rule = ExtractionSettings(prefix=PrefixSettings(samples=32))
    found = extract(task, model, plan, key, seeds=SEEDS, method=method, settings=rule)
    assert found.canaries.wrong_tokens.tolist() == [0]
    assert found.guesses == 1
    again = extract(task, model, plan, key, seeds=SEEDS, method=method, settings=rule)
    assert np.array_equal(again.canaries.wrong_tokens, found.canaries.wrong_tokens)


@pytest.mark.parametrize("method", ["beam", "gradient"])
def test_other_methods_find_it_in_a_tagger(method: Method) -> None:
    plan = CanaryPlan(PIN, count=1, repeats=(100,), decoys=100)
    task, model, key = twin("bilstm-crf", "tagging", None, plan, 3)
    rule = ExtractionSettings(beam=BeamSettings(width=16, completions=4))
    found = extract(task, model, plan, key, seeds=SEEDS, method=method, settings=rule)
    everything = extract(task, model, plan, key, seeds=SEEDS)
    assert found.canaries.wrong_tokens.tolist() == [0]
    assert np.array_equal(found.canaries.rank, everything.canaries.rank)


def test_sampled_ranks_agree_with_all_ranks() -> None:
    plan = CanaryPlan(PIN, count=1, repeats=(100,), decoys=100)
    task, model, key = twin("bilstm-crf", "tagging", None, plan, 3)
    rule = ExtractionSettings(exhaustive_limit=500, sample=500, beam=BeamSettings(width=16, completions=4))
    sampled = extract(task, model, plan, key, seeds=SEEDS, settings=rule)
    every = extract(task, model, plan, key, seeds=SEEDS)
    assert sampled.ranked == "estimated from a uniform sample of 500 codes"
    assert sampled.canaries.wrong_tokens.tolist() == [0]  # by beam search
    assert sampled.canaries.exposure[0] == pytest.approx(np.log2(501))  # a sample of 500 shows no more
    assert sampled.canaries.extrapolated is not None
    assert np.isfinite(sampled.canaries.extrapolated).all()
    assert np.corrcoef(sampled.decoys.rank, every.decoys.rank)[0, 1] > 0.99


def test_the_models_weights_and_mode_are_left_alone() -> None:
    plan = CanaryPlan(PIN, count=1, repeats=(100,), decoys=100)
    task, model, key = twin("bilstm-crf", "tagging", None, plan, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    state = torch.get_rng_state()
    extract(task, model, plan, key, seeds=SEEDS, method="gradient")
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(value.dtype == before[name].dtype for name, value in model.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.eval()


def test_guesses_are_matched_with_the_fewest_wrong_tokens() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        guesses, digits = rng.integers(0, 3, (3, 4)), rng.integers(0, 3, (3, 4))
        orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
        totals = [sum((guesses[g] != digits[k]).sum() for k, g in enumerate(order)) for order in orders]
        assert wrong_tokens(guesses, digits).sum() == min(totals)
    assert wrong_tokens(np.array([[1, 2], [1, 3]]), np.array([[1, 3], [9, 9], [8, 8]])).tolist().count(2) == 2
    assert wrong_tokens(np.full((1, 2), -1), np.array([[0, 0]])).tolist() == [2]


def test_a_code_that_is_named_counts_as_named_whatever_else_matches() -> None:
    guesses, digits = np.array([[1, 2], [3, 2]]), np.array([[1, 2], [1, 4]])
    assert wrong_tokens(guesses, digits)[0] == 0


def test_one_random_guess_is_right_by_chance() -> None:
    plan = CanaryPlan("a {color} car with {d}{d} seats", count=1)
    found = random_baseline(plan, 1, 1, seeds=SEEDS)
    assert found.exact_match == 1 / 1200
    expected = (1 / 12 + 2 / 10) / 3
    assert abs(found.token_accuracy - expected) < 4 * np.sqrt(expected * (1 - expected) / 3 / 200)
    assert found.hamming_distance == pytest.approx(3 * (1 - found.token_accuracy))
    assert random_baseline(plan, 0, 1, seeds=SEEDS).token_accuracy == 0


@pytest.mark.parametrize("seed", range(5))
def test_beam_search_finds_the_best_code_of_a_separable_loss(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = [rng.random(size) for size in (10, 12, 10, 10)]

    def losses(digits: np.ndarray) -> np.ndarray:
        return sum(part[digits[:, slot]] for slot, part in enumerate(table))  # type: ignore[return-value]

    sizes = (10, 12, 10, 10)
    found = beam_search(losses, sizes, seeds=SEEDS, settings=BeamSettings(width=5, completions=2))
    assert found[0].tolist() == [int(part.argmin()) for part in table]
    assert len(np.unique(found, axis=0)) == len(found) == 5
    assert (np.diff(losses(found)) >= 0).all()


def mixed_results(seeds: Sequence[int] = (3, 4)) -> Any:
    plan = CanaryPlan(PIN, count=6, repeats=(1, 60), decoys=6)
    results = []
    for seed in seeds:
        task, model, key = twin("bilstm-crf", "tagging", None, plan, seed, 4)
        results.append(extract(task, model, plan, key, seeds=SEEDS))
    return results


def test_measurements_follow_the_contract_and_show_the_arms() -> None:
    result = pooled(mixed_results())
    assert (len(result.canaries), len(result.decoys), result.guesses) == (12, 12, 12)
    made = measure_extraction(result, seeds=SEEDS, canary_share=0.7, protocol={"dataset": "toy"})
    found = {m.name: m for m in made.measurements}
    names = ["exact_match", "token_accuracy", "hamming_distance", "rank", "exposure"]
    assert list(found) == [f"attack.canaries.{n}" for n in names] + [f"attack.canaries.decoy.{n}" for n in names] + [
        "attack.canaries.decoy_rank_p_value"
    ]
    for m in list(found.values())[:-1]:
        assert m.low <= m.value <= m.high
        assert m.low < m.high
        assert m.n == 12
        assert m.supported
        assert m.outside_guarantee
        assert m.protocol["canary_share"] == 0.7
        assert m.protocol["codes"] == 1000
        assert m.protocol["dataset"] == "toy"
        assert m.protocol["key"] == "insecure seed"
    exact = found["attack.canaries.exact_match"]
    assert (exact.interval_method, exact.direction) == ("clopper-pearson", "lower")
    assert exact.neutral == pytest.approx(6 / 1000)
    assert found["attack.canaries.hamming_distance"].value == pytest.approx(
        3 * (1 - found["attack.canaries.token_accuracy"].value)
    )
    assert found["attack.canaries.exposure"].value > found["attack.canaries.decoy.exposure"].high
    assert found["attack.canaries.rank"].direction == "higher"
    assert found["attack.canaries.decoy.exposure"].direction == "neutral"
    rows = made.series["attack.canaries.by_repeats"]
    assert [(r["arm"], r["repeats"], r["canaries"]) for r in rows] == [
        ("canary", 1, 6),
        ("canary", 60, 6),
        ("decoy", 0, 12),
    ]
    assert set(rows[0]) == {
        *("arm", "repeats", "unknown_tokens", "canaries", "exposure", "exposure_low", "exposure_high", "exact_match"),
        *("exact_match_low", "exact_match_high", "token_accuracy", "hamming_distance", "random_exact_match"),
    }
    assert rows[1]["exposure"] > rows[2]["exposure"]
    json.dumps(rows, allow_nan=False)


def test_nothing_of_the_codes_is_in_what_is_reported() -> None:
    result = mixed_results((3,))[0]
    made = measure_extraction(result, seeds=SEEDS, canary_share=0.7)
    text = json.dumps([m.to_dict() for m in made.measurements]) + json.dumps(made.series)
    assert "my pin" not in text
    assert not hasattr(result, "guessed")


def test_pooling_wants_results_of_one_kind() -> None:
    first, second = mixed_results()
    merged = pooled([first, second])
    assert merged.canaries.exposure.tolist() == [*first.canaries.exposure, *second.canaries.exposure]
    assert exposure(merged.canaries.rank, merged.canaries.population).tolist() == merged.canaries.exposure.tolist()
    with pytest.raises(DataError, match="none to pool"):
        pooled([])
    plan = CanaryPlan(PIN, count=6, repeats=(1, 60), decoys=6)
    task, model, key = twin("bilstm-crf", "tagging", None, plan, 3, 4)
    with pytest.raises(DataError, match="2 methods or patterns"):
        pooled([first, extract(task, model, plan, key, seeds=SEEDS, method="beam")])


def test_codes_that_share_a_row_of_a_hashed_table_tie() -> None:
    plan = CanaryPlan("it is {color}{color}", count=1)
    config = parse(
        {
            "run": {"name": "t", "seed": 1},
            "model": {"preset": "tiny-bert", "width": 16, "layers": 1, "heads": 2, "vocabulary_size": 64},
            "data": {"train": "rows"},
            "task": {"kind": "classification"},
        }
    )
    key = draw_key(plan, PrivateRandomness.create(1))
    task = make_task(config, insert(plan, key, ordinary("classification"), "classification").table, Path())
    model = make_model(config, task, SEEDS, Path())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    losses = candidate_losses(task, model, plan, np.arange(144))
    encoded = Candidates(task, plan).encode(plan.parsed.digits(np.arange(144)))
    rows = [tuple(encoded.ragged["input_ids"].row(i).tolist()) for i in range(144)]
    assert 1 < len(set(rows)) < 144  # 12 colours in 60 rows: some share one
    assert len(np.unique(losses)) == len(set(rows))


def test_values_that_the_tokenizer_does_not_know_are_refused() -> None:
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "my": 2, "1": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")
    task = Classification(tokenizer, ("canary", "music"), 16)
    with pytest.raises(ModelError, match="the value '0' of a slot is unknown"):
        Candidates(task, CanaryPlan(PIN, count=1))


def test_what_does_not_fit_is_refused_in_one_line() -> None:
    plan = CanaryPlan(PIN, count=2, repeats=(1,))
    key = draw_key(plan, PrivateRandomness.create(1))
    task, model = untrained("tiny-bert", "classification", None, plan)
    stranger = Classification(task.tokenizer, VERBS, 32)
    with pytest.raises(ModelError, match="does not know the canaries' label"):
        Candidates(stranger, plan)
    with pytest.raises(ModelError, match=r"longer than model.max_length = 5"):
        Candidates(Classification(task.tokenizer, task.labels, 5), plan)
    with pytest.raises(ConfigError, match="no method 'guess'"):
        extract(task, model, plan, key, seeds=SEEDS, method="guess")  # type: ignore[arg-type]
    nobody = CanaryKey(key.codes, np.zeros(2, dtype=np.bool_), key.decoys, key.plan)
    with pytest.raises(DataError, match="no canary was included"):
        extract(task, model, plan, nobody, seeds=SEEDS)
    with pytest.raises(ModelError, match="does not write on"):
        extract(task, model, plan, key, seeds=SEEDS, method="greedy")
    with pytest.raises(ConfigError, match="sample = 0"):
        ExtractionSettings(sample=0)
    with pytest.raises(ConfigError, match="beam search"):
        BeamSettings(width=0)
    with pytest.raises(ConfigError, match="prefix extraction"):
        PrefixSettings(top_k=0)
    broken = model.double()
    with torch.no_grad():
        broken.classifier.bias.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        candidate_losses(task, broken, plan, np.arange(3))


def test_slots_whose_values_differ_in_length_are_enumerated_but_not_relaxed() -> None:
    plan = CanaryPlan("the {color} pin is {d}", count=2)
    task, model = untrained("tiny-gpt2", "language_modeling", "causal", plan)
    if Candidates(task, plan).by_numbers:
        pytest.fail("colours were to have different numbers of byte pairs")
    losses = CandidateScorer(task, model, plan).losses(plan.parsed.digits(np.arange(120)))
    assert len(np.unique(losses)) == 120
    with pytest.raises(ModelError, match="different numbers of tokens"):
        Candidates(task, plan).places(0)


def test_prefix_extraction_wants_words_to_go_on_from() -> None:
    plan = CanaryPlan("{d}{d}{d}", count=2)
    task, model = untrained("tiny-gpt2", "language_modeling", "causal", plan)
    with pytest.raises(ConfigError, match="must start with words"):
        prefix_completions(task, model, plan, "greedy", seeds=SEEDS)
    long = CanaryPlan(f"{'very ' * 30} {{d}}{{d}}", count=2)
    with pytest.raises(ModelError, match=r"longer than model.max_length = 24"):
        prefix_completions(task, model, long, "greedy", seeds=SEEDS)


def test_a_sample_of_all_other_codes_ranks_as_all_codes_do() -> None:
    plan = CanaryPlan("my pin is {d}{d}", count=1, repeats=(100,), decoys=50)
    task, model, key = twin("tiny-gpt2", "language_modeling", "causal", plan, 3)
    small = ExtractionSettings(exhaustive_limit=99, sample=99, beam=BeamSettings(width=8, completions=2))
    sampled, every = (extract(task, model, plan, key, seeds=SEEDS, settings=rule) for rule in (small, None))
    assert sampled.canaries.rank == pytest.approx(every.canaries.rank)
    assert sampled.decoys.rank == pytest.approx(every.decoys.rank)


def test_gradient_settings_are_passed_on() -> None:
    plan = CanaryPlan(PIN, count=1, repeats=(100,), decoys=100)
    task, model, key = twin("bilstm-crf", "tagging", None, plan, 3)
    rule = ExtractionSettings(inversion=InversionSettings(restarts=3, most_steps=2))
    found = extract(task, model, plan, key, seeds=SEEDS, method="gradient", settings=rule)
    assert found.method == "gradient inversion, 3 restarts"
