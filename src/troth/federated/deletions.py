"""Requests to forget rows, by the row's id or a whole user, and from which period on each row is gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from troth.data.formats import files_of, read_path
from troth.data.raw import Raw, shown_names
from troth.errors import ConfigError, DataError
from troth.federated.stream_events import Periods, parse_times

__all__ = ["DeletionRequests", "Deletions", "deletion_periods", "read_deletions"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Texts = NDArray[np.object_]


@dataclass(frozen=True, eq=False)
class DeletionRequests:
    """Requests in the file's order; each names a user or an id, the other being the empty text.

    Attributes:
        times: [requests] float64 seconds since the epoch.
        users: [requests] texts.
        ids: [requests] texts.
    """

    times: Floats
    users: Texts
    ids: Texts

    def __len__(self) -> int:
        return len(self.times)


@dataclass(frozen=True, eq=False)
class Deletions:
    """From when on each row is forgotten.

    Attributes:
        periods: [rows] int64, the first period in which the row is gone for ever; the number of periods where none is.
        warnings: requests that change nothing, counted, one line each.
    """

    periods: Integers
    warnings: tuple[str, ...] = ()


def read_deletions(path: Path, source: str | None = None) -> DeletionRequests:
    """Return the requests of a file (.csv, .tsv, .jsonl, .json, .parquet) with the columns time and user or id.

    A file may have both columns; each of its rows then fills one of them.

    Args:
        path: the file.
        source: its name in messages; the path where None.

    Raises:
        DataError: the file is missing or broken, has not these columns, or has a row without a time, or with neither or
            both of user and id; one line that names the row, never its content.
    """
    called = source or str(path)
    parts = files_of(path, called)
    if len(parts) != 1 or path.is_dir():
        raise DataError(f"{called}: a folder; federated.stream.deletions wants one file")
    raw = read_path(path, called, None)
    known = set(raw.columns) & {"user", "id"}
    if "time" not in raw.columns or not known:
        raise DataError(
            f"{called}: columns {shown_names(raw.columns)}; deletion requests want time, and user or id (or both)"
        )
    users, ids = (_texts(raw, name) for name in ("user", "id"))
    for bad, what in (((users == "") & (ids == ""), "names neither"), ((users != "") & (ids != ""), "names both")):
        rows = np.flatnonzero(bad)
        if len(rows):
            raise DataError(f"{raw.where(int(rows[0]))}: {what} a user and an id ({len(rows)} such rows); give one")
    return DeletionRequests(parse_times(_values(raw, "time"), f"{called}: time"), users, ids)


def deletion_periods(
    requests: DeletionRequests,
    periods: Periods,
    rows: int,
    *,
    users: Sequence[object] | None = None,
    ids: Sequence[object] | None = None,
) -> Deletions:
    """Return from which period on each row is forgotten.

    A request takes effect in the first period whose end is not before its time. A user's request covers every row of
    that user: those that arrived before it, and those that arrive later.

    Args:
        requests: what is to be forgotten.
        periods: of the stream.
        rows: how many rows the table has.
        users: [rows] who each row came from, compared as text; needed where a request names a user.
        ids: [rows] each row's id; needed where a request names one.

    Raises:
        ConfigError: requests name users or ids, and the table has no such column.
    """
    effective = np.searchsorted(periods.edges[1:], requests.times, side="left")
    gone = np.full(rows, len(periods), dtype=np.int64)
    unknown = 0
    for name, wanted, column in (("user", requests.users, users), ("id", requests.ids, ids)):
        asked = wanted != ""
        if not asked.any():
            continue
        if column is None:
            raise ConfigError(
                f"federated.stream.deletions: {int(asked.sum())} requests name a {name}, and the training table has no "
                f"{name} column; name it: data.{name} = COLUMN"
            )
        first = pd.Series(effective[asked]).groupby(wanted[asked]).min()
        place = first.index.get_indexer(pd.Index(_as_texts(column), dtype=object))
        found = place >= 0
        gone[found] = np.minimum(gone[found], first.to_numpy()[place[found]])
        named = np.isin(np.arange(len(first)), place[found])
        unknown += len(first) - int(named.sum())
    return Deletions(gone, _warnings(unknown, int((effective == len(periods)).sum())))


def _warnings(unknown: int, late: int) -> tuple[str, ...]:
    out = []
    if unknown:
        out.append(f"federated.stream.deletions: {unknown} users or ids occur in no training row; nothing to forget")
    if late:
        out.append(f"federated.stream.deletions: {late} requests are dated after the last period and take no effect")
    return tuple(out)


def _values(raw: Raw, name: str) -> list[object]:
    column = raw.columns[name]
    return list(column) if isinstance(column, list) else list(column.to_pylist())


def _texts(raw: Raw, name: str) -> Texts:
    """Return [requests] a column as texts, the empty one where it is missing."""
    if name not in raw.columns:
        return np.full(raw.rows, "", dtype=object)
    return _as_texts(_values(raw, name))


def _as_texts(values: Sequence[object]) -> Texts:
    """Return [values] their texts; a whole float is an integer (as tables of text write it), a missing value empty."""
    column = np.empty(len(values), dtype=object)
    column[:] = list(values)
    missing = pd.isna(column)
    out = np.empty(len(values), dtype=object)
    out[:] = [
        "" if gone else str(int(v)) if isinstance(v, float) and v.is_integer() else str(v)
        for v, gone in zip(column, missing, strict=True)
    ]
    return out
