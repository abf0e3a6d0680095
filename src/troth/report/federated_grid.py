"""Algorithms against partitions: means over seeds with their intervals, and the gap to centralised training by seed.

In the manner of FedNLP's tables (NAACL 2022 Findings, arXiv 2104.08815), with what those lack: intervals, pairing by
seed, and the clients' optimizer beside the server's; FedNLP's 'FedOPT' changes both at a time.

Intervals are Student's t over seeds. They say how far initial weights, cohorts and (where the seed makes it) the
partition move the mean, on the test rows at hand; the test rows themselves are the same for all runs. Gaps are paired:
the interval is of the mean of the differences between runs of the same seed. Each interval stands for itself: of many
cells some will be off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from troth.report.federated_facts import Facts, facts
from troth.report.federated_groups import Group, Place, groups, headline
from troth.report.tables import interval, number
from troth.results import Json, Measurement, Record

__all__ = [
    "CONFIDENCE",
    "GridCell",
    "GridTable",
    "OverSeeds",
    "grid_of",
    "grid_tables",
    "limits_of",
    "megabytes",
    "over_seeds",
]

CONFIDENCE = 0.95
_ALIKE = 1e-12  # differences of equal numbers differ by their rounding


@dataclass(frozen=True)
class OverSeeds:
    """A mean over seeds.

    Attributes:
        mean: in the measurement's unit.
        low: lower end of its interval; None where one seed, or seeds that are all alike, give none.
        high: upper end.
        seeds: those that it rests on.
        supported: whether every run's own number rests on enough examples.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: tuple[int | None, ...]
    supported: bool = True

    def told(self) -> str:
        """Return mean, interval and number of seeds as one text."""
        ends = "" if self.low is None else f" {interval(self.low, self.high)}"
        return f"{number(self.mean)}{ends}, n = {len(self.seeds)}"


@dataclass(frozen=True)
class GridCell:
    """What one algorithm does on one partition.

    Attributes:
        quality: over seeds; None where no run has it.
        gap: by how much it is worse than centralised training with the same seeds: above 0 where the federation is
            worse, whatever way the metric is better; None where there is no centralised run of a seed.
        costs: ``rounds``, ``samples`` and ``bytes`` of a run, mean over seeds; what no run has is not in it.
        facts: what was run; of several seeds one stands for all.
        runs: how many federations.
    """

    quality: OverSeeds | None
    gap: OverSeeds | None
    costs: Mapping[str, float]
    facts: Facts
    runs: int


@dataclass(frozen=True)
class GridTable:
    """A grid of one task.

    Attributes:
        title: task, data and model.
        measurement: the name of what quality is measured by.
        unit: its unit.
        higher: whether more of it is better.
        partitions: rows.
        algorithms: columns.
        cells: by partition and algorithm; a combination that was not run is not in it.
        centralised: the quality of centralised training over its seeds; None without.
        ambiguous: in how many ways centralised runs were trained, where that is more than one: there are no gaps then.
    """

    title: str
    measurement: str
    unit: str
    higher: bool
    partitions: tuple[str, ...]
    algorithms: tuple[str, ...]
    cells: Mapping[Place, GridCell]
    centralised: OverSeeds | None
    ambiguous: int = 0

    def settings(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """Return what was set: ``selection``, ``client optimizer``, ... -> algorithm -> one value, or several.

        Several stand where it differs between partitions, as after tuning each by itself.
        """
        out: dict[str, dict[str, tuple[str, ...]]] = {}
        for key, attribute in _SETTINGS.items():
            found = {}
            for algorithm in self.algorithms:
                cells = [self.cells[p, algorithm] for p in self.partitions if (p, algorithm) in self.cells]
                found[algorithm] = tuple(dict.fromkeys(str(getattr(c.facts, attribute)) for c in cells))
            out[key] = found
        return out

    def items(self) -> list[dict[str, Json]]:
        """Return the rows of a table for people: settings first, then each partition's quality, gap and costs."""
        rows: list[dict[str, Json]] = [
            {"partition": key, **{a: " | ".join(values) for a, values in found.items()}}
            for key, found in self.settings().items()
        ]
        for partition in self.partitions:
            of = {a: self.cells.get((partition, a)) for a in self.algorithms}
            rows.append({"partition": f"{partition}: {self.measurement}", **{a: _quality(c) for a, c in of.items()}})
            if any(c is not None and c.gap is not None for c in of.values()):
                rows.append({"partition": f"{partition}: gap", **{a: _gap(c) for a, c in of.items()}})
            costs = {a: _costs(c) for a, c in of.items()}
            rows.append({"partition": f"{partition}: rounds; examples; bytes", **costs})
        if self.centralised is not None:
            rows.append({"partition": "centralised", self.algorithms[0]: self.centralised.told()})
        return rows

    def long_rows(self) -> list[dict[str, Json]]:
        """Return one row a cell, for programs: everything in columns of its own."""
        return [self._long_row(place, cell) for place, cell in self.cells.items()]

    def _long_row(self, place: Place, cell: GridCell) -> dict[str, Json]:
        row: dict[str, Json] = {"task": self.title, "partition": place[0], "algorithm": place[1]}
        row |= {name: str(getattr(cell.facts, name)) for name in _SETTINGS.values()}
        row |= {"measurement": self.measurement, "unit": self.unit}
        for name, found in (("quality", cell.quality), ("gap", cell.gap), ("centralised", self.centralised)):
            row |= {
                name: None if found is None else found.mean,
                f"{name}_low": None if found is None else found.low,
                f"{name}_high": None if found is None else found.high,
                f"{name}_seeds": 0 if found is None else len(found.seeds),
            }
        return row | dict(cell.costs)


_SETTINGS = {
    "selection; weight": "selection",
    "client optimizer": "client_optimizer",
    "local work": "local",
    "server optimizer": "server_optimizer",
}


def grid_tables(records: Sequence[Record], measurement: str | None = None) -> tuple[GridTable, ...]:
    """Return the grid of each task among some records.

    Args:
        records: federations and centralised runs, in any order; others are passed over.
        measurement: what quality is measured by; None: each task's first metric, on test rows or else validation rows.
    """
    found = (grid_of(group, measurement) for group in groups(records))
    return tuple(table for table in found if table is not None)


def grid_of(group: Group, measurement: str | None = None) -> GridTable | None:
    """Return the grid of one task, or None where no run has the measurement."""
    name = measurement or headline(group.records)
    known = [m for r in group.records if name is not None and (m := r.measurement(name)) is not None]
    if name is None or not known:
        return None
    first = known[0]
    higher = first.direction != "lower"
    limits = limits_of(first)
    central = _by_seed(group.centralised, name)
    cells = {}
    for place, runs in group.runs.items():
        own = _by_seed(runs, name)
        gap, costs = _paired(own, central, higher), _mean_costs(runs)
        cells[place] = GridCell(_mean(own, limits), gap, costs, facts(runs[0]), len(runs))
    return GridTable(
        group.title,
        name,
        first.unit,
        higher,
        group.partitions,
        group.algorithms,
        cells,
        _mean(central, limits),
        group.ambiguous,
    )


def limits_of(m: Measurement) -> tuple[float, float]:
    """Return the limits of a number of that unit: an interval over seeds is cut off there."""
    return (0.0, 1.0) if m.unit == "fraction" else (-math.inf, math.inf)


def megabytes(count: float) -> str:
    """Return a number of bytes in megabytes (10^6), as people read it.

    >>> megabytes(684_331_616), megabytes(52_000)
    ('684.3 MB', '0.052 MB')
    """
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e6:.3g} MB"


