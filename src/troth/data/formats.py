"""One file, or a folder of files, to a table: which reader an ending wants, and which files a folder stands for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import pyarrow as pa
from pyarrow import parquet

from troth.data.formats_cells import read_csv, read_tsv
from troth.data.formats_json import read_json, read_jsonl
from troth.data.formats_tokens import ALIGNED, read_aligned, read_conll
from troth.data.raw import Raw, near, printable, shown, shown_names
from troth.data.text_files import read_bytes, read_lines
from troth.errors import DataError

__all__ = ["ENDINGS", "class_names", "files_of", "read_path"]

_WITH_COLUMNS: dict[str, Callable[[Path, str, Sequence[str] | None], Raw]] = {
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".conll": read_conll,
}
_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "dev": "validation",
    "valid": "validation",
    "validation": "validation",
    "val": "validation",
    "test": "test",
}
_NOT_DATA = ("readme", "license", "licence", "citation", "changelog", "notice")


def class_names(features: datasets.Features) -> dict[str, list[str]]:
    """Return the names behind the integers of `ClassLabel` columns, also of lists of them."""
    names: dict[str, list[str]] = {}
    for column, feature in features.items():
        inner = feature.feature if isinstance(feature, (datasets.List, datasets.LargeList)) else feature
        if isinstance(inner, datasets.ClassLabel):
            names[column] = list(inner.names)
    return names


def _read_txt(path: Path, source: str) -> Raw:
    """Return one row a line, in the column `text`; blank lines are skipped."""
    numbered = [(number, line) for number, line in enumerate(read_lines(path, source), 1) if line.strip()]
    lines = [number for number, _ in numbered]
    return Raw(source, {"text": [line for _, line in numbered]}, len(lines), line_of=lines.__getitem__)


def _read_parquet(path: Path, source: str) -> Raw:
    """Return the columns of a Parquet file; names of class labels written by `datasets` are kept."""
    data = read_bytes(path, source)
    try:
        table = parquet.read_table(pa.BufferReader(data), use_threads=False)
    except (pa.ArrowException, OSError):
        raise DataError(f"{source}: not a Parquet file, or a broken one: write it again") from None
    repeated = next((name for name in table.column_names if table.column_names.count(name) > 1), None)
    if repeated is not None:
        raise DataError(f"{source}: two columns are called {shown(repeated)}; give each its own name")
    classes = {}
    if b"huggingface" in (table.schema.metadata or {}):
        classes = class_names(datasets.Features.from_arrow_schema(table.schema))
    columns = dict(zip(table.column_names, table.columns, strict=True))
    return Raw(source, columns, table.num_rows, classes=classes)


_PLAIN: dict[str, Callable[[Path, str], Raw]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".parquet": _read_parquet,
    ".txt": _read_txt,
}

ENDINGS = (*_PLAIN, *_WITH_COLUMNS)
"""The endings of files that can be read."""


def _ending(path: Path) -> str:
    return path.suffix.lower()


def _check_ending(path: Path, source: str) -> None:
    if _ending(path) in ENDINGS:
        return
    if path.name in ALIGNED:
        raise DataError(f"{source}: one of the line-aligned files: give their folder")
    ending = shown(path.suffix) if path.suffix else "no ending"
    nearest = near(path.suffix, ENDINGS) if path.suffix else None
    hint = f"nearest: {nearest}; " if nearest else ""
    raise DataError(f"{source}: {ending} is not a known ending; {hint}known: {', '.join(sorted(ENDINGS))}")


def _entries(folder: Path, source: str) -> list[Path]:
    """Return what lies in a folder, in name order."""
    try:
        return sorted(folder.iterdir(), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{source}: the folder cannot be read: {error.strerror}") from None


def _no_data(folder: Path, source: str) -> DataError:
    """Return the error for a folder that holds no file of a known ending."""
    names = [entry.name for entry in _entries(folder, source)]
    if {"state.json", "dataset_dict.json"} & set(names):
        return DataError(
            f"{source}: a folder made by save_to_disk: write it with to_parquet, or pass the data set itself"
        )
    inner = [name for name in names if (folder / name).is_dir() and not name.startswith(".")]
    hint = f"; it holds the folders {shown_names(inner)}: give one of them" if inner else ""
    known = f"known: {', '.join(sorted(ENDINGS))}, or {'/'.join(ALIGNED)}"
    return DataError(f"{source}: a folder without files of a known ending ({known}){hint}")


def files_of(path: Path, source: str) -> list[tuple[Path, str]]:
    """Return the files (or the line-aligned folder) that a path stands for, each with its name for messages.

    A folder stands for its files of one known ending, in name order; hidden files and README, LICENSE and the like are
    left out. A folder that holds several splits is refused: joining them would put test rows into training.

    Raises:
        DataError: an unknown ending; a folder without known files, with files of several endings, or several splits.
    """
    if not path.is_dir():
        _check_ending(path, source)
        return [(path, source)]
    if any((path / name).is_file() for name in ALIGNED):
        return [(path, source)]
    files = [
        entry
        for entry in _entries(path, source)
        if _ending(entry) in ENDINGS and not entry.name.startswith((".", "_")) and entry.stem.lower() not in _NOT_DATA
    ]
    files = [entry for entry in files if entry.is_file()]
    if not files:
        raise _no_data(path, source)
    endings = sorted({_ending(entry) for entry in files})
    if len(endings) > 1:
        raise DataError(
            f"{source}: a folder with files of several endings ({', '.join(endings)}); keep one, or give files"
        )
    splits = {_SPLIT_NAMES[e.stem.lower()]: e.name for e in files if e.stem.lower() in _SPLIT_NAMES}
    if len(splits) > 1:
        raise DataError(
            f"{source}: a folder that holds several splits ({', '.join(splits.values())}); give one file, such as "
            f"{shown(f'{source}/{next(iter(splits.values()))}')}"
        )
    return [(entry, f"{source.rstrip('/')}/{printable(entry.name)}") for entry in files]


def read_path(path: Path, source: str, columns: Sequence[str] | None) -> Raw:
    """Return the table of one of the files that `files_of` gave.

    Args:
        path: a file, or a line-aligned folder.
        source: its name in messages.
        columns: the names of columns where the file has no header (.csv, .tsv, .conll).

    Raises:
        DataError: the file is missing or broken; or `columns` is given for a format with names of its own.
    """
    ending = "" if path.is_dir() else _ending(path)
    if ending in _WITH_COLUMNS:
        return _WITH_COLUMNS[ending](path, source, columns)
    if columns:
        raise DataError(
            f"{source}: columns = [{shown_names(columns)}] names the columns of .csv, .tsv and .conll files without a "
            "header; this one names its own: drop columns"
        )
    return _PLAIN[ending](path, source) if ending else read_aligned(path, source)
