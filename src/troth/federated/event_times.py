"""Times of an Arrow column as seconds since 1970, missing ones allowed, and the number of the period a time falls in.

A run file's times, of which none may be missing, are read by `stream_events.parse_times`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from troth.errors import ConfigError, DataError

__all__ = ["PERIODS", "absolute_periods", "period_numbers", "seconds_since_1970"]

Floats = NDArray[np.float64]
PERIODS = np.iinfo(np.uint16).max  # the largest period number that a registry holds
_MILLISECONDS = 1e11
_UNREADABLE = "is neither a number nor ISO 8601; write seconds since 1970 or such as 2026-01-31T12:00:00"


def seconds_since_1970(times: pa.Array, source: str = "the table", first_row: int = 0) -> Floats:
    """Return [rows] float64 seconds since 1970, NaN where a time is missing.

    Numbers are seconds already; text is ISO 8601, in UTC where it names no zone; dates and time stamps are taken as
    they are.

    Args:
        times: [rows].
        source: where they come from, for messages.
        first_row: number of the first of these rows, for messages.

    Raises:
        DataError: a time is neither, or so large that it must be in milliseconds; names the first such row.

    >>> seconds_since_1970(pa.array(["1970-01-02", None, "1970-01-01T00:01:00+00:00"])).tolist()
    [86400.0, nan, 60.0]
    """
    kind = times.type.value_type if pa.types.is_dictionary(times.type) else times.type
    column = times.cast(kind)
    missing = np.asarray(column.is_null().to_numpy(zero_copy_only=False))
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        seconds: Floats = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        _refuse(np.isinf(seconds), "is not finite; give seconds since 1970", source, first_row)
        _refuse(
            np.abs(seconds) >= _MILLISECONDS, "is beyond the year 5000: milliseconds? give seconds", source, first_row
        )
        return seconds
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        moments = column.cast(pa.timestamp("us", kind.tz if pa.types.is_timestamp(kind) else None), safe=False)
        return np.where(missing, np.nan, moments.fill_null(0).cast(pa.int64()).to_numpy() / 1e6)
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
        _refuse(~missing, _UNREADABLE, source, first_row)
    texts: pd.Series[Any] = pd.Series(column.to_numpy(zero_copy_only=False), dtype=object)
    found = pd.to_datetime(texts, format="ISO8601", utc=True, errors="coerce")
    _refuse(found.isna().to_numpy() & ~missing, _UNREADABLE, source, first_row)
    return np.asarray((found - pd.Timestamp(0, tz="UTC")).dt.total_seconds(), dtype=np.float64)


def _refuse(wrong: NDArray[np.bool_], what: str, source: str, first_row: int) -> None:
    if wrong.any():
        row = first_row + int(np.argmax(wrong))
        raise DataError(f"{source}: the time of row {row} ({wrong.sum()} such rows) {what}")


def absolute_periods(seconds: Floats, length: float) -> NDArray[np.int64]:
    """Return [rows] which period since 1970 each time lies in, -2^63 where it is missing.

    Args:
        seconds: [rows] seconds since 1970; NaN is missing.
        length: seconds in a period, above 0.

    Raises:
        ConfigError: a length that is not above 0.
    """
    if not (np.isfinite(length) and length > 0):
        raise ConfigError(f"federated.stream.period: a period of {length} seconds; must be above 0")
    out = np.full(len(seconds), np.iinfo(np.int64).min)
    known = np.isfinite(seconds)
    out[known] = np.floor(seconds[known] / length).astype(np.int64)
    return out


def period_numbers(absolute: NDArray[np.int64], first: int) -> NDArray[np.uint16]:
    """Return period numbers that count from 1, 0 where a time is missing.

    Args:
        absolute: [rows] as `absolute_periods` gives them.
        first: the absolute period that becomes number 1; none may be before it.

    Raises:
        ConfigError: there are more periods than a registry can number (65,535).
    """
    known = absolute != np.iinfo(np.int64).min
    if known.any() and absolute[known].max() - first >= PERIODS:
        raise ConfigError(
            f"federated.stream.period: the times span {absolute[known].max() - first + 1} periods, a registry numbers "
            f"{PERIODS}; make the period longer"
        )
    return np.where(known, absolute - first + 1, 0).astype(np.uint16)
