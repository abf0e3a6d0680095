"""Confidence intervals that several stages share: exact ones for proportions, the bootstrap for the rest.

Pure functions of arrays. The bootstrap never holds more than one column of a block of resamples in memory: rows that
contribute the same numbers are merged and drawn together (a multinomial draw), which is the same distribution.

Sources: Clopper and Pearson, Biometrika 26 (1934), as quantiles of the beta distribution; Efron and Tibshirani, An
Introduction to the Bootstrap (1993), chapter 13 (percentile interval).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv

__all__ = [
    "REPLICATES",
    "Interval",
    "bootstrap",
    "bootstrap_counts",
    "bootstrap_mean",
    "bootstrap_ratio",
    "clopper_pearson",
]

REPLICATES = 1000
_BLOCK = 4_000_000  # resampled numbers in memory at a time

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval; `low` and `high` are None where no resample had a value.

    Attributes:
        low: lower end, in the unit of the number it goes with.
        high: upper end.
        confidence: coverage aimed at, between 0 and 1.
        method: ``clopper-pearson`` or ``bootstrap-percentile``.
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
    tail = (1 - _checked(confidence)) / 2
    low = 0.0 if successes == 0 else float(betaincinv(successes, trials - successes + 1, tail))
    high = 1.0 if successes == trials else float(betaincinv(successes + 1, trials - successes, 1 - tail))
    return Interval(low, high, confidence, "clopper-pearson")


def bootstrap(
    contributions: ArrayLike,
    statistic: Statistic,
    rng: np.random.Generator,
    *,
    confidence: float = 0.95,
    replicates: int = REPLICATES,
) -> Interval:
    """Return the percentile bootstrap interval of a function of column sums, rows resampled with replacement.

    A mean, a ratio, a micro F1 or a perplexity is a function of sums over rows, hence all replicates are made at once.

    Args:
        contributions: [rows, k] (or [rows]) finite numbers, one row per independent unit.
        statistic: maps sums [replicates, k] to values [replicates]; NaN where a resample has no value.
        rng: the source of the resamples.
        confidence: coverage aimed at, between 0 and 1.
        replicates: number of resamples.

    Raises:
        ValueError: no row, or a contribution that is not finite.
    """
    table = np.asarray(contributions, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if table.shape[0] == 0 or not np.isfinite(table).all():
        raise ValueError("a bootstrap wants at least one row and finite contributions only")
    return _percentiles(statistic(_resampled_sums(table, rng, replicates)), confidence)


def bootstrap_counts(
    counts: ArrayLike,
    statistic: Statistic,
    rng: np.random.Generator,
    *,
    confidence: float = 0.95,
    replicates: int = REPLICATES,
) -> Interval:
    """Return the percentile bootstrap interval of a function of counts of rows per category.

    Resampling rows is a multinomial draw over the categories, such as the cells of a confusion matrix.

    Args:
        counts: [categories] how many rows fall into each.
        statistic: maps counts [replicates, categories] to values [replicates]; NaN where a resample has no value.
        rng: the source of the resamples.
        confidence: coverage aimed at, between 0 and 1.
        replicates: number of resamples.

    Raises:
        ValueError: no row at all, or a negative count.
    """
    cells = np.asarray(counts, dtype=np.int64)
    rows = int(cells.sum())
    if rows < 1 or (cells < 0).any():
        raise ValueError("a bootstrap wants counts of at least one row, none negative")
    drawn = np.zeros((replicates, cells.size), dtype=np.float64)
    filled = np.flatnonzero(cells)
    drawn[:, filled] = rng.multinomial(rows, cells[filled] / rows, size=replicates)
    return _percentiles(statistic(drawn), confidence)


def bootstrap_mean(
    values: ArrayLike, rng: np.random.Generator, *, confidence: float = 0.95, replicates: int = REPLICATES
) -> Interval:
    """Return the percentile bootstrap interval of the mean of `values` [rows]."""
    rows = np.asarray(values).shape[0]
    return bootstrap(values, lambda sums: sums[:, 0] / rows, rng, confidence=confidence, replicates=replicates)


def bootstrap_ratio(
    numerators: ArrayLike,
    denominators: ArrayLike,
    rng: np.random.Generator,
    *,
    confidence: float = 0.95,
    replicates: int = REPLICATES,
) -> Interval:
    """Return the percentile bootstrap interval of sum(numerators) / sum(denominators), both [rows], rows resampled."""
    both = np.stack([np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)], axis=1)
    return bootstrap(both, _ratio, rng, confidence=confidence, replicates=replicates)


def _ratio(sums: Floats) -> Floats:
    out = np.full(len(sums), np.nan)
    np.divide(sums[:, 0], sums[:, 1], out=out, where=sums[:, 1] != 0)
    return out


def _resampled_sums(table: Floats, rng: np.random.Generator, replicates: int) -> Floats:
    """Return [replicates, k]: the column sums of each resample of the rows of `table` [rows, k]."""
    rows = len(table)
    distinct, counts = np.unique(table, axis=0, return_counts=True)
    if 4 * len(distinct) <= rows:
        drawn: Floats = rng.multinomial(rows, counts / rows, size=replicates).astype(np.float64)
        merged: Floats = drawn @ distinct
        return merged
    sums = np.empty((replicates, table.shape[1]))
    step = max(1, _BLOCK // rows)
    for start in range(0, replicates, step):
        chosen = rng.integers(0, rows, size=(min(step, replicates - start), rows), dtype=np.int32)
        for column in range(table.shape[1]):
            sums[start : start + step, column] = np.take(table[:, column], chosen).sum(axis=1)
    return sums


def _percentiles(values: Floats, confidence: float) -> Interval:
    tail = (1 - _checked(confidence)) / 2
    found = values[np.isfinite(values)]
    if found.size == 0:
        return Interval(None, None, confidence, "bootstrap-percentile")
    low, high = np.quantile(found, [tail, 1 - tail])
    return Interval(float(low), float(high), confidence, "bootstrap-percentile")


def _checked(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence}: must lie between 0 and 1")
    return confidence
