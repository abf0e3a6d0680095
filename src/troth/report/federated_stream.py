"""Streams in the report: quality by the period trained on and the period tested on, and what was forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from troth.report.federated_facts import ROUND
from troth.report.federated_groups import Group
from troth.report.federated_plots import heat_map
from troth.report.lines import FEWEST_POINTS, counted, curve
from troth.report.plots import Curve, Plot, curves
from troth.report.reading import Run
from troth.report.tables import Cell, Table, interval, number, text
from troth.results import Json, Record

__all__ = ["StreamFigures", "stream_figures", "stream_means"]

Floats = NDArray[np.float64]
_SERIES = "federated.period"
_PERIODS = "Periods count from 0"


@dataclass(frozen=True)
class StreamFigures:
    """What is shown of streams: numbers of those of few periods, figures of the others."""

    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()


@dataclass(frozen=True)
class _Matrix:
    """Quality by period.

    Attributes:
        label: whose.
        periods: trained on or tested on.
        quality: [trained, tested] NaN where nothing was tested.
        low: lower ends of the intervals, NaN without.
        high: upper ends.
        rows: test rows of the period with the fewest.
        metric: its name.
        higher: whether more is better.
    """

    label: str
    periods: tuple[int, ...]
    quality: Floats
    low: Floats
    high: Floats
    rows: int
    metric: str
    higher: bool


def stream_figures(runs: Sequence[Run]) -> StreamFigures:
    """Return heat maps, quality on the present period and forgetting of the runs that are streams.

    A stream of fewer than three periods is told in numbers. Where test rows have no times there is one number a period.
    """
    found = [(r, m) for r in runs if (m := _matrix(r.label, r.record, r.series.get(_SERIES, []))) is not None]
    drawn = [m for _, m in found if len(m.periods) >= FEWEST_POINTS]
    said = tuple(t for r, m in found if len(m.periods) < FEWEST_POINTS for t in _numbers(m, r.series[_SERIES]))
    caption = (
        "Quality of {label} (rows: the model after training on a period; columns: test rows of a period; n = {rows:,} "
        "rows or more each). Darker is better. Below the dotted line lies the past, above it the future. "
        f"{_PERIODS}."
    )
    maps = [_map(m, caption.format(label=m.label, rows=m.rows)) for m in drawn]
    timeless = [c for r in runs if (c := _timeless(r)) is not None]
    metric = next((str(row.get("metric")) for r in runs for row in r.series.get(_SERIES, [])), "quality")
    told = f"On all test rows, which have no times ({counted(timeless)}). {_PERIODS}."
    plots = [curves("Quality by period", timeless, ("period", metric), told)] if timeless else []
    return StreamFigures(said, (*plots, *_lines(drawn, "A point is one model"), *maps))


def _timeless(run: Run) -> Curve | None:
    """Return quality by period on test rows that belong to no period; None where they do, or periods are few."""
    rows = run.series.get(_SERIES, [])
    counts = [_whole(row.get("n")) for row in rows]
    found = curve(run, _SERIES, "period", "value", min(counts, default=0))
    if found is None or any(row.get("tested") is not None for row in rows) or len(found.x) < FEWEST_POINTS:
        return None
    return found


def stream_means(group: Group, partition: str) -> StreamFigures:
    """Return the same of a grid's partition, the matrices of runs that differ by their seed alone averaged."""
    drawn = []
    for algorithm in group.algorithms:
        runs = group.runs.get((partition, algorithm), ())
        own = [m for r in runs if (m := _matrix(algorithm, r, r.series.get(_SERIES, []))) is not None]
        alike = [m for m in own if m.periods == own[0].periods]
        if alike and len(alike[0].periods) >= FEWEST_POINTS:
            drawn.append(_mean(alike))
    caption = "Quality of {label}, mean over n = {rows} seeds. Darker is better; below the dotted line lies the past. "
    maps = [_map(m, caption.format(label=m.label, rows=m.rows) + f"{_PERIODS}.") for m in drawn]
    return StreamFigures((), (*_lines(drawn, "A point is the mean over seeds"), *maps))


