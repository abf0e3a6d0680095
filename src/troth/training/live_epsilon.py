"""Epsilon while a run goes on: read off a curve made beforehand, never below the truth, free at each step."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace

from troth.accounting import PrivacyPlan, epsilon_curve

__all__ = ["LiveEpsilon"]

_POINTS = 20


class LiveEpsilon:
    """Epsilon after any number of steps of a plan: that of the next point of the curve.

    Guarantees:
    - never below ``plan.epsilon(steps)`` for the same number of steps: epsilon grows with steps.

    Args:
        plan: the plan.
        replayed: steps that were counted twice before this run went on; they count from the start.
    """

    def __init__(self, plan: PrivacyPlan, replayed: int = 0) -> None:
        self._replayed = replayed
        curve = epsilon_curve(replace(plan, steps=plan.steps + replayed), _POINTS)
        self._steps = [int(row["step"]) for row in curve]
        self._epsilon = [float(row["epsilon"]) for row in curve]

    def __call__(self, steps: int) -> float:
        """Return an upper bound on epsilon after `steps` steps."""
        return self._epsilon[min(bisect_left(self._steps, steps + self._replayed), len(self._epsilon) - 1)]
