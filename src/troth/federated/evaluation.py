"""What devices add up so that quality is known without their data: sufficient statistics per device.

Every number here is a sum over a device's rows, and every figure that `troth.federated.device_metrics` makes is a
function of sums over devices: an aggregator that sees totals alone (by secure aggregation, say) comes to the same
sample-weighted value as one that holds all rows. Counts are whole numbers below 2^53 and add up exactly; sums of losses
agree up to the rounding of floating point.

Sources: score histograms for the ROC area, after Cormode and Markov, 'Federated Calibration and Evaluation of Binary
Classifiers', PVLDB 16 (2023), arXiv 2210.12526 (abstract read); the calibration histogram is that of Guo et al., ICML
2017, arXiv 1706.04599 (bins of equal width, open below).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

from troth.errors import DataError
from troth.tasks.task import Scores

__all__ = [
    "CONFIDENCE_BINS",
    "SCORE_BINS",
    "DeviceStatistics",
    "Ratio",
    "device_statistics",
    "gold_codes",
    "row_ratios",
    "score_bins",
    "take_scores",
]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

CONFIDENCE_BINS = 15
"""Bins of confidence, of equal width on (0, 1]."""

SCORE_BINS = 400
"""Bins of scores: 0.08 nats of log-odds wide at even odds, 0.4 nats at odds of exp(20), the outer ones open at 109."""

_BEND, _REACH = (
    4.0,
    16.0,
)  # bins are of equal width in 4 asinh(log-odds / 4), from -16 to 16: sure models keep their order


@dataclass(frozen=True, eq=False)
class Ratio:
    """A figure sum(parts) / sum(wholes), such as right words over words.

    Attributes:
        parts: [devices] or [rows] float64.
        wholes: [devices] or [rows] float64, not negative.
    """

    parts: Floats
    wholes: Floats

    @property
    def rates(self) -> Floats:
        """[devices] parts / wholes, NaN where the whole is 0."""
        out = np.full(len(self.parts), np.nan)
        return np.asarray(np.divide(self.parts, self.wholes, out=out, where=self.wholes > 0))


@dataclass(frozen=True, eq=False)
class DeviceStatistics:
    """Sums over the rows of each device.

    Attributes:
        rows: [devices] int64.
        ratios: metric -> parts and wholes [devices].
        confusion: [devices, 3 x labels] rows that are right, predicted and gold, by label; classification with labels.
        calibration: [devices, 3, bins] float64 rows, sum of confidence and right rows, by bin of confidence;
            classification. 360 bytes a device.
        scores: [devices, 2 x bins] rows that are not and that are of the positive class, by bin of score.
    """

    rows: Integers
    ratios: Mapping[str, Ratio]
    confusion: csr_array | None = None
    calibration: Floats | None = None
    scores: csr_array | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __add__(self, other: DeviceStatistics) -> DeviceStatistics:
        """Return the statistics of both sets of rows on the same devices.

        Raises:
            DataError: other devices or other statistics.
        """
        if len(self) != len(other) or set(self.ratios) != set(other.ratios):
            raise DataError(f"statistics of {len(self)} and {len(other)} devices, or of two tasks, do not add up")
        ratios = {
            name: Ratio(mine.parts + other.ratios[name].parts, mine.wholes + other.ratios[name].wholes)
            for name, mine in self.ratios.items()
        }
        return DeviceStatistics(
            self.rows + other.rows,
            ratios,
            _added(self.confusion, other.confusion),
            _added(self.calibration, other.calibration),
            _added(self.scores, other.scores),
        )

    def take(self, devices: NDArray[np.integer]) -> DeviceStatistics:
        """Return the statistics of these devices [k], in that order."""
        chosen = np.asarray(devices, dtype=np.int64)
        ratios = {name: Ratio(r.parts[chosen], r.wholes[chosen]) for name, r in self.ratios.items()}
        return DeviceStatistics(
            self.rows[chosen],
            ratios,
            None if self.confusion is None else self.confusion[chosen],
            None if self.calibration is None else self.calibration[chosen],
            None if self.scores is None else self.scores[chosen],
        )

    def total(self) -> DeviceStatistics:
        """Return what an aggregator of sums sees: all devices as one."""
        ratios = {
            name: Ratio(r.parts.sum(keepdims=True), r.wholes.sum(keepdims=True)) for name, r in self.ratios.items()
        }
        return DeviceStatistics(
            self.rows.sum(keepdims=True),
            ratios,
            None if self.confusion is None else csr_array(self.confusion.sum(axis=0)[None, :]),
            None if self.calibration is None else self.calibration.sum(axis=0, keepdims=True),
            None if self.scores is None else csr_array(self.scores.sum(axis=0)[None, :]),
        )

    def with_rows(self) -> DeviceStatistics:
        """Return the statistics of the devices that hold a row."""
        return self.take(np.flatnonzero(self.rows))


def device_statistics(
    scores: Scores,
    devices: NDArray[np.integer],
    count: int,
    *,
    kind: str,
    gold: NDArray[np.integer] | None = None,
    labels: int = 0,
    positive: int | None = None,
) -> DeviceStatistics:
    """Return the sums of each device over its rows.

    Args:
        scores: per-row scores of a model.
        devices: [rows] device numbers in 0..count - 1.
        count: how many devices there are, those without a row included.
        kind: the task's kind.
        gold: [rows] label numbers, for precision, recall and F1; of classification, from `gold_codes`.
        labels: how many labels the model knows; label numbers from there on are labels it has never seen.
        positive: the class whose ROC area is measured; where None, class 1 of a model of two classes, else no area.

    Raises:
        DataError: lengths differ, or a number outside of its range.
    """
    owner = np.asarray(devices, dtype=np.int64)
    if len(owner) != len(scores):
        raise DataError(f"{len(scores)} rows are scored and {len(owner)} have a device: give one of each per row")
    if len(owner) and (owner.min() < 0 or owner.max() >= count):
        raise DataError(f"a row belongs to device {owner.max()} or {owner.min()}; there are 0 to {count - 1}")
    ratios = {
        name: Ratio(_by_device(owner, row.parts, count), _by_device(owner, row.wholes, count))
        for name, row in row_ratios(scores, kind).items()
    }
    found = DeviceStatistics(np.bincount(owner, minlength=count), ratios)
    logs = scores.log_probabilities
    if kind != "classification" or logs is None:
        return found
    found = replace(found, calibration=_calibration(scores, logs, owner, count))
    if gold is None:
        return found
    truth = np.asarray(gold, dtype=np.int64)
    if len(truth) != len(owner) or (len(truth) and truth.min() < 0):
        raise DataError(f"{len(truth)} gold labels for {len(owner)} rows, or a negative one; see gold_codes")
    found = replace(found, confusion=_confusion(scores.detail["prediction"], truth, owner, count, labels))
    measured = 1 if positive is None and logs.shape[1] == 2 else positive
    if measured is None:
        return found
    return replace(found, scores=_score_histogram(logs, measured, truth == measured, owner, count))


def row_ratios(scores: Scores, kind: str) -> dict[str, Ratio]:
    """Return the parts and wholes of each row for the task's metrics that are ratios of sums.

    A row without anything to predict has a loss whose whole is 0. ``perplexity`` holds nats and tokens: the figure is
    the exponential of their ratio.

    Raises:
        DataError: an unknown kind of task.
    """
    ones, detail = np.ones(len(scores)), {k: v for k, v in scores.detail.items() if v.dtype != object}
    if kind == "classification":
        unseen = np.isnan(scores.losses)
        if scores.log_probabilities is not None:  # a diverged model has losses that are not numbers, either
            unseen &= ~np.isnan(scores.log_probabilities).any(axis=1)
        return {"accuracy": Ratio(scores.correct, ones), "loss": _where(scores.losses, ~unseen)}
    if kind == "tagging":
        right, predicted, gold = (detail[k].astype(np.float64) for k in ("true_positives", "predicted", "gold"))
        return {
            "span_f1": Ratio(2 * right, predicted + gold),
            "span_precision": Ratio(right, predicted),
            "span_recall": Ratio(right, gold),
            "token_accuracy": Ratio(detail["right"].astype(np.float64), detail["words"].astype(np.float64)),
            "loss": _where(scores.losses, detail["labelled"] > 0),
        }
    if kind == "language_modeling":
        tokens = detail["tokens"].astype(np.float64)
        return {
            "perplexity": Ratio(detail["nats"], tokens),
            "token_accuracy": Ratio(detail["right"].astype(np.float64), tokens),
            "loss": _where(scores.losses, tokens > 0),
        }
    other = {"question_answering": "f1", "seq2seq": "rouge_l"}.get(kind)
    if other is None:
        raise DataError(f"no federated metrics for a task of kind {kind!r}")
    return {
        other: Ratio(detail[other].astype(np.float64), ones),
        "exact_match": Ratio(scores.correct, ones),
        "loss": Ratio(scores.losses, ones),
    }


def gold_codes(labels: Sequence[str], column: Sequence[str]) -> Integers:
    """Return [rows] label numbers: those of `labels`, and after them one for each label that is not among them.

    >>> gold_codes(["a", "b"], ["b", "x", "a"])
    array([1, 2, 0])
    """
    unseen = sorted(set(column) - set(labels))
    codes = {label: code for code, label in enumerate((*labels, *unseen))}
    return np.array([codes[label] for label in column], dtype=np.int64)


def take_scores(scores: Scores, rows: NDArray[np.integer]) -> Scores:
    """Return the scores of some rows [k], in that order."""
    logs = scores.log_probabilities
    return Scores(
        scores.losses[rows],
        scores.correct[rows],
        None if logs is None else logs[rows],
        {name: values[rows] for name, values in scores.detail.items()},
        None if scores.tokens is None else scores.tokens.take(np.asarray(rows)),
    )


def score_bins(log_odds: Floats) -> Integers:
    """Return [rows] the bin of each score in 0..SCORE_BINS - 1; a higher score is never in a lower bin."""
    bent = _BEND * np.arcsinh(np.asarray(log_odds, dtype=np.float64) / _BEND)
    place = np.floor((bent + _REACH) * (SCORE_BINS / (2 * _REACH)))
    return np.asarray(np.clip(np.nan_to_num(place, nan=0.0), 0, SCORE_BINS - 1), dtype=np.int64)


Sums = TypeVar("Sums", csr_array, Floats)


def _added(one: Sums | None, other: Sums | None) -> Sums | None:
    return None if one is None or other is None else one + other


def _by_device(owner: Integers, values: Floats, count: int) -> Floats:
    return np.bincount(owner, values, count).astype(np.float64)


def _where(values: Floats, there: NDArray[np.bool_]) -> Ratio:
    return Ratio(np.where(there, values, 0.0), there.astype(np.float64))


def _confusion(predicted: NDArray[np.integer], gold: Integers, owner: Integers, count: int, labels: int) -> csr_array:
    codes = np.asarray(predicted, dtype=np.int64)
    width = max(labels, int(gold.max(initial=-1)) + 1, int(codes.max(initial=-1)) + 1)
    right = np.flatnonzero(codes == gold)
    return _summed(
        np.concatenate([owner[right], owner, owner]),
        np.concatenate([gold[right], width + codes, 2 * width + gold]),
        np.ones(len(right) + 2 * len(owner)),
        (count, 3 * width),
    )


def _calibration(scores: Scores, logs: Floats, owner: Integers, count: int) -> Floats:
    confidence = np.nan_to_num(np.exp(logs.max(axis=1, initial=-np.inf)))
    place = np.clip(np.ceil(confidence * CONFIDENCE_BINS).astype(np.int64) - 1, 0, CONFIDENCE_BINS - 1)
    cells = owner * CONFIDENCE_BINS + place
    out = np.empty((count, 3, CONFIDENCE_BINS))
    for column, values in enumerate((np.ones(len(owner)), confidence, scores.correct)):
        out[:, column] = _by_device(cells, values, count * CONFIDENCE_BINS).reshape(count, CONFIDENCE_BINS)
    return out


def _score_histogram(
    logs: Floats, positive: int, is_positive: NDArray[np.bool_], owner: Integers, count: int
) -> csr_array:
    if not 0 <= positive < logs.shape[1]:
        raise DataError(f"positive = {positive}: the model has the classes 0 to {logs.shape[1] - 1}")
    others = np.delete(logs, positive, axis=1)
    with np.errstate(invalid="ignore"):
        log_odds = logs[:, positive] - np.logaddexp.reduce(others, axis=1)
    columns = score_bins(log_odds) + SCORE_BINS * is_positive
    return _summed(owner, columns, np.ones(len(owner)), (count, 2 * SCORE_BINS))


def _summed(rows: Integers, columns: Integers, values: Floats, shape: tuple[int, int]) -> csr_array:
    return csr_array(coo_array((values, (rows, columns)), shape=shape))
