"""When each row arrived and on which device: times read and checked, rows grouped into periods."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from troth.config_federated import StreamConfig
from troth.errors import ConfigError, DataError
from troth.federated.client_names import ClientNames
from troth.federated.population import FederatedData, rows_by_client

if TYPE_CHECKING:
    from troth.data import Table

__all__ = ["Events", "Periods", "make_periods", "parse_times", "seconds_of", "table_times"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_UNITS = {"s": 1, "min": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_MOST_PERIODS = 100_000
_NUMBERS = ("integer", "floating", "mixed-integer-float", "decimal")
_MOMENTS = ("string", "datetime", "datetime64", "date")
_MILLISECONDS = 1e11
_FORMS = "write ISO 8601 such as 2026-05-01T12:00:00Z, or seconds since 1970-01-01"


@dataclass(frozen=True, eq=False)
class Events:
    """Rows of a table with the device that holds each and the time it arrived.

    Attributes:
        devices: [rows] int64 client numbers in 0..clients - 1; -1 for a row of the table that is no part of the stream.
        times: [rows] float64 seconds since the epoch, finite.
        clients: how many devices there are, those without a row included.
        names: [clients] what the devices are called, or None.
        numbers: [clients] which client of the population this one was taken from each device is, or None.
        warnings: what the user should know, one line each.
    """

    devices: Integers
    times: Floats
    clients: int
    names: ClientNames | None = field(default=None, repr=False)
    numbers: Integers | None = field(default=None, repr=False)
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, devices: NDArray[np.integer], times: Floats, clients: int) -> Events:
        """Return the events of a table, checked.

        Rows of a device that stand in another order than that of their times are fine; they are counted in a warning.

        Args:
            devices: [rows] client numbers, -1 for a row that is no part of the stream.
            times: [rows] seconds since the epoch, as `parse_times` gives them.
            clients: how many devices there are.

        Raises:
            DataError: no rows, lengths that differ, a client number outside of the range, or a time that is not finite.
        """
        owner, moments = np.asarray(devices, dtype=np.int64), np.asarray(times, dtype=np.float64)
        if len(owner) != len(moments):
            raise DataError(f"a stream of {len(owner)} devices and {len(moments)} times: give one of each per row")
        if not (owner >= 0).any():
            raise DataError("a stream of no rows: give the devices some data")
        if owner.min() < -1 or owner.max() >= clients:
            raise DataError(f"a row belongs to device {owner.max()} or {owner.min()}; there are 0 to {clients - 1}")
        _refuse(~np.isfinite(moments), "has no finite time", _FORMS)
        return cls(owner, moments, clients, warnings=_order_warnings(owner, moments))

    @classmethod
    def of_population(cls, population: FederatedData, times: Floats) -> Events:
        """Return the events of a population: its clients keep their numbers, rows that nobody holds have none.

        Args:
            population: who holds which rows.
            times: [rows of the table] seconds since the epoch.

        Raises:
            DataError: as `of`, or the population points to a row without a time.
        """
        if len(population.rows) and int(population.rows.max()) >= len(times):
            raise DataError(f"the clients hold row {population.rows.max()}, and there are {len(times)} times")
        devices = np.full(len(times), -1, dtype=np.int64)
        devices[population.rows] = np.repeat(np.arange(len(population)), population.counts)
        found = cls.of(devices, times, len(population))
        return replace(found, names=population.names, numbers=population.numbers)


@dataclass(frozen=True, eq=False)
class Periods:
    """Consecutive stretches of time of equal length: period p is [edges[p], edges[p + 1]), the last with its end.

    Attributes:
        edges: [periods + 1] float64 seconds since the epoch, ascending.
    """

    edges: Floats

    def __len__(self) -> int:
        return len(self.edges) - 1

    def of(self, times: Floats) -> Integers:
        """Return [times] the period of each time: -1 before the first, `len` of this object after the last.

        >>> Periods(np.array([0.0, 10.0, 20.0])).of(np.array([-1.0, 0.0, 9.9, 10.0, 20.0, 21.0]))
        array([-1,  0,  0,  1,  1,  2])
        """
        moments = np.asarray(times, dtype=np.float64)
        found = np.searchsorted(self.edges, moments, side="right") - 1
        found[moments == self.edges[-1]] = len(self) - 1
        return found.astype(np.int64)


def make_periods(config: StreamConfig, times: Floats) -> Periods:
    """Return the periods that ``federated.stream`` asks for; the first begins at the earliest time.

    Args:
        config: the length of a period, or how many of equal length.
        times: [rows] seconds since the epoch of the rows that are part of the stream.

    Raises:
        ConfigError: all times are equal, or the length makes fewer than two or more than 100,000 periods.
    """
    first, last = float(np.min(times)), float(np.max(times))
    if first == last:
        raise ConfigError("federated.stream: all rows have the same time; a stream needs times that differ")
    if config.periods is not None:
        steps = np.arange(config.periods + 1) / config.periods
        return Periods(np.append((first + (last - first) * steps)[:-1], last))
    length = seconds_of(config.period or "")
    count = int((last - first) // length) + 1
    if not 2 <= count <= _MOST_PERIODS:
        raise ConfigError(
            f"federated.stream.period = '{config.period}' makes {count} periods of {last - first:g} seconds of data; "
            f"choose a {'shorter' if count < 2 else 'longer'} period"
        )
    edges = np.asarray(first + length * np.arange(count + 2), dtype=np.float64)
    return Periods(edges[: int(np.searchsorted(edges, last, side="right")) + 1])


def seconds_of(duration: str) -> float:
    """Return the seconds of a duration: a whole number and ``s``, ``min``, ``h``, ``d`` or ``w``.

    >>> seconds_of("12h")
    43200.0

    Raises:
        ConfigError: it has another form.
    """
    found = re.fullmatch(r"([1-9][0-9]*)(s|min|h|d|w)", duration)
    if found is None:
        raise ConfigError("federated.stream.period: not a duration; write a number and s, min, h, d or w, such as '1d'")
    return float(int(found[1]) * _UNITS[found[2]])


def table_times(table: Table) -> Floats:
    """Return [rows] the times of a table, in seconds since the epoch.

    Raises:
        ConfigError: the table has no time column.
        DataError: a time is missing or cannot be read.
    """
    if not table.has("time"):
        raise ConfigError(f"{table.source}: no time column, which federated.stream needs; name it: data.time = COLUMN")
    return parse_times(table.column("time"), f"{table.source}: time")


def parse_times(values: Sequence[Any] | NDArray[Any], source: str = "time") -> Floats:
    """Return [rows] float64 seconds since 1970-01-01 UTC.

    Numbers are seconds already. Texts are numbers all of them, or ISO 8601 dates and times all of them; a time without
    a zone is UTC. `datetime`, `date` and ``datetime64`` are read likewise. Other ways to write a date are refused, for
    day and month cannot be told apart in them.

    >>> parse_times(["1970-01-02", "1970-01-01T01:00:00+01:00"])
    array([86400.,     0.])

    Args:
        values: [rows].
        source: where they come from, for messages.

    Raises:
        DataError: a missing, infinite or unreadable time (row number and count are given), or several types at once.
    """
    column = _column(values)
    if column.dtype.kind in "iuf":
        return _seconds(column.to_numpy(dtype=np.float64), source)
    kind = "datetime" if column.dtype.kind == "M" else pd.api.types.infer_dtype(column, skipna=True)
    if kind in _NUMBERS:
        return _seconds(pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64), source)
    if kind not in _MOMENTS:
        _refuse(column.isna().to_numpy(), "has no time", _FORMS, source)
        raise DataError(f"{source}: values are of several types, or no times; {_FORMS}")
    if kind == "string" and all(_is_number(text) for text in column.head(2)):
        numbers = pd.to_numeric(column, errors="coerce")
        if numbers.notna().all():
            return _seconds(numbers.to_numpy(dtype=np.float64), source)
    moments = pd.to_datetime(column, utc=True, errors="coerce", format="ISO8601" if kind == "string" else None)
    _refuse(moments.isna().to_numpy(), "has no time that can be read", _FORMS, source)
    exact = moments.dt.tz_localize(None).to_numpy().astype("datetime64[us]").astype(np.int64)
    return np.asarray(exact / 1e6)


def _column(values: Sequence[Any] | NDArray[Any]) -> pd.Series[Any]:
    """Return the values as a column of numbers, moments or Python objects; pandas' own strings take twice as long."""
    if isinstance(values, pd.Series | np.ndarray) and values.dtype.kind in "iufM":
        return pd.Series(values)
    column = np.empty(len(values), dtype=object)
    column[:] = list(values)
    return pd.Series(column, dtype=object)


