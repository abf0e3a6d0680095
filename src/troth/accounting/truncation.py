"""The cap of truncated Poisson sampling: as small as epsilon does not notice."""

from __future__ import annotations

import math

from troth.accounting.cache import remembered
from troth.accounting.mechanism import Mechanism
from troth.accounting.pld import discretization, epsilon_at_width

__all__ = ["choose_max_batch_size"]

_COST = 1.001  # epsilon with the cap over epsilon without, at most
_COARSER = 10.0  # the search's discretisation over the certified one; both figures use the same
_DEVIATIONS = (3, 4, 5, 6, 7, 8, 9)


def choose_max_batch_size(mechanism: Mechanism, units: int, steps: int, delta: float) -> int:
    """Return the smallest cap that costs at most 0.1 % of epsilon, in whole standard deviations above the mean.

    A batch is larger than B + k sqrt(B) with a chance that falls like a Gaussian tail; at k = 3 the cap costs tens of
    per cent of epsilon, at k = 5 a fraction of a per mille (measured with dp-accounting). The choice looks at public
    numbers only.

    Args:
        mechanism: a step without the cap.
        units: n, public.
        steps: of the whole run.
        delta: of the plan.
    """
    batch = mechanism.sampling_rate * units
    if mechanism.noise_multiplier == 0:
        return min(units, math.ceil(batch + _DEVIATIONS[-1] * math.sqrt(batch)))

    def search() -> float:
        parts = [(mechanism, steps)]
        width = _COARSER * discretization(parts, delta)
        free = epsilon_at_width(parts, delta, width)
        for deviations in _DEVIATIONS:
            cap = min(units, math.ceil(batch + deviations * math.sqrt(batch)))
            capped = Mechanism(mechanism.sampling_rate, mechanism.noise_multiplier, cap, units)
            if cap == units or epsilon_at_width([(capped, steps)], delta, width) <= _COST * free:
                return cap
        return units

    key = {
        "sampling_rate": mechanism.sampling_rate,
        "noise_multiplier": mechanism.noise_multiplier,
        "units": units,
        "steps": steps,
        "delta": delta,
    }
    return round(remembered("max-batch-size", key, search))
