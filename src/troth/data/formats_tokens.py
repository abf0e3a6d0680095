"""Tagged text: one token a line (CoNLL), or line-aligned files of words, tags and labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from troth.data.raw import Raw
from troth.data.text_files import read_lines
from troth.errors import DataError

__all__ = ["ALIGNED", "ALIGNED_ALIASES", "read_aligned", "read_conll"]

ALIGNED = ("seq.in", "seq.out", "label")
"""The files of a line-aligned folder: words, tags, label."""

ALIGNED_ALIASES = {
    "utterance": "text",
    "sentence": "text",
    "words": "tokens",
    "slots": "tags",
    "ner_tags": "tags",
    "intent": "label",
    "labels": "label",
    "seq.in": "text",
    "seq.out": "tags",
}


def _named(width: int, columns: Sequence[str] | None, source: str, line: int) -> list[str]:
    """Return the names of a CoNLL file's columns: the first is the token, the last its tag."""
    if columns:
        if len(columns) != width:
            raise DataError(f"{source}: line {line} has {width} columns, data.columns names {len(columns)}")
        return list(columns)
    if width < 2:
        raise DataError(f"{source}: line {line} has 1 column; .conll wants a token and its tag, separated by a tab")
    return ["tokens", *(f"column_{i}" for i in range(2, width)), "tags"]


def _check_cells(cells: Sequence[str], wanted: int, place: str) -> None:
    filled = sum(bool(cell.strip()) for cell in cells)
    if len(cells) != wanted or filled != wanted:
        raise DataError(
            f"{place} has {filled} columns instead of {wanted}; each line is a token and its tag, and a blank line "
            "stands between sentences"
        )


def read_conll(path: Path, source: str, columns: Sequence[str] | None = None) -> Raw:
    """Return one row a sentence: a token and its tag on each line, blank lines between sentences.

    Columns are separated by tabs where the file has one, else by blanks. The first column is `tokens`, the last
    `tags`, unless `columns` names them all. ``-DOCSTART-`` lines and, in tab-separated files, comments (``#`` and no
    tab) are skipped.

    Raises:
        DataError: as `read_text_bytes`, or a line has another number of columns than the first.
    """
    lines = read_lines(path, source)
    tabbed = any("\t" in line for line in lines if line.strip())
    names: list[str] = []
    rows: list[list[list[str]]] = []
    starts: list[int] = []
    open_sentence = False
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("-DOCSTART-"):
            open_sentence = False
            continue
        if tabbed and line.startswith("#") and "\t" not in line:
            continue
        cells = line.split("\t" if tabbed else None)
        names = names or _named(len(cells), columns, source, number)
        _check_cells(cells, len(names), f"{source}: line {number} (sentence {len(rows) + (not open_sentence)})")
        if not open_sentence:
            rows.append([[] for _ in names])
            starts.append(number)
            open_sentence = True
        for column, cell in zip(rows[-1], cells, strict=True):
            column.append(cell.strip())
    if not rows:
        raise DataError(f"{source}: no sentences; each line is a token and its tag")
    table: dict[str, list[Any]] = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    return Raw(source, table, len(rows), line_of=starts.__getitem__)


def read_aligned(folder: Path, source: str) -> Raw:
    """Return the table of line-aligned files ``seq.in`` (words), ``seq.out`` (tags) and ``label``, of which some exist.

    Gives the columns `text` and `tokens` (from ``seq.in``), `tags` and `label`, which also answer to common names such
    as ``intent`` and ``slots``.

    Raises:
        DataError: a file is no text, files have different numbers of lines, or a line has no words.
    """
    if not (folder / "seq.in").is_file():
        raise DataError(f"{source}: line-aligned files want seq.in beside {' and '.join(_present(folder))}")
    lines = {name: read_lines(folder / name, f"{source}/{name}") for name in _present(folder)}
    words = lines["seq.in"]
    for name, other in lines.items():
        if len(other) != len(words):
            raise DataError(f"{source}/{name}: {len(other)} lines, seq.in has {len(words)}; they must be line-aligned")
    table: dict[str, list[Any]] = {"text": [line.strip() for line in words], "tokens": [line.split() for line in words]}
    if "seq.out" in lines:
        table["tags"] = [line.split() for line in lines["seq.out"]]
    if "label" in lines:
        table["label"] = [line.strip() for line in lines["label"]]
    aliases = {alias: name for alias, name in ALIGNED_ALIASES.items() if name in table}
    return Raw(source, table, len(words), aliases=aliases)


def _present(folder: Path) -> list[str]:
    return [name for name in ALIGNED if (folder / name).is_file()]