def _is_number(text: object) -> bool:
    try:
        float(str(text))
    except ValueError:
        return False
    return True


def _seconds(numbers: Floats, source: str) -> Floats:
    """Return the numbers; what is no count of seconds by all appearance is refused."""
    _refuse(~np.isfinite(numbers), "has no finite time", _FORMS, source)
    if len(numbers) and np.abs(numbers).max() >= _MILLISECONDS:
        _refuse(np.abs(numbers) >= _MILLISECONDS, "is beyond the year 5000: milliseconds?", "give seconds", source)
    if len(numbers) and _dates_as_numbers(numbers):
        raise DataError(f"{source}: numbers that look like dates written as YYYYMMDD; {_FORMS}")
    return numbers


def _dates_as_numbers(numbers: Floats) -> bool:
    """Return whether all are whole and read as YYYYMMDD: as seconds they would all lie in a few weeks of 1970."""
    if numbers.min() < 19_000_101 or numbers.max() > 21_001_231 or (numbers % 1).any():
        return False
    month, day = numbers // 100 % 100, numbers % 100
    return bool(((month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)).all())


def _refuse(bad: NDArray[np.bool_], what: str, way_out: str, source: str = "time") -> None:
    rows = np.flatnonzero(bad)
    if len(rows):
        raise DataError(f"{source}: row {rows[0] + 1} {what} ({len(rows)} such rows); {way_out}")


def _order_warnings(devices: Integers, times: Floats) -> tuple[str, ...]:
    """Return a warning where rows of a device stand before earlier ones of the same device."""
    rows = np.flatnonzero(devices >= 0)
    rows = rows[rows_by_client(devices[rows], int(devices.max()) + 1)]
    owner, moments = devices[rows], times[rows]
    early = int(((owner[1:] == owner[:-1]) & (moments[1:] < moments[:-1])).sum())
    if not early:
        return ()
    return (
        f"federated.stream: {early} rows stand after a later row of their device; rows are taken in order of time, and "
        "those of one time in the table's order",
    )
