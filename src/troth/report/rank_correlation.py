"""Spearman's rank correlation of few runs: its permutation p value and its bootstrap interval.

Spearman, American Journal of Psychology 15 (1904): the correlation of ranks, ties at their mean rank. The p value is of
a permutation test: all orders of the runs where they are few, a sample of them beyond.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from troth.seeds import PublicSeeds

__all__ = ["RankCorrelation", "rank_correlation"]

_ALL_ORDERS = 8  # runs, 40,320 orders
_SAMPLED = 9_999
_REPLICATES = 2_000
_ROUNDING = 1e-9

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RankCorrelation:
    """How alike two orders of the same runs are, from -1 (reversed) over 0 (unrelated) to 1 (the same).

    Attributes:
        value: the correlation of ranks.
        low: 2.5 % quantile over resampled runs.
        high: 97.5 % quantile; where both are equal every resample had the same order, which is no certainty.
        p_value: chance of so strong a correlation, of either sign, were the orders unrelated.
        exact: whether all orders were counted, or a sample of them.
        n: runs.
    """

    value: float
    low: float
    high: float
    p_value: float
    exact: bool
    n: int


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> RankCorrelation | None:
    """Return Spearman's rank correlation of two numbers of each run, or None where it is not defined.

    The permutation test takes the runs' orders as exchangeable were the numbers unrelated. It is exact to 8 runs; of
    more, 9,999 random orders are counted and the observed one with them, so that the p value is never too small for
    chance of the sample. The interval is of the percentile bootstrap over runs (2,000 resamples; those of one value
    alone are left out). Both are reproducible: they draw from a public seed of their own.

    Args:
        first: [runs] infinity is allowed and ranks highest.
        second: [runs] likewise.

    Raises:
        ValueError: the two are not of one length, or a number is NaN.

    >>> rank_correlation([1, 2, 4, math.inf], [0.5, 0.6, 0.7, 0.9]).value
    1.0
    """
    if len(first) != len(second) or any(math.isnan(v) for v in (*first, *second)):
        raise ValueError("a rank correlation wants two numbers for each run, none of them NaN")
    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if len(set(x.tolist())) < 2 or len(set(y.tolist())) < 2:
        return None
    value = float(_correlations(rankdata(x)[None], rankdata(y)[None])[0])
    exact = len(x) <= _ALL_ORDERS
    low, high = _interval(x, y)
    return RankCorrelation(value, min(low, value), max(high, value), _p_value(x, y, exact=exact), exact, len(x))


def _correlations(first: Floats, second: Floats) -> Floats:
    """Return the correlation of each two rows of [rows, runs]; NaN where a row is constant."""
    centred = [rows - rows.mean(axis=1, keepdims=True) for rows in (first, second)]
    products = (centred[0] * centred[1]).sum(axis=1)
    sizes = np.sqrt((centred[0] ** 2).sum(axis=1) * (centred[1] ** 2).sum(axis=1))
    found = np.divide(products, sizes, out=np.full(len(products), np.nan), where=sizes > _ROUNDING)
    return np.asarray(np.clip(found, -1.0, 1.0))


def _p_value(x: Floats, y: Floats, *, exact: bool) -> float:
    """Return the share of orders with a correlation as far from 0 as the observed one, which is among them."""
    ranks, others = rankdata(x), rankdata(y)
    if exact:
        orders = np.array(list(itertools.permutations(range(len(x)))))
    else:
        draws = PublicSeeds(0).generator("report", "rank correlation", "orders").random((_SAMPLED, len(x)))
        orders = np.concatenate([np.arange(len(x))[None], np.argsort(draws, axis=1)])
    found = np.abs(_correlations(np.broadcast_to(ranks, orders.shape), others[orders]))
    observed = found[0]  # the first order is the observed one
    return float((found >= observed - _ROUNDING).mean())


def _interval(x: Floats, y: Floats) -> tuple[float, float]:
    """Return the 2.5 % and 97.5 % quantiles of the correlation over runs drawn with replacement."""
    rng = PublicSeeds(0).generator("report", "rank correlation", "resamples")
    rows = rng.integers(len(x), size=(_REPLICATES, len(x)))
    found = _correlations(rankdata(x[rows], axis=1), rankdata(y[rows], axis=1))
    known = found[np.isfinite(found)]
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)
