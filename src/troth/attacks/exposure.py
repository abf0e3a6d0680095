"""Ranks and exposure of canaries as pure functions of losses (Carlini et al., The Secret Sharer, arXiv 1802.08232).

A canary's *rank* is the place of its code's loss among those of codes that the model never saw, 1 being the lowest; the
canary itself is counted, other canaries and decoys are not. Codes with the same loss (hashed words may share a row)
count half. *Exposure* is log2 |R| - log2 rank in bits, |R| being the codes that are ranked (their definition 4): log2
|R| where the canary comes first, and 1.44 on average where the model knows nothing of it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from troth.errors import DataError

__all__ = ["exposure", "null_exposure", "ranks", "skew_normal_exposure", "uniformity_p_value"]

Floats = NDArray[np.float64]

_MOST_SKEW = 0.99  # of the law's largest skewness; beyond it the moments have no answer
_REACH, _STEP = 40.0, 0.005  # of the quadrature of a tail, in scales
_LEAST_SAMPLE = 30
_EXACT_NULL = 10**6


def ranks(losses: NDArray[np.floating], reference: NDArray[np.floating], population: int | None = None) -> Floats:
    """Return the rank [codes] of each loss among the reference's, from 1 on; ties count half.

    Where the reference is a sample, the rank is an estimate: |R| (1 + lower + ties / 2) / (1 + sample). It is then
    never below |R| / (1 + sample): a sample shows nothing rarer than itself.

    >>> ranks(np.array([0.1, 0.5]), np.array([0.3, 0.5, 0.9])).tolist()
    [1.0, 2.5]

    Args:
        losses: of the codes to rank [codes].
        reference: losses of other codes [reference], all there are or a uniform sample.
        population: |R|; None where the reference is all there are: their number and one.

    Raises:
        DataError: NaN or infinite losses, an empty reference, or more of it than the population holds.
    """
    own, others = _finite(losses, "losses"), np.sort(_finite(reference, "reference losses"))
    if not len(others):
        raise DataError("reference losses: empty; a rank wants codes that the model never saw")
    size = len(others) + 1 if population is None else population
    if size < len(others) + 1:
        raise DataError(f"population = {size}: holds fewer than the {len(others) + 1} codes given")
    lower = np.searchsorted(others, own, side="left")
    ties = np.searchsorted(others, own, side="right") - lower
    return np.asarray(size * (1 + lower + ties / 2) / (1 + len(others)), dtype=np.float64)


def exposure(rank: NDArray[np.floating], population: NDArray[np.integer] | int) -> Floats:
    """Return log2 `population` - log2 `rank` in bits [codes].

    >>> exposure(np.array([1.0, 512.0]), 1024).tolist()
    [10.0, 1.0]
    """
    return np.asarray(np.log2(np.asarray(population, dtype=np.float64)) - np.log2(rank))


def null_exposure(population: int) -> float:
    """Return the mean exposure of a code that the model knows nothing of, in bits; towards 1 / ln 2 for many codes.

    >>> round(null_exposure(2), 3), round(null_exposure(10_000), 3)
    (0.5, 1.442)
    """
    if population > _EXACT_NULL:
        return 1 / math.log(2)
    return math.log2(population) - math.lgamma(population + 1) / (population * math.log(2))


def skew_normal_exposure(losses: NDArray[np.floating], sample: NDArray[np.floating]) -> Floats:
    """Return exposure extrapolated from a sample: -log2 F(loss) [codes], F a skew normal law with its moments.

    As in The Secret Sharer, section 4.3, where F is fitted by likelihood; here it has the sample's mean, variance and
    skewness (held to 0.99 of what the law allows). Not bounded by log2 |R|: it says how far the loss lies in the tail.

    Raises:
        DataError: NaN or infinite losses, fewer than 30 in the sample, or all of one value.
    """
    own, others = _finite(losses, "losses"), _finite(sample, "sample")
    spread = float(others.std()) if len(others) else 0.0
    if len(others) < _LEAST_SAMPLE or spread == 0:
        raise DataError(f"sample: {len(others)} losses, spread {spread:g}: extrapolation wants 30 that differ")
    shape, place, scale = _skew_normal(float(others.mean()), spread, float(stats.skew(others)))
    found = [-_log_cdf((value - place) / scale, shape) / math.log(2) for value in own.tolist()]
    return np.array(found, dtype=np.float64)


def uniformity_p_value(rank: NDArray[np.floating], population: NDArray[np.integer] | int) -> float:
    """Return the Kolmogorov-Smirnov p value of (rank - 1/2) / population being uniform: what decoys must show.

    Small where the ranking itself favours some codes, so that ranks of canaries would not mean what they say.

    Raises:
        DataError: no rank.
    """
    values = _finite(rank, "ranks")
    if not len(values):
        raise DataError("ranks: empty; a plan with decoys has some")
    shares = (values - 0.5) / np.asarray(population, dtype=np.float64)
    return float(stats.kstest(shares, "uniform").pvalue)


def _skew_normal(mean: float, spread: float, skewness: float) -> tuple[float, float, float]:
    """Return shape, place and scale of the law with these moments (Azzalini 1985)."""
    most = (4 - math.pi) / 2 * (2 / math.pi) ** 1.5 / (1 - 2 / math.pi) ** 1.5
    held = math.copysign(min(abs(skewness), _MOST_SKEW * most), skewness)
    root = abs(held) ** (2 / 3)
    delta = math.copysign(math.sqrt(math.pi / 2 * root / (root + ((4 - math.pi) / 2) ** (2 / 3))), held)
    scale = spread / math.sqrt(1 - 2 * delta**2 / math.pi)
    return delta / math.sqrt(1 - delta**2), mean - scale * delta * math.sqrt(2 / math.pi), scale


def _log_cdf(x: float, shape: float) -> float:
    """Return log F of the standard law by quadrature of its log density, which loses nothing far out."""
    places = x - np.arange(0.0, _REACH, _STEP)
    logs = math.log(2) + stats.norm.logpdf(places) + special.log_ndtr(shape * places)
    weights = np.full(len(places), math.log(_STEP))
    weights[0] -= math.log(2)  # the trapezoid's end
    return min(0.0, float(special.logsumexp(logs + weights)))


def _finite(values: NDArray[np.floating], name: str) -> Floats:
    array = np.asarray(values, dtype=np.float64).reshape(-1)
    if not np.isfinite(array).all():
        raise DataError(f"{name}: number {int(np.argmin(np.isfinite(array)))} is not finite; score the code again")
    return array
