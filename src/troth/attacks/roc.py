"""ROC analysis of attack scores: area with DeLong's interval, curve for plotting, rates at a held-out threshold.

A score is a number per example; **a higher score always means 'more likely a member'**. An example is called a member
where its score lies *strictly above* the threshold, so that ties with the threshold never count for the attack.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from troth.errors import DataError
from troth.intervals import Interval, clopper_pearson
from troth.results import Json

__all__ = ["Auc", "OperatingPoint", "auc", "held_out_threshold", "roc_points", "scores_of", "tpr_at_fpr"]

MINIMUM_FALSE_POSITIVES = 10  # expected among the evaluation non-members before a low rate is claimed
_LARGEST = 1e150  # of a score: beyond it sums of squares overflow
_ROUNDING = 1e-9  # 0.01 * 1,000 counts as 10 whatever the floating point says


@dataclass(frozen=True)
class Auc:
    """Area under the ROC curve, in [0, 1]: the chance that a member scores above a non-member, ties counted half.

    0.5 means 'no better than a coin', 1 a perfect attack, below 0.5 a score that points the wrong way.

    Attributes:
        value: the area.
        interval: its method is ``delong``, or ``clopper-pearson-pairs`` where DeLong's variance is zero.
    """

    value: float
    interval: Interval


@dataclass(frozen=True)
class OperatingPoint:
    """What an attack reaches at one threshold that was fixed on other non-members.

    Attributes:
        target: the false-positive rate asked for.
        threshold: scores strictly above it are called members; infinity where too few were held out to set one.
        true_positive_rate: share of members above it, in [0, 1].
        true_positive_interval: Clopper-Pearson.
        false_positive_rate: share of *evaluation* non-members above it, in [0, 1].
        false_positive_interval: Clopper-Pearson.
        supported: whether a threshold could be set and 10 or more false positives are expected at the target rate.
        members: how many the true-positive rate rests on.
        held_out: how many non-members set the threshold.
        evaluated: how many other non-members the false-positive rate rests on.
    """

    target: float
    threshold: float
    true_positive_rate: float
    true_positive_interval: Interval
    false_positive_rate: float
    false_positive_interval: Interval
    supported: bool
    members: int
    held_out: int
    evaluated: int


def scores_of(values: object, name: str) -> np.ndarray:
    """Return attack scores (or losses) as float64 [examples].

    Args:
        values: one number per example.
        name: what they are, for messages, such as ``member losses``.

    Raises:
        DataError: not one-dimensional, empty, not numbers, or a value that is not finite (the row is named).
    """
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{name}: not numbers; give one float per example") from None
    if array.ndim != 1:
        raise DataError(f"{name}: shape {list(array.shape)}; give one number per example, shape [examples]")
    if not len(array):
        raise DataError(f"{name}: empty; give at least two examples")
    bad = np.flatnonzero(~(np.abs(array) < _LARGEST))
    if len(bad):
        raise DataError(
            f"{name}: row {bad[0]} is {array[bad[0]]} ({len(bad)} of {len(array)} rows are not finite or above 1e150); "
            "leave these rows out or score them again"
        )
    return array


def _shares_below(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return for each score [scores] the share of `others` below it, ties counted half."""
    ranked = np.sort(others)
    twice = np.searchsorted(ranked, scores, "left") + np.searchsorted(ranked, scores, "right")
    return np.asarray(twice / (2.0 * len(others)))


def _pair_interval(value: float, pairs: int, confidence: float) -> Interval:
    """Return an interval for an area whose DeLong variance is zero: all pairs won, all lost, or all tied.

    Among `pairs` disjoint (hence independent) pairs each came out the same, so with the confidence asked for the
    chance of another outcome is at most u = 1 - (alpha/2)^(1/pairs): Clopper-Pearson at k = n.
    """
    other = 1 - ((1 - confidence) / 2) ** (1 / pairs)
    low, high = (0.5 - other / 2, 0.5 + other / 2) if value == 0.5 else (1 - other, 1.0) if value else (0.0, other)
    return Interval(low, high, confidence, "clopper-pearson-pairs")


def auc(member_scores: np.ndarray, nonmember_scores: np.ndarray, confidence: float = 0.95) -> Auc:
    """Return the area under the ROC curve with DeLong's interval on the logit scale, in O(n log n).

    Variance after DeLong, DeLong and Clarke-Pearson (Biometrics 44, 1988, eq. 5-6): the sample variances of the
    members' shares of non-members below them, and of the non-members' shares of members above them. We depart from
    the paper in the scale: the interval is formed for logit(area) and mapped back, so that it stays within [0, 1].
    Where every pair came out alike the variance estimate is zero and says nothing; the interval then comes from
    min(members, non-members) disjoint pairs.

    Args:
        member_scores: [members], higher = member.
        nonmember_scores: [non-members].
        confidence: coverage, in (0, 1).

    Raises:
        DataError: fewer than two examples on a side, or a value that is not finite.

    >>> auc(np.array([1.0, 2.0, 4.0]), np.array([0.0, 1.0, 3.0])).value
    0.7222222222222222
    """
    members = scores_of(member_scores, "member scores")
    nonmembers = scores_of(nonmember_scores, "non-member scores")
    if min(len(members), len(nonmembers)) < 2:
        raise DataError(f"{len(members)} members and {len(nonmembers)} non-members: an area needs two of each")
    below, above = _shares_below(members, nonmembers), 1.0 - _shares_below(nonmembers, members)
    value = float(below.mean())
    variance = below.var(ddof=1) / len(members) + above.var(ddof=1) / len(nonmembers)
    if variance == 0.0 or value in (0.0, 1.0):
        return Auc(value, _pair_interval(value, min(len(members), len(nonmembers)), confidence))
    half = stats.norm.isf((1 - confidence) / 2) * math.sqrt(variance) / (value * (1 - value))
    low, high = special.expit(special.logit(value) + np.array([-half, half])).tolist()
    return Auc(value, Interval(low, high, confidence, "delong"))


