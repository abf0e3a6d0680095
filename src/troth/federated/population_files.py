"""Populations on disk: a folder of plain arrays, opened as memory maps.

A round then reads the rows of its own cohort and nothing else. The folder holds client names where there are any: it
is as private as the table, and stays with the run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from troth.errors import DataError
from troth.federated.array_folder import open_arrays, save_arrays
from troth.federated.client_names import ClientNames
from troth.federated.population import FederatedData
from troth.results import Json

__all__ = ["open_population", "population_arrays", "population_of", "save_population", "verify_population"]

_KIND = "population"


def population_arrays(data: FederatedData) -> dict[str, NDArray[Any]]:
    """Return a population's columns by name: rows, offsets, and where there are any numbers and names."""
    arrays: dict[str, NDArray[Any]] = {"rows": data.rows, "offsets": data.offsets}
    if data.numbers is not None:
        arrays["numbers"] = data.numbers
    if data.names is not None:
        arrays |= {"name_offsets": data.names.offsets, "name_text": data.names.text}
    return arrays


def save_population(data: FederatedData, folder: Path, *, replace: bool = False) -> None:
    """Write a population as a folder of its own, whole or not at all.

    Args:
        data: the population.
        folder: where; must not exist unless `replace`.
        replace: whether a population that is there gives way once the new one is complete.

    Raises:
        RunError: the disk is full, or the place cannot be written.
    """
    facts: dict[str, Json] = {"fingerprint": data.fingerprint, "dropped": data.dropped}
    save_arrays(folder, _KIND, population_arrays(data), facts, replace=replace)


def open_population(folder: Path) -> FederatedData:
    """Return a population whose columns are memory maps; its fingerprint is the stored one, hence costs no reading.

    Offsets are checked here. The rows are not read: `verify_population` does that.

    Raises:
        DataError: nothing is there, or it is damaged.
    """
    arrays, facts = open_arrays(folder, _KIND)
    return population_of(folder, arrays, facts)


def population_of(folder: Path, arrays: dict[str, NDArray[Any]], facts: dict[str, Any]) -> FederatedData:
    """Return the population of the arrays and facts found in a folder.

    Raises:
        DataError: they do not fit together; names the folder.
    """
    names = None
    try:
        rows, offsets, fingerprint, dropped = arrays["rows"], arrays["offsets"], facts["fingerprint"], facts["dropped"]
        if "name_offsets" in arrays:
            names = ClientNames(arrays["name_offsets"], arrays["name_text"])
    except KeyError:
        raise DataError(f"{folder}: holds no population, or part of one; save it again") from None
    numbers = arrays.get("numbers")
    whole = len(offsets) > 0 and offsets[0] == 0 and offsets[-1] == len(rows) and bool((np.diff(offsets) >= 0).all())
    fits = all(part is None or len(part) == len(offsets) - 1 for part in (names, numbers))
    if not whole or not fits or (names is not None and names.offsets[-1] != len(names.text)):
        raise DataError(f"{folder}: its offsets do not fit its rows or names; save the population again")
    return FederatedData(rows, offsets, names, int(dropped), numbers, str(fingerprint))


def verify_population(data: FederatedData, source: str = "the population") -> None:
    """Read all rows of a population once and compare them with its stored fingerprint.

    Raises:
        DataError: they are not what was saved.
    """
    found = FederatedData(data.rows, data.offsets).fingerprint
    if found != data.fingerprint:
        raise DataError(f"{source}: its rows are not those that were saved; save it again")
