"""Classification: macro-F1 against scikit-learn, unseen labels, a diverged model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from transformers import BertConfig, BertForSequenceClassification

from contracts.stock_checkpoints import bert_tokenizer
from troth.data import from_rows
from troth.errors import ModelError
from troth.seeds import PublicSeeds
from troth.tasks import Classification, Scores, TaskScorer

LABELS = ("lights", "music", "weather")


def task() -> Classification:
    return Classification(bert_tokenizer(), LABELS, 32)


def model() -> BertForSequenceClassification:
    tokens = len(bert_tokenizer())
    config = BertConfig(
        vocab_size=tokens,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BertForSequenceClassification(config)


TABLE = from_rows(
    [{"text": text, "label": label} for text, label in [("lights on", "lights"), ("play jazz", "music")] * 8]
    + [{"text": "call mom", "label": "call"}, {"text": "set a timer", "label": "timer"}],
    "rows",
)


def test_unseen_labels_are_wrong_counted_and_out_of_the_loss() -> None:
    made = task()
    scores = made.score(model(), TABLE)
    assert np.isnan(scores.losses[-2:]).all()
    assert np.isfinite(scores.losses[:-2]).all()
    assert (scores.correct[-2:] == 0).all()
    accuracy, f1, loss = made.measure(scores, TABLE, prefix="test", seeds=PublicSeeds(0), outside_guarantee=False)
    assert accuracy.value == pytest.approx(scores.correct.sum() / 18)
    assert (accuracy.n, f1.n, loss.n) == (18, 18, 16)
    assert {m.protocol["unseen_labels"] for m in (accuracy, f1, loss)} == {2}
    assert loss.protocol["rows_without_loss"] == 2
    assert loss.value == pytest.approx(scores.losses[:-2].mean())
    predicted = [LABELS[code] for code in scores.detail["prediction"]]
    assert f1.value == pytest.approx(f1_score(TABLE.column("label"), predicted, average="macro", zero_division=0))


def test_log_probabilities_are_normalised_and_hold_the_losses() -> None:
    scores = task().score(model(), TABLE)
    assert scores.log_probabilities is not None
    np.testing.assert_allclose(np.exp(scores.log_probabilities).sum(axis=1), 1)
    gold = [LABELS.index(label) for label in TABLE.column("label")[:-2]]
    np.testing.assert_allclose(-scores.log_probabilities[np.arange(16), gold], scores.losses[:16])


def test_a_table_without_labels_can_be_scored() -> None:
    unlabelled = from_rows([{"text": text} for text in TABLE.column("text")], "texts")
    scores = task().score(model(), unlabelled)
    assert np.isnan(scores.losses).all()
    np.testing.assert_array_equal(scores.log_probabilities, task().score(model(), TABLE).log_probabilities)


def test_a_diverged_model_has_no_loss_rather_than_one_over_finite_rows() -> None:
    scores = task().score(model(), TABLE)
    losses = scores.losses.copy()
    losses[3] = np.nan
    loss = task().measure(
        replace(scores, losses=losses), TABLE, prefix="test", seeds=PublicSeeds(0), outside_guarantee=False
    )[-1]
    assert (loss.value, loss.low, loss.high, loss.supported) == (None, None, None, False)


def test_a_bootstrap_over_a_handful_of_rows_is_not_supported() -> None:
    few = TABLE.take(range(4))
    scores = task().score(model(), few)
    accuracy, f1, _ = task().measure(scores, few, prefix="test", seeds=PublicSeeds(0), outside_guarantee=False)
    assert accuracy.supported
    assert not f1.supported


def test_the_scorer_gives_what_the_task_scores() -> None:
    network = model()
    scorer, scores = TaskScorer(task(), network), task().score(network, TABLE)
    assert scorer.has() == {"losses", "log_probabilities"}
    np.testing.assert_array_equal(scorer.losses(TABLE), scores.losses)
    np.testing.assert_array_equal(scorer.log_probabilities(TABLE), scores.log_probabilities)


def test_a_scorer_without_classes_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    made = task()
    monkeypatch.setattr(Classification, "kind", "tagging")
    monkeypatch.setattr(Classification, "score", lambda *_, **__: Scores(np.zeros(1), np.zeros(1)))
    scorer = TaskScorer(made, model())
    assert scorer.has() == {"losses"}
    with pytest.raises(ModelError, match="no log_probabilities"):
        scorer.log_probabilities(TABLE)


def test_labels_are_numbered_in_the_tasks_order_and_unseen_ones_are_minus_one() -> None:
    encoded = task().encode(TABLE)
    assert encoded.scalars["labels"].tolist() == [0, 1] * 8 + [-1, -1]
