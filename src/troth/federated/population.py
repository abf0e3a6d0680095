"""Who holds which rows: a population of devices as columns and offsets, no object per device."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from troth.errors import DataError
from troth.results import Json

__all__ = ["FederatedData", "by_user"]

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class FederatedData:
    """Client k holds the table's rows ``rows[offsets[k]:offsets[k + 1]]``; every client holds one row or more.

    Attributes:
        rows: [rows] int64 row numbers of the table, client after client, in table order within a client.
        offsets: [clients + 1] int64, ascending from 0.
        names: [clients] what a client is called; None where clients come from a partition and have numbers only.
        dropped: clients without a row, which are left out of the population and counted here.
    """

    rows: Integers
    offsets: Integers
    names: NDArray[np.object_] | None = field(default=None, repr=False)
    dropped: int = 0

    @classmethod
    def from_assignment(
        cls, assignment: NDArray[np.integer], clients: int, names: NDArray[np.object_] | None = None
    ) -> FederatedData:
        """Return the population in which row i belongs to client ``assignment[i]``, clients without rows dropped.

        Args:
            assignment: [rows] client numbers in 0..clients - 1.
            clients: how many clients there are, empty ones included.
            names: [clients] what they are called.

        Raises:
            DataError: no rows, or a number outside of the range.

        >>> data = FederatedData.from_assignment(np.array([2, 0, 2]), 3)
        >>> data.rows, data.counts, data.dropped
        (array([1, 0, 2]), array([1, 2]), 1)
        """
        owner = np.asarray(assignment, dtype=np.int64)
        if not len(owner):
            raise DataError("a federation of no rows: give the clients some data")
        if owner.min() < 0 or owner.max() >= clients:
            raise DataError(f"a row is assigned to client {owner.max()} or {owner.min()}; there are 0 to {clients - 1}")
        counts = np.bincount(owner, minlength=clients)
        kept = np.flatnonzero(counts)
        offsets = np.r_[0, np.cumsum(counts[kept])].astype(np.int64)
        called = None if names is None else names[kept]
        return cls(np.argsort(owner, kind="stable").astype(np.int64), offsets, called, clients - len(kept))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def counts(self) -> Integers:
        """[clients] rows each client holds, all at least 1: its activity."""
        return np.diff(self.offsets)

    def rows_of(self, client: int) -> Integers:
        """Return the row numbers of a client, a view."""
        if not 0 <= client < len(self):
            raise IndexError(f"client {client} of {len(self)}")
        return self.rows[self.offsets[client] : self.offsets[client + 1]]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of who holds which rows."""
        return hashlib.sha256(self.rows.tobytes() + self.offsets.tobytes()).hexdigest()

    def summary(self) -> dict[str, Json]:
        """Return sizes at a glance; `skew` is E[n^2] / E[n]^2, 1 where all clients hold as much."""
        counts = self.counts.astype(np.float64)
        return {
            "clients": len(self),
            "dropped_clients": self.dropped,
            "rows": len(self.rows),
            "rows_smallest": int(counts.min()),
            "rows_median": float(np.median(counts)),
            "rows_largest": int(counts.max()),
            "skew": float((counts**2).mean() / counts.mean() ** 2),
        }


def by_user(users: Sequence[object], source: str = "the table") -> FederatedData:
    """Return the natural population: one client per distinct value of the user column, in order of first appearance.

    Args:
        users: [rows] who each row came from; compared as text.
        source: where they come from, for messages.

    Raises:
        DataError: a row without a user (the first is named), or no rows.
    """
    values = np.empty(len(users), dtype=object)
    values[:] = list(users)
    texts = np.array(["" if gone else str(v) for v, gone in zip(values, pd.isna(values), strict=True)], dtype=object)
    nobody = np.flatnonzero(texts == "")
    if len(nobody):
        raise DataError(
            f"{source}: row {nobody[0]} has no user ({len(nobody)} such rows); "
            "give each row a user, or make clients by a partition"
        )
    codes, names = pd.factorize(texts)
    return FederatedData.from_assignment(codes, len(names), np.asarray(names, dtype=object))
