"""Named index sets: partitions kept beside a run, and opened again for the same table only."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from troth.errors import ConfigError, DataError
from troth.federated.array_folder import FACTS, open_arrays, save_arrays
from troth.federated.population import FederatedData
from troth.federated.population_files import population_arrays, population_of
from troth.files import failing_in_one_line, write_bytes
from troth.results import Json

__all__ = ["IndexSet", "index_set_names", "open_index_set", "save_index_set", "write_index_set_parquet"]

_KIND = "index set"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ROW_GROUP = 1 << 20


@dataclass(frozen=True, eq=False)
class IndexSet:
    """A partition as it was saved.

    Attributes:
        data: the population, memory-mapped.
        table: fingerprint of the table whose rows it holds.
        settings: what it was made with, such as the run file's ``federated.clients`` and the seed.
    """

    data: FederatedData
    table: str
    settings: Mapping[str, Json]


def save_index_set(
    place: Path, name: str, data: FederatedData, *, table: str, settings: Mapping[str, Json], replace: bool = False
) -> Path:
    """Write a partition as the folder ``place/name``, whole or not at all, and return that folder.

    It holds client names where there are any, and says which rows of the table are whose: it stays with the run.

    Args:
        place: a folder for index sets, made where it is missing.
        name: letters, digits, dots, dashes and underscores, such as ``train`` or ``dirichlet-0.1``.
        data: the partition.
        table: fingerprint of the table whose rows it holds (``Table.fingerprint``).
        settings: what it was made with.
        replace: whether a set of that name gives way once the new one is complete.

    Raises:
        ConfigError: the name cannot be that of a folder.
        RunError: the disk is full, or the place cannot be written.
    """
    folder = _folder(place, name)
    facts: dict[str, Json] = {"fingerprint": data.fingerprint, "dropped": data.dropped}
    facts |= {"table": table, "settings": dict(settings)}
    save_arrays(folder, _KIND, population_arrays(data), facts, replace=replace)
    return folder


def open_index_set(place: Path, name: str, *, table: str) -> IndexSet:
    """Return the partition of that name, memory-mapped.

    Args:
        place: the folder for index sets.
        name: which one.
        table: fingerprint of the table it is wanted for.

    Raises:
        DataError: there is none of that name, it is damaged, or it belongs to another table.
    """
    folder = _folder(place, name)
    if not (folder / FACTS).is_file():
        known = ", ".join(index_set_names(place)) or "none"
        raise DataError(f"{place}: no index set {name!r}; there: {known}")
    arrays, facts = open_arrays(folder, _KIND)
    data = population_of(folder, arrays, facts)
    if facts.get("table") != table:
        raise DataError(f"{folder}: was made for another table; make the partition anew, or give the table it is for")
    return IndexSet(data, table, facts.get("settings", {}))


def index_set_names(place: Path) -> tuple[str, ...]:
    """Return the names of the index sets in a folder, ascending; none where it is missing."""
    return tuple(sorted(path.parent.name for path in place.glob(f"*/{FACTS}") if _NAME.fullmatch(path.parent.name)))


def write_index_set_parquet(data: FederatedData, path: Path) -> None:
    """Write a partition for other tools: columns ``row`` and ``client`` (int64), client after client.

    Raises:
        RunError: the disk is full, or the place cannot be written.
    """
    schema = pa.schema([("row", pa.int64()), ("client", pa.int64())])
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, schema) as writer:
        for start in range(0, len(data.rows), _ROW_GROUP):
            rows = data.rows[start : start + _ROW_GROUP].astype(np.int64)
            owners = np.searchsorted(data.offsets, np.arange(start, start + len(rows)), side="right") - 1
            writer.write_table(pa.table([rows, owners.astype(np.int64)], schema=schema))
    with failing_in_one_line(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, buffer.getvalue())


def _folder(place: Path, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"index set {name!r}: a name is made of letters, digits, dots, dashes and underscores")
    return place / name