def over_seeds(values: Mapping[int | None, float], *, limits: tuple[float, float] = (-math.inf, math.inf)) -> OverSeeds:
    """Return the mean over seeds with Student's t interval at 95 %, cut off at the limits of the number.

    There is no interval from one seed, nor from seeds that all gave the same number: that is no evidence that all
    others would.

    Args:
        values: seed -> number; at least one.
        limits: of the number itself.

    >>> found = over_seeds({1: 0.8, 2: 0.9, 3: 0.85})
    >>> round(found.mean, 3), round(found.low, 3), round(found.high, 3)
    (0.85, 0.726, 0.974)
    """
    found = np.array(list(values.values()), dtype=np.float64)
    mean, low, high = float(found.mean()), None, None
    if len(found) > 1 and np.ptp(found) > _ALIKE * max(1.0, abs(mean)):
        error = float(found.std(ddof=1)) / math.sqrt(len(found))
        half = float(stats.t.isf((1 - CONFIDENCE) / 2, len(found) - 1)) * error
        low, high = max(limits[0], mean - half), min(limits[1], mean + half)
    return OverSeeds(mean, low, high, tuple(values))


def _by_seed(runs: Sequence[Record], name: str) -> dict[int | None, Measurement]:
    found = {r.seed: m for r in runs if (m := r.measurement(name)) is not None}
    return {seed: m for seed, m in found.items() if m.value is not None}


def _mean(found: Mapping[int | None, Measurement], limits: tuple[float, float]) -> OverSeeds | None:
    values = {seed: m.value for seed, m in found.items() if m.value is not None}
    if not values:
        return None
    return replace(over_seeds(values, limits=limits), supported=all(m.supported for m in found.values()))


def _paired(
    own: Mapping[int | None, Measurement], central: Mapping[int | None, Measurement], higher: bool
) -> OverSeeds | None:
    """Return by how much the federation is worse than centralised training, over the seeds that both have."""
    sign, differences = 1.0 if higher else -1.0, {}
    for seed in own.keys() & central.keys():
        mine, other = own[seed].value, central[seed].value
        if mine is not None and other is not None:
            differences[seed] = sign * (other - mine)
    if not differences:
        return None
    ordered = {seed: differences[seed] for seed in own if seed in differences}
    both = [m for seed in ordered for m in (own[seed], central[seed])]
    return replace(over_seeds(ordered), supported=all(m.supported for m in both))


def _mean_costs(runs: Sequence[Record]) -> dict[str, float]:
    named = {"samples": "federated.samples", "bytes": "federated.bytes_sent"}
    out: dict[str, float] = {}
    rounds = [last for r in runs if (last := _rounds(r)) is not None]
    if rounds:
        out["rounds"] = sum(rounds) / len(rounds)
    for key, name in named.items():
        found = [m.value for r in runs if (m := r.measurement(name)) is not None and m.value is not None]
        if found:
            out[key] = sum(found) / len(found)
    return out


def _rounds(record: Record) -> float | None:
    rows = record.series.get("federated.participation") or record.series.get("federated.round") or []
    last = rows[-1].get("round") if rows else None
    return float(last) if isinstance(last, int | float) else None


def _quality(cell: GridCell | None) -> str:
    return "-" if cell is None or cell.quality is None else cell.quality.told()


def _gap(cell: GridCell | None) -> str:
    return "-" if cell is None or cell.gap is None else cell.gap.told()


def _costs(cell: GridCell | None) -> str:
    if cell is None or not cell.costs:
        return "-"
    told = [f"{cell.costs[k]:,.6g}" if k in cell.costs else "-" for k in ("rounds", "samples")]
    return "; ".join([*told, megabytes(cell.costs["bytes"]) if "bytes" in cell.costs else "-"])
