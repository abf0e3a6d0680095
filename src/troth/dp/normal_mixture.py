"""The standard normal density cut into hats, which cost almost nothing to draw from, and an exact remainder.

With φ the density, h a spacing and Λ the hat max(0, 1 - |x|), whole numbers n_k are chosen such that

    g(z) = Σ_k (n_k / 2^16) Λ((z - k h) / h) / h  <=  φ(z)   everywhere.

A 16-bit index draws a hat's centre with probability n_k / 2^16 by one table look-up, and the difference of two uniforms
draws the place under the hat: no logarithm, no sine. What is left, φ - g >= 0, has 1/819 of the mass and is
drawn by rejection in float64. The mixture of both is φ itself, not an approximation (ours; the idea of a cheap common
part and a rare exact one is Marsaglia's, as in Marsaglia and Tsang, Journal of Statistical Software 5(8), 2000).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import ndtr, ndtri

__all__ = ["REMAINDER", "SPACING", "NormalMixture", "normal_mixture"]

SPACING = 1 / 16  # h: a power of two, so that centres are exact
REMAINDER = -128  # the entry of the table that stands for the remainder
_INDEX_BITS = 16
_OUTERMOST = 100  # centres looked at on either side; those beyond about 61 get no weight
_MARGIN = 1 + 2.0**-40  # above all rounding in the bounds below


def _density(z: np.ndarray) -> np.ndarray:
    density: np.ndarray = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return density


def _largest_curvature(low: np.ndarray, high: np.ndarray, sign: int) -> np.ndarray:
    """Return max(0, max of sign·φ'') on each [low, high]; φ''(z) = (z² - 1) φ(z) is extreme at 0 and at ±√3."""
    best = np.zeros_like(low)
    for z in (low, high, *(np.full_like(low, e) for e in (-math.sqrt(3), 0.0, math.sqrt(3)))):
        inside = (low <= z) & (z <= high)
        best = np.maximum(best, np.where(inside, sign * (z * z - 1) * _density(z), 0))
    return best


@dataclass(frozen=True)
class NormalMixture:
    """The two parts of the standard normal density.

    Attributes:
        centres: k of the hat for each index, `REMAINDER` for the last ones [65536], int8.
        heights: g at 0, h, 2 h, ... up to the first place where it is 0; g is even and linear in between.
        bounds: at least the largest value of φ - g on each [i h, (i + 1) h), i >= 0 [len(heights) - 1].
        cumulative: running sum of the proposal's mass on z >= 0: one entry per interval, the last for the tail.
    """

    centres: np.ndarray
    heights: np.ndarray
    bounds: np.ndarray
    cumulative: np.ndarray

    @property
    def tail_start(self) -> float:
        """Where the hats end; beyond, the remainder is φ."""
        return SPACING * (len(self.heights) - 1)

    @property
    def remainder_mass(self) -> float:
        """Probability of the remainder."""
        return float(np.mean(self.centres == REMAINDER))

    def hats(self, z: np.ndarray) -> np.ndarray:
        """Return g(z)."""
        nodes = SPACING * np.arange(len(self.heights))
        hats: np.ndarray = np.interp(np.abs(z), nodes, self.heights, right=0.0)
        return hats

    def remainder(self, words: np.ndarray) -> np.ndarray:
        """Return draws with density proportional to φ - g, about 0.6 per row: rejection, then the tail by inversion.

        An interval (or the tail) is proposed with probability proportional to its bound, a point in it uniformly, and
        kept with probability (φ - g) / bound. In the tail z = -Φ⁻¹(u Φ(-tail_start)) is always kept. Uniforms are the
        odd multiples of 2^-53, so the largest draw is 9.32.

        Args:
            words: random words, three per proposal [proposals, 3], uint64.
        """
        uniforms = ((words >> np.uint64(12)) + 0.5) * 2.0**-52
        place = np.searchsorted(self.cumulative[:-1], uniforms[:, 0] * self.cumulative[-1], side="right")
        tail = place == len(self.bounds)
        place[tail] = 0
        z = SPACING * (place + uniforms[:, 1])
        hats = self.heights[place] + uniforms[:, 1] * (self.heights[place + 1] - self.heights[place])
        kept = uniforms[:, 2] * self.bounds[place] < _density(z) - hats
        z[tail] = -ndtri(uniforms[tail, 1] * ndtr(-self.tail_start))
        kept |= tail
        kept_draws: np.ndarray = np.where(words[kept, 0] & np.uint64(1), -z[kept], z[kept])
        return kept_draws


@lru_cache(maxsize=1)
def normal_mixture() -> NormalMixture:
    """Return the mixture with spacing 1/16 and 16-bit weights.

    Guarantees:
    - g <= φ: on an interval, linear interpolation lies above a curve by at most h²/8 max φ''; every weight is lowered
      by that much before it is rounded down;
    - the bounds hold: φ - g is convex, hence largest at an end, where φ'' >= 0, and elsewhere at most h²/8 max(-φ'')
      above its larger end;
    - g is even, so that the draws are symmetric.
    """
    k = np.arange(-_OUTERMOST, _OUTERMOST + 1)
    z = SPACING * k
    lowered = _density(z) - SPACING**2 / 8 * _largest_curvature(z - SPACING, z + SPACING, 1) * _MARGIN
    weights = np.maximum(0, np.floor(2**_INDEX_BITS * SPACING * lowered)).astype(np.int64)
    centres = np.full(2**_INDEX_BITS, REMAINDER, dtype=np.int8)
    centres[: weights.sum()] = np.repeat(k, weights)
    last = int(k[weights > 0].max())
    heights = weights[_OUTERMOST : _OUTERMOST + last + 2] / (2**_INDEX_BITS * SPACING)
    low = SPACING * np.arange(last + 1)
    ends = _density(SPACING * np.arange(last + 2)) - heights
    sag = SPACING**2 / 8 * _largest_curvature(low, low + SPACING, -1)
    bounds = (np.maximum(ends[:-1], ends[1:]) + sag) * _MARGIN
    masses = np.append(bounds * SPACING, ndtr(-SPACING * (last + 1)))
    mixture = NormalMixture(centres, heights, bounds, np.cumsum(masses))
    for array in (centres, heights, bounds, mixture.cumulative):
        array.setflags(write=False)
    return mixture
