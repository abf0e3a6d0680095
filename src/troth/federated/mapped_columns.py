"""Columns that lie in a file: scattered reads asked for all at once, so that the disk serves them side by side."""

from __future__ import annotations

import mmap
import sys
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["mapping_of", "pages_of", "prefetch"]

Integers = NDArray[np.int64]


def mapping_of(column: NDArray[Any]) -> mmap.mmap | None:
    """Return the memory map of a file in which a column lies, or None where it lies in memory."""
    base: object = column
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    return base if isinstance(base, mmap.mmap) else None


def pages_of(column: NDArray[Any], mapping: mmap.mmap, first: Integers, length: int) -> Integers:
    """Return the pages, ascending, each once, of a mapping that hold ``column[k : k + length]`` for each k of `first`.

    Args:
        column: contiguous, inside of the mapping.
        mapping: where it lies.
        first: [k] places in the column.
        length: at least 1; what reaches beyond the end of the column is left out.
    """
    begin = np.frombuffer(mapping, dtype=np.uint8).ctypes.data
    last = np.minimum(first + length, len(column)) * column.itemsize - 1
    places = np.concatenate((first * column.itemsize, last)) + (column.ctypes.data - begin)
    return np.unique(places // mmap.PAGESIZE)


def prefetch(column: NDArray[Any], first: Integers, length: int = 1) -> None:
    """Have the system read ``column[k : k + length]`` for each k of `first`, without waiting for it.

    Reading them one after the other waits for the disk each time, and reads neighbours that nobody wants. A column in
    memory, or a system without such advice, is left alone. `length` is at most a page.
    """
    mapping = mapping_of(column)
    if sys.platform == "win32" or mapping is None or not len(first):
        return
    with suppress(OSError):  # advice only: whoever reads will wait
        for page in pages_of(column, mapping, first, length).tolist():
            mapping.madvise(mmap.MADV_WILLNEED, page * mmap.PAGESIZE, mmap.PAGESIZE)
