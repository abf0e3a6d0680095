"""From the units that a step drew to the physical batches that go through the model.

A *group* is what is clipped as one: the rows of a unit, or of a micro-batch, each with its weight in the group's loss.
Groups of unlike size are padded to one shape per physical batch with rows of weight 0, whose gradient is exactly 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from troth.dp.sampling import sample_units

if TYPE_CHECKING:
    from troth.accounting.plan import PrivacyPlan
    from troth.data import Units
    from troth.seeds import PrivateRandomness

__all__ = ["Group", "PhysicalBatch", "draw_groups", "physical_batches"]


@dataclass(frozen=True, eq=False)
class Group:
    """Rows that are clipped as one, and the weight of each row's loss in the group's: int64 and float64 [rows]."""

    rows: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True, eq=False)
class PhysicalBatch:
    """Rows that go through the model at once.

    Attributes:
        rows: int64 [groups * size], group after group.
        size: rows of each group, padding included.
        weights: float64 [groups * size]; None where every row is a group of its own with weight 1.
    """

    rows: np.ndarray
    size: int = 1
    weights: np.ndarray | None = None

    @property
    def groups(self) -> int:
        """How many gradients are clipped in it."""
        return len(self.rows) // self.size


def draw_groups(plan: PrivacyPlan, units: Units, randomness: PrivateRandomness) -> tuple[list[Group], int]:
    """Return the groups of one step and how many units were drawn.

    A unit's loss is the mean over its rows: an example with its augmentations, or what a user adds (at most
    `examples_per_user` rows, drawn anew in each step, a choice that concerns nobody else). A micro-batch's loss is the
    sum over the units that fell into it divided by the *expected* number m; every unit falls into one of `plan.divisor`
    micro-batches by chance and on its own, since membership by position would let one unit move all later ones.
    """
    drawn = sample_units(plan, randomness)
    members = [units.rows(unit) for unit in drawn]
    if plan.examples_per_user is not None:
        chooser, bound = randomness.generator("contributions"), plan.examples_per_user
        members = [r if len(r) <= bound else chooser.choice(r, size=bound, replace=False) for r in members]
    groups = [Group(rows, np.full(len(rows), 1 / len(rows))) for rows in members]
    if plan.clip_unit == "example":
        return groups, len(drawn)
    places = randomness.generator("microbatch").integers(plan.divisor, size=len(groups))
    return list(_micro_batches(groups, places, plan.microbatch_size)), len(drawn)


def _micro_batches(groups: Sequence[Group], places: np.ndarray, expected: int) -> Iterator[Group]:
    for place in np.unique(places):
        inside = [groups[int(i)] for i in np.flatnonzero(places == place)]
        yield Group(np.concatenate([g.rows for g in inside]), np.concatenate([g.weights for g in inside]) / expected)


def physical_batches(groups: Sequence[Group], limit: int, lengths: np.ndarray | None) -> list[PhysicalBatch]:
    """Return the groups cut into physical batches of about `limit` rows, alike in size and length.

    A sum does not care about the order; padding and the cost of attention do. A group is never cut, so one that holds
    more than `limit` rows makes a physical batch of its own.

    Args:
        groups: of one step.
        limit: rows that go through the model at once, at least 1.
        lengths: length of every row of the data set, to put like ones together; None leaves the order.
    """

    def rank(group: Group) -> tuple[int, int]:
        return len(group.rows), 0 if lengths is None else int(lengths[group.rows].max())

    batches: list[PhysicalBatch] = []
    waiting: list[Group] = []
    for group in sorted(groups, key=rank):
        if waiting and (len(waiting) + 1) * len(group.rows) > limit:
            batches.append(_padded(waiting))
            waiting = []
        waiting.append(group)
    return [*batches, _padded(waiting)] if waiting else batches


def _padded(groups: Sequence[Group]) -> PhysicalBatch:
    size = max(len(g.rows) for g in groups)
    if size == 1 and all(g.weights[0] == 1 for g in groups):
        return PhysicalBatch(np.concatenate([g.rows for g in groups]))
    rows = np.stack([np.concatenate([g.rows, np.repeat(g.rows[:1], size - len(g.rows))]) for g in groups])
    weights = np.stack([np.concatenate([g.weights, np.zeros(size - len(g.rows))]) for g in groups])
    return PhysicalBatch(rows.reshape(-1), size, weights.reshape(-1))
