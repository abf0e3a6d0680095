"""Data that arrives over time, expires, is deleted on request, and is provably never gathered again.

In each period, in this order: rows **arrive**; rows **expire**, first by age (a row is kept `retention` periods, the
one it arrives in included), then by cap (a device keeps its newest rows); **deletion requests** dated up to the
period's end take effect, at once and for ever. A row that has left never comes back, also where a later deletion makes
room below the cap, and a row that was asked to be forgotten before it arrived never arrives.

What is left is the *window*: the counts of a period's population, which selection goes by, are those of the window.
Rows that expired by age may live on in a device's replay memory (`troth.federated.replay`): they are trained on, and
they do not count.

The proof is by construction and by guard. All that a period hands out are the row numbers of its two populations.
Whatever gathers rows asks `Stream.guard` first, which looks each row's life up (arrival, end, request) and refuses all
that are not in their window or replayed; it does not go by the populations, and they have to pass it themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from troth.config_federated import StreamConfig
from troth.errors import ConfigError, DataError, PrivacyError, ResumeError
from troth.federated.deletions import Deletions
from troth.federated.lifetimes import lifetimes
from troth.federated.population import FederatedData, rows_by_client
from troth.federated.replay import Gradients, ReplayMemory, forget, gradient_diverse, reservoir, reservoir_keys
from troth.federated.stream_events import Events, Periods, make_periods
from troth.seeds import PublicSeeds

__all__ = ["Period", "Stream"]

Integers = NDArray[np.int64]
_STATE = ("period", "replay_rows", "replay_devices", "replay_keys")


@dataclass(frozen=True, eq=False)
class Period:
    """What the federation sees in one period; client numbers are the same in all periods.

    Attributes:
        index: from 0.
        start: seconds since the epoch.
        end: seconds since the epoch.
        population: the window: what each client holds, in order of time; clients without rows stay, with a count of 0.
            Its counts are what selection goes by.
        training: the window and, after it, the replayed rows of each client; the same object without replay.
        last_seen: [clients] the period of the newest row in the window (0 under ``all``); -1 where there is none.
        arrived: rows that arrived in this period.
        aged: rows that expired by age in this period.
        capped: rows that the cap pushed out in this period.
        deleted: rows that a request removed in this period from a window or a replay memory.
    """

    index: int
    start: float
    end: float
    population: FederatedData
    training: FederatedData
    last_seen: Integers
    arrived: int
    aged: int
    capped: int
    deleted: int


class Stream:
    """The periods of a stream, opened one after the other; never one that is over.

    The protocols of ``federated.stream.protocol``: ``stream`` is the window with its retention, cap and replay;
    ``last`` is a window of one period; ``cumulative`` keeps what has arrived so far; ``all`` has the rows of all
    periods from the first on. The last three are baselines, without cap and replay. Deletions hold in all of them.

    Guarantees:
    - `population` and `training` of a period hold no row that has expired (but for the replayed ones), that was deleted
      or that has not arrived (but under ``all``);
    - `guard` refuses every row outside of the open period's `training`, and every row while no period is open;
    - what a period holds depends on the events, the settings and the requests alone, the replay memory also on the seed
      and the gradients: a stream that was restored goes on as if it had not been interrupted.

    Args:
        events: rows with device and time.
        config: ``federated.stream``.
        seeds: public randomness of the reservoir.
        deletions: from when on each row is forgotten.
        periods: where they are known; else made of `config`.

    Raises:
        ConfigError: as `make_periods`.
        DataError: `deletions` is of another number of rows.
    """

    def __init__(
        self,
        events: Events,
        config: StreamConfig,
        *,
        seeds: PublicSeeds,
        deletions: Deletions | None = None,
        periods: Periods | None = None,
    ) -> None:
        self._events, self._config = events, config
        mine = events.devices >= 0
        self.periods = periods or make_periods(config, events.times[mine])
        if deletions is not None and len(deletions.periods) != len(mine):
            raise DataError(f"deletions of {len(deletions.periods)} rows for a stream of {len(mine)} rows")
        never = np.full(len(mine), len(self.periods), dtype=np.int64)
        self._life = lifetimes(events, self.periods, config, never if deletions is None else deletions.periods)
        self._replay = config.replay if config.protocol == "stream" else None
        self._seed = seeds.integer("replay")
        self._places: Integers | None = None
        self._memory, self._replayed = ReplayMemory.empty(), np.zeros(0, dtype=np.int64)
        self._open, self._forgotten = -1, 0
        self.warnings = (*events.warnings, *(() if deletions is None else deletions.warnings), *_unused(config))

    def __len__(self) -> int:
        return len(self.periods)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of when each row is whose, from arrival to the end; a resumed run must find it unchanged."""
        life = self._life
        parts = (self._events.devices, life.order, life.entered, life.left, life.deleted, self.periods.edges)
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()

    def advance(self, gradients: Gradients | None = None) -> Period:
        """Open the next period and return it; the one before it is over.

        Args:
            gradients: loss gradients under the model as it is now; needed for replay by ``gradient_diverse``. It is
                asked for rows of the period that ends and of the replay memory, before the new period is open.

        Raises:
            PrivacyError: there is no further period.
            ConfigError: replay by gradients without `gradients`.
            ModelError: gradients of another shape, or not finite.
        """
        period = self._open + 1
        if period >= len(self):
            raise PrivacyError(f"the stream has {len(self)} periods and the last one is over: no row is handed out")
        before = self._memory
        gone = (before.rows >= 0) & (self._life.deleted[before.rows] <= period)
        self._memory = self._remembered(forget(before, gone), period, gradients)
        self._forgotten = int(gone.sum())
        return self._opened(period)

    def allowed(self, period: int) -> NDArray[np.bool_]:
        """Return [rows of the table] which rows may be gathered in a period.

        Args:
            period: the open one; without replay any.

        Raises:
            ValueError: no such period, or one whose replay memory is not known because it is not open.
        """
        if not 0 <= period < len(self):
            raise ValueError(f"period {period} of {len(self)}")
        if period != self._open and self._replay is not None:
            raise ValueError(f"period {period} is not open: what it replays is not known")
        found = self._life.has(np.arange(len(self._life.left)), period)
        found[self._replayed] = True
        return found

    def guard(self, rows: NDArray[np.integer]) -> None:
        """Refuse to go on where a row is asked for that the open period does not hold.

        Args:
            rows: [k] row numbers of the table.

        Raises:
            PrivacyError: a row is neither in the window nor replayed: it has expired, was deleted, has not arrived, or
                is no part of the stream; or no period is open.
        """
        asked = np.asarray(rows, dtype=np.int64).reshape(-1)
        inside = (asked >= 0) & (asked < len(self._life.left)) & (self._open >= 0)
        bad = ~inside
        known = asked[inside]
        bad[inside] = ~(self._life.has(known, self._open) | self._is_replayed(known))
        if bad.any():
            first = int(asked[int(np.argmax(bad))])
            raise PrivacyError(
                f"row {first} ({int(bad.sum())} such rows of {len(asked)}) {self._fate(first)}: it may not be gathered "
                f"in period {self._open}; take rows of the open period's population only"
            )

    def state(self) -> dict[str, NDArray[np.int64]]:
        """Return what a checkpoint has to hold, as int64 arrays: the open period, and which rows are replayed."""
        memory, place = self._memory, np.array([self._open, self._forgotten], dtype=np.int64)
        return dict(zip(_STATE, (place, memory.rows, memory.devices, memory.keys), strict=True))

    def restore(self, state: Mapping[str, NDArray[np.integer]]) -> Period | None:
        """Go on from what `state` returned: open its period again and return it; None where none was open.

        Raises:
            ResumeError: the arrays are none of `state`, or hold a row that may not be replayed.
        """
        if set(state) != set(_STATE) or len(state["period"]) != 2:
            raise ResumeError("the stream's part of the checkpoint is not whole; start a new run without --resume")
        found = [np.asarray(state[name], dtype=np.int64) for name in _STATE]
        period, memory = int(found[0][0]), ReplayMemory(*found[1:])
        if not -1 <= period < len(self) or not self._may_remember(memory, period):
            raise ResumeError("the stream's part of the checkpoint belongs to other data; restore them or start anew")
        self._memory, self._open, self._forgotten = memory, -1, int(found[0][1])
        return None if period < 0 else self._opened(period)

    def _may_remember(self, memory: ReplayMemory, period: int) -> bool:
        """Return whether every replayed row has expired by age, belongs to its device and was not deleted."""
        if self._replay is None or len({len(c) for c in (memory.rows, memory.devices, memory.keys)}) != 1:
            return not len(memory.rows)
        life, kept = self._life, memory.kept()
        rows, owner = kept.rows, kept.devices
        if (memory.devices < 0).any() or (rows >= len(life.left)).any() or len(np.unique(rows)) != len(rows):
            return False
        expired = (life.left[rows] <= period) & (life.left[rows] == life.entered[rows] + life.aging)
        held = expired & (life.deleted[rows] > period) & (self._events.devices[rows] == owner)
        return bool(held.all()) and int(np.bincount(memory.devices).max(initial=0)) <= self._replay.size

    def _is_replayed(self, rows: Integers) -> NDArray[np.bool_]:
        """Return [k] whether each row is in the open period's replay memory."""
        if not len(self._replayed):
            return np.zeros(len(rows), dtype=bool)
        place = np.minimum(np.searchsorted(self._replayed, rows), len(self._replayed) - 1)
        return np.asarray(self._replayed[place] == rows)

    def _remembered(self, memory: ReplayMemory, period: int, gradients: Gradients | None) -> ReplayMemory:
        """Return the replay memory after the rows that expire in this period were offered."""
        if self._replay is None:
            return memory
        rows = self._life.aged(period)
        devices = self._events.devices[rows]
        if self._replay.by == "reservoir":
            keys = reservoir_keys(self._seed, devices, self._place_on_device()[rows])
            return reservoir(memory, ReplayMemory(rows, devices, keys), self._replay.size)
        if gradients is None:
            raise ConfigError("federated.stream.replay: by = 'gradient_diverse' needs an engine that gives gradients")
        return gradient_diverse(memory, ReplayMemory(rows, devices, np.zeros_like(rows)), self._replay.size, gradients)

    def _place_on_device(self) -> Integers:
        """Return [rows of the table] a row's place among its device's rows in order of time, from 0."""
        if self._places is None:
            rows = self._life.order[rows_by_client(self._events.devices[self._life.order], self._events.clients)]
            owner = self._events.devices[rows]
            starts = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])
            places = np.zeros(len(self._life.left), dtype=np.int64)
            places[rows] = np.arange(len(rows)) - np.repeat(starts, np.diff(np.r_[starts, len(rows)]))
            self._places = places
        return self._places

    def _opened(self, period: int) -> Period:
        life = self._life
        window, replayed = life.window(period), self._memory.kept().rows
        self._open, self._replayed = period, np.sort(replayed)
        population = self._held(window)
        training = self._held(np.concatenate([window, replayed])) if len(replayed) else population
        self.guard(training.rows)
        last_seen = np.full(self._events.clients, -1, dtype=np.int64)
        some = population.counts > 0
        last_seen[some] = life.entered[population.rows[population.offsets[1:][some] - 1]]
        recent = life.arrivals(period - life.aging, period)
        left = recent[life.left[recent] == period]
        return Period(
            period,
            float(self.periods.edges[period]),
            float(self.periods.edges[period + 1]),
            population,
            training,
            last_seen,
            arrived=int((life.deleted[life.arrivals(period, period)] >= period).sum()),
            aged=len(life.aged(period)),
            capped=int(((life.entered[left] + life.aging > period) & (life.deleted[left] > period)).sum()),
            deleted=int((life.deleted[left] == period).sum()) + self._forgotten,
        )

    def _held(self, rows: Integers) -> FederatedData:
        """Return the population of these rows, in their order within a client, every client with its number."""
        owner = self._events.devices[rows]
        offsets = np.zeros(self._events.clients + 1, dtype=np.int64)
        np.cumsum(np.bincount(owner, minlength=self._events.clients), out=offsets[1:])
        by_client = rows[rows_by_client(owner, self._events.clients)]
        return FederatedData(by_client, offsets, self._events.names, numbers=self._events.numbers)

    def _fate(self, row: int) -> str:
        """Return what became of a row that is not allowed."""
        life = self._life
        if not 0 <= row < len(life.left) or life.entered[row] == len(self):
            return "is no part of the stream"
        if self._open < 0:
            return "is asked for while no period is open"
        if life.deleted[row] <= self._open:
            return "was deleted on request"
        return "has not arrived" if life.entered[row] > self._open else "has expired"


def _unused(config: StreamConfig) -> tuple[str, ...]:
    """Return a warning where a baseline passes over settings of the window."""
    if config.protocol == "stream" or (config.cap is None and config.replay is None):
        return ()
    return (f"federated.stream: cap and replay play no part under protocol = '{config.protocol}'",)
