"""Folders of plain arrays with a JSON of facts beside them: written whole or not at all, opened as memory maps.

Every array is a ``NAME.npy`` of numbers; nothing is ever unpickled. What is opened is read from the disk page by page
as it is used, so that a population of millions of devices takes little memory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from troth.errors import DataError
from troth.files import failing_in_one_line, new_folder
from troth.results import Json, plain_json

__all__ = ["FACTS", "open_arrays", "save_arrays"]

FACTS = "facts.json"
_VERSION = 1
Arrays = dict[str, NDArray[Any]]


def save_arrays(
    folder: Path, kind: str, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Json], *, replace: bool = False
) -> None:
    """Write arrays and facts as one folder, which appears under its name only when it is complete.

    Args:
        folder: where; must not exist unless `replace`.
        kind: what the folder holds, checked when it is opened.
        arrays: name -> numbers.
        facts: what else to keep.
        replace: whether a folder that is there gives way once the new one is complete.

    Raises:
        RunError: the disk is full, or the place cannot be written.
    """
    columns: dict[str, Json] = {n: {"dtype": a.dtype.str, "shape": list(a.shape)} for n, a in arrays.items()}
    head = {"kind": kind, "version": _VERSION, "arrays": columns, "facts": plain_json(facts)}
    with failing_in_one_line(folder), new_folder(folder, replace=replace) as place:
        for name, array in arrays.items():
            with (place / f"{name}.npy").open("wb") as file:
                np.save(file, array, allow_pickle=False)
        (place / FACTS).write_text(json.dumps(head, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def open_arrays(folder: Path, kind: str) -> tuple[Arrays, dict[str, Any]]:
    """Return the arrays of a folder, memory-mapped and read-only, and its facts.

    Raises:
        DataError: nothing of that kind is there, or a file is missing, cut short or not what the facts say.
    """
    try:
        head = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{folder}: no {kind} there ({FACTS} is missing); save one first, or mend the path") from None
    except (OSError, ValueError):
        raise DataError(f"{folder}: {FACTS} cannot be read; save the {kind} again") from None
    if not isinstance(head, dict) or head.get("kind") != kind or head.get("version") != _VERSION:
        raise DataError(f"{folder}: {FACTS} is not that of a {kind} of version {_VERSION}; save it again")
    columns, facts = head.get("arrays"), head.get("facts")
    if not isinstance(columns, dict) or not isinstance(facts, dict):
        raise DataError(f"{folder}: {FACTS} speaks of no arrays; save the {kind} again")
    arrays: Arrays = {}
    for name, column in columns.items():
        try:
            array = np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError):
            raise DataError(f"{folder}: {name}.npy is missing or damaged; save the {kind} again") from None
        if column != {"dtype": array.dtype.str, "shape": list(array.shape)}:
            raise DataError(f"{folder}: {name}.npy is not the array that {FACTS} speaks of; save the {kind} again")
        arrays[name] = array
    return arrays, facts
