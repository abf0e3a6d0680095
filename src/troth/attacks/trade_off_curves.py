"""Trade-off curves of mechanisms by noise multiplier: what an attacker may reach at most, whatever the attack.

A family of curves is ordered: more noise, less leakage. The Gaussian mechanism has a formula; DP-SGD's curve is read
from the accountant's privacy profile.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import optimize, special

from troth.accounting import Mechanism, composed_epsilon, privacy_profile

__all__ = ["Curve", "DpSgdCurves", "dp_sgd_curve", "gaussian_curve"]

_PROFILE = np.concatenate([[0.0], np.geomspace(1e-2, 60.0, 120)])  # where a profile is read, in nats
_CELLS, _NODES = 2**15, 8001  # of a rough profile: losses told apart, and outputs of one step looked at
_TAIL = 9.0  # standard deviations


@dataclass(frozen=True, eq=False)
class Curve:
    """What a mechanism of some noise multiplier allows.

    Attributes:
        least_wrong: from the chance r of an event where the guess is right, the least chance of it where it is wrong:
            the inverse of the blow-up function 1 - f of the trade-off function f.
        epsilon: from delta, the mechanism's epsilon.
    """

    least_wrong: Callable[[float], float]
    epsilon: Callable[[float], float]


@lru_cache(maxsize=4096)
def gaussian_curve(noise_multiplier: float) -> Curve:
    """Return the curve of one Gaussian mechanism: Φ(Φ⁻¹(r) - 1/σ) (Dong, Roth and Su, arXiv 1905.02383)."""
    shift = 1 / noise_multiplier

    def gap(epsilon: float, delta: float) -> float:
        high = special.log_ndtr(-epsilon / shift + shift / 2)
        low = epsilon + special.log_ndtr(-epsilon / shift - shift / 2)
        return float(np.exp(high) - np.exp(low)) - delta

    def epsilon(delta: float) -> float:
        if gap(0.0, delta) <= 0:
            return 0.0
        most = shift * shift / 2 + shift * 40
        return float(optimize.brentq(gap, 0.0, most, args=(delta,), xtol=1e-9))

    return Curve(lambda r: float(special.ndtr(special.ndtri(r) - shift)), epsilon)


@dataclass(frozen=True)
class DpSgdCurves:
    """DP-SGD's curves by noise multiplier: ``curves(noise_multiplier)``.

    Attributes:
        sampling_rate: of Poisson sampling, in (0, 1].
        steps: of the whole run.
    """

    sampling_rate: float
    steps: int

    def __call__(self, noise_multiplier: float) -> Curve:
        """Return the curve from the accountant's privacy profile; it takes seconds to make, and is kept."""
        return _dp_sgd_curve(self, noise_multiplier)

    def rough(self, noise_multiplier: float) -> Curve:
        """Return nearly the same curve in a few milliseconds, without any guarantee: it says where to look."""
        return _rough_curve(self, noise_multiplier)


@lru_cache(maxsize=256)
def _dp_sgd_curve(family: DpSgdCurves, noise_multiplier: float) -> Curve:
    parts = [(Mechanism(family.sampling_rate, noise_multiplier), family.steps)]
    return Curve(
        _largest_line(privacy_profile(parts, _PROFILE), _PROFILE), lambda delta: composed_epsilon(parts, delta)
    )


@lru_cache(maxsize=1024)
def _rough_curve(family: DpSgdCurves, noise_multiplier: float) -> Curve:
    profile = _rough_profile(family.sampling_rate, noise_multiplier, family.steps)
    return Curve(_largest_line(profile, _PROFILE), lambda delta: family(noise_multiplier).epsilon(delta))


def dp_sgd_curve(sampling_rate: float, steps: int) -> Callable[[float], Curve]:
    """Return the family of DP-SGD's curves, indexed by noise multiplier, from the accountant's privacy profile.

    An event of chance r has at least (r - δ(ε)) e^-ε under a neighbour, for every ε: the largest of these on a grid of
    ε is a valid lower bound, hence the family is never stricter than the accountant's own. A curve takes seconds to
    make, and is kept.

    Args:
        sampling_rate: of Poisson sampling, in (0, 1].
        steps: of the whole run.
    """
    return DpSgdCurves(sampling_rate, steps)


def _largest_line(profile: np.ndarray, epsilons: np.ndarray) -> Callable[[float], float]:
    """Return r -> max(0, max_i (r - profile_i) e^-epsilon_i), which looks for its largest line among those that can be.

    As r grows, lines of smaller epsilon, hence of steeper slope, take over: the largest line is found by bisection.
    """
    lines: list[tuple[float, float]] = []  # (delta, e^-epsilon) of the lines that are largest somewhere
    starts: list[float] = []  # the r from which each is
    for delta, slope in zip(profile[::-1].tolist(), np.exp(-epsilons[::-1]).tolist(), strict=True):
        start = -math.inf
        while lines:
            start = (slope * delta - lines[-1][1] * lines[-1][0]) / (slope - lines[-1][1])
            if start > starts[-1]:
                break
            lines.pop()
            starts.pop()
            start = -math.inf
        lines.append((delta, slope))
        starts.append(start)

    def largest(right: float) -> float:
        delta, slope = lines[bisect.bisect_right(starts, right) - 1]
        return max(0.0, (right - delta) * slope)

    return largest


def _rough_profile(sampling_rate: float, noise_multiplier: float, steps: int) -> np.ndarray:
    """Return nearly delta at each epsilon of `_PROFILE`: the loss of one step on a grid, convolved with itself.

    Losses are split between the two cells next to them, which keeps their mean: nothing here rounds to the safe side.
    """
    x = np.linspace(-_TAIL * noise_multiplier, 1 + _TAIL * noise_multiplier, _NODES)
    without = np.exp(-0.5 * (x / noise_multiplier) ** 2)
    gain = (2 * x - 1) / (2 * noise_multiplier**2)
    loss = np.logaddexp(math.log1p(-sampling_rate), math.log(sampling_rate) + gain) if sampling_rate < 1 else gain
    found = [_profile_of(loss, without * np.exp(loss), steps), _profile_of(-loss, without, steps)]
    return np.asarray(np.max(found, axis=0))


def _profile_of(loss: np.ndarray, weight: np.ndarray, steps: int) -> np.ndarray:
    """Return delta at each epsilon of `_PROFILE`, where a step's loss [outputs] has these weights."""
    weight = weight / weight.sum()
    mean = float(weight @ loss)
    spread = math.sqrt(float(weight @ (loss - mean) ** 2) * steps)
    reach = 2 * _TAIL * spread + 2 * float(np.abs(loss - mean).max())
    width = 2 * reach / _CELLS
    places = (loss - mean) / width
    low = np.floor(places).astype(np.int64)
    part = places - low
    cells = np.bincount(low % _CELLS, weight * (1 - part), _CELLS)
    cells += np.bincount((low + 1) % _CELLS, weight * part, _CELLS)
    sums = np.fft.fftshift(np.maximum(np.fft.irfft(np.fft.rfft(cells) ** steps, _CELLS), 0.0))
    losses = (np.arange(_CELLS) - _CELLS // 2) * width + mean * steps
    # From above: the masses of larger losses under either data set.
    here, there = (np.append(np.cumsum(m[::-1])[::-1], 0.0) for m in (sums, sums * np.exp(-losses)))
    first = np.searchsorted(losses, _PROFILE, side="right")
    return np.asarray(np.maximum(here[first] - np.exp(_PROFILE) * there[first], 0.0))
