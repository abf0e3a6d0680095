"""What a verb prints: one JSON object, or a short table for people. Progress and logs go to standard error."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from troth import __version__
from troth.results import Cost, Json, Measurement, Record, now, plain_json

__all__ = ["costed", "emit", "listing", "say", "show", "table"]

_LOADED = time.perf_counter()  # the first thing a process of the command line does


def say(text: str) -> None:
    """Print one line for people on standard error."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def costed(begun: float) -> Cost:
    """Return the cost of a verb whose own work began at `begun` (``time.perf_counter``); before that came set-up."""
    from troth.runs.provenance import peak_memory_bytes

    ended = time.perf_counter()
    return Cost(ended - _LOADED, begun - _LOADED, ended - begun, peak_memory_bytes())


def listing(
    kind: str, make: Callable[[], Sequence[Mapping[str, object]]], name: str = "troth", **config: Json
) -> Record:
    """Return the record of a list-like verb; what `make` takes to give the rows is its work."""
    begun = time.perf_counter()
    rows = tuple({str(k): plain_json(v) for k, v in item.items()} for item in make())
    return Record(
        kind=kind, name=name, created=now(), version=__version__, config=config, cost=costed(begun), items=rows
    )


def emit(record: Record, *, as_json: bool) -> None:
    """Print a record: exactly one JSON object with `as_json`, else a table."""
    if as_json:
        print(record.to_json(), flush=True)  # noqa: T201
        return
    show(_lines(record))


def show(lines: Sequence[str]) -> None:
    """Print lines for people on standard output."""
    for line in lines:
        print(line)  # noqa: T201


def number(value: Json) -> str:
    """Return a number as people read it: four significant digits, a dash for what is missing."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _measurement_line(m: Measurement) -> str:
    text = f"{m.name:48s} {number(m.value):>10s}"
    if m.interval_method == "range":
        text += f"  [{number(m.low)}, {number(m.high)}] range of {m.n:,}"
    elif m.interval_method != "exact":
        text += f"  [{number(m.low)}, {number(m.high)}] at {m.confidence:.0%}, n = {m.n:,}"
    if not m.supported:
        text += "  (too few examples for this claim)"
    return text


def _lines(record: Record) -> list[str]:
    lines = []
    for run in record.runs or ():
        lines += [f"-- {run.name} ({run.kind})", *_lines(run), ""]
    lines += [_measurement_line(m) for m in record.measurements]
    if record.privacy is not None:
        p = record.privacy
        epsilon = "infinity" if p.epsilon is None else f"{p.epsilon:.4g}"
        lines.append(
            f"epsilon {epsilon} at delta {number(p.delta)}; unit {p.unit}, {p.neighboring_relation} neighbours, "
            f"{p.sampler} sampling, {p.accountant}; guarantee: {p.guarantee}; covers {'; '.join(p.covers)}"
        )
    if record.items is not None:
        lines += table(record.items)
    lines += [
        f"gate {'met    ' if g['met'] else 'NOT met'} {g['rule']}  {g['reason']}" for g in record.series.get("gate", [])
    ]
    lines += [f"warning: {w}" for w in record.warnings]
    lines += [f"{name}: {path}" for name, path in record.artifacts.items()]
    return lines


def table(items: Sequence[Mapping[str, Json]]) -> list[str]:
    """Return the lines of a table with one row for each item, columns as wide as they must be."""
    if not items:
        return ["(nothing)"]
    keys = list(dict.fromkeys(k for item in items for k in item))
    cells = [keys, *[[_cell(item.get(k)) for k in keys] for item in items]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(keys))]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]


def _cell(value: Json) -> str:
    return json.dumps(value) if isinstance(value, list | dict) else number(value)
