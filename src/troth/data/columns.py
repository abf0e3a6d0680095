"""A user's column put into the shape of its role; what cannot be is refused with file and row."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from datetime import date
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from troth.data.raw import LONGEST_ROW, Column, Raw
from troth.data.table import ANSWERS_TYPE
from troth.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["rows_of_words", "shape_column"]

_TEXTS = ("text", "question", "context", "source", "target")
_NAMES = ("label", "id", "user", "group", "original")
_LIST = pa.list_(pa.string())
_TYPE_NAMES = {
    bool: "a truth value",
    int: "a number",
    float: "a number",
    list: "a list",
    tuple: "a list",
    np.ndarray: "a list",
    dict: "an object",
    bytes: "bytes",
}


def _is_missing(value: object) -> bool:
    return value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value))


def _plain(value: object) -> object:
    """Return a NumPy scalar as the Python value it stands for."""
    return value.item() if isinstance(value, np.generic) else value


def _kind(value: object) -> str:
    return _TYPE_NAMES.get(type(value), f"a {type(value).__name__}")


def _name(value: object, classes: tuple[str, ...]) -> str | None:
    """Return a label, tag or id as a string, None where it is missing.

    Numbers become their string (1.0 becomes "1": a table that once held a missing value holds floats), truth values
    "true" and "false", and the integers of a `ClassLabel` the names behind them (-1 is its missing value).

    Raises:
        TypeError: the value is no name; the text says what it is.
    """
    value = _plain(value)
    if _is_missing(value):
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        if not classes:
            return str(value)
        if value >= len(classes):
            raise TypeError(f"is {value}, and there are {len(classes)} classes")
        return classes[value] if value >= 0 else None
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, date):
        return value.isoformat()
    raise TypeError(f"is {_kind(value)}, not a name or number")


def _text(value: object) -> str | None:
    """Return a text, None where it is missing.

    Raises:
        TypeError: the value is no string; the text says what it is.
    """
    value = _plain(value)
    if _is_missing(value) or isinstance(value, str):
        return value if isinstance(value, str) else None
    raise TypeError(f"is {_kind(value)}, not a string")


def _words(value: object, element: Callable[[object], str | None]) -> list[str | None] | None:
    """Return a list of tokens or tags; a string is split at blanks.

    Raises:
        TypeError: the value is no list, or an element is none of its kind.
    """
    value = _plain(value)
    if isinstance(value, str):
        if value.startswith("[") and value.endswith("]"):
            raise TypeError("is a printed list in a string; write a real list (.jsonl, .parquet), or words and blanks")
        return list(value.split())
    if isinstance(value, (list, tuple, np.ndarray)):
        return [element(item) for item in value]
    if _is_missing(value):
        return None
    raise TypeError(f"is {_kind(value)}, not a list of strings")


def _answers(value: object) -> dict[str, list[Any]] | None:
    """Return answers in the SQuAD form ``{"text": [...], "answer_start": [...]}``, from that or a list of pairs.

    Raises:
        TypeError: the value has another form.
    """
    wanted = 'is not {"text": [...], "answer_start": [...]}, nor a list of {"text": ..., "answer_start": ...}'
    value = _plain(value)
    if _is_missing(value):
        return None
    if isinstance(value, (list, tuple, np.ndarray)):
        pairs = list(value)
        if not all(isinstance(pair, dict) for pair in pairs):
            raise TypeError(wanted)
        value = {key: [pair.get(key) for pair in pairs] for key in ("text", "answer_start")}
    if not isinstance(value, dict):
        raise TypeError(wanted)
    texts, starts = (_listed(value.get(key)) for key in ("text", "answer_start"))
    if len(texts) != len(starts):
        raise TypeError(f"has {len(texts)} texts and {len(starts)} answer_starts")
    if not all(isinstance(t, str) for t in texts) or any(isinstance(s, bool) or not isinstance(s, int) for s in starts):
        raise TypeError(wanted)
    return {"text": texts, "answer_start": starts}


def _listed(value: object) -> list[Any]:
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(item) for item in value]
    return [] if value is None else [_plain(value)]


def _moment(value: object) -> str | int | float | None:
    """Return a time as a number or ISO 8601 string.

    Raises:
        TypeError: the value is neither a finite number, a string nor a date.
    """
    value = _plain(value)
    if _is_missing(value):
        return None
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, bool) or not isinstance(value, (int, float, str)) or value in (float("inf"), -float("inf")):
        raise TypeError(f"is {_kind(value)}, not a finite number, a string or a date")
    return value


def _numbers(values: list[Any]) -> list[Any]:
    """Return strings that are all finite numbers as these numbers (cells of .csv have no types), else the values."""
    if not all(isinstance(value, str) for value in values):
        return values
    for kind in (int, float):
        try:
            parsed = [kind(value) for value in values]
        except ValueError:
            continue
        return parsed if all(map(math.isfinite, parsed)) else values
    return values


def _convert(raw: Raw, role: str, values: Iterable[Any], shape: Callable[[Any], Any]) -> list[Any]:
    """Return the shaped values of a column; a missing or misshapen one is refused with its row."""
    out = []
    for row, value in enumerate(values):
        try:
            shaped = shape(value)
        except TypeError as error:
            raise DataError(f"{raw.where(row)}: {role} {error}{_way_out(role, str(error))}") from None
        if shaped is None and role != "original":
            raise _no_value(raw, role, row)
        out.append(shaped)
    return out


def _way_out(role: str, fault: str) -> str:
    """Return what to do about a value of the wrong type, where the fault does not say so itself."""
    if ";" in fault or role in ("answers", "time"):
        return ""
    wanted = "a list of strings" if role in ("tokens", "tags") else "one string" if role in _TEXTS else "one name"
    joined = " (join the words of a list with blanks)" if role in _TEXTS and " a list" in fault else ""
    return f"; write {wanted} a row{joined}, or name another column: {role} = COLUMN"


def _no_value(raw: Raw, role: str, row: int) -> DataError:
    needed = role in (*_TEXTS, "label", "tokens", "tags", "answers")
    way_out = "give each row one or drop the row" if needed else "fill the column in every row, or leave it out"
    return DataError(f"{raw.where(row)}: no {role} (a missing value: null, NaN or nothing); {way_out}")


def _strings(raw: Raw, role: str, values: list[Any]) -> pa.ChunkedArray:
    """Return an Arrow column of strings."""
    try:
        return pa.chunked_array([pa.array(values, type=pa.string())])
    except UnicodeEncodeError:
        for row, value in enumerate(values):
            if value is not None and any(0xD800 <= ord(c) <= 0xDFFF for c in value):
                raise DataError(
                    f"{raw.where(row)}: {role} holds half of a surrogate pair (\\ud800 to \\udfff), which is no text; "
                    "write the character itself"
                ) from None
        raise


def _string_column(raw: Raw, role: str, column: Column, names: tuple[str, ...]) -> pa.ChunkedArray:
    """Return a column of texts or names: quickly where it holds strings only, else value by value."""
    if isinstance(column, list) and set(map(type, column)) <= {str}:
        return _strings(raw, role, column)
    if isinstance(column, pa.ChunkedArray):
        inner = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if (pa.types.is_string(inner) or pa.types.is_large_string(inner)) and not column.null_count:
            return column.cast(pa.string())
        column = column.to_pylist()
    shape = _text if role in _TEXTS else partial(_name, classes=names)
    return _strings(raw, role, _convert(raw, role, column, shape))


def _list_column(raw: Raw, role: str, column: Column, names: tuple[str, ...]) -> pa.ChunkedArray:
    """Return a column of lists of strings."""
    if isinstance(column, pa.ChunkedArray):
        if column.type in (_LIST, pa.large_list(pa.string())) and not column.null_count:
            return column.cast(_LIST)
        column = column.to_pylist()
    elif set(map(type, column)) <= {list} and set(map(type, chain.from_iterable(column))) <= {str}:
        return _string_lists(raw, role, column)
    element = _text if role == "tokens" else partial(_name, classes=names)
    return _string_lists(raw, role, _convert(raw, role, column, partial(_words, element=element)))


def _string_lists(raw: Raw, role: str, values: list[Any]) -> pa.ChunkedArray:
    """Return an Arrow column of lists of strings."""
    try:
        return pa.chunked_array([pa.array(values, type=_LIST)])
    except UnicodeEncodeError:
        _strings(raw, role, ["".join(word or "" for word in words) for words in values])
        raise


def _check_strings(raw: Raw, role: str, column: pa.ChunkedArray) -> None:
    """Refuse an empty text or label, and a text above `LONGEST_ROW` bytes."""
    blank = pc.index(pc.equal(pc.utf8_trim_whitespace(column), ""), True).as_py()
    if blank >= 0:
        raise DataError(f"{raw.where(blank)}: {role} is empty; give each row one or drop the row")
    if role == "label" and raw.missing:
        missing = pc.index(pc.is_in(column, pa.array(sorted(raw.missing))), True).as_py()
        if missing >= 0:
            raise DataError(f"{raw.where(missing)}: label is NaN, a missing value; give each row one or drop the row")
    longest = pc.max(pc.binary_length(column)).as_py()
    if longest is not None and longest > LONGEST_ROW:
        row = pc.index(pc.greater(pc.binary_length(column), LONGEST_ROW), True).as_py()
        raise DataError(
            f"{raw.where(row)}: {role} has {longest / 1e6:.1f} MB; a row may have {LONGEST_ROW / 1e6:g} MB: "
            "split the text"
        )


def rows_of_words(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Return the row of each word of a column of lists, [words]."""
    lengths: NDArray[np.int32] = pc.list_value_length(column).to_numpy()
    return np.repeat(np.arange(len(column)), lengths)


