"""JSON files: one object a line, a list of objects, or questions in SQuAD form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as arrow_json

from troth.data.raw import LONGEST_ROW, Raw, shown
from troth.data.text_files import read_text, read_text_bytes, split_lines
from troth.errors import DataError

__all__ = ["columns_of_rows", "read_json", "read_jsonl"]

_BLOCK = 8 * LONGEST_ROW  # bytes the Arrow reader parses at once; a line may not straddle two bounds
_EXACT_FLOAT = 2**53
_LIST = pa.list_(pa.string())
_T = TypeVar("_T")


def columns_of_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the columns of rows; a key missing from a row is a missing value."""
    names = dict.fromkeys(key for row in rows for key in row)
    return {str(name): [row.get(name) for row in rows] for name in names}


class _RepeatedKeyError(ValueError):
    """An object holds a key twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise _RepeatedKeyError
    return out


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _parse_line(line: str, place: str) -> dict[str, Any]:
    """Return the object of a line.

    Raises:
        DataError: one line that names the place, never the text.
    """
    try:
        row = _DECODER.decode(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: broken JSON at character {error.pos + 1}: {error.msg}; one object a line") from None
    except _RepeatedKeyError:
        raise DataError(f"{place}: an object holds the same key twice; keep one") from None
    except RecursionError:
        raise DataError(f"{place}: broken JSON: nested too deeply; one flat object a line") from None
    except ValueError:
        raise DataError(f"{place}: broken JSON: a number with too many digits; write it as a string") from None
    if not isinstance(row, dict):
        kind = "a list" if isinstance(row, list) else "a plain value"
        raise DataError(f'{place}: holds {kind}, not an object such as {{"text": ...}}; a .json file may be a list')
    return row


def _careful(data: bytes, source: str) -> Raw:
    """Read line by line: slower, but it can say which line is broken, and it keeps columns of mixed types."""
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    for number, line in enumerate(split_lines(data), 1):
        if not line.strip():
            continue
        place = f"{source}: row {len(rows) + 1}" + (f" (line {number})" if number != len(rows) + 1 else "")
        rows.append(_parse_line(line, place))
        numbers.append(number)
    return Raw(source, columns_of_rows(rows), len(rows), line_of=numbers.__getitem__)


def _exact(column: pa.ChunkedArray, *, nulls: bool) -> bool:
    """Return whether Arrow's reader kept the values of a column as they stand in the file.

    It turns strings that look like dates into time stamps, rounds large integers that stand among floats, and
    (pyarrow 26) loses nulls inside lists: ``[null, false]`` becomes ``[false, false]``. So of nested columns it gives
    lists of strings only, and these where the file holds no null at all.

    Args:
        column: the column as read.
        nulls: whether a null may stand in the file.
    """
    if pa.types.is_floating(column.type):
        largest = pc.max(pc.abs(column)).as_py()
        return largest is None or largest < _EXACT_FLOAT  # false for NaN too
    return column.type in (pa.string(), pa.int64(), pa.bool_(), pa.null()) or (column.type == _LIST and not nulls)


def _arrow(data: bytes, dates: Sequence[str] = ()) -> pa.Table:
    return arrow_json.read_json(
        pa.BufferReader(data),
        read_options=arrow_json.ReadOptions(use_threads=False, block_size=_BLOCK),
        parse_options=arrow_json.ParseOptions(explicit_schema=pa.schema([(name, pa.string()) for name in dates])),
    )


def _fast(data: bytes, rows: int) -> pa.Table | None:
    """Return the table of `rows` lines as Arrow reads it, or None where it cannot, not exactly, or not line by line."""
    try:
        table = _arrow(data)
        dates = [f.name for f in table.schema if pa.types.is_timestamp(f.type)]
        if dates:
            table = _arrow(data, dates)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeError):
        return None
    if table.num_rows != rows or not all(_exact(column, nulls=b"null" in data) for column in table.columns):
        return None
    return table


def read_jsonl(path: Path, source: str) -> Raw:
    """Return the table of a file with one JSON object a line; blank lines are skipped.

    Raises:
        DataError: as `read_text_bytes`, or a line is no object; it names row and line.
    """
    data = read_text_bytes(path, source)
    numbers = [number for number, line in enumerate(data.split(b"\n"), 1) if line and not line.isspace()]
    table = _fast(data, len(numbers))
    if table is not None:
        columns = dict(zip(table.column_names, table.columns, strict=True))
        return Raw(source, columns, table.num_rows, line_of=numbers.__getitem__)
    if data.lstrip().startswith(b"["):
        raise DataError(f"{source}: row 1: holds a JSON list, not one object a line; name the file .json")
    return _careful(data, source)


def read_json(path: Path, source: str) -> Raw:
    """Return the table of a .json file: SQuAD form, or a list of objects.

    Raises:
        DataError: the file is no JSON, or neither of the two forms.
    """
    text = read_text(path, source, lines=False)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        hint = "one object a line is a .jsonl file" if error.msg == "Extra data" else "mend the file"
        raise DataError(
            f"{source}: broken JSON at line {error.lineno}, column {error.colno}: {error.msg}; {hint}"
        ) from None
    except (RecursionError, ValueError):
        raise DataError(f"{source}: broken JSON: nested too deeply, or a number with too many digits") from None
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        return _read_squad(content["data"], source)
    if isinstance(content, list):
        for number, row in enumerate(content, 1):
            if not isinstance(row, dict):
                raise DataError(f'{source}: row {number}: not an object such as {{"text": ...}}')
        return Raw(source, columns_of_rows(content), len(content))
    raise DataError(f'{source}: neither SQuAD form ({{"data": [{{"paragraphs": ...}}]}}) nor a list of objects')


def _member(node: object, key: str, kind: type[_T], at: str, source: str) -> _T:
    """Return a member of a JSON object, of the type it must have."""
    value = node.get(key) if isinstance(node, dict) else None
    if not isinstance(value, kind):
        raise DataError(f"{source}: {at}: SQuAD form wants {shown(key)}, a {'string' if kind is str else 'list'}")
    return value


def _read_squad(articles: list[Any], source: str) -> Raw:
    """Return one row a question: id, question, context, answers and the article's title."""
    rows: list[dict[str, Any]] = []
    for a, article in enumerate(articles):
        paragraphs = _member(article, "paragraphs", list, f"data[{a}]", source)
        for p, paragraph in enumerate(paragraphs):
            at = f"data[{a}].paragraphs[{p}]"
            context = _member(paragraph, "context", str, at, source)
            for q, question in enumerate(_member(paragraph, "qas", list, at, source)):
                place = f"{at}.qas[{q}]"
                row: dict[str, Any] = {
                    "question": _member(question, "question", str, place, source),
                    "context": context,
                }
                row["answers"] = _member(question, "answers", list, place, source)
                row |= {"id": question.get("id"), "title": article.get("title")}
                rows.append(row)
    columns = {name: values for name, values in columns_of_rows(rows).items() if any(v is not None for v in values)}
    return Raw(source, columns, len(rows))
