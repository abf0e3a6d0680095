"""Runs side by side: one row a measurement, one column a run, and the difference to the first."""

from __future__ import annotations

from collections.abc import Sequence

from troth.results import Json, Record

__all__ = ["compare"]


def compare(records: Sequence[tuple[str, Record]]) -> list[dict[str, Json]]:
    """Return rows ``{"name", "unit", RUN: {"value", "low", "high", "n"}, ..., "differences": {RUN: value - first}}``.

    Measurements keep the order in which the runs list them; one that a run lacks is null there. The intervals are of
    each run alone: two overlapping intervals do not show that two runs are equal.
    """
    names: dict[str, str] = {}
    for _, record in records:
        for measurement in record.measurements:
            names.setdefault(measurement.name, measurement.unit)
    if any(record.privacy for _, record in records):
        names = {"privacy.epsilon": "natural-log epsilon", **names}
    return [_row(name, unit, records) for name, unit in names.items()]


def _cell(name: str, record: Record) -> dict[str, Json] | None:
    if name == "privacy.epsilon":
        if record.privacy is None:
            return None
        epsilon = record.privacy.epsilon
        return {"value": epsilon, "low": epsilon, "high": epsilon, "n": record.privacy.steps}
    found = record.measurement(name)
    return None if found is None else {"value": found.value, "low": found.low, "high": found.high, "n": found.n}


def _row(name: str, unit: str, records: Sequence[tuple[str, Record]]) -> dict[str, Json]:
    cells = {label: _cell(name, record) for label, record in records}
    values = [None if cell is None else cell["value"] for cell in cells.values()]
    differences: dict[str, Json] = {}
    for label, value in list(zip(cells, values, strict=True))[1:]:
        first = values[0]
        both = isinstance(value, int | float) and isinstance(first, int | float)
        differences[label] = value - first if both else None  # type: ignore[operator]
    return {"name": name, "unit": unit, "runs": dict(cells), "differences": differences}
