"""Confidence intervals whose independent units are devices, for rows of one device are not independent of each other.

- `device_ratio_interval`: sum(parts) / sum(wholes) over devices. Up to 10,000 devices the Bayesian bootstrap over
  devices of `troth.intervals`; beyond that the linearised interval, which draws nothing and agrees with it there.
- `linearised_interval`: any smooth figure of sums over devices, by its derivative: the figure is about its value plus
  the sum of what each device moves it by, hence its variance is that of a sum of independent terms (the cluster-robust
  variance; for a ROC area the estimator of Obuchowski, Biometrics 53, 1997). Student's t with devices - 1.
- `quantile_interval`: order statistics, exact for every distribution of devices and without a draw (the percentile
  bootstrap of a quantile is the same up to one order statistic).
- `worst_tenth`: the mean of the worst tenth of devices, with the Bayesian bootstrap over devices.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from troth.intervals import REPLICATES, Interval, ratio_interval, ratio_of_sums, share_interval

__all__ = [
    "device_ratio_interval",
    "difference_interval",
    "effective_devices",
    "linearised_interval",
    "quantile_interval",
    "worst_tenth",
    "worst_tenth_interval",
]

Floats = NDArray[np.float64]

_MOST_RESAMPLED = 10_000  # devices
_TENTH = 0.1
_BLOCK = 2_000_000  # weights in memory at a time
_SPREAD = 10  # standard deviations of the number of devices in the worst tenth


def device_ratio_interval(
    parts: Floats, wholes: Floats, rng: np.random.Generator, *, largest: float, confidence: float = 0.95
) -> Interval:
    """Return the interval of sum(parts) / sum(wholes), devices being the units.

    Args:
        parts: [devices] not negative.
        wholes: [devices] not negative, one of them above 0.
        rng: public randomness of the bootstrap.
        largest: 1 for a share, infinity for a figure without an upper limit.
        confidence: coverage aimed at.
    """
    some = wholes > 0
    parts, wholes = parts[some], wholes[some]
    if len(parts) <= _MOST_RESAMPLED:
        make = share_interval if largest == 1 else ratio_interval
        return make(parts, wholes, rng, confidence=confidence)
    value = ratio_of_sums(parts, wholes)
    influence = (parts - value * wholes) / wholes.sum()
    return linearised_interval(value, influence, largest=largest, confidence=confidence)


def linearised_interval(value: float, influence: Floats, *, largest: float, confidence: float = 0.95) -> Interval:
    """Return the interval of a figure that each device moves by a known amount, to first order.

    For a share the interval is formed for log(value / (1 - value)) and mapped back, so that it stays within [0, 1];
    at 0 and 1 exactly the ends are equal, which is no evidence: callers mark it as unsupported. What counts is how many
    devices carry the figure (`effective_devices`): with Zipf sizes (exponent 1.6) 50 devices count as a few, and the
    interval of an accuracy covered 82 % of the time (nominal 95 %); with 200 devices 93 %.

    Args:
        value: the figure, between 0 and `largest`.
        influence: [devices] derivative of the figure with respect to the sums, times what the device adds to the sums.
        largest: 1 for a share, infinity for a figure without an upper limit.
        confidence: coverage aimed at.
    """
    devices = len(influence)
    if devices < 2 or not np.isfinite(value):
        return Interval(None, None, confidence, "linearised-t")
    half = _half_width(influence, confidence)
    if largest == 1:
        if not 0 < value < 1:
            return Interval(value, value, confidence, "linearised-t")
        shift = half / (value * (1 - value))
        low, high = special.expit(special.logit(value) + np.array([-shift, shift])).tolist()
        return Interval(low, high, confidence, "linearised-t")
    return Interval(max(0.0, value - half), value + half, confidence, "linearised-t")


def effective_devices(sizes: Floats) -> float:
    """Return how many devices of equal size tell as much as these sizes [devices] do: sum^2 / sum of squares (Kish)."""
    total = float((sizes**2).sum())
    return round(float(sizes.sum()) ** 2 / total, 6) if total else 0.0


def quantile_interval(values: Floats, level: float, *, largest: float, confidence: float = 0.95) -> Interval:
    """Return the interval of a quantile of devices, between two order statistics.

    The number of devices at or below the quantile is binomial, whatever the distribution (David and Nagaraja, Order
    Statistics, section 7.1). Where there are too few devices for an order statistic, the end is the metric's limit: 0
    below, and `largest` above (None where that is infinite).

    Guarantees:
    - covers the population's quantile with at least `confidence`, where devices are drawn independently.

    Args:
        values: [devices].
        level: between 0 and 1, such as 0.1.
        largest: of the metric.
        confidence: of both sides together.
    """
    ranked, devices = np.sort(values), len(values)
    tail = (1 - confidence) / 2
    first = int(stats.binom.ppf(tail, devices, level))
    last = int(stats.binom.ppf(1 - tail, devices, level)) + 1
    low = float(ranked[first - 1]) if first >= 1 else 0.0
    above = largest if math.isfinite(largest) else None
    high = float(ranked[last - 1]) if last <= devices else above
    return Interval(low, high, confidence, "order-statistics")


def worst_tenth(values: Floats) -> float:
    """Return the mean of the lowest tenth of the values [devices]; a device at the border counts by its share.

    >>> worst_tenth(np.arange(20.0))
    0.5
    """
    ranked = np.sort(values)
    return float(_lowest_means(ranked, np.ones((1, len(ranked))), np.zeros(1))[0])


def worst_tenth_interval(
    values: Floats, rng: np.random.Generator, *, limits: tuple[float, float], confidence: float = 0.95
) -> Interval:
    """Return the interval of the mean of the lowest tenth of devices.

    Devices get exponential weights; beyond 10,000 devices the interval is linearised. Where there are limits, one more
    device at the lower one is weighted along for the lower end, and one at the upper one for the upper end, as in
    `troth.intervals.share_interval`: what is worse than all devices seen may have been missed. In simulation (300
    repetitions, nominal 95 %) shares were covered 97 % to 100 % of the time from 10 devices on; without a limit below,
    log-normal values were covered 72 % with 50 devices, 89 % with 200 and 95 % with 1,000.

    Args:
        values: [devices], lower being worse.
        rng: public randomness.
        limits: of a device's value; infinite where there is none.
        confidence: coverage aimed at.
    """
    value, tail = worst_tenth(values), (1 - confidence) / 2
    if len(values) > _MOST_RESAMPLED:
        # A device moves the mean of the lowest tenth by how far below the border it lies; moving the border is free.
        below = np.minimum(values, np.quantile(values, _TENTH, method="inverted_cdf"))
        half = _half_width(below / (_TENTH * len(values)), confidence)
        return Interval(max(limits[0], value - half), min(limits[1], value + half), confidence, "linearised-t")
    ends = []
    for limit, level in ((limits[0], tail), (limits[1], 1 - tail)):
        ranked = np.sort(np.append(values, limit) if math.isfinite(limit) else values)
        ends.append(float(np.quantile(_reweighted(ranked, rng), level)))
    return Interval(min(ends[0], value), max(ends[1], value), confidence, "bayesian-bootstrap")


def difference_interval(one: Interval, first: float, other: Interval, second: float) -> Interval:
    """Return the interval of first - second from those of both, which are independent.

    Zou and Donner, Statistics in Medicine 27 (2008), 'MOVER': each end is as far off as the root of the squared
    distances of the ends that move it that way.
    """
    if None in (one.low, one.high, other.low, other.high):
        return replace(one, low=None, high=None, method="mover")
    low = math.hypot(first - (one.low or 0.0), (other.high or 0.0) - second)
    high = math.hypot((one.high or 0.0) - first, second - (other.low or 0.0))
    value = first - second
    return Interval(value - low, value + high, one.confidence, "mover")


def _half_width(influence: Floats, confidence: float) -> float:
    """Return Student's quantile times the standard error of a sum of independent terms [devices]."""
    devices = len(influence)
    error = float(np.std(influence, ddof=1)) * math.sqrt(devices)
    return float(stats.t.isf((1 - confidence) / 2, devices - 1)) * error


