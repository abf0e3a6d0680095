"""Tables from Python objects: `datasets.Dataset`, pandas DataFrame, list of dicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import pandas as pd

from troth.data.formats import class_names
from troth.data.formats_json import columns_of_rows
from troth.data.raw import Raw, shown
from troth.errors import DataError

__all__ = ["read_object"]


def _read_dataset(dataset: datasets.Dataset, source: str) -> Raw:
    """Return the columns of a data set in its own order of rows, without a copy where it has no indices."""
    table = dataset.with_format("arrow")[:] if len(dataset) else dataset.data.table.slice(0, 0)
    columns = dict(zip(table.column_names, table.columns, strict=True))
    return Raw(source, columns, len(dataset), classes=class_names(dataset.features))


def _read_frame(frame: pd.DataFrame, source: str) -> Raw:
    """Return the columns of a data frame; its index is not a column, and NaN, NaT and NA are missing values."""
    names = [str(name) for name in frame.columns]
    repeated = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if repeated is not None:
        raise DataError(f"{source}: two columns are called {shown(repeated)}; give each its own name")
    return Raw(source, {name: frame.iloc[:, i].tolist() for i, name in enumerate(names)}, len(frame))


def _read_rows(rows: Sequence[Any], source: str) -> Raw:
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(f"{source}: row {number} is a {type(row).__name__}; give a list of dicts")
    return Raw(source, columns_of_rows(rows), len(rows))


def read_object(value: object) -> Raw:
    """Return the table of a Python object.

    Raises:
        DataError: the object is no `datasets.Dataset`, DataFrame or list of dicts, or two columns share a name.
    """
    if isinstance(value, datasets.Dataset):
        return _read_dataset(value, f"datasets.Dataset of {len(value)} rows")
    if isinstance(value, pd.DataFrame):
        return _read_frame(value, f"DataFrame of {len(value)} rows")
    if isinstance(value, (list, tuple)):
        return _read_rows(value, f"list of {len(value)} rows")
    if isinstance(value, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        raise DataError(f"a DatasetDict holds several splits ({', '.join(map(str, value))}); give one: data['train']")
    raise DataError(
        f"a table of type {type(value).__name__} cannot be read; give a path, a hub id, a datasets.Dataset, a "
        "DataFrame or a list of dicts"
    )
