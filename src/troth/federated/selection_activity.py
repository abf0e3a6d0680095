"""What the server knows of each client without asking, and the weights that rules of selection make of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from troth.errors import ConfigError, DataError

__all__ = ["Activity", "AgeWeights", "PowerWeights", "most_active"]

Integers = NDArray[np.int64]
Column = NDArray[np.integer[Any]]

_TABLE = 4096  # row counts up to here are looked up; larger ones, rare, are worked out
_CHUNK = 1 << 16
_LATEST = 65_535  # what a registry's 16 bits hold
_FLOOR = 2.0**-50  # the least weight by age: such a client is drawn when the others are used up


@dataclass(frozen=True, eq=False)
class Activity:
    """The columns of a registry that selection reads; they may be memory-mapped, and are never copied whole.

    Attributes:
        counts: [clients] rows a client holds now; one with 0 is never drawn.
        last_seen: [clients] day or period in which a client last had new data, 0 where unknown, which counts as the
            longest ago; None where no time is known.
        next_allowed: [clients] round (from 0) from which a client may be asked again; None where nobody rests.
        now: the present day or period, in the unit of `last_seen`.

    Raises:
        DataError: no clients, columns that are not integers or differ in length, a negative count, or an impossible
            `now`.
    """

    counts: Column
    last_seen: Column | None = None
    next_allowed: Column | None = None
    now: int = 0

    def __post_init__(self) -> None:
        for name in ("counts", "last_seen", "next_allowed"):
            column = getattr(self, name)
            if column is None:
                continue
            if column.ndim != 1 or column.dtype.kind not in "iu" or not np.can_cast(column.dtype, np.int64):
                raise DataError(
                    f"{name} of a registry: must be one column of integers that fit int64, not {column.dtype} "
                    f"{list(column.shape)}"
                )
            if len(column) != len(self.counts):
                raise DataError(f"{name} of a registry: {len(column)} values for {len(self.counts)} clients")
        if not len(self.counts):
            raise DataError("a registry of no clients: give the federation some data")
        if self.counts.dtype.kind == "i" and self.counts.min() < 0:
            raise DataError(f"counts of a registry: {self.counts.min()} rows at client {self.counts.argmin()}")
        if not 0 <= self.now <= _LATEST:
            raise DataError(f"now = {self.now}: days or periods are numbered from 0 to {_LATEST}")

    def __len__(self) -> int:
        return len(self.counts)


class PowerWeights:
    """Weights rows^power, 0 for a client without rows whatever the power."""

    def __init__(self, power: float) -> None:
        self._power = power
        rows = np.arange(_TABLE, dtype=np.float64)
        self._table = np.where(rows > 0, rows**power, 0.0)

    def __call__(self, counts: Column) -> NDArray[Any]:
        """Return weights shaped as `counts`; for power 1 that is `counts` itself, for 0 whether there are any."""
        if self._power == 1:
            return counts
        if self._power == 0:
            return counts > 0
        weights = self._table.take(counts, mode="clip")
        if counts.size and counts.max() >= _TABLE:
            large = counts >= _TABLE
            weights[large] = counts[large].astype(np.float64) ** self._power
        return weights


class AgeWeights:
    """Weights 2^(-age / half_life), age = now - last_seen, at least 2^-50; 0 for a client without rows."""

    def __init__(self, half_life: float, now: int) -> None:
        ages = now - np.arange(now + 1, dtype=np.float64)
        self._table = np.maximum(np.exp2(-ages / half_life), _FLOOR)

    def __call__(self, counts: Column, last_seen: Column) -> NDArray[Any]:
        """Return weights shaped as `counts`."""
        return np.asarray(self._table.take(last_seen, mode="clip") * (counts > 0))


def most_active(counts: Column, top: int | None, top_fraction: float | None) -> Integers:
    """Return [top] int64 numbers, ascending, of the clients with the most rows; the lower number where rows are equal.

    Args:
        counts: [clients] rows each holds.
        top: how many; None: the share `top_fraction` of the clients with rows, rounded up.
        top_fraction: in (0, 1].

    Raises:
        ConfigError: more than there are clients with rows.
        DataError: no client holds a row.
    """
    pieces = [np.asarray(counts[i : i + _CHUNK]) for i in range(0, len(counts), _CHUNK)]
    sizes = np.zeros(_TABLE, dtype=np.int64)  # how many clients hold 0, 1, .. rows; the last place: as many or more
    for piece in pieces:
        sizes += np.bincount(np.minimum(piece, _TABLE - 1).astype(np.int64), minlength=_TABLE)
    with_rows = len(counts) - int(sizes[0])
    if not with_rows:
        raise DataError("no client holds a row: give the clients some data")
    wanted = top if top is not None else int(np.ceil((top_fraction or 1.0) * with_rows - 1e-9))
    if wanted > with_rows:
        raise ConfigError(
            f"federated.selection.top = {wanted}: the population has {with_rows} clients with data; lower it"
        )
    above = np.cumsum(sizes[::-1])[::-1]  # clients with that many rows or more
    least = int(np.flatnonzero(above >= wanted)[-1])
    if least == _TABLE - 1:
        large = np.concatenate([piece[piece >= least] for piece in pieces])
        least = int(np.partition(large, len(large) - wanted)[len(large) - wanted])
    more = np.concatenate([np.flatnonzero(piece > least) + i * _CHUNK for i, piece in enumerate(pieces)])
    equal = np.concatenate([np.flatnonzero(piece == least) + i * _CHUNK for i, piece in enumerate(pieces)])
    return np.sort(np.concatenate((more, equal[: wanted - len(more)])))