def _check_lists(raw: Raw, role: str, column: pa.ChunkedArray) -> None:
    """Refuse a list without words, and an empty or missing word in a list."""
    empty = pc.index(pc.equal(pc.list_value_length(column), 0), True).as_py()
    if empty >= 0:
        raise DataError(f"{raw.where(empty)}: {role} is an empty list; give each row words or drop the row")
    words = pc.list_flatten(column)
    blank = pc.index(pc.fill_null(pc.equal(pc.utf8_trim_whitespace(words), ""), True), True).as_py()
    if blank >= 0:
        row = int(rows_of_words(column)[blank])
        raise DataError(f"{raw.where(row)}: {role} holds an empty or missing element; drop it from tokens and tags")


def _time_column(raw: Raw, column: Column) -> pa.ChunkedArray:
    """Return times as integers, floats or strings, whichever all of them are."""
    if isinstance(column, pa.ChunkedArray):
        if column.type in (pa.int64(), pa.float64()) and not column.null_count and pc.all(pc.is_finite(column)).as_py():
            return column
        column = column.to_pylist()
    strings = set(map(type, column)) <= {str}
    values = _numbers(column if strings else _convert(raw, "time", column, _moment))
    texts = [isinstance(value, str) for value in values]
    if any(texts) and not all(texts):
        row = texts.index(not texts[0])
        raise DataError(f"{raw.where(row)}: time is {_kind(values[row])}, in row 1 {_kind(values[0])}; use one of both")
    try:
        return pa.chunked_array([pa.array(values)])
    except (pa.ArrowInvalid, OverflowError):
        raise DataError(f"{raw.source}: time holds a number beyond 64 bits; use seconds since 1970") from None


def shape_column(raw: Raw, role: str, name: str) -> pa.ChunkedArray:
    """Return a user's column in the Arrow type of its role, every value checked.

    Args:
        raw: the table.
        role: the role the column plays.
        name: the column's name.

    Raises:
        DataError: a value is missing, empty, too long or not of the role's type; it names file, row and way out.
    """
    column = raw.columns[name]
    names = tuple(raw.classes.get(name, ()))
    if role == "time":
        return _time_column(raw, column)
    if role == "answers":
        values = column.to_pylist() if isinstance(column, pa.ChunkedArray) else column
        return pa.chunked_array([pa.array(_convert(raw, role, values, _answers), type=ANSWERS_TYPE)])
    if role in ("tokens", "tags"):
        shaped = _list_column(raw, role, column, names)
        _check_lists(raw, role, shaped)
        return shaped
    shaped = _string_column(raw, role, column, names)
    if role in (*_TEXTS, "label"):
        _check_strings(raw, role, shaped)
    return shaped
