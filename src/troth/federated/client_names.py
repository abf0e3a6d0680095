"""What clients are called: one text and its offsets, no string object per client."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

__all__ = ["ClientNames"]


@dataclass(frozen=True, eq=False)
class ClientNames(Sequence[str]):
    """Name k is ``text[offsets[k]:offsets[k + 1]]`` in UTF-8.

    Attributes:
        offsets: [clients + 1] int64, ascending from 0.
        text: [bytes] uint8, the names one after the other.

    >>> names = ClientNames.of(["ann", "bo"])
    >>> names[1], len(names), names.offsets
    ('bo', 2, array([0, 3, 5]))
    """

    offsets: NDArray[np.int64]
    text: NDArray[np.uint8]

    @classmethod
    def of(cls, names: Iterable[str]) -> ClientNames:
        """Return the columns of a list of names."""
        return cls.from_arrow(pa.array(list(names), type=pa.large_string()))

    @classmethod
    def from_arrow(cls, names: pa.Array) -> ClientNames:
        """Return the columns of an Arrow string array without missing values, without a copy where that can be."""
        array = names.cast(pa.large_string())
        _, bounds, data = array.buffers()
        if not len(array) or bounds is None:
            return cls(np.zeros(1, dtype=np.int64), np.zeros(0, dtype=np.uint8))
        offsets = np.frombuffer(bounds, dtype=np.int64)[array.offset : array.offset + len(array) + 1]
        text = np.zeros(0, dtype=np.uint8) if data is None else np.frombuffer(data, dtype=np.uint8)
        first = int(offsets[0])
        return cls(offsets - first if first else offsets, text[first : int(offsets[-1])])

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, client: int) -> str:  # type: ignore[override]  # one name at a time: `take` gives several
        if not 0 <= client < len(self):
            raise IndexError(f"client {client} of {len(self)}")
        return bytes(self.text[self.offsets[client] : self.offsets[client + 1]]).decode()

    def take(self, clients: NDArray[np.integer]) -> ClientNames:
        """Return the names of clients [k], in that order."""
        return ClientNames.from_arrow(self.to_arrow().take(pa.array(np.asarray(clients, dtype=np.int64))))

    def to_arrow(self) -> pa.Array:
        """Return the names as an Arrow array of large strings, a view."""
        offsets = np.ascontiguousarray(self.offsets, dtype=np.int64)
        buffers = [pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(self.text))]
        return pa.LargeStringArray.from_buffers(len(self), *buffers)

    def tolist(self) -> list[str]:
        """Return all names as Python strings."""
        names: list[str] = self.to_arrow().to_pylist()
        return names
