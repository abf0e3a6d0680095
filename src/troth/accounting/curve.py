"""How epsilon grows over a run: for ``troth plan``, for the report and for live progress."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence

from troth.accounting.plan import PrivacyPlan
from troth.accounting.pld import steps_curve
from troth.errors import ConfigError
from troth.results import Json

__all__ = ["epsilon_after", "epsilon_curve"]


def epsilon_curve(plan: PrivacyPlan, points: int = 20) -> list[dict[str, Json]]:
    """Return rows ``{"step", "epoch", "epsilon"}`` at about `points` evenly spaced steps, from 0 to the last.

    `step` counts steps done, `epoch` is in passes over the data, `epsilon` is at the plan's delta, in nats (null for
    infinity). Every epsilon is an upper bound; the last is ``plan.epsilon()`` exactly. Kept on disk.

    Raises:
        ConfigError: `points` is below 1.
    """
    if points < 1:
        raise ConfigError(f"points = {points}: a curve has at least one point")
    steps = sorted({round(i * plan.steps / points) for i in range(points + 1)})
    epsilons = steps_curve(plan.mechanism, steps, plan.delta)
    return [
        {"step": n, "epoch": n * plan.sampling_rate, "epsilon": e if math.isfinite(e) else None}
        for n, e in zip(steps, epsilons, strict=True)
    ]


def epsilon_after(curve: Sequence[Mapping[str, Json]], step: int) -> float:
    """Return an upper bound on epsilon after `step` steps, from the curve's next point at or after it.

    Infinity where the curve has no such point, or where its point is infinite.
    """
    place = bisect.bisect_left([_number(row["step"]) for row in curve], step)
    epsilon = curve[place]["epsilon"] if place < len(curve) else None
    return math.inf if epsilon is None else _number(epsilon)


def _number(value: Json) -> float:
    if isinstance(value, int | float):
        return float(value)
    raise TypeError(f"a curve holds numbers, not {type(value).__name__}")
