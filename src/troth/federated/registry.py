"""The registry of a population: 16 bytes a device, in columns, whatever the number of devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from troth.errors import ConfigError, DataError
from troth.federated.event_times import PERIODS
from troth.federated.population import FederatedData

__all__ = ["Registry", "registry_from_counts", "registry_of"]

_DTYPES = {"counts": np.uint32, "last_seen": np.uint16, "next_allowed": np.uint16, "offsets": np.uint64}
_ROUNDS = np.iinfo(np.uint16).max


@dataclass(frozen=True, eq=False)
class Registry:
    """What the server knows of each device. `rest` and `see` change the columns in place.

    Attributes:
        counts: [devices] uint32 rows a device holds, its activity.
        last_seen: [devices] uint16 day or period a device was last active in, counted from 1; 0 is unknown.
        next_allowed: [devices] uint16 round from which on a device may be asked again; 0 at first.
        offsets: [devices] uint64 where a device's rows begin in data grouped by device.
        rows: where the rows of the last device end.
    """

    counts: NDArray[np.uint32]
    last_seen: NDArray[np.uint16]
    next_allowed: NDArray[np.uint16]
    offsets: NDArray[np.uint64]
    rows: int

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def nbytes(self) -> int:
        """Bytes of all columns: 16 a device."""
        return sum(column.nbytes for column in self.arrays().values())

    def allowed(self, round_index: int) -> NDArray[np.bool_]:
        """Return [devices] whether a device may be asked in a round."""
        return self.next_allowed <= round_index

    def rest(self, devices: NDArray[np.integer], until_round: int) -> None:
        """Let devices [k] rest: they may not be asked before round `until_round`; a longer rest they have stays.

        Raises:
            ConfigError: a round beyond 65,535, which the column does not hold.
            IndexError: there is no such device.
        """
        if not 0 <= until_round <= _ROUNDS:
            raise ConfigError(
                f"federated.participation.minimum_separation: a rest until round {until_round}; a registry counts "
                f"rounds up to {_ROUNDS}; make fewer rounds, or the separation shorter"
            )
        chosen = self._checked(devices)
        self.next_allowed[chosen] = np.maximum(self.next_allowed[chosen], np.uint16(until_round))

    def see(self, devices: NDArray[np.integer], period: int) -> None:
        """Note that devices [k] were active in a period, counted from 1; a later one they have stays.

        Raises:
            ConfigError: a period outside of 1..65,535.
            IndexError: there is no such device.
        """
        if not 1 <= period <= PERIODS:
            raise ConfigError(f"federated.stream: period {period}; a registry counts periods from 1 to {PERIODS}")
        chosen = self._checked(devices)
        self.last_seen[chosen] = np.maximum(self.last_seen[chosen], np.uint16(period))

    def row_ranges(self, devices: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return [k] where the rows of devices begin and [k] where they end, in data grouped by device."""
        chosen = self._checked(devices)
        last = chosen == len(self) - 1
        ends = np.where(last, self.rows, self.offsets[np.where(last, chosen, chosen + 1)])
        return self.offsets[chosen].astype(np.int64), ends.astype(np.int64)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the columns by name, not copied, to be kept with a checkpoint."""
        columns = (self.counts, self.last_seen, self.next_allowed, self.offsets)
        return dict(zip(_DTYPES, columns, strict=True))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], rows: int) -> Registry:
        """Return the registry of columns that `arrays` gave, copied.

        Raises:
            DataError: a column is missing, has not its type, or they differ in length.
        """
        for name, dtype in _DTYPES.items():
            if name not in arrays or arrays[name].dtype != dtype or arrays[name].shape != arrays["counts"].shape:
                raise DataError(
                    f"the registry's column {name} is missing or has not its type and length; build it anew"
                )
        return cls(**{name: np.array(arrays[name]) for name in _DTYPES}, rows=rows)

    def _checked(self, devices: NDArray[np.integer]) -> NDArray[np.int64]:
        chosen = np.asarray(devices, dtype=np.int64)
        if chosen.size and (chosen.min() < 0 or chosen.max() >= len(self)):
            raise IndexError(f"device {chosen.min()} or {chosen.max()} of {len(self)}")
        return chosen


def registry_from_counts(counts: NDArray[np.integer], last_seen: NDArray[np.uint16] | None = None) -> Registry:
    """Return the registry of devices that hold so many rows each, one device's rows after the other's.

    Args:
        counts: [devices] rows a device holds.
        last_seen: [devices] the period a device was last active in, from 1; None where that is not known.

    Raises:
        DataError: a device with 2^32 rows or more.
    """
    if len(counts) and counts.max() > np.iinfo(np.uint32).max:
        raise DataError(f"a device holds {counts.max()} rows; a registry counts up to {np.iinfo(np.uint32).max}")
    offsets = np.zeros(len(counts), dtype=np.uint64)
    np.cumsum(counts[:-1], out=offsets[1:], dtype=np.uint64)
    seen = np.zeros(len(counts), dtype=np.uint16) if last_seen is None else last_seen
    rows = int(offsets[-1]) + int(counts[-1]) if len(counts) else 0
    return Registry(counts.astype(np.uint32), seen, np.zeros(len(counts), dtype=np.uint16), offsets, rows)


def registry_of(data: FederatedData, periods: NDArray[np.uint16] | None = None) -> Registry:
    """Return the registry of a population.

    Args:
        data: the population; device k is its client k.
        periods: [rows of the table] the period each row came in, from 1, 0 where it is unknown; see
            `troth.federated.event_times`.

    Raises:
        DataError: there are fewer periods than the population has rows.
    """
    if periods is None:
        return registry_from_counts(data.counts)
    if len(data.rows) and len(periods) <= int(data.rows.max()):
        raise DataError(f"the population holds row {data.rows.max()}, there are times for {len(periods)} rows")
    seen = np.zeros(len(data), dtype=np.uint16)
    filled = np.flatnonzero(data.counts)
    if len(filled):
        seen[filled] = np.maximum.reduceat(periods[data.rows], data.offsets[:-1][filled].astype(np.int64))
    return registry_from_counts(data.counts, seen)
