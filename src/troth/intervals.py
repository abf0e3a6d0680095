"""Confidence intervals that several stages share: exact ones for proportions, a Bayesian bootstrap for ratios of sums.

Pure functions of arrays. The Bayesian bootstrap (Rubin 1981) gives every row an exponential weight where the usual one
draws rows with replacement: no row ever disappears, hence no sum to divide by does either. Rows that contribute the
same numbers are merged: the sum of their weights is gamma distributed.

**A resample cannot show what no row shows.** Where no span was found, every resample has F1 = 0, and a percentile
interval of width zero claims certainty. Shares (numbers between 0 and 1) are guarded against this twice: one row of
each extreme is added to what is reweighted, and where the rows themselves are all of one extreme the bound is computed
(`zero_event_bound`). With sentences of which each has an accuracy of its own and 0.5 % of spans found, percentiles of
400 rows covered 82 % of the time and of 100 rows 34 %; these intervals covered 98 %.

Sources: Clopper and Pearson, Biometrika 26 (1934), as quantiles of the beta distribution; Rubin, The Bayesian
bootstrap, Annals of Statistics 9 (1981); Learned-Miller and Thomas, arXiv 1905.06208 (the added extremes); Hanley and
Lippman-Hand, JAMA 249 (1983) (no event in n rows).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv

__all__ = [
    "REPLICATES",
    "Interval",
    "bayesian_weights",
    "clopper_pearson",
    "ratio_interval",
    "ratio_of_sums",
    "share_interval",
    "zero_event_bound",
]

REPLICATES = 1000
_BLOCK = 1_000_000  # weights in memory at a time
_ROUNDING = 1e-12

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval; `low` and `high` are None where there was nothing to make it from.

    Attributes:
        low: lower end, in the unit of the number it goes with.
        high: upper end.
        confidence: coverage aimed at, between 0 and 1.
        method: ``clopper-pearson``, ``bayesian-bootstrap`` or ``zero-event-bound``.
    """

    low: float | None
    high: float | None
    confidence: float
    method: str


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Return the exact interval of a binomial proportion, between 0 and 1.

    Guarantees:
    - covers the true proportion with at least `confidence`, whatever it is, where trials are independent;
    - the ends are 0 at no success and 1 at success in every trial.

    >>> interval = clopper_pearson(9, 10)
    >>> round(interval.low, 4), round(interval.high, 4)
    (0.555, 0.9975)

    Raises:
        ValueError: no trial, or successes outside of 0..trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials: wants 0 <= successes <= trials and trials >= 1")
    tail = _tail(confidence)
    low = 0.0 if successes == 0 else float(betaincinv(successes, trials - successes + 1, tail))
    high = 1.0 if successes == trials else float(betaincinv(successes + 1, trials - successes, 1 - tail))
    return Interval(low, high, confidence, "clopper-pearson")


def zero_event_bound(weights: ArrayLike, confidence: float = 0.95) -> float:
    """Return the largest sum of weights times rates that is consistent with an event that happened in no row.

    Rows are independent and have rates of their own: row i has the event with chance r_i. No event in any row then has
    the chance prod(1 - r_i). Rates for which it is below tail = (1 - confidence) / 2 are refuted, and the returned
    number is the maximum of sum(w_i r_i) over the rates that are not. With t_i = -log(1 - r_i) this is the maximum of
    a concave function, sum(w_i (1 - exp(-t_i))), under sum(t_i) <= log(1 / tail): t_i = max(0, log(w_i / level)) with
    the level that spends the budget. For equal weights all rates are equal, 1 - tail^(1 / n): Clopper-Pearson's.

    A row's contribution may be any number in [0, 1] in place of an event: its mean is at most the chance that it is not
    zero. How contributions depend on one another within a row plays no part.

    Guarantees:
    - where sum(w_i r_i) exceeds the bound, no event in any row has a chance below (1 - confidence) / 2.

    >>> round(zero_event_bound([1 / 100] * 100), 4)  # the rule of three, two-sided
    0.0362

    Args:
        weights: [rows] not negative; rows of weight 0 say nothing.
        confidence: of a two-sided interval: this bound is one of its ends.

    Raises:
        ValueError: a weight that is negative or not finite.
    """
    found = np.asarray(weights, dtype=np.float64)
    if not np.isfinite(found).all() or (found < 0).any():
        raise ValueError("weights of rows must be finite and not negative")
    found = np.sort(found[found > 0])[::-1]
    if not len(found):
        return 0.0
    logs, places = np.log(found), np.arange(1, len(found) + 1)
    budget = -np.log(_tail(confidence))
    # Row k is given a part of the budget while raising all heavier rows to its level does not use it up.
    given = int(np.sum(np.cumsum(logs) - places * logs < budget))
    level = (np.sum(logs[:given]) - budget) / given
    return float(-np.sum(found[:given] * np.expm1(level - logs[:given])))