def held_out_threshold(nonmember_scores: np.ndarray, false_positive_rate: float) -> float:
    """Return the lowest threshold whose *expected* false-positive rate on fresh non-members is at most the one asked.

    With n held-out scores, the k-th largest of them is passed by a fresh score with chance at most k / (n + 1)
    (exchangeable scores; ties only lower it), so k = floor(rate * (n + 1)). Infinity where k = 0: n is too small.

    Args:
        nonmember_scores: [held-out non-members], kept apart from those on which the rate is then measured.
        false_positive_rate: in (0, 1).

    Raises:
        DataError: a rate outside of (0, 1), no scores, or a value that is not finite.

    >>> held_out_threshold(np.arange(99.0), 0.05), held_out_threshold(np.arange(9.0), 0.01)
    (94.0, inf)
    """
    if not 0 < false_positive_rate < 1:
        raise DataError(f"false_positive_rate = {false_positive_rate}: must lie between 0 and 1")
    held_out = scores_of(nonmember_scores, "held-out non-member scores")
    rank = math.floor(false_positive_rate * (len(held_out) + 1) + _ROUNDING)
    if rank < 1:
        return math.inf
    return float(np.partition(held_out, len(held_out) - rank)[len(held_out) - rank])


def tpr_at_fpr(
    member_scores: np.ndarray,
    held_out_scores: np.ndarray,
    evaluation_scores: np.ndarray,
    false_positive_rate: float,
    confidence: float = 0.95,
) -> OperatingPoint:
    """Return both rates at a threshold taken from held-out non-members, each with its Clopper-Pearson interval.

    Members and evaluation non-members play no part in the threshold, hence both intervals are exact given it.

    Args:
        member_scores: [members], higher = member.
        held_out_scores: [held-out non-members]: set the threshold and nothing else.
        evaluation_scores: [evaluation non-members]: other non-members, on which the achieved rate is measured.
        false_positive_rate: the rate asked for, in (0, 1).
        confidence: coverage of each interval, in (0, 1).

    Raises:
        DataError: as in `held_out_threshold`.
    """
    threshold = held_out_threshold(held_out_scores, false_positive_rate)
    members = scores_of(member_scores, "member scores")
    nonmembers = scores_of(evaluation_scores, "evaluation non-member scores")
    true, false = int((members > threshold).sum()), int((nonmembers > threshold).sum())
    enough = len(nonmembers) * false_positive_rate + _ROUNDING >= MINIMUM_FALSE_POSITIVES
    return OperatingPoint(
        false_positive_rate,
        threshold,
        true / len(members),
        clopper_pearson(true, len(members), confidence),
        false / len(nonmembers),
        clopper_pearson(false, len(nonmembers), confidence),
        enough and math.isfinite(threshold),
        len(members),
        len(held_out_scores),
        len(nonmembers),
    )


def _thinned(false: np.ndarray, true: np.ndarray, maximum: int) -> np.ndarray:
    """Return indices of at most `maximum` curve points: both ends, and a grid even on linear and on log axes."""
    share = max(1, (maximum - 2) // 4)
    keep = [np.array([0, len(false) - 1])]
    for rate in (false, true):  # both non-decreasing
        positive = rate[rate > 0]
        grids = np.concatenate([np.linspace(0, 1, share), np.geomspace(positive[0], 1, share)])
        keep.append(np.minimum(np.searchsorted(rate, grids), len(rate) - 1))
    return np.unique(np.concatenate(keep))


def roc_points(
    member_scores: np.ndarray, nonmember_scores: np.ndarray, maximum: int = 200, confidence: float = 0.95
) -> list[dict[str, Json]]:
    """Return points of the empirical ROC curve for plotting, from (0, 0) to (1, 1), thinned to at most `maximum`.

    Each row is a point of the full curve: ``fpr``, ``tpr`` and the pointwise Clopper-Pearson band ``low``, ``high`` of
    the latter. Thinning keeps points evenly on linear and on logarithmic axes. The curve runs over all thresholds,
    hence is for the eye: claims come from `tpr_at_fpr`.

    Raises:
        DataError: a value that is not finite, no examples, or `maximum` below 10.
    """
    members = scores_of(member_scores, "member scores")
    nonmembers = scores_of(nonmember_scores, "non-member scores")
    if maximum < 10:
        raise DataError(f"maximum = {maximum}: a curve needs 10 points or more")
    thresholds = np.unique(np.concatenate([members, nonmembers]))[::-1]
    true = np.append(0, len(members) - np.searchsorted(np.sort(members), thresholds, "left"))
    false = np.append(0, len(nonmembers) - np.searchsorted(np.sort(nonmembers), thresholds, "left"))
    keep = _thinned(false / len(nonmembers), true / len(members), maximum)
    rows: list[dict[str, Json]] = []
    for hits, alarms in zip(true[keep].tolist(), false[keep].tolist(), strict=True):
        band = clopper_pearson(hits, len(members), confidence)
        rows.append(
            {
                "fpr": alarms / len(nonmembers),
                "tpr": hits / len(members),
                "low": band.low,
                "high": band.high,
            }
        )
    return rows
