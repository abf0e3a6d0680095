"""Signals: one pass over a table, names of attacks, rows without a target, models that learnt by heart."""

from __future__ import annotations

import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from contracts.task_tables import TABLES
from troth.attacks.roc import auc
from troth.attacks.scores import modified_entropy_scores
from troth.attacks.signals import Signals, available, signal_scores, signals_of
from troth.attacks.token_attacks import margin_scores, min_k_plus_plus_scores, min_k_scores, zlib_scores
from troth.config import parse
from troth.data import Table, from_rows
from troth.errors import DataError
from troth.seeds import PublicSeeds
from troth.tasks import Task, make_model, make_task
from troth.tasks.presets import preset_tokenizer
from troth.tasks.token_scores import TokenScores

PRESET = {
    "classification": "tiny-bert",
    "tagging": "bilstm-crf",
    "question_answering": "tiny-bert",
    "seq2seq": "tiny-t5",
    "language_modeling": "tiny-gpt2",
}
NAMES = {
    "classification": ("loss", "modified_entropy"),
    "tagging": ("loss", "margin", "min_k", "min_k_plus_plus"),
    "question_answering": ("loss", "min_k", "min_k_plus_plus"),
    "seq2seq": ("loss", "zlib", "min_k", "min_k_plus_plus"),
    "language_modeling": ("loss", "zlib", "min_k", "min_k_plus_plus"),
}


def made_for(kind: str, table: Table, **shape: object) -> tuple[Task, PreTrainedModel]:
    model = {"preset": PRESET[kind], "width": 32, "layers": 1, "max_length": 40, **shape}
    config = parse({"run": {"name": "t"}, "model": model, "data": {"train": "rows"}, "task": {"kind": kind}})
    task = make_task(config, table, Path())
    return task, make_model(config, task, PublicSeeds(3), Path()).eval()


@cache
def signals(kind: str) -> Signals:
    task, model = made_for(kind, TABLES[kind])
    return signals_of(task, model, TABLES[kind], batch_size=7)


@pytest.mark.parametrize("kind", PRESET)
def test_each_kind_of_task_has_its_attacks(kind: str) -> None:
    found = signals(kind)
    assert available(found) == NAMES[kind]
    assert len(found) == len(TABLES[kind])
    for name in available(found):
        scores = signal_scores(name, found)
        assert scores.shape == (len(found),)
        assert np.isfinite(scores).all()


def test_scores_are_those_of_the_array_functions() -> None:
    classifier, tagger, language = (signals(kind) for kind in ("classification", "tagging", "language_modeling"))
    np.testing.assert_array_equal(signal_scores("loss", tagger), -tagger.losses)
    logs, labels = classifier.log_probabilities, classifier.labels
    assert logs is not None and labels is not None
    np.testing.assert_array_equal(signal_scores("modified_entropy", classifier), modified_entropy_scores(logs, labels))
    np.testing.assert_allclose(-logs[np.arange(len(labels)), labels], classifier.losses)
    words, tokens = tagger.tokens, language.tokens
    assert words is not None and tokens is not None
    margins = margin_scores(words.offsets, words.margins, tagger.entities)
    np.testing.assert_array_equal(signal_scores("margin", tagger), margins)
    assert (margins != margin_scores(words.offsets, words.margins)).any()
    sizes, logs = language.compressed_bytes, tokens.log_probabilities
    assert sizes is not None
    np.testing.assert_array_equal(signal_scores("zlib", language), zlib_scores(tokens.offsets, logs, sizes))
    np.testing.assert_array_equal(signal_scores("min_k", language), min_k_scores(tokens.offsets, logs))
    standardised = min_k_plus_plus_scores(tokens.offsets, logs, tokens.means, tokens.deviations)
    np.testing.assert_array_equal(signal_scores("min_k_plus_plus", language), standardised)


def test_compressed_bytes_are_of_the_text_that_is_predicted() -> None:
    texts = TABLES["seq2seq"].column("target")
    assert signals("seq2seq").compressed_bytes.tolist() == [len(zlib.compress(text.encode(), 6)) for text in texts]
    assert signals("classification").compressed_bytes is None


def test_entities_are_the_words_whose_own_tag_is_not_outside() -> None:
    tags = [tag for row in TABLES["tagging"].column("tags") for tag in row]
    assert signals("tagging").entities.tolist() == [tag != "O" for tag in tags]


