"""How devices fare: figures of all rows and of all devices, the worst-served tenth, and devices that never trained."""

from __future__ import annotations

from collections.abc import Sequence

from troth.report.federated_facts import DEVICES, PERSONAL, UNSEEN
from troth.report.plots import Curve, Plot, curves
from troth.report.reading import Run
from troth.report.tables import ABSENT, Cell, Table, measured, names_of, percent, side_by_side, text, unit

__all__ = ["decile_figures", "device_paragraphs", "device_rows", "device_tables", "is_decile"]

_LEVELS = tuple(range(10, 100, 10))
_PARTS = {
    "How devices fare under the global model": DEVICES,
    "How unseen devices fare under the global model": UNSEEN,
    "How devices fare under models of their own": PERSONAL,
}
_MAIN = ("sample_weighted", "device_weighted", "worst_decile", "gap")


def is_decile(name: str) -> bool:
    """Return whether a measurement is one of the deciles of devices, which are drawn rather than told.

    >>> is_decile("federated.devices.accuracy.p10"), is_decile("federated.devices.accuracy.worst_decile")
    (True, False)
    """
    last = name.rpartition(".")[2]
    return name.startswith((DEVICES, UNSEEN, PERSONAL)) and last.startswith("p") and last[1:].isdigit()


def device_paragraphs(runs: Sequence[Run]) -> tuple[str, ...]:
    """Return how numbers of devices are read; nothing where no run has any."""
    if not any(r.named(DEVICES) for r in runs):
        return ()
    said = (
        "Sample-weighted: each row counts once, as where all lie in one table. Device-weighted: each device counts "
        "once, however little it holds. The worst decile is the mean over the worst-served tenth of devices. Intervals "
        "take devices as units. A device's own figure rests on its few rows, so that the spread over devices holds "
        "their noise too."
    )
    unseen = (
        "Unseen devices are held out whole: they never train. Their gap is by how much the device-weighted figure is "
        "worse on them than on devices that train."
    )
    return (said, unseen) if any(r.named(UNSEEN) for r in runs) else (said,)


def device_tables(runs: Sequence[Run]) -> tuple[tuple[Table, ...], tuple[Table, ...]]:
    """Return the main figures of devices, one column a run: those of each run's first metric, and all others.

    What was withheld says so by having no value.
    """
    first = {names[0].split(".")[2] for r in runs if (names := [m.name for m in r.named(DEVICES)])}
    main: list[Table] = []
    others: list[Table] = []
    for caption, prefix in _PARTS.items():
        names = [n for n in names_of(runs, prefix) if n.rpartition(".")[2] in _MAIN]
        of = [r for r in runs if r.named(prefix)]
        main += side_by_side(caption, of, [n for n in names if n.split(".")[2] in first], method=True)
        others += side_by_side(caption, of, [n for n in names if n.split(".")[2] not in first], method=True)
    return tuple(main), tuple(others)


def device_rows(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Return the same of many runs: a table a metric, one row a run."""
    tables = []
    metrics = dict.fromkeys(n.split(".")[2] for n in names_of(runs, DEVICES))
    for metric in metrics:
        columns = {
            "sample-weighted": f"{DEVICES}{metric}.sample_weighted",
            "device-weighted": f"{DEVICES}{metric}.device_weighted",
            "worst decile": f"{DEVICES}{metric}.worst_decile",
            "unseen: device-weighted": f"{UNSEEN}{metric}.device_weighted",
            "unseen: gap": f"{UNSEEN}{metric}.gap",
            "own models: device-weighted": f"{PERSONAL}{metric}.device_weighted",
        }
        shown = {title: name for title, name in columns.items() if any(r.measurement(name) for r in runs)}
        rows = [(_named(r, metric), *(_cell(r, name) for name in shown.values())) for r in runs]
        kept = tuple(row for row in rows if any(cell.kind != "absent" for cell in row[1:]))
        tables.append(Table(f"How devices fare: {metric}", ("run", *shown), kept, measured=True))
    return tuple(tables)


def decile_figures(runs: Sequence[Run]) -> list[Plot]:
    """Return the deciles over devices of each run's first metric, a line a run, a figure a metric."""
    lines: dict[str, list[Curve]] = {}
    shares: set[float] = set()
    for run in runs:
        metric = next((m.name.split(".")[2] for m in run.named(DEVICES) if is_decile(m.name)), None)
        if metric is None:
            continue
        found = [(level, run.measurement(f"{DEVICES}{metric}.p{level}")) for level in _LEVELS]
        known = [(level, m) for level, m in found if m is not None and m.value is not None]
        if len(known) < len(_LEVELS):
            continue
        lows, highs = [m.low for _, m in known if m.low is not None], [m.high for _, m in known if m.high is not None]
        banded = len(lows) == len(highs) == len(known)
        shares.add(known[0][1].confidence)
        values = [m.value or 0.0 for _, m in known]
        x, n = [float(level) for level, _ in known], known[0][1].n
        line = Curve(run.label, x, values, lows, highs, n) if banded else Curve(run.label, x, values, n=n)
        lines.setdefault(metric, []).append(line)
    caption = (
        "Deciles over devices: that share of them has no more than the value ({n}), with {share} bands (order "
        "statistics)."
    )
    share = ", ".join(map(percent, sorted(shares)))
    return [
        curves(f"Devices: {metric}", own, ("share of devices, %", metric), caption.format(n=_devices(own), share=share))
        for metric, own in lines.items()
    ]


def _devices(lines: Sequence[Curve]) -> str:
    counts = {line.n for line in lines}
    if len(counts) == 1:
        return f"n = {next(iter(counts)):,} devices"
    return "; ".join(f"{line.label}: n = {line.n:,} devices" for line in lines)


def _named(run: Run, metric: str) -> Cell:
    found = next((m for m in run.named(f"{DEVICES}{metric}.")), None)
    return Cell(run.label, note="" if found is None else unit(found.unit), kind="name") if found else text(run.label)


def _cell(run: Run, name: str) -> Cell:
    m = run.measurement(name)
    return ABSENT if m is None else measured(m)
