"""Tables of cells: comma-separated (RFC 4180, with quotes) and tab-separated (no quotes)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from troth.data.raw import LONGEST_ROW, Raw, shown, shown_names
from troth.data.text_files import read_text, read_text_bytes, split_lines
from troth.errors import DataError

__all__ = ["read_csv", "read_tsv"]

_MISSING = frozenset({"nan", "NaN"})

Rows = Iterator[tuple[int, list[str]]]


def _csv_rows(text: str, source: str) -> Rows:
    """Return the line on which each row starts, and its cells.

    Raises:
        DataError: a quoted cell is not closed or is followed by other text.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    start = 1
    rows = []
    previous = csv.field_size_limit(LONGEST_ROW)  # of the whole process: given back before anything else runs
    try:
        for cells in reader:
            if cells:
                rows.append((start, cells))
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{source}: the row from line {start} on has a broken quote: {error}; "
            'a cell with quotes is written "say ""hello"" twice"'
        ) from None
    finally:
        csv.field_size_limit(previous)
    return iter(rows)


def _tsv_rows(lines: Sequence[str]) -> Rows:
    """Yield line number and cells; a quote is a character like any other, as the tab-separated format has it."""
    return ((number, line.split("\t")) for number, line in enumerate(lines, 1) if line)


def _header(cells: Sequence[str], source: str, other: str) -> list[str]:
    """Return the column names of a header row."""
    found = next((mark for mark in (other, ";") if len(cells) == 1 and mark in cells[0]), None)
    if found is not None:
        wanted, ending = ("commas", ".tsv") if other == "\t" else ("tabs", ".csv")
        way_out = f"separate cells by {wanted}" + (f", or name the file {ending}" if found == other else "")
        raise DataError(f"{source}: the header has one column and holds {found!r}: {way_out}")
    repeated = next((name for i, name in enumerate(cells) if name in cells[:i]), None)
    if repeated is not None:
        raise DataError(f"{source}: the header names the column {shown(repeated)} twice; give each column its own name")
    return list(cells)


def _table(rows: Rows, source: str, columns: Sequence[str] | None, other: str) -> Raw:
    """Return the table of rows of cells; the first row is the header unless `columns` names them."""
    found = next(rows, None)
    if found is None:
        raise DataError(f"{source}: empty file; give a file with rows")
    line, first = found
    names = list(columns) if columns else _header(first, source, other)
    if columns and [c.strip() for c in first] == names:
        raise DataError(f"{source}: row 1 repeats the names in data.columns: the file has a header, so drop columns")
    kept, lines = ([first], [line]) if columns else ([], [])
    for number, cells in rows:
        kept.append(cells)
        lines.append(number)
    wrong = next((i for i, cells in enumerate(kept) if len(cells) != len(names)), None)
    raw = Raw(source, {}, len(kept), line_of=lines.__getitem__, missing=_MISSING, headed=not columns)
    if wrong is not None:
        separator = "tab" if other == "," else "comma (or quote the cells that hold one)"
        raise DataError(
            f"{raw.where(wrong)}: {len(kept[wrong])} cells instead of {len(names)} ({shown_names(names)}); "
            f"write one {separator} between cells"
        )
    if not kept:
        raise DataError(f"{source}: a header and no rows; give a file with rows")
    cells_of = dict(zip(names, (list(column) for column in zip(*kept, strict=True)), strict=True))
    return Raw(source, cells_of, raw.rows, raw.line_of, missing=raw.missing, headed=raw.headed)


def read_csv(path: Path, source: str, columns: Sequence[str] | None = None) -> Raw:
    """Return the table of a comma-separated file (RFC 4180): quoted cells may hold commas, quotes and line ends.

    Args:
        path: the file, in UTF-8.
        source: its name in messages.
        columns: the names of the columns where the file has no header.

    Raises:
        DataError: as `read_text_bytes`, a broken quote, a repeated column, or a row with another number of cells.
    """
    return _table(_csv_rows(read_text(path, source), source), source, columns, "\t")


def read_tsv(path: Path, source: str, columns: Sequence[str] | None = None) -> Raw:
    """Return the table of a tab-separated file: one row a line, and quotes are plain characters.

    Args:
        path: the file, in UTF-8.
        source: its name in messages.
        columns: the names of the columns where the file has no header.

    Raises:
        DataError: as `read_text_bytes`, a repeated column, or a row with another number of cells.
    """
    return _table(_tsv_rows(split_lines(read_text_bytes(path, source))), source, columns, ",")
