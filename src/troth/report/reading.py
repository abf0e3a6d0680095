"""A run as the report sees it: its own record and the newest of each verb that ran alone on it, as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from troth.results import Json, Measurement, Record
from troth.runs.folders import RunFolder

__all__ = ["Run", "read"]


@dataclass(frozen=True)
class Run:
    """A run, its label, all its measurements and series, and how it was made.

    Attributes:
        sources: measurement name -> the record that it was taken from.
    """

    label: str
    record: Record
    measurements: tuple[Measurement, ...]
    series: Mapping[str, list[dict[str, Json]]]
    warnings: tuple[str, ...]
    provenance: Mapping[str, Json] = field(default_factory=dict)
    sources: Mapping[str, Record] = field(default_factory=dict)

    def named(self, prefix: str) -> list[Measurement]:
        """Return the measurements below a dotted prefix."""
        return [m for m in self.measurements if m.name.startswith(prefix)]

    def measurement(self, name: str) -> Measurement | None:
        """Return the measurement of that name, or None."""
        return next((m for m in self.measurements if m.name == name), None)


def read(folder: RunFolder) -> Run:
    """Return a run with its own record and the newest of each verb that ran alone on it.

    Raises:
        ResumeError: the run is not finished.
        RunError: a record is damaged.
    """
    records = folder.records()
    return Run(
        folder.path.name,
        records[0],
        tuple({m.name: m for r in records for m in r.measurements}.values()),
        {k: v for r in records for k, v in r.series.items()},
        tuple(dict.fromkeys(w for r in records for w in r.warnings)),
        folder.provenance(),
        {m.name: r for r in records for m in r.measurements},
    )