def test_rows_are_taken_with_their_tokens_and_entities() -> None:
    rows = np.array([3, 0, 7])
    task, model = made_for("tagging", TABLES["tagging"])
    alone, taken = signals_of(task, model, TABLES["tagging"].take(rows)), signals("tagging").take(rows)
    np.testing.assert_array_equal(taken.entities, alone.entities)
    for name in available(taken):
        np.testing.assert_allclose(signal_scores(name, taken), signal_scores(name, alone), rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(signal_scores(name, taken), signal_scores(name, signals("tagging"))[rows])
    classes = signals("classification").take(rows)
    assert classes.labels.tolist() == signals("classification").labels[rows].tolist()


def test_scores_that_are_there_already_are_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    task, model = made_for("tagging", TABLES["tagging"])
    with_tokens, without = (task.score(model, TABLES["tagging"], tokens=tokens) for tokens in (True, False))
    monkeypatch.setattr(type(task), "score", lambda *_, **__: pytest.fail("scored again"))
    assert available(signals_of(task, model, TABLES["tagging"], scores=with_tokens)) == NAMES["tagging"]
    assert available(signals_of(task, model, TABLES["tagging"], scores=without)) == ("loss",)
    with pytest.raises(DataError, match="scores of 24 rows for a table of 3"):
        signals_of(task, model, TABLES["tagging"].take(np.arange(3)), scores=without)


def test_rows_with_nothing_to_predict_are_kept_and_have_no_score() -> None:
    rows = [{"text": "play jazz", "label": "music"}, {"text": "play jazz", "label": "never seen"}]
    task, model = made_for("classification", TABLES["classification"])
    found = signals_of(task, model, from_rows(rows, "rows"))
    assert found.usable.tolist() == [True, False]
    for name in available(found):
        assert np.isnan(signal_scores(name, found)).tolist() == [False, True]
    tagged = [{"tokens": ["play"], "tags": ["never seen"]}, {"tokens": ["play", "it"], "tags": ["B-ACT", "O"]}]
    task, model = made_for("tagging", TABLES["tagging"])
    found = signals_of(task, model, from_rows(tagged, "rows"))
    assert found.usable.tolist() == [False, True]
    for name in available(found):
        assert np.isnan(signal_scores(name, found)).tolist() == [True, False]


def test_a_table_without_labels_has_no_scores_that_want_them() -> None:
    task, model = made_for("classification", TABLES["classification"])
    found = signals_of(task, model, from_rows([{"text": "play jazz"}] * 2, "rows"))
    assert available(found) == ("loss",)
    assert not found.usable.any()


def test_unknown_and_unavailable_attacks_are_refused_with_what_is_there() -> None:
    with pytest.raises(DataError, match=r"'entropy' here; with these signals: loss, modified_entropy$"):
        signal_scores("entropy", signals("classification"))
    with pytest.raises(DataError, match=r"min_k wants .*; with these: loss, modified_entropy$"):
        signal_scores("min_k", signals("classification"))


def test_signals_of_arrays_need_no_model() -> None:
    tokens = TokenScores(np.array([0, 2, 3]), np.array([-1.0, -2.0, -3.0]), *np.zeros((3, 3)))
    found = Signals(np.array([1.5, 3.0]), tokens=tokens, compressed_bytes=np.array([10, 10]))
    assert available(found) == ("loss", "zlib", "min_k", "min_k_plus_plus")
    assert signal_scores("zlib", found).tolist() == [-0.3, -0.3]


# Known answers: models that learnt random rows by heart.

MEMBERS = 40
_WORDS = [f"word{number}" for number in range(60)]


@cache
def language_words() -> list[str]:
    """Words that are one token each, so that what follows one of them can be learnt by heart in a few steps."""
    entries = preset_tokenizer("tiny-gpt2", 40).get_vocab()
    return sorted(entry[1:] for entry in entries if entry.startswith("\u0120") and entry[1:].isalpha())


def random_table(kind: str, rows: int = 2 * MEMBERS) -> Table:
    generator = np.random.default_rng(4)
    texts = [[str(word) for word in generator.choice(_WORDS, 8, replace=False)] for _ in range(rows)]
    if kind == "tagging":
        tags = ["O", *(f"B-{name}" for name in "ABCDEFG")]
        made = [{"tokens": words, "tags": [str(tag) for tag in generator.choice(tags, 8)]} for words in texts]
    elif kind == "classification":
        made = [{"text": " ".join(words), "label": str(generator.integers(20))} for words in texts]
    else:
        made = [{"text": " ".join(generator.choice(language_words(), 8))} for _ in texts]
    return from_rows(made, "random rows")


def learn_by_heart(task: Task, model: PreTrainedModel, table: Table, steps: int) -> None:
    encoded = task.encode(table)
    batch = task.collate(encoded, np.arange(len(table)))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        task.per_example_loss(model, batch).mean().backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("kind", "steps", "also"),
    [
        ("classification", 60, ("modified_entropy",)),
        ("tagging", 60, ("margin", "min_k")),
        ("language_modeling", 25, ("zlib", "min_k", "min_k_plus_plus")),
    ],
)
def test_a_model_that_learnt_by_heart_is_found_out(kind: str, steps: int, also: tuple[str, ...]) -> None:
    table = random_table(kind)
    task, model = made_for(kind, table)
    learn_by_heart(task, model, table.take(np.arange(MEMBERS)), steps)
    found = signals_of(task, model, table)
    assert found.usable.all()
    areas = {name: auc(*np.split(signal_scores(name, found), 2)).value for name in ("loss", *also)}
    assert areas["loss"] >= 0.99, areas
    assert min(areas.values()) >= 0.95, areas


@pytest.mark.parametrize("kind", ["classification", "tagging", "language_modeling"])
def test_a_model_that_learnt_nothing_of_them_tells_nothing(kind: str) -> None:
    table = random_table(kind, 200)
    task, model = made_for(kind, table)
    found = signals_of(task, model, table)
    for name in available(found):
        area = auc(*np.split(signal_scores(name, found), 2), confidence=0.9999)
        assert area.interval.low <= 0.5 <= area.interval.high, name
