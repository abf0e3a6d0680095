"""Token scores: every task's against naive loops over its own logits, row by row; nothing else of `score` changes."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from contracts.task_tables import TABLES
from troth.config import parse
from troth.data import Table, from_rows
from troth.seeds import PublicSeeds
from troth.tasks import Task, make_model, make_task
from troth.tasks.language_modeling import SCORING_DRAW
from troth.tasks.token_scores import TokenGathering, TokenScores, token_statistics

CASES = {
    "tagger": ("tagging", "tiny-bert", None),
    "crf tagger": ("tagging", "bilstm-crf", None),
    "question answering": ("question_answering", "tiny-bert", None),
    "seq2seq": ("seq2seq", "tiny-t5", None),
    "causal": ("language_modeling", "tiny-gpt2", None),
    "masked": ("language_modeling", "tiny-bert", "masked"),
}
COLUMNS = ("log_probabilities", "means", "deviations", "margins")


@cache
def case(name: str) -> tuple[Task, PreTrainedModel, Table]:
    """A small preset with noise on its weights: some start at zero, where nothing depends on the text."""
    kind, preset, objective = CASES.get(name, ("classification", "tiny-bert", None))
    task = {"kind": kind} | ({"objective": objective} if objective else {})
    shape: dict[str, object] = {"preset": preset, "width": 16, "max_length": 40, "layers": 1}
    config = parse({"run": {"name": "t"}, "model": shape, "data": {"train": "rows"}, "task": task})
    made = make_task(config, TABLES[kind], Path())
    model = make_model(config, made, PublicSeeds(3), Path()).eval()
    noise = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=noise))
    return made, model, TABLES[kind]


def naive_statistics(logits: list[float], gold: int) -> tuple[float, float, float, float]:
    peak = max(logits)
    total = peak + math.log(sum(math.exp(x - peak) for x in logits))
    logs = [x - total for x in logits]
    mean = sum(math.exp(x) * x for x in logs if x > -math.inf)
    square = sum(math.exp(x) * x * x for x in logs if x > -math.inf)
    others = [x for place, x in enumerate(logs) if place != gold]
    return logs[gold], mean, math.sqrt(max(0.0, square - mean**2)), logs[gold] - max(others)


def naive(name: str) -> list[list[tuple[float, float, float, float]]]:
    """Each row's statistics, the row alone in its batch."""
    made, model, table = case(name)
    encoded, rows = made.encode(table), []
    for row in range(len(table)):
        batch = made.collate(encoded, np.array([row]), draw=SCORING_DRAW)
        with torch.no_grad():
            if made.kind == "tagging":
                logits, labels = made.token_log_probabilities(model, batch), batch["labels"]
            elif made.kind == "question_answering":
                logits = torch.stack(made._logits(model, batch), 1)
                labels = torch.stack([batch["start_positions"], batch["end_positions"]], 1)
            elif made.kind == "seq2seq":
                logits, labels = made._logits(model, batch), batch["labels"]
            else:
                logits, labels = made.aligned(model, batch)
        pairs = zip(logits[0].double().tolist(), labels[0].tolist(), strict=True)
        rows.append([naive_statistics(values, gold) for values, gold in pairs if gold >= 0])
    return rows


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_those_of_naive_loops_over_each_row_alone(name: str) -> None:
    made, model, table = case(name)
    tokens = made.score(model, table, batch_size=7, tokens=True).tokens
    expected = naive(name)
    assert tokens is not None
    assert len(tokens) == len(table)
    assert tokens.lengths.tolist() == [len(row) for row in expected]
    assert tokens.lengths.min() >= 1
    flat = np.array([values for row in expected for values in row])
    for column, values in zip(COLUMNS, flat.T, strict=True):
        found = getattr(tokens, column)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, values, atol=1e-4, rtol=1e-4)  # float32 logits in another order
    assert flat.std(0).min() > 1e-3


@pytest.mark.parametrize("name", [*CASES, "classifier"])
def test_asking_for_tokens_changes_nothing_else(name: str) -> None:
    made, model, table = case(name)
    plain, asked = made.score(model, table), made.score(model, table, tokens=True)
    assert plain.tokens is None
    assert (asked.tokens is None) == (made.kind == "classification")
    np.testing.assert_array_equal(asked.losses, plain.losses)
    np.testing.assert_array_equal(asked.correct, plain.correct)
    assert asked.detail.keys() == plain.detail.keys()
    for key, values in plain.detail.items():
        np.testing.assert_array_equal(asked.detail[key], values)


@pytest.mark.parametrize("name", ["tagger", "seq2seq", "causal", "masked", "question answering"])
def test_losses_are_made_of_the_tokens(name: str) -> None:
    made, model, table = case(name)
    scores = made.score(model, table, tokens=True)
    assert scores.tokens is not None
    offsets = scores.tokens.offsets
    nats = -np.add.reduceat(scores.tokens.log_probabilities, offsets[:-1])
    per_row = 1 if made.kind == "question_answering" else scores.tokens.lengths
    np.testing.assert_allclose(nats / per_row, scores.losses, rtol=1e-5)


