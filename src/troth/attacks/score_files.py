"""Scores that were made anywhere, from a file: audits need no more than a number and a side for each example."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from troth.errors import DataError

if TYPE_CHECKING:
    from troth.data.raw import Raw

__all__ = ["ScoreFile", "read_scores"]

_ENDINGS = (".csv", ".npz", ".parquet")
_MEMBER = frozenset({"1", "1.0", "true", "yes", "member"})
_NON_MEMBER = frozenset({"0", "0.0", "false", "no", "non-member", "nonmember"})


@dataclass(frozen=True, eq=False)
class ScoreFile:
    """Scores of members and non-members, in the file's order.

    Attributes:
        scores: [rows] float64, finite, higher = more likely a member.
        member: [rows] bool, with at least one row on each side.
        ids: [rows] strings, none of them on both sides; None where the file has no ids.
    """

    scores: np.ndarray
    member: np.ndarray
    ids: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.scores)


def read_scores(path: Path | str) -> ScoreFile:
    """Return the scores of a file with the columns ``score`` and ``member`` and, where there is one, ``id``.

    A ``.csv`` has a header; a ``.npz`` holds arrays of these names, none of which is unpickled; a ``.parquet`` has
    columns of these names. Other columns are not read. ``member`` is a truth value, 1 or 0, or one of the words true,
    yes, member and false, no, non-member, nonmember in any case.

    Raises:
        DataError: no such file, another ending, a file that cannot be read, a column that is missing or of another
            length, no rows, a score that is no finite number, a member that is neither, all rows on one side, a
            missing id, or an id on both sides. Rows are counted from 1; ids and cells are never shown.
    """
    from troth.data.raw import printable

    place, source = Path(path), printable(str(path))
    raw = _read(place, source)
    missing = [name for name in ("score", "member") if name not in raw.columns]
    if missing:
        raise _no_column(raw, missing)
    if not raw.rows:
        raise DataError(f"{source}: no rows; give scores of members and of non-members")
    scores = np.array(_each(raw, "score", _number, "is no finite number; leave the row out or score it again"))
    member = np.array(_each(raw, "member", _side, "is not 1 or 0, true or false, yes or no, member or non-member"))
    if member.all() or not member.any():
        side, other = ("members", "non-members") if member.all() else ("non-members", "members")
        raise DataError(f"{source}: all {len(member)} rows are {side}; an attack is measured on {other} too")
    ids = _ids(raw, member) if "id" in raw.columns else None
    return ScoreFile(scores, member, ids)


def _read(place: Path, source: str) -> Raw:
    from troth.data.formats import read_path

    ending = place.suffix.lower()
    if place.is_dir():
        raise DataError(f"{source}: a folder; give one file of scores ({', '.join(_ENDINGS)})")
    if ending == ".npz":
        return _read_npz(place, source)
    if ending not in _ENDINGS:
        raise DataError(f"{source}: scores are read from {', '.join(_ENDINGS)}; write one of these")
    return read_path(place, source, None)


def _read_npz(place: Path, source: str) -> Raw:
    """Return the arrays of a NumPy archive that are called as the columns are."""
    from troth.data.raw import Raw
    from troth.data.text_files import read_bytes

    data = read_bytes(place, source)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            arrays = {name: _array(archive, name) for name in names if name in ("score", "member", "id")}
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, NotImplementedError, MemoryError):
        raise DataError(f"{source}: not a NumPy archive (.npz), or a broken one: write it again") from None
    except ValueError:
        raise DataError(
            f"{source}: holds an array that is broken or of Python objects, which would have to be unpickled; "
            "write plain numbers or strings"
        ) from None
    for name, array in arrays.items():
        if array.ndim != 1:
            raise DataError(f"{source}: {name} has shape {list(array.shape)}; give one value a row, shape [rows]")
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise DataError(f"{source}: columns of different length ({said}); give one value a row")
    columns: dict[str, Any] = {name: arrays[name].tolist() if name in arrays else [] for name in names}
    return Raw(source, columns, next(iter(lengths.values()), 0))


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as stream:
        return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))


def _no_column(raw: Raw, missing: list[str]) -> DataError:
    from troth.data.raw import shown_names

    there = shown_names(raw.columns) or "none"
    return DataError(f"{raw.source}: no column {' and '.join(missing)}; columns here: {there}; wanted: score, member")


def _each(raw: Raw, name: str, read: Callable[[object], Any], fault: str) -> list[Any]:
    """Return a column's values as `read` takes them; the first that it refuses (None) is named by its row."""
    found = [read(value) for value in _values(raw, name)]
    bad = next((row for row, value in enumerate(found) if value is None), None)
    if bad is not None:
        raise DataError(f"{raw.where(bad)}: {name} {fault}")
    return found


def _values(raw: Raw, name: str) -> Iterable[object]:
    column = raw.columns[name]
    return column if isinstance(column, list) else column.to_pylist()


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _side(value: object) -> bool | None:
    word = str(value).strip().lower()
    return True if word in _MEMBER else False if word in _NON_MEMBER else None


def _name(value: object) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return str(value) or None


def _ids(raw: Raw, member: np.ndarray) -> np.ndarray:
    names = _each(raw, "id", _name, "is missing; give each row one, or leave the column out")
    inside = {name for name, side in zip(names, member, strict=True) if side}
    both = [row for row, (name, side) in enumerate(zip(names, member, strict=True)) if not side and name in inside]
    if both:
        raise DataError(
            f"{raw.where(both[0])}: its id is a member's and a non-member's ({len(both)} rows in all); "
            "keep such examples on one side: no attack can tell them apart"
        )
    return np.array(names, dtype=object)
