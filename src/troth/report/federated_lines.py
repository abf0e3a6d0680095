"""Quality by rounds, by samples and by bytes: lines of single runs, or means over the seeds of a grid.

A rule that looks better per round may only have processed more examples or sent more bytes; hence all three, always.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from troth.report.drawing import PALETTE
from troth.report.federated_facts import ROUND
from troth.report.federated_grid import CONFIDENCE, limits_of, over_seeds
from troth.report.federated_groups import Group, split_of_rounds
from troth.report.federated_plots import Level, quality_curves
from troth.report.lines import FEWEST_POINTS, counted, curve
from troth.report.plots import Curve, Plot
from troth.report.reading import Run
from troth.report.tables import interval, number, percent
from troth.results import Measurement, Record

__all__ = ["COSTS", "MOST_LINES", "Panel", "by_round", "mean_line", "mean_panels", "run_panels"]

COSTS = (("round", "rounds"), ("samples", "examples processed"), ("bytes", "bytes sent"))
"""Keys of ``federated.round`` that quality is drawn against, and what they are called."""

_TITLES = {"round": "Quality by rounds", "samples": "Quality by examples", "bytes": "Quality by bytes"}

MOST_LINES = len(PALETTE)  # of a figure, so that no two have a colour
_SERIES = "federated.round"


@dataclass(frozen=True)
class Panel:
    """What a figure for each cost shows.

    Attributes:
        title: what sets it apart from other panels; empty where there is one.
        metric: on the vertical axis.
        lines: cost -> lines of three points or more.
        levels: centralised training.
        caption: what points rest on, and what bands are.
    """

    title: str
    metric: str
    lines: Mapping[str, Sequence[Curve]]
    caption: str
    levels: tuple[Level, ...] = ()

    def plots(self) -> list[Plot]:
        """Return a figure for each cost that there is a line for."""
        made = []
        for key, label in COSTS:
            if not self.lines.get(key):
                continue
            caption = self.caption + (f" Broken line: {self._told()}." if self.levels else "")
            title = self.title or _TITLES[key]
            made.append(quality_curves(title, self.lines[key], self.levels, (label, self.metric), caption))
        return made

    def _told(self) -> str:
        said = []
        for level in self.levels:
            ends = "" if level.low is None else f" {interval(level.low, level.high)}"
            said.append(f"{level.label}, {number(level.value)}{ends} ({level.n})")
        return "; ".join(said)


def by_round(runs: Sequence[Run]) -> list[tuple[Run, Measurement]]:
    """Return each run with its first metric by round: the one that the intervals of its series belong to."""
    return [(r, found[0]) for r in runs if (found := r.named(ROUND))]


def run_panels(runs: Sequence[Run], found: Sequence[Group]) -> list[Panel]:
    """Return a panel a metric, in which every run is a line of its own; `found` says who was trained centrally.

    Runs of fewer than three evaluated rounds have no line.
    """
    metrics: dict[str, list[tuple[Run, Measurement]]] = {}
    for run, m in by_round(runs):
        line = curve(run, _SERIES, "round", m.name.removeprefix(ROUND))
        if line is not None and len(line.x) >= FEWEST_POINTS:
            metrics.setdefault(m.name, []).append((run, m))
    panels = []
    for name, having in metrics.items():
        metric = name.removeprefix(ROUND)
        parts = [having[i : i + MOST_LINES] for i in range(0, len(having), MOST_LINES)]
        for place, part in enumerate(parts, 1):
            lines = {key: [c for r, m in part if (c := curve(r, _SERIES, key, metric, m.n))] for key, _ in COSTS}
            caption = f"On held-out rows ({counted(lines['round'])}), with {percent(part[0][1].confidence)} bands."
            mine = [g for g in found if any(g.holds(r.record) for r, _ in part)]
            several = [metric] if len(metrics) > 1 else []
            several += [f"{place} of {len(parts)}"] if len(parts) > 1 else []
            panels.append(Panel(": ".join(several), metric, lines, caption, _levels(mine, metric)))
    return panels


def mean_panels(group: Group) -> list[Panel]:
    """Return panels for each partition of a grid, in which every algorithm is the mean of its seeds."""
    first = next((m for r in group.records for m in r.measurements if m.name.startswith(ROUND)), None)
    if first is None:
        return []
    metric, limits = first.name.removeprefix(ROUND), limits_of(first)
    panels = []
    for partition in group.partitions:
        own = [(a, runs) for a in group.algorithms if (runs := group.runs.get((partition, a)))]
        parts = [own[i : i + MOST_LINES] for i in range(0, len(own), MOST_LINES)]
        for place, part in enumerate(parts, 1):
            lines = {
                key: [line for a, runs in part if (line := mean_line(a, runs, key, metric, limits=limits))]
                for key, _ in COSTS
            }
            if not any(lines.values()):
                continue
            title = partition if len(parts) == 1 else f"{partition} ({place} of {len(parts)})"
            panels.append(Panel(title, metric, lines, _seeds_told(lines), _levels([group], metric)))
    return panels


def _levels(found: Sequence[Group], metric: str) -> tuple[Level, ...]:
    """Return the quality of centralised training on the rows that rounds were evaluated on; a level a group."""
    levels = []
    for group in found:
        name = f"{split_of_rounds(group.records[0])}.{metric}"
        known = {r.seed: m for r in group.centralised if (m := r.measurement(name)) is not None and m.value is not None}
        values = {seed: m.value for seed, m in known.items() if m.value is not None}
        if not values:
            continue
        label = "centralised" if len(found) == 1 else f"centralised: {group.title}"
        if len(values) == 1:
            m = next(iter(known.values()))
            levels.append(Level(label, m.value or 0.0, m.low, m.high, f"n = {m.n:,} rows"))
        else:
            mean = over_seeds(values, limits=limits_of(next(iter(known.values()))))
            levels.append(Level(label, mean.mean, mean.low, mean.high, f"n = {len(values)} seeds"))
    return tuple(levels)


def mean_line(
    label: str,
    runs: Sequence[Record],
    key: str,
    metric: str,
    series: str = _SERIES,
    *,
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> Curve | None:
    """Return the mean over runs of a series, at the rounds that all of them have; None below three points.

    Of a single run it is that run's line with its own band.
    """
    rows = [_points(r, series, key, metric) for r in runs]
    shared = [index for index in (rows[0] if rows else {}) if all(index in other for other in rows)]
    if len(shared) < FEWEST_POINTS:
        return None
    x = [sum(own[index].x for own in rows) / len(rows) for index in shared]
    means = [over_seeds({i: own[index].y for i, own in enumerate(rows)}, limits=limits) for index in shared]
    ends = [(mean.low, mean.high) for mean in means]
    if len(rows) == 1:
        ends = [(rows[0][index].low, rows[0][index].high) for index in shared]
    lows, highs = [low for low, _ in ends if low is not None], [high for _, high in ends if high is not None]
    y = [mean.mean for mean in means]
    banded = len(lows) == len(highs) == len(shared)
    return Curve(label, x, y, lows, highs, len(rows)) if banded else Curve(label, x, y, n=len(rows))


@dataclass(frozen=True)
class _Point:
    x: float
    y: float
    low: float | None
    high: float | None


def _points(record: Record, series: str, key: str, metric: str) -> dict[float, _Point]:
    """Return the points of a record's series by round."""
    found = {}
    for row in record.series.get(series, []):
        known = [row.get(k) for k in ("round", key, metric, "low", "high")]
        index, x, y, low, high = (float(v) if isinstance(v, int | float) else None for v in known)
        if index is not None and x is not None and y is not None:
            found[index] = _Point(x, y, low, high)
    return found


def _seeds_told(lines: Mapping[str, Sequence[Curve]]) -> str:
    """Return what points and bands of means over seeds are."""
    counts = sorted({line.n for found in lines.values() for line in found if line.n is not None})
    told = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
    if counts == [1]:
        return "On held-out rows, one run a line with its own bands."
    bands = f"{percent(CONFIDENCE)} bands over seeds (Student's t)"
    bare = any(line.low is None for found in lines.values() for line in found)
    alike = " A line without a band: in some round its seeds were all alike." if bare else ""
    return f"Means over seeds ({told} runs a line) on held-out rows, with {bands}.{alike}"
