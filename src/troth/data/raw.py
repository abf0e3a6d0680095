"""A table as it was read: the user's own columns, and where each row stands, for messages."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import pyarrow as pa

__all__ = ["LONGEST_ROW", "Column", "Origin", "Raw", "near", "printable", "shown", "shown_names"]

LONGEST_ROW = 1_000_000
"""Bytes of UTF-8 a row (in a text file: a line) may have. A longer one is a broken file more often than a text."""

_LONGEST_SHOWN = 40
_MOST_SHOWN = 12

Column: TypeAlias = pa.ChunkedArray | list[Any]


def printable(text: str) -> str:
    """Return a path or the like with line ends and other control characters escaped, for messages of one line."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shown(value: object) -> str:
    """Return a value in quotes for a message: one line, and cut, since a label may turn out to be a whole text."""
    text = str(value)
    return repr(text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "...")


def shown_names(names: Iterable[object]) -> str:
    """Return column names or the like for a message; where one is a text (no header?), only its length is shown."""
    known = [str(name) for name in names]
    parts = [repr(n) if len(n) <= _LONGEST_SHOWN else f"({len(n)} characters)" for n in known[:_MOST_SHOWN]]
    more = f" and {len(known) - _MOST_SHOWN} more" if len(known) > _MOST_SHOWN else ""
    return ", ".join(parts) + more


def near(wanted: str, names: Iterable[str]) -> str | None:
    """Return the name nearest in spelling, or None where none is near."""
    folded = {name.lower().strip(): name for name in reversed([n for n in names if len(n) <= _LONGEST_SHOWN])}
    found = difflib.get_close_matches(wanted.lower().strip(), folded, n=1, cutoff=0.6)
    return folded[found[0]] if found else None


@dataclass(frozen=True)
class Raw:
    """One file (or object) as it was read: columns under the user's names, no value checked yet.

    Attributes:
        source: the file as the user wrote it, or what else the rows came from.
        columns: Arrow columns, or lists where a column's values have more than one type.
        rows: number of rows.
        line_of: gives the 1-based line on which a 0-based row starts; None where the two are not told apart.
        classes: names behind the integers of `datasets.ClassLabel` columns.
        aliases: further names by which columns answer, such as ``intent`` for the labels of line-aligned files.
        missing: strings that stand for a missing label in this format, beside the empty one.
        headed: whether the first row of a file gave the names of columns.
    """

    source: str
    columns: Mapping[str, Column]
    rows: int
    line_of: Callable[[int], int] | None = None
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    missing: frozenset[str] = frozenset()
    headed: bool = False

    def where(self, row: int) -> str:
        """Return the place of a 0-based row: file, 1-based row and, where it is another number, its line."""
        line = self.line_of(row) if self.line_of else row + 1
        return f"{self.source}: row {row + 1}" + (f" (line {line})" if line != row + 1 else "")


@dataclass(frozen=True)
class Origin:
    """Where the rows of a table of several files stand."""

    parts: tuple[Raw, ...]

    def where(self, row: int) -> str:
        """Return the place of a 0-based row of the joined table."""
        for part in self.parts:
            if row < part.rows:
                return part.where(row)
            row -= part.rows
        raise IndexError(row)