def share_interval(
    parts: ArrayLike,
    wholes: ArrayLike,
    rng: np.random.Generator,
    *,
    confidence: float = 0.95,
    replicates: int = REPLICATES,
) -> Interval:
    """Return the interval of the share sum(parts) / sum(wholes), a number in [0, 1], of rows of any size.

    A mean of numbers in [0, 1] has wholes of 1; a token accuracy has a sentence's right words and its words; a micro F1
    has twice its right spans and its predicted plus its gold spans.

    **In general** (``bayesian-bootstrap``): rows get exponential weights; for the upper end one more row of the mean
    size, all of it a part, is weighted along, for the lower end one of which nothing is. For shares that are all 0 or 1
    of rows of one size the ends are those of Clopper and Pearson; for means of [0, 1] numbers coverage is conjectured
    at every n and distribution by Learned-Miller and Thomas; a ratio of sums it covers about as well: at 10 to 400 rows
    of 0 to 20 spans with dependence within rows, 91.7 % to 100 % in simulation.

    **All nothing, or all whole** (``zero-event-bound``): a row's part is nothing unless an event happens in it, and
    `zero_event_bound` with the rows' wholes as weights bounds sum(wholes x rates) / sum(wholes). Rates may depend on
    the row's size; the bound is for rows of the sizes that were seen. Where the share is 1 the event is a loss. Rows
    without a whole (a sentence without any span, gold or predicted) say nothing, and where no row has one nothing is
    known: the interval is [0, 1].

    Guarantees:
    - low <= share <= high, and low < high, whatever the data and however few the rows;
    - at a share of 0 of n rows of one size, high = 1 - ((1 - confidence) / 2)^(1 / n).

    Args:
        parts: [rows] between 0 and the row's whole.
        wholes: [rows] not negative.
        rng: the source of the weights.
        confidence: coverage aimed at, between 0 and 1.
        replicates: number of weightings.

    Raises:
        ValueError: a number that is not finite, or a part outside of its whole.
    """
    table = _table(parts, wholes)
    if (table[:, 0] < 0).any() or (table[:, 0] > table[:, 1]).any():
        raise ValueError("a share wants parts between 0 and their whole")
    share, table = ratio_of_sums(parts, wholes), table[table[:, 1] > 0]
    sizes = table[:, 1]
    if not len(sizes):
        return Interval(0.0, 1.0, confidence, "zero-event-bound")
    if not table[:, 0].any() or (table[:, 0] == sizes).all():
        unseen = min(1.0, zero_event_bound(sizes / sizes.sum(), confidence))
        ends = (1 - unseen, 1.0) if table[:, 0].any() else (0.0, unseen)
        return Interval(*ends, confidence, "zero-event-bound")
    sums = _reweighted_sums(table, rng, replicates)
    added = rng.standard_exponential(replicates) * sizes.mean()
    tail, total = _tail(confidence), sums[:, 1] + added
    low = float(np.quantile(sums[:, 0] / total, tail))
    high = float(np.quantile((sums[:, 0] + added) / total, 1 - tail))
    return Interval(min(low, share), max(high, share), confidence, "bayesian-bootstrap")


