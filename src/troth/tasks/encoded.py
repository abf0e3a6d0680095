"""Encoded rows as columns and offsets: no object per example, padding in NumPy, batches of similar length."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Encoded", "Ragged", "length_buckets"]

Array = NDArray[Any]
Integers = NDArray[np.int64]
_POOL_BATCHES = 50  # batches whose rows are sorted by length together


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of different length in one flat array: row i is ``values[offsets[i]:offsets[i + 1]]``.

    Attributes:
        values: [total] the rows, one after the other.
        offsets: [rows + 1] int64, ascending from 0 to total.
    """

    values: Array
    offsets: Integers

    @classmethod
    def from_rows(cls, rows: Iterable[Sequence[int]]) -> Ragged:
        """Return int64 rows.

        >>> Ragged.from_rows([[5, 6], [7]]).pad(np.array([1, 0]), 0)
        array([[7, 0],
               [5, 6]])
        """
        kept = list(rows)
        offsets = np.zeros(len(kept) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in kept], out=offsets[1:])
        values = np.fromiter((value for row in kept for value in row), dtype=np.int64, count=int(offsets[-1]))
        return cls(values, offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Integers:
        """[rows] how many values each row has."""
        return np.diff(self.offsets)

    def row(self, index: int) -> Array:
        """Return one row, a view."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def take(self, indices: Array) -> Ragged:
        """Return the rows at `indices` [k], in that order."""
        starts, lengths = self._span(indices)
        offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return Ragged(self.values[np.repeat(starts, lengths) + within], offsets)

    def pad(self, indices: Array, fill: int) -> Array:
        """Return [k, longest of these rows], shorter rows filled up on the right."""
        starts, lengths = self._span(indices)
        columns = np.arange(int(lengths.max(initial=0)))
        # Taking too much and overwriting it is the fastest way: this stands in every training step.
        out = self.values.take(starts[:, None] + columns, mode="clip")
        out[columns >= lengths[:, None]] = fill
        return out

    def _span(self, indices: Array) -> tuple[Integers, Integers]:
        chosen = np.asarray(indices, dtype=np.int64)
        starts = self.offsets[:-1][chosen]
        return starts, self.offsets[1:][chosen] - starts


@dataclass(frozen=True, eq=False)
class Encoded:
    """A table turned into numbers by a task.

    Attributes:
        ragged: token-level columns, such as ``input_ids``, with one row per example.
        scalars: [rows] example-level columns, such as ``labels`` or ``start_positions``.
        lengths: [rows] tokens, for bucketing.
        truncated: how many rows of the encoded table were cut to the maximum length; `take` keeps the number.
    """

    ragged: Mapping[str, Ragged]
    scalars: Mapping[str, Array]
    lengths: Integers
    truncated: int

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, indices: Array) -> Encoded:
        """Return the rows at `indices` [k], in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        return Encoded(
            {name: column.take(chosen) for name, column in self.ragged.items()},
            {name: column[chosen] for name, column in self.scalars.items()},
            self.lengths[chosen],
            self.truncated,
        )


def length_buckets(lengths: Array, batch_size: int, generator: np.random.Generator) -> list[Integers]:
    """Return batches of row indices: shuffled, rows of similar length together, every row once.

    Rows are shuffled, cut into pools of 50 batches, sorted by length within a pool and cut into batches; the order of
    the batches is shuffled. Batches have `batch_size` rows, one of them perhaps fewer. For plain training only: private
    training samples by Poisson and never buckets.

    Args:
        lengths: [rows] tokens per row.
        batch_size: rows in a batch, at least 1.
        generator: public randomness.

    Raises:
        ValueError: `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size}: must be at least 1")
    tokens = np.asarray(lengths)
    order = generator.permutation(len(tokens)).astype(np.int64)
    pool = batch_size * _POOL_BATCHES
    batches: list[Integers] = []
    for start in range(0, len(order), pool):
        rows = order[start : start + pool]
        rows = rows[np.argsort(tokens[rows], kind="stable")]
        batches.extend(rows[i : i + batch_size] for i in range(0, len(rows), batch_size))
    return [batches[i] for i in generator.permutation(len(batches))]
