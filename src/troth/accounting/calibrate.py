"""The smallest noise that keeps a target epsilon."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from troth.accounting.cache import remembered
from troth.accounting.mechanism import Mechanism, best_renyi_epsilon
from troth.accounting.pld import discretization, epsilon_at_width, remembered_epsilon
from troth.errors import PrivacyError
from troth.results import Json

__all__ = ["calibrate_noise_multiplier"]

_TOLERANCE = 9e-4  # the answer is at most this share above the smallest noise multiplier; the promise is 1e-3
_FLATTEST = -0.9  # d log epsilon / d log sigma; near -1 where noise is large, near -2 where it is small
_COARSER = 10.0  # the search's discretisation over the certified one
_SECANTS, _NEWTON, _BISECTIONS = 8, 6, 40
_SMALLEST, _LARGEST = 1e-3, 1e7


def calibrate_noise_multiplier(
    target_epsilon: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    *,
    max_batch_size: int | None = None,
    units: int | None = None,
) -> float:
    """Return the smallest noise multiplier whose epsilon does not exceed the target, to 0.1 % from above.

    A Rényi bound (milliseconds) gives a start from above, coarse privacy loss distributions (a tenth of a second) the
    neighbourhood and the slope, one or two evaluations of `PrivacyPlan.epsilon`'s own figure the answer. Kept on disk
    under ``$TROTH_HOME/cache``, keyed by the inputs and the versions of the libraries.

    Args:
        target_epsilon: above 0, in nats.
        delta: in (0, 1).
        sampling_rate: in (0, 1].
        steps: at least 1.
        max_batch_size: cap of truncated Poisson sampling; None for plain Poisson.
        units: the number of units, which a cap needs.

    Guarantees:
        - the epsilon of the returned noise multiplier is at most the target;
        - 0.1 % less noise would exceed it.

    Raises:
        PrivacyError: an argument is out of range, or no noise multiplier between 0.001 and 10 million fits.
    """
    if not (math.isfinite(target_epsilon) and target_epsilon > 0):
        raise PrivacyError(f"target_epsilon = {target_epsilon}: give a finite number above 0")
    if not 0 < delta < 1:
        raise PrivacyError(f"target_delta = {delta}: give a number between 0 and 1")
    if not 0 < sampling_rate <= 1:
        raise PrivacyError(f"sampling_rate = {sampling_rate}: give a number above 0 and at most 1")
    if steps < 1:
        raise PrivacyError(f"steps = {steps}: give at least 1")
    search = _Search(target_epsilon, delta, sampling_rate, steps, max_batch_size, units)
    key: dict[str, Json] = {
        "epsilon": target_epsilon,
        "delta": delta,
        "sampling_rate": sampling_rate,
        "steps": steps,
    }
    if max_batch_size is not None:
        key |= {"max_batch_size": max_batch_size, "units": units}
    return remembered("noise-multiplier", key, search.run)


@dataclass(frozen=True)
class _Search:
    target: float
    delta: float
    sampling_rate: float
    steps: int
    max_batch_size: int | None
    units: int | None

    def parts(self, sigma: float) -> list[tuple[Mechanism, int]]:
        return [(Mechanism(self.sampling_rate, sigma, self.max_batch_size, self.units), self.steps)]

    def renyi(self, sigma: float) -> float:
        """Return the Rényi figure without truncation: a start for the search, certified by nothing."""
        return best_renyi_epsilon([(m.untruncated, n) for m, n in self.parts(sigma)], self.delta)

    def coarse(self, sigma: float) -> float:
        parts = self.parts(sigma)
        return epsilon_at_width(parts, self.delta, _COARSER * discretization(parts, self.delta))

    def certified(self, sigma: float) -> float:
        return remembered_epsilon(self.parts(sigma), self.delta)

    def run(self) -> float:
        """Return the calibrated noise multiplier."""
        start = math.exp(_bisect(lambda x: self.renyi(math.exp(x)) - self.target))
        x, slope = self._neighbourhood(math.log(start))
        return math.exp(self._settle(x, slope))

    def _neighbourhood(self, x: float) -> tuple[float, float]:
        """Return log sigma where the coarse epsilon about meets the target, and d log epsilon / d log sigma there.

        Secant steps on log epsilon against log sigma, where the curve is almost straight. The slope is taken from
        steps above 1 % only: below, the grain of a coarse discretisation shows.
        """
        goal, slope = self._goal, _FLATTEST
        y = _log(self.coarse(math.exp(x)))
        for _ in range(_SECANTS):
            step = max(-1.0, min(1.0, (goal - y) / slope))
            y_next = _log(self.coarse(math.exp(x + step)))
            slope = _slope(step, y_next - y, slope)
            x, y = x + step, y_next
            if abs(goal - y) < 4e-3:
                break
        return x + (goal - y) / slope, slope

    def _settle(self, x: float, slope: float) -> float:
        """Return log sigma whose certified epsilon lies below the target by less than the tolerance allows.

        Newton steps with the known slope inside a bracket (low exceeds the target, high keeps it); bisection where
        they leave it, or where the curve is so steep that they do not end.
        """
        low, high = math.log(_SMALLEST), math.log(_LARGEST)
        goal = math.log(self.target)
        before: tuple[float, float] | None = None
        for trial in range(_NEWTON + _BISECTIONS):
            y = _log(self.certified(math.exp(x)))
            if y <= goal:
                high = x
                if y >= goal + _FLATTEST * _TOLERANCE:
                    return x
            else:
                low = x
            if high - low <= _TOLERANCE:
                return high
            slope = slope if before is None else _slope(x - before[0], y - before[1], slope)
            before, newton = (x, y), x + (self._goal - y) / slope
            x = newton if trial < _NEWTON and low < newton < high else 0.5 * (low + high)
        raise PrivacyError(
            f"target_epsilon = {self.target:g}: no noise multiplier found for sampling rate {self.sampling_rate:g} "
            f"and {self.steps} steps; give privacy.noise_multiplier instead"
        )

    @property
    def _goal(self) -> float:
        """Log epsilon in the middle of the tolerance."""
        return math.log(self.target) + 0.5 * _FLATTEST * _TOLERANCE


def _log(epsilon: float) -> float:
    return math.log(max(epsilon, 1e-12))


def _slope(step: float, rise: float, known: float) -> float:
    """Return the slope of the last step, or the known one where the step was too short to tell."""
    return min(_FLATTEST, max(-10.0, rise / step)) if abs(step) > 0.01 else known


def _bisect(excess: Callable[[float], float]) -> float:
    """Return the smallest log sigma, to 1 %, where a decreasing function is at most 0.

    Raises:
        PrivacyError: none within the range of noise multipliers.
    """
    low, high = math.log(_SMALLEST), math.log(_LARGEST)
    if excess(high) > 0:
        raise PrivacyError("target_epsilon: not even a noise multiplier of 10 million reaches it; raise the target")
    while high - low > 0.01:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return high
