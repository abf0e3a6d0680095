"""The first clients to arrive of a population, each at its own rate: a draw without replacement, at any scale.

Every client is met at the times of a Poisson process of its rate. Who is met first, then who next, and so on, is a draw
one after the other without replacement, in proportion to the rates: the law of 'draw, skip repeats' and that of the
exponential race (Efraimidis and Spirakis, Information Processing Letters 97, 2006) are one. So a draw may begin with
meetings, a few microseconds each, and end as a race, which looks at every client once, where meetings would go on too
long: a cohort near the population, few clients that hold nearly all the weight, few that are eligible.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from troth.federated.weighted_index import Rates

__all__ = ["Arrivals", "Eligible", "first_arrivals"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Eligible = Callable[[Integers], Bools]

_RACE_BELOW = 16  # clients listed per client wanted below which the race is faster from the start
_MEETINGS_WANTED = 8  # meetings per client wanted, and
_CLIENTS_MEETING = 512  # clients per meeting, after which the race is the cheaper way on
_BATCH = 8192  # meetings drawn at a time, at most


@dataclass(frozen=True, eq=False)
class Arrivals:
    """The first eligible clients to arrive.

    Attributes:
        clients: [wanted or fewer] client numbers, each once, in order of arrival; fewer only where no more are
            eligible.
        next_time: when the next eligible client arrives, in units of 1 / rate; infinity where there is none.
    """

    clients: Integers
    next_time: float


def first_arrivals(rates: Rates, wanted: int, eligible: Eligible, rng: np.random.Generator) -> Arrivals:
    """Return the first `wanted` eligible clients to arrive, and when the next one does.

    Guarantees:
    - the law is that of the exponential race over the eligible clients, whichever way it is drawn: meetings are a
      Poisson process of rate `rates.total`, so the time of the k-th is Gamma(k) / total, whoever was met; and a client
      that was not met until then arrives after it by an exponential time of its rate (no memory), so the race goes on
      where meetings stop;
    - work is bounded by a constant for each client wanted and each client of the population.

    Args:
        rates: who is met how often.
        wanted: at least 1.
        eligible: says of client numbers [k] which may be taken; must answer the same each time; it is asked only about
            clients that were met, or that may be among the first.
        rng: randomness.
    """
    goal = wanted + 1
    seen, found = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    meetings, limit = 0, _MEETINGS_WANTED * goal + rates.listed // _CLIENTS_MEETING
    if rates.listed <= _RACE_BELOW * goal or rates.drawable < goal:
        limit = 0
    while meetings < limit:
        missing = goal - len(found)
        size = int(1.1 * missing * (meetings + 1) / (len(found) + 1)) + 16
        met = rates.draw(min(size, limit - meetings, _BATCH), rng)
        fresh, position = _first_meetings(met, seen)
        taken = eligible(fresh)
        new, position = fresh[taken], position[taken]
        if len(new) >= missing:
            time = rng.standard_gamma(meetings + position[missing - 1] + 1) / rates.total
            return Arrivals(np.concatenate((found, new[: missing - 1])), float(time))
        seen, found = np.concatenate((seen, fresh)), np.concatenate((found, new))
        meetings += len(met)
    start = float(rng.standard_gamma(meetings)) / rates.total if meetings else 0.0
    clients, times = _race(rates, np.sort(seen), goal - len(found), eligible, rng)
    next_time = start + float(times[-1]) if len(found) + len(clients) == goal else np.inf
    return Arrivals(np.concatenate((found, clients))[:wanted], next_time)


def _first_meetings(met: Integers, seen: Integers) -> tuple[Integers, Integers]:
    """Return the clients met that were not seen before, in order, and the places of their first meetings."""
    clients, position = np.unique(met, return_index=True)
    if len(seen):
        position = position[~np.isin(clients, seen)]
    position = np.sort(position)
    return met[position], position


def _race(
    rates: Rates, seen: Integers, wanted: int, eligible: Eligible, rng: np.random.Generator
) -> tuple[Integers, Floats]:
    """Return the first `wanted` eligible clients to arrive and their times, in order; all where there are fewer.

    Args:
        rates: who arrives at which rate.
        seen: [seen] ascending numbers of clients that are listed and do not take part.
        wanted: at least 1.
        eligible: as in `first_arrivals`.
        rng: randomness.
    """
    clients, times, latest = np.empty(0, dtype=np.int64), np.empty(0), np.inf
    for listed, speed in rates.pieces():
        inside = seen[np.searchsorted(seen, listed[0]) : np.searchsorted(seen, listed[-1], side="right")]
        speed[np.searchsorted(listed, inside)] = 0.0
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn = rng.standard_exponential(len(listed)) / speed
        early = np.flatnonzero(drawn < latest)
        early = early[eligible(listed[early])]
        times, clients = np.concatenate((times, drawn[early])), np.concatenate((clients, listed[early]))
        if len(times) >= 2 * wanted:
            first = np.argpartition(times, wanted - 1)[:wanted]
            clients, times = clients[first], times[first]
            latest = times.max()
    order = np.argsort(times)[:wanted]
    return clients[order], times[order]
