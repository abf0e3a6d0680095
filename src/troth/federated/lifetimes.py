"""When each row of a stream comes into the window of its device and when it leaves it, for all periods at once.

Nothing here depends on a model: what a window holds in any period is known from the rows' times, the settings and the
deletion requests alone, so that a resumed run needs no state for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from troth.config_federated import StreamConfig
from troth.errors import DataError
from troth.federated.population import rows_by_client
from troth.federated.stream_events import Events, Periods

__all__ = ["Lifetimes", "lifetimes"]

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Lifetimes:
    """When each row comes into the window and leaves it.

    Attributes:
        order: [rows of the stream] row numbers by period of arrival, then device, then time, then table order.
        offsets: [periods + 1] where the arrivals of each period begin in `order`.
        entered: [rows of the table] period of arrival; the number of periods for a row that is no part of the stream.
        left: [rows of the table] the first period in which the row is not in the window any more.
        deleted: [rows of the table] the first period in which it is forgotten; the number of periods for never.
        aging: periods after which a row leaves by age.
    """

    order: Integers
    offsets: Integers
    entered: Integers
    left: Integers
    deleted: Integers
    aging: int

    def arrivals(self, first: int, last: int) -> Integers:
        """Return the rows that arrived in the periods first..last, before any deletion."""
        return self.order[self.offsets[max(first, 0)] : self.offsets[last + 1]]

    def window(self, period: int) -> Integers:
        """Return the rows in the window, by period of arrival, then device and time."""
        rows = self.arrivals(period - self.aging + 1, period)
        return np.asarray(rows[self.left[rows] > period])

    def aged(self, period: int) -> Integers:
        """Return the rows that expire by age in a period and are not forgotten by then, by device and time."""
        before = period - self.aging
        rows = self.arrivals(before, before) if before >= 0 else self.order[:0]
        return np.asarray(rows[(self.left[rows] == period) & (self.deleted[rows] > period)])

    def has(self, rows: Integers, period: int) -> NDArray[np.bool_]:
        """Return [k] whether each row is in the window of a period, by its own dates."""
        return (self.entered[rows] <= period) & (self.left[rows] > period) & (self.deleted[rows] > period)


def lifetimes(events: Events, periods: Periods, config: StreamConfig, deleted: Integers) -> Lifetimes:
    """Return when each row comes into the window and leaves it.

    Args:
        events: rows with device and time.
        periods: of the stream.
        config: retention, cap and protocol; the baselines have neither retention nor cap of their own.
        deleted: [rows of the table] the first period in which a row is forgotten; the number of periods for never.

    Raises:
        DataError: a row lies outside of the periods.
    """
    count, protocol = len(periods), config.protocol
    aging = {"stream": config.retention, "last": 1}.get(protocol, count)
    mine = np.flatnonzero(events.devices >= 0)
    entered = np.full(len(events.devices), count, dtype=np.int64)
    entered[mine] = 0 if protocol == "all" else periods.of(events.times[mine])
    if len(mine) and not ((entered[mine] >= 0) & (entered[mine] < count)).all():
        raise DataError("federated.stream: rows lie outside of the periods; make the periods of these rows' times")
    in_time = mine[np.argsort(events.times[mine], kind="stable")]
    by_device = in_time[rows_by_client(events.devices[in_time], events.clients)]
    order = by_device[rows_by_client(entered[by_device], count)]
    offsets = np.zeros(count + 1, dtype=np.int64)
    np.cumsum(np.bincount(entered[order], minlength=count), out=offsets[1:])
    life = Lifetimes(order, offsets, entered, np.minimum(entered + aging, deleted), deleted, aging)
    if protocol == "stream" and config.cap is not None:
        _apply_cap(life, events, config.cap)
    return life


def _apply_cap(life: Lifetimes, events: Events, cap: int) -> None:
    """Lower `left`, in place, of the rows that the cap pushes out.

    Period by period, for what a deletion made room for in one period is room for the rows of the next.
    """
    window = life.order[:0]
    for period in range(len(life.offsets) - 1):
        held = (life.entered[window] + life.aging > period) & (life.deleted[window] >= period)
        arrivals = life.arrivals(period, period)
        window = np.concatenate([window[held], arrivals[life.deleted[arrivals] >= period]])
        window = window[rows_by_client(events.devices[window], events.clients)]
        owner = events.devices[window]
        starts = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]]) if len(owner) else np.zeros(0, dtype=np.int64)
        sizes = np.diff(np.r_[starts, len(owner)])
        newer = np.repeat(starts + sizes, sizes) - 1 - np.arange(len(owner))
        out = window[newer >= cap]
        life.left[out] = np.minimum(life.left[out], period)
        window = window[newer < cap]