def test_a_crf_taggers_tokens_are_marginals_and_its_loss_the_paths() -> None:
    made, model, table = case("crf tagger")
    scores = made.score(model, table, tokens=True)
    assert scores.tokens is not None
    sums = -np.add.reduceat(scores.tokens.log_probabilities, scores.tokens.offsets[:-1])
    assert np.abs(sums / scores.tokens.lengths - scores.losses).max() > 1e-3


def test_tags_that_are_unknown_or_cut_have_no_token() -> None:
    made, model, _ = case("tagger")
    rows = [
        {"tokens": ["play", "jazz"], "tags": ["B-NEW", "O"]},
        {"tokens": ["it"], "tags": ["B-NEW"]},
        {"tokens": ["now"] * 60, "tags": ["O"] * 60},
    ]
    tokens = made.score(model, from_rows(rows, "rows"), tokens=True).tokens
    assert tokens is not None
    assert tokens.lengths[:2].tolist() == [1, 0]
    assert 0 < tokens.lengths[2] <= 40


@pytest.mark.parametrize(
    ("name", "row"), [("tagger", {"tokens": ["play", "it"]}), ("seq2seq", {"source": "play some jazz"})]
)
def test_rows_without_targets_have_no_tokens(name: str, row: dict[str, object]) -> None:
    made, model, _ = case(name)
    tokens = made.score(model, from_rows([row] * 3, "rows"), tokens=True).tokens
    assert tokens is not None
    assert tokens.offsets.tolist() == [0, 0, 0, 0]
    assert len(tokens.margins) == 0


@settings(deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=2, max_size=6), st.integers(0, 5))
def test_statistics_are_those_of_a_naive_loop(logits: list[float], gold: int) -> None:
    gold %= len(logits)
    found = token_statistics(torch.tensor([logits], dtype=torch.float64), torch.tensor([gold]))[0].tolist()
    expected = naive_statistics(logits, gold)
    assert found[0] == pytest.approx(expected[0], abs=1e-9)
    assert found[1] == pytest.approx(expected[1], abs=1e-9)
    assert found[2] == pytest.approx(expected[2], abs=1e-5)  # the naive one subtracts squares
    assert found[3] == pytest.approx(expected[3], abs=1e-9)


def test_impossible_classes_and_certainty_give_finite_numbers() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 1.0], [-torch.inf, 0.0, -torch.inf], [0.0, -9e4, -torch.inf]])
    found = token_statistics(logits, torch.tensor([0, 1, 1]))
    assert torch.isfinite(found).all()
    expected = naive_statistics([0.0, -math.inf, 1.0], 0)
    np.testing.assert_allclose(found[0], expected, atol=1e-12)
    np.testing.assert_allclose(found[1], 0, atol=1e-100)
    assert found[2, 0] == pytest.approx(math.log(np.finfo(np.float64).tiny))
    assert token_statistics(torch.tensor([[3.0]]), torch.tensor([0])).tolist() == [[0, 0, 0, 0]]


def test_large_vocabularies_in_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made, model, table = case("causal")
    whole = made.score(model, table, tokens=True).tokens
    monkeypatch.setattr("troth.tasks.token_scores._AT_ONCE", 1)
    pieces = made.score(model, table, tokens=True).tokens
    assert whole is not None and pieces is not None
    np.testing.assert_allclose(pieces.means, whole.means, rtol=1e-12)


def test_batches_come_in_any_order_and_rows_may_be_left_out() -> None:
    generator = torch.Generator().manual_seed(0)
    gathered = TokenGathering()
    expected: dict[int, np.ndarray] = {}
    for rows in ([4, 0], [5], [1, 3]):
        logits = torch.randn(len(rows), 3, 4, generator=generator, dtype=torch.float64)
        labels = torch.randint(-1, 4, (len(rows), 3), generator=generator)
        labels[labels < 0] = -100
        gathered.add(np.array(rows), logits, labels)
        for place, row in enumerate(rows):
            chosen = labels[place] >= 0
            expected[row] = token_statistics(logits[place][chosen], labels[place][chosen]).numpy()
    scores = gathered.scores(6)
    assert scores.lengths[2] == 0
    for row, values in expected.items():
        where = slice(scores.offsets[row], scores.offsets[row + 1])
        for column, wanted in zip(COLUMNS, values.T, strict=True):
            np.testing.assert_array_equal(getattr(scores, column)[where], wanted)


def test_nothing_gathered_is_a_table_without_tokens() -> None:
    assert TokenGathering().scores(3).offsets.tolist() == [0, 0, 0, 0]


def test_rows_are_taken_in_any_order_and_more_than_once() -> None:
    numbers = np.arange(6.0)
    scores = TokenScores(np.array([0, 2, 2, 5, 6]), numbers, numbers + 10, numbers + 20, numbers + 30)
    found = scores.take(np.array([2, 1, 0, 2]))
    assert found.offsets.tolist() == [0, 3, 3, 5, 8]
    assert found.log_probabilities.tolist() == [2, 3, 4, 0, 1, 2, 3, 4]
    assert found.margins.tolist() == [32, 33, 34, 30, 31, 32, 33, 34]