def ratio_interval(
    numerators: ArrayLike,
    denominators: ArrayLike,
    rng: np.random.Generator,
    *,
    confidence: float = 0.95,
    replicates: int = REPLICATES,
) -> Interval:
    """Return the interval of sum(numerators) / sum(denominators) without known limits, such as a mean loss.

    The percentiles of the ratio under exponential weights of the rows. Nothing is known beyond the largest row: for
    means of 10, 30 and 100 log-normal losses coverage was 76 %, 88 % and 91 % in simulation (nominal 95 %), for normal
    ones 89 %, 92 % and 93 %. Where all rows have the same ratio, and for a single row, the ends are equal: that is no
    evidence of certainty, and callers mark it as unsupported.

    Guarantees:
    - low <= ratio <= high.

    Args:
        numerators: [rows] finite.
        denominators: [rows] not negative, one of them above 0.
        rng: the source of the weights.
        confidence: coverage aimed at, between 0 and 1.
        replicates: number of weightings.

    Raises:
        ValueError: a number that is not finite, or no denominator above 0.
    """
    table = _table(numerators, denominators)
    if not table[:, 1].any():
        raise ValueError("a ratio wants a denominator above 0")
    ratio = ratio_of_sums(numerators, denominators)
    if (np.abs(table[:, 0] - ratio * table[:, 1]) <= _ROUNDING * np.abs(table[:, 0])).all():
        return Interval(ratio, ratio, confidence, "bayesian-bootstrap")
    sums = _reweighted_sums(table, rng, replicates)
    tail = _tail(confidence)
    low, high = np.quantile(sums[:, 0] / sums[:, 1], [tail, 1 - tail])
    return Interval(min(float(low), ratio), max(float(high), ratio), confidence, "bayesian-bootstrap")


def ratio_of_sums(numerators: ArrayLike, denominators: ArrayLike) -> float:
    """Return sum(numerators) / sum(denominators), both [rows]; NaN where the latter is 0 or a number is not finite.

    The sums are exact before they are rounded, so that the order of rows does not matter and the value that is reported
    is the one that intervals are made to contain.
    """
    both = [np.asarray(numbers, dtype=np.float64) for numbers in (numerators, denominators)]
    if not all(np.isfinite(numbers).all() for numbers in both):
        return math.nan
    numerator, denominator = (math.fsum(numbers.tolist()) for numbers in both)
    return numerator / denominator if denominator else math.nan


def bayesian_weights(counts: ArrayLike, rng: np.random.Generator, replicates: int) -> Iterator[Floats]:
    """Yield blocks [some replicates, kinds] of the total weight of the rows of each kind, `counts` [kinds] of them.

    A row's weight is exponential with mean 1. Dividing by the sum of all weights would make them Dirichlet(1, ..., 1),
    Rubin's; it is left out, since ratios do not change by it.
    """
    rows = np.asarray(counts, dtype=np.float64)
    single, several = np.flatnonzero(rows == 1), np.flatnonzero(rows != 1)
    step = max(1, _BLOCK // max(1, len(rows)))
    for start in range(0, replicates, step):
        size = min(step, replicates - start)
        weights = np.empty((size, len(rows)))
        weights[:, single] = rng.standard_exponential((size, len(single)))  # several times as fast as a gamma draw
        weights[:, several] = rng.standard_gamma(rows[several], (size, len(several)))
        yield weights


def _table(numerators: ArrayLike, denominators: ArrayLike) -> Floats:
    table = np.stack([np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)], axis=1)
    if not np.isfinite(table).all() or (table[:, 1] < 0).any():
        raise ValueError("a bootstrap wants finite numbers only and denominators that are not negative")
    return table


def _reweighted_sums(table: Floats, rng: np.random.Generator, replicates: int) -> Floats:
    """Return [replicates, columns]: the column sums of `table` [rows, columns] under each weighting of its rows."""
    distinct, counts = np.unique(table, axis=0, return_counts=True)
    return np.concatenate([weights @ distinct for weights in bayesian_weights(counts, rng, replicates)])


def _tail(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence}: must lie between 0 and 1")
    return (1 - confidence) / 2
