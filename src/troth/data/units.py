"""Privacy units: which rows stand or fall together when one unit of protection is added or removed."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from troth.data.table import Table
from troth.errors import ConfigError, DataError

__all__ = ["Units", "privacy_units"]


@dataclass(frozen=True, eq=False)
class Units:
    """Rows by unit: unit u owns the rows ``order[offsets[u]:offsets[u + 1]]``.

    Attributes:
        order: row indices, int64 [rows], each row once.
        offsets: int64 [units + 1], increasing: every unit owns a row.

    Raises:
        DataError: a row belongs to two units, or a unit owns none.
    """

    order: np.ndarray
    offsets: np.ndarray

    def __post_init__(self) -> None:
        if len(np.unique(self.order)) != len(self.order):
            raise DataError("units: a row belongs to two of them, or to one twice: give each row to one unit, once")
        inside = len(self.offsets) > 1 and self.offsets[0] == 0 and self.offsets[-1] == len(self.order)
        if len(self.order) and not (inside and (np.diff(self.offsets) > 0).all()):
            raise DataError("units: offsets must increase from 0 to the number of rows, so that every unit owns a row")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def single(cls, rows: int) -> Units:
        """Return `rows` units of one row each."""
        return cls(np.arange(rows, dtype=np.int64), np.arange(rows + 1, dtype=np.int64))

    @classmethod
    def of(cls, keys: Sequence[Hashable]) -> Units:
        """Return one unit for each different key, in the order in which the keys come up.

        >>> units = Units.of(["ann", "bob", "ann"])
        >>> len(units), units.rows(0).tolist(), units.rows(1).tolist()
        (2, [0, 2], [1])
        """
        places: dict[Hashable, int] = {}
        numbers = np.fromiter((places.setdefault(key, len(places)) for key in keys), dtype=np.int64, count=len(keys))
        sizes = np.bincount(numbers, minlength=len(places))
        return cls(np.argsort(numbers, kind="stable"), np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))

    @property
    def all_single(self) -> bool:
        """Whether every row is a unit of its own, in the order of the rows."""
        return len(self) == len(self.order) and bool((self.order[:-1] < self.order[1:]).all())

    def rows(self, unit: int) -> np.ndarray:
        """Return the row indices of a unit, int64."""
        return self.order[self.offsets[unit] : self.offsets[unit + 1]]


def privacy_units(table: Table, unit: Literal["example", "user"]) -> Units:
    """Return the units of a table.

    For ``user``, all rows of a user are one unit. For ``example``, a row and its augmentations (rows whose `original`
    is its `id`) are one unit, since they show the same text.

    Raises:
        ConfigError: the unit is the user and no column plays the role.
    """
    if unit == "user":
        if not table.has("user"):
            raise ConfigError("privacy.unit = 'user' needs data.user: name the column that says whose each row is")
        return Units.of(table.column("user"))
    if not table.has("original"):
        return Units.single(len(table))
    ids = table.column("id") if table.has("id") else [None] * len(table)
    originals = table.column("original")
    own = [("row", i) if name is None else ("id", name) for i, name in enumerate(ids)]
    return Units.of([("id", original) if original else key for key, original in zip(own, originals, strict=True)])
