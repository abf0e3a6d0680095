"""The table of text every other part works on: a `datasets.Dataset` in memory whose columns are named by role."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pyarrow as pa

from troth.data.fingerprint import content_fingerprint
from troth.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ROLES", "Splits", "Table", "concatenated", "from_rows", "table_of"]

ROLES = (
    "text",
    "label",
    "tokens",
    "tags",
    "question",
    "context",
    "answers",
    "source",
    "target",
    "id",
    "user",
    "group",
    "time",
    "original",
)

ANSWERS_TYPE = pa.struct([("text", pa.list_(pa.string())), ("answer_start", pa.list_(pa.int64()))])
_LISTS = ("tokens", "tags")


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of text in memory, with columns named by role; columns that play no role are not kept.

    Strings are Arrow strings, `tokens` and `tags` lists of strings, `answers` the SQuAD form
    ``{"text": [str], "answer_start": [int]}`` and `time` numbers or strings. The data set lies in memory only: nothing
    is written to a shared cache.

    Attributes:
        dataset: the columns.
        source: where the rows came from, for messages, such as ``train.jsonl`` or ``builtin home/train``.
    """

    dataset: datasets.Dataset
    source: str

    def __len__(self) -> int:
        return len(self.dataset)

    def has(self, role: str) -> bool:
        """Return whether the table has a column for a role."""
        return role in self.roles

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that have a column, in the order of `ROLES`."""
        names = set(self.dataset.column_names)
        return tuple(role for role in ROLES if role in names)

    @property
    def arrow(self) -> pa.Table:
        """The columns as an Arrow table, without a copy."""
        return self.dataset.data.table

    def column(self, role: str) -> list[Any]:
        """Return a column as Python values: strings, lists of strings, answers as dicts, times as they are.

        Raises:
            DataError: the table has no column for the role.
        """
        if not self.has(role):
            raise DataError(f"{self.source}: no column plays the role {role!r}; roles here: {', '.join(self.roles)}")
        values: list[Any] = self.arrow.column(role).to_pylist()
        return values

    def take(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> Table:
        """Return the rows at `indices`, in that order; a row may be taken more than once.

        Raises:
            DataError: an index lies outside the table.
        """
        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
        outside = wanted[(wanted < 0) | (wanted >= len(self))]
        if outside.size:
            raise DataError(f"{self.source}: no row at index {outside[0]}; the table has {len(self)} rows")
        return table_of(self.arrow.take(pa.array(wanted)), self.source)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 in hex over roles, values and order of rows; the file format and Arrow's chunks do not matter."""
        return content_fingerprint(self.arrow)


@dataclass(frozen=True)
class Splits:
    """The tables of a data set; `truth` is what a generator knows about its rows (empty for files)."""

    train: Table
    validation: Table | None = None
    test: Table | None = None
    truth: Mapping[str, object] = field(default_factory=dict)


def table_of(columns: pa.Table, source: str) -> Table:
    """Return a table over Arrow columns already named by role, with no check of their values."""
    # A random fingerprint keeps `datasets` from hashing the columns by pickling them, and two sets from being confused.
    return Table(datasets.Dataset(columns, fingerprint=secrets.token_hex(8)), source)


def concatenated(tables: Sequence[Table], source: str) -> Table:
    """Return the rows of all tables one after the other, with the roles that every one of them has."""
    roles = [role for role in ROLES if all(table.has(role) for table in tables)]
    parts = [table.arrow.select(roles) for table in tables]
    return table_of(pa.concat_tables(parts, promote_options="permissive"), source)


def _array(role: str, values: list[Any]) -> pa.Array:
    if role in (*_LISTS, "answers"):  # Arrow would take a string for the list of its characters
        inner = [v for v in values if v is not None]
        inner += [part for v in inner if isinstance(v, Mapping) for part in v.values()]
        if any(isinstance(v, str) for v in inner):
            raise pa.ArrowTypeError(role)
    if role in _LISTS:
        return pa.array(values, type=pa.list_(pa.string()))
    if role == "answers":
        return pa.array(values, type=ANSWERS_TYPE)
    if role == "time":
        return pa.array([v.isoformat() if isinstance(v, date) else v for v in values])
    return pa.array([v if v is None else str(v) for v in values], type=pa.string())


def from_rows(rows: Sequence[Mapping[str, Any]], source: str) -> Table:
    """Return a table of rows whose keys are roles already; a key missing from a row is a missing value.

    For generators and tests: values are put into shape, but not validated (`troth.data.read` validates).

    >>> table = from_rows([{"text": "play jazz", "label": "music"}, {"text": "lights on", "label": "light"}], "rows")
    >>> table.column("label")
    ['music', 'light']

    Raises:
        DataError: a key is no role, or a value has not the type of its role.
    """
    names = dict.fromkeys(key for row in rows for key in row)
    for name in names:
        if name not in ROLES:
            raise DataError(f"{source}: {name!r} is no role; roles: {', '.join(ROLES)}")
    columns = {}
    for role in (role for role in ROLES if role in names):
        try:
            columns[role] = _array(role, [row.get(role) for row in rows])
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
            raise DataError(f"{source}: a value of {role!r} has not the type of that role") from None
    return table_of(pa.table(columns), source)