def _matrix(label: str, record: Record, series: Sequence[dict[str, Json]]) -> _Matrix | None:
    rows = [r for r in series if all(isinstance(r.get(k), int | float) for k in ("period", "tested", "value"))]
    if not rows:
        return None
    places = [(_whole(r["period"]), _whole(r["tested"])) for r in rows]
    periods = tuple(sorted({p for place in places for p in place}))
    index = {p: i for i, p in enumerate(periods)}
    filled = np.full((3, len(periods), len(periods)), np.nan)
    for row, (trained, tested) in zip(rows, places, strict=True):
        for layer, key in enumerate(("value", "low", "high")):
            value = row.get(key)
            if isinstance(value, int | float):
                filled[layer, index[trained], index[tested]] = value
    metric = str(rows[0].get("metric") or "quality")
    named = record.measurement(f"{ROUND}{metric}")
    counts = [_whole(r["n"]) for r in rows if isinstance(r.get("n"), int | float)]
    higher = named is None or named.direction != "lower"
    quality, low, high = filled
    return _Matrix(label, periods, quality, low, high, min(counts, default=0), metric, higher)


def _whole(value: Json) -> int:
    return int(value) if isinstance(value, int | float) else -1


def _mean(found: Sequence[_Matrix]) -> _Matrix:
    """Return the mean matrix; its `rows` are the number of seeds, and it has no intervals."""
    first = found[0]
    quality = np.stack([m.quality for m in found]).mean(axis=0)
    nothing = np.full_like(quality, np.nan)
    return _Matrix(first.label, first.periods, quality, nothing, nothing, len(found), first.metric, first.higher)


def _map(m: _Matrix, caption: str) -> Plot:
    title = f"By period: {m.label}"
    return heat_map(title, m.periods, m.quality, metric=m.metric, higher=m.higher, caption=caption)


def _lines(found: Sequence[_Matrix], points: str) -> list[Plot]:
    """Return quality on the period just trained on, and forgetting, each a line a stream; a figure a metric."""
    plots = []
    for metric in dict.fromkeys(m.metric for m in found):
        of = [m for m in found if m.metric == metric]
        present = [c for m in of if (c := _present(m)) is not None]
        if present:
            caption = f"On test rows of the period just trained on ({counted(present)}). {points}. {_PERIODS}."
            plots.append(curves("Quality on present period", present, ("period", metric), caption))
        forgotten = [c for m in of if (c := _forgetting(m)) is not None]
        if forgotten:
            caption = (
                "Forgetting (Chaudhry et al., 2018): how much worse the model is on past periods than the best model "
                f"before it was, on average; below 0 where it is better than all of them. {points}; no intervals, for "
                f"each period has one model. {_PERIODS}."
            )
            plots.append(curves("Forgetting", forgotten, ("period", f"{metric} lost on past periods"), caption))
    return plots


def _present(m: _Matrix) -> Curve | None:
    own, low, high = (np.diagonal(layer) for layer in (m.quality, m.low, m.high))
    there = np.isfinite(own)
    if there.sum() < FEWEST_POINTS:
        return None
    x = [float(p) for p, known in zip(m.periods, there, strict=True) if known]
    banded = bool(np.isfinite(low[there]).all() and np.isfinite(high[there]).all())
    y = own[there].tolist()
    if not banded:
        return Curve(m.label, x, y, n=m.rows)
    return Curve(m.label, x, y, low[there].tolist(), high[there].tolist(), m.rows)


def _forgetting(m: _Matrix) -> Curve | None:
    from troth.federated.stream_metrics import forgetting  # not above: it brings torch along

    lost = forgetting(m.quality, "higher" if m.higher else "lower")
    there = np.isfinite(lost)
    if there.sum() < FEWEST_POINTS - 1:
        return None
    x = [float(p) for p, known in zip(m.periods, there, strict=True) if known]
    return Curve(m.label, x, lost[there].tolist(), n=m.rows)


def _numbers(m: _Matrix, series: Sequence[dict[str, Json]]) -> tuple[Table, ...]:
    rows = tuple(
        (
            text(number(row.get("period"))),
            text(number(row.get("tested"))),
            Cell(
                number(row.get("value")),
                interval(row.get("low"), row.get("high")),
                f"n = {_whole(row.get('n')):,}",
                kind="number",
            ),
        )
        for row in series
        if isinstance(row.get("value"), int | float)
    )
    head = ("after training on period", "tested on period", m.metric)
    return (Table(f"Quality by period: {m.label}. {_PERIODS}.", head, rows),)