def _reweighted(ranked: Floats, rng: np.random.Generator) -> Floats:
    """Return [replicates] means of the lowest tenth under exponential weights.

    Devices far above the tenth can never be in it: their weights are drawn as one sum.
    """
    devices = len(ranked)
    near = min(devices, math.ceil(_TENTH * devices + _SPREAD * math.sqrt(devices)) + 50)
    out, step = [], max(1, _BLOCK // near)
    for start in range(0, REPLICATES, step):
        size = min(step, REPLICATES - start)
        weights = rng.standard_exponential((size, near))
        rest = rng.standard_gamma(devices - near, size) if devices > near else np.zeros(size)
        out.append(_lowest_means(ranked[:near], weights, rest))
    return np.concatenate(out)


def _lowest_means(ranked: Floats, weights: Floats, rest: Floats) -> Floats:
    """Return [replicates] weighted means of the lowest tenth of the mass.

    Args:
        ranked: [devices] ascending.
        weights: [replicates, devices].
        rest: [replicates] weight of the devices that are not listed, all above.
    """
    mass = np.cumsum(weights, axis=1)
    wanted = _TENTH * (mass[:, -1] + rest)
    inside = np.clip(wanted[:, None] - (mass - weights), 0.0, weights)
    return np.asarray((inside @ ranked) / inside.sum(axis=1))
