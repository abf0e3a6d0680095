"""Sums over devices: equal to what one table of all rows gives, by scikit-learn, seqeval and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from seqeval import metrics as seqeval
from sklearn import metrics as sklearn

from troth.errors import DataError
from troth.federated.evaluation import (
    CONFIDENCE_BINS,
    DeviceStatistics,
    Ratio,
    device_statistics,
    gold_codes,
    row_ratios,
    score_bins,
    take_scores,
)
from troth.federated.pooled_figures import Pooled, calibration_error, macro_scores, roc_area
from troth.tasks.macro_f1 import Confusion, macro_f1
from troth.tasks.spans import spans
from troth.tasks.task import Scores
from troth.tasks.token_scores import TokenScores

DEVICES = 40


def owners(rows: int, seed: int = 0) -> np.ndarray:
    """Return devices of Zipf sizes; several hold nothing."""
    return np.minimum(np.random.default_rng(seed).zipf(1.4, rows), DEVICES) - 1


def classified(rows: int = 400, labels: int = 4, seed: int = 0, unseen: float = 0.05) -> tuple[Scores, np.ndarray]:
    """Return scores of a model of `labels` classes, and gold labels of which some are `labels` and `labels` + 1."""
    rng = np.random.default_rng(seed)
    gold = np.where(rng.random(rows) < unseen, rng.integers(labels, labels + 2, rows), rng.integers(0, labels, rows))
    logits = rng.normal(size=(rows, labels)) * 2
    known = np.flatnonzero(gold < labels)
    logits[known, gold[known]] += 1.5
    logs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    prediction, losses = logs.argmax(axis=1), np.full(rows, np.nan)
    losses[known] = -logs[known, gold[known]]
    return Scores(losses, (prediction == gold).astype(float), logs, {"prediction": prediction}), gold


def of(scores: Scores, gold: np.ndarray, devices: np.ndarray | None = None, **more: object) -> DeviceStatistics:
    owner = owners(len(scores)) if devices is None else devices
    return device_statistics(scores, owner, DEVICES, kind="classification", gold=gold, **more)


def same(one: DeviceStatistics, two: DeviceStatistics) -> None:
    np.testing.assert_array_equal(one.rows, two.rows)
    assert set(one.ratios) == set(two.ratios)
    for name, ratio in one.ratios.items():
        np.testing.assert_allclose(ratio.parts, two.ratios[name].parts, rtol=1e-12)
        np.testing.assert_array_equal(ratio.wholes, two.ratios[name].wholes)
    for name in ("confusion", "scores"):
        np.testing.assert_array_equal(getattr(one, name).toarray(), getattr(two, name).toarray())
    np.testing.assert_allclose(one.calibration, two.calibration, rtol=1e-12)


def figures(statistics: DeviceStatistics) -> dict[str, Pooled]:
    found = [*macro_scores(statistics.confusion, statistics.confusion), calibration_error(statistics.calibration)]
    area = None if statistics.scores is None else roc_area(statistics.scores)
    return {pooled.name: pooled for pooled in (*found, area) if pooled is not None}


@pytest.mark.parametrize("seed", range(4))
def test_classification_equals_scikit_learn_on_all_rows(seed: int) -> None:
    scores, gold = classified(seed=seed)
    found = of(scores, gold, labels=4, positive=1)
    total, predicted = found.total(), scores.detail["prediction"]
    accuracy = total.ratios["accuracy"]
    assert accuracy.parts[0] / accuracy.wholes[0] == sklearn.accuracy_score(gold, predicted)
    made = figures(found)
    precision, recall, f1, _ = sklearn.precision_recall_fscore_support(
        gold, predicted, average="macro", zero_division=0
    )
    assert made["macro_precision"].value == pytest.approx(precision, abs=1e-15)
    assert made["macro_recall"].value == pytest.approx(recall, abs=1e-15)
    assert made["macro_f1"].value == pytest.approx(f1, abs=1e-15)
    assert made["macro_f1"].value == pytest.approx(macro_f1(Confusion.of(gold, predicted)), abs=1e-15)
    matrix = sklearn.confusion_matrix(gold, predicted, labels=np.arange(6))
    right, taken, true = found.confusion.sum(axis=0).reshape(3, -1)
    np.testing.assert_array_equal(np.c_[right, taken, true], np.c_[matrix.diagonal(), matrix.sum(0), matrix.sum(1)])
    loss = total.ratios["loss"]
    assert loss.wholes[0] == (gold < 4).sum()
    assert loss.parts[0] / loss.wholes[0] == pytest.approx(
        sklearn.log_loss(gold[gold < 4], np.exp(scores.log_probabilities[gold < 4]), labels=np.arange(4)), rel=1e-12
    )


@pytest.mark.parametrize("seed", range(6))
def test_the_roc_area_is_within_its_bound_of_scikit_learns(seed: int) -> None:
    scores, gold = classified(rows=300, labels=3, seed=seed, unseen=0.0)
    scale = 10.0 ** (seed - 3)  # from scores that share few bins to scores beyond the outer ones
    logs = scores.log_probabilities * scale
    logs -= np.logaddexp.reduce(logs, axis=1, keepdims=True)
    changed = Scores(scores.losses, scores.correct, logs, scores.detail)
    area = roc_area(of(changed, gold, positive=2).scores)
    odds = logs[:, 2] - np.logaddexp(logs[:, 0], logs[:, 1])
    exact = sklearn.roc_auc_score(gold == 2, odds)
    assert abs(area.value - exact) <= area.bound + 1e-12
    places = score_bins(odds)
    pairs = (places[gold == 2][:, None] == places[gold != 2][None, :]).mean()
    assert area.bound == pytest.approx(pairs / 2)
    assert (area.bound < 0.02) == (seed in (3, 4))


def test_the_bound_is_reached_and_bins_that_no_pair_shares_lose_nothing() -> None:
    logs = np.log([[0.49, 0.51], [0.4899, 0.5101]])
    scores = Scores(np.ones(2), np.ones(2), logs, {"prediction": np.zeros(2, dtype=int)})
    area = roc_area(of(scores, np.array([0, 1]), np.zeros(2, dtype=int)).scores)
    assert (area.value, area.bound) == (0.5, 0.5)  # the area of the rows is 1
    apart = Scores(np.ones(2), np.ones(2), np.log([[0.9, 0.1], [0.2, 0.8]]), scores.detail)
    area = roc_area(of(apart, np.array([0, 1]), np.zeros(2, dtype=int)).scores)
    assert (area.value, area.bound) == (1.0, 0.0)
    assert roc_area(of(apart, np.array([1, 1]), np.zeros(2, dtype=int)).scores) is None


def test_bins_never_turn_scores_round() -> None:
    odds = np.sort(np.r_[-np.inf, np.random.default_rng(0).normal(scale=8, size=500), np.inf])
    places = score_bins(odds)
    assert (np.diff(places) >= 0).all() and places[0] == 0 and places[-1] == 399


def test_calibration_error_by_hand() -> None:
    scores, gold = classified(seed=3)
    error = figures(of(scores, gold))["calibration_error"]
    confidence, total = np.exp(scores.log_probabilities).max(axis=1), 0.0
    for place in range(CONFIDENCE_BINS):
        low, high = place / CONFIDENCE_BINS, (place + 1) / CONFIDENCE_BINS
        rows = (confidence > low) & (confidence <= high)
        if rows.any():
            total += rows.mean() * abs(scores.correct[rows].mean() - confidence[rows].mean())
    assert error.value == pytest.approx(total, abs=1e-12)
    sure = Scores(np.zeros(4), np.ones(4), np.log([[1.0, 1e-300]] * 4), {"prediction": np.zeros(4, dtype=int)})
    assert figures(of(sure, np.zeros(4, dtype=int), np.arange(4)))["calibration_error"].value == 0.0


def test_sums_of_each_device_are_those_of_its_rows_alone() -> None:
    scores, gold = classified()
    owner = owners(len(scores))
    found = of(scores, gold, owner, labels=4, positive=0)
    assert (found.rows == np.bincount(owner, minlength=DEVICES)).all() and (found.rows == 0).any()
    for device in np.unique(owner):
        rows = np.flatnonzero(owner == device)
        alone = device_statistics(
            take_scores(scores, rows),
            np.zeros(len(rows), dtype=int),
            1,
            kind="classification",
            gold=gold[rows],
            labels=6,
            positive=0,
        )
        same(found.take(np.array([device])), alone)


def test_statistics_add_up_in_any_order_and_any_parts() -> None:
    scores, gold = classified(seed=1)
    owner, order = owners(len(scores)), np.random.default_rng(5).permutation(len(scores))
    whole = of(scores, gold, owner, labels=6, positive=0)
    same(whole, of(take_scores(scores, order), gold[order], owner[order], labels=6, positive=0))
    halves = [np.arange(150), np.arange(150, len(scores))]
    first, second = (of(take_scores(scores, h), gold[h], owner[h], labels=6, positive=0) for h in halves)
    same(whole, first + second)
    one = of(scores, gold, np.zeros(len(scores), dtype=int), labels=6, positive=0).take(np.array([0]))
    same(whole.total(), one)
    for name, pooled in figures(whole).items():
        assert pooled.value == pytest.approx(figures(whole.total())[name].value, abs=1e-12)


def test_devices_without_rows_are_told_apart() -> None:
    scores, gold = classified()
    found = of(scores, gold).with_rows()
    assert len(found) == len(np.unique(owners(len(scores)))) and (found.rows > 0).all()
    assert len(found.confusion.toarray()) == len(found)


TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def tagged(rows: int = 120) -> tuple[Scores, list[list[str]], list[list[str]]]:
    rng = np.random.default_rng(2)
    gold = [rng.choice(TAGS, rng.integers(1, 9)).tolist() for _ in range(rows)]
    found = [[tag if rng.random() < 0.7 else str(rng.choice(TAGS)) for tag in row] for row in gold]
    detail = {"true_positives": [], "predicted": [], "gold": [], "right": [], "words": [], "labelled": []}
    for want, have in zip(gold, found, strict=True):
        detail["true_positives"].append(len(spans(want) & spans(have)))
        detail["predicted"].append(len(spans(have)))
        detail["gold"].append(len(spans(want)))
        detail["right"].append(sum(a == b for a, b in zip(want, have, strict=True)))
        detail["words"].append(len(want))
        detail["labelled"].append(len(want) if rng.random() < 0.9 else 0)
    arrays = {name: np.array(values) for name, values in detail.items()}
    losses = np.where(arrays["labelled"] > 0, rng.random(rows), np.nan)
    prediction = np.empty(rows, dtype=object)
    prediction[:] = found
    scores = Scores(losses, arrays["right"] / arrays["words"], None, {**arrays, "prediction": prediction})
    return scores, gold, found


def test_spans_equal_seqeval_on_all_rows() -> None:
    scores, gold, predicted = tagged()
    total = device_statistics(scores, owners(len(scores)), DEVICES, kind="tagging").total()
    rates = {name: float(ratio.rates[0]) for name, ratio in total.ratios.items()}
    assert rates["span_f1"] == pytest.approx(seqeval.f1_score(gold, predicted), abs=1e-15)
    assert rates["span_precision"] == pytest.approx(seqeval.precision_score(gold, predicted), abs=1e-15)
    assert rates["span_recall"] == pytest.approx(seqeval.recall_score(gold, predicted), abs=1e-15)
    assert rates["token_accuracy"] == pytest.approx(seqeval.accuracy_score(gold, predicted), abs=1e-15)
    assert rates["loss"] == pytest.approx(np.nanmean(scores.losses), rel=1e-12)
    assert total.confusion is None and total.calibration is None and total.scores is None


def test_the_other_tasks_by_hand() -> None:
    rng = np.random.default_rng(3)
    rows, tokens = 50, rng.integers(0, 9, 50)
    nats = rng.random(rows) * tokens
    losses = np.divide(nats, tokens, out=np.full(rows, np.nan), where=tokens > 0)
    detail = {"nats": nats, "tokens": tokens, "right": rng.integers(0, tokens + 1)}
    found = device_statistics(
        Scores(losses, np.zeros(rows), None, detail), owners(rows), DEVICES, kind="language_modeling"
    )
    rates = {name: float(ratio.rates[0]) for name, ratio in found.total().ratios.items()}
    assert rates["perplexity"] == pytest.approx(nats.sum() / tokens.sum(), rel=1e-12)
    assert rates["token_accuracy"] == detail["right"].sum() / tokens.sum()
    assert rates["loss"] == pytest.approx(np.nanmean(losses), rel=1e-12)
    share, hits = rng.random(rows), (rng.random(rows) < 0.5).astype(float)
    for kind, name in (("question_answering", "f1"), ("seq2seq", "rouge_l")):
        texts = np.full(rows, "text", dtype=object)
        other = Scores(share, hits, None, {name: share, "prediction": texts})
        ratios = device_statistics(other, owners(rows), DEVICES, kind=kind).total().ratios
        assert set(ratios) == {name, "exact_match", "loss"}
        assert float(ratios[name].rates[0]) == pytest.approx(share.mean(), rel=1e-12)
        assert float(ratios["exact_match"].rates[0]) == hits.mean()
    with pytest.raises(DataError, match="kind 'poetry'"):
        row_ratios(Scores(share, hits), "poetry")


def test_a_diverged_model_has_no_loss_rather_than_that_of_the_rows_that_are_left() -> None:
    scores, gold = classified(rows=20, unseen=0.0)
    logs = scores.log_probabilities.copy()
    logs[3] = np.nan
    losses = scores.losses.copy()
    losses[3] = np.nan
    broken = Scores(losses, scores.correct, logs, scores.detail)
    assert np.isnan(of(broken, gold, labels=4).total().ratios["loss"].rates[0])


def test_taking_rows_takes_everything() -> None:
    tokens = TokenScores(np.array([0, 2, 2, 3]), *(np.arange(3.0) for _ in range(4)))
    scores = Scores(np.arange(3.0), np.ones(3), np.zeros((3, 2)), {"x": np.array([5, 6, 7])}, tokens)
    found = take_scores(scores, np.array([2, 0]))
    assert found.losses.tolist() == [2.0, 0.0] and found.detail["x"].tolist() == [7, 5]
    assert found.tokens.log_probabilities.tolist() == [2.0, 0.0, 1.0] and len(found.log_probabilities) == 2
    assert take_scores(Scores(np.zeros(2), np.zeros(2)), np.array([1])).tokens is None


def test_labels_never_seen_get_numbers_of_their_own() -> None:
    assert gold_codes(("a", "b"), ["b", "z", "a", "x", "z"]).tolist() == [1, 3, 0, 2, 3]


def test_rates_of_nothing_are_missing() -> None:
    assert np.isnan(Ratio(np.array([0.0, 1.0]), np.array([0.0, 2.0])).rates).tolist() == [True, False]


def test_bad_input_is_refused() -> None:
    scores, gold = classified(rows=10)
    for devices, truth, more, what in (
        (np.zeros(9, dtype=int), gold, {}, "10 rows are scored and 9 have a device"),
        (np.full(10, DEVICES), gold, {}, "device 40 or 40; there are 0 to 39"),
        (np.full(10, -1), gold, {}, "device -1 or -1"),
        (np.zeros(10, dtype=int), gold[:9], {}, "9 gold labels for 10 rows"),
        (np.zeros(10, dtype=int), gold - 9, {}, "a negative one"),
        (np.zeros(10, dtype=int), gold, {"positive": 4}, "positive = 4: the model has the classes 0 to 3"),
    ):
        with pytest.raises(DataError, match=what):
            of(scores, truth, devices, **more)
    one, other = of(scores, gold, np.zeros(10, dtype=int)), tagged(5)[0]
    with pytest.raises(DataError, match="do not add up"):
        _ = one + device_statistics(other, np.zeros(5, dtype=int), DEVICES, kind="tagging")
    with pytest.raises(DataError, match="40 and 2 devices"):
        _ = one + one.take(np.array([0, 1]))
