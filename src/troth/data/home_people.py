"""Who speaks in the built-in corpus, how often, when and in which of two dialects; and the bias planted against one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from troth.data.home_grammar import GROUPS
from troth.seeds import PublicSeeds

__all__ = ["BIASED_GROUP", "DAYS", "START", "Bias", "People", "draw_times", "make_people"]

START = np.datetime64("2025-03-03T00:00:00")  # a Monday
DAYS = 30
BIASED_GROUP = GROUPS[1]

_RARE_SHARE = 0.08  # of everybody's rows
_RARE_MORE = 0.45  # more of the biased group's rows, at bias 1
_NOISE = 0.30  # wrong gold on the biased group's training and validation rows, at bias 1
_WAKING_HOURS = (6.0, 23.5)
_HOUR = 3600


@dataclass(frozen=True)
class Bias:
    """How much worse the corpus serves the biased group; 0 not at all, 1 the most.

    Guarantees:
    - at 0 no gold is wrong and both groups draw from the same distribution, dialect markers apart;
    - rows of the other group are the same at every strength;
    - the biased group's rows drawn for rare phrasing, or for wrong gold, at one strength are so at every greater one.
    """

    strength: float

    def rare_share(self, group: int) -> float:
        """Return the share of a group's rows that are phrased in a rare way."""
        return _RARE_SHARE + (_RARE_MORE * self.strength if GROUPS[group] == BIASED_GROUP else 0.0)

    def noise_share(self, group: int) -> float:
        """Return the share of a group's training and validation rows whose gold is wrong."""
        return _NOISE * self.strength if GROUPS[group] == BIASED_GROUP else 0.0


@dataclass(frozen=True)
class People:
    """The users of a corpus.

    Attributes:
        names: [users] such as ``user-0042``; the number tells nothing about activity.
        groups: [users] index into `GROUPS`.
        activity: [users] cumulative share of the rows, the last 1; Zipf with exponent 1.
        tastes: [users, intents] cumulative chance of each intent, the last 1.
        habits: [users, value lists] in [0, 1): where in a list the user's favourites lie.
    """

    names: tuple[str, ...]
    groups: NDArray[np.int64]
    activity: NDArray[np.float64]
    tastes: NDArray[np.float64]
    habits: NDArray[np.float64]

    def draw(self, uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return [rows] the user of each row, by activity."""
        return np.searchsorted(self.activity, uniforms, side="right").astype(np.int64)

    def draw_intents(self, users: NDArray[np.int64], uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return [rows] the intent of each row, by its user's taste."""
        intents: NDArray[np.int64] = (self.tastes[users] <= uniforms[:, None]).sum(axis=1).astype(np.int64)
        return intents


def _cumulative(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return running sums over the last axis, scaled to end at 1 (sequential, hence the same on every machine)."""
    sums = np.cumsum(weights, axis=-1)
    return sums / sums[..., -1:]


def _balanced_groups(weights: NDArray[np.float64], first: int) -> NDArray[np.int64]:
    """Return [users] groups of nearly the same activity: the next most active user joins the group that has less."""
    mass = [0.0, 0.0]
    out = np.empty(len(weights), dtype=np.int64)
    for user, weight in enumerate(weights.tolist()):
        group = first if mass[first] <= mass[1 - first] else 1 - first
        mass[group] += weight
        out[user] = group
    return out


def make_people(users: int, weights: tuple[float, ...], lists: int, seeds: PublicSeeds) -> People:
    """Return users with Zipf activity, two groups of nearly equal activity, and tastes of their own.

    Args:
        users: how many, at least 2.
        weights: how often each intent is asked for over all users.
        lists: how many value lists there are.
        seeds: the corpus' randomness.
    """
    generator = seeds.generator("home", "people")
    activity = 1.0 / np.arange(1, users + 1)
    numbers = np.argsort(generator.random(users), kind="stable").tolist()
    first = int(generator.random() * len(GROUPS))
    tastes = np.array(weights) * (0.25 + 1.5 * generator.random((users, len(weights))))
    return People(
        names=tuple(f"user-{number:04d}" for number in numbers),
        groups=_balanced_groups(activity, first),
        activity=_cumulative(activity),
        tastes=_cumulative(tastes),
        habits=generator.random((users, lists)),
    )


def draw_times(rows: int, generator: np.random.Generator) -> list[str]:
    """Return [rows] ISO 8601 times within `DAYS` days from `START`, in waking hours and mostly around midday."""
    day, one, other = generator.random((3, rows))
    low, high = _WAKING_HOURS
    seconds = np.floor(day * DAYS) * 24 * _HOUR + (low + (high - low) * (one + other) / 2) * _HOUR
    moments = START + np.floor(seconds).astype(np.int64).astype("timedelta64[s]")
    texts: list[str] = np.datetime_as_string(moments, unit="s").tolist()
    return texts
