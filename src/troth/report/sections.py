"""Sections of the report: each made from the records that have something to say in it, left out where none has."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from troth.config import parse, to_toml
from troth.report.plots import Curve, Plot, curves, forest, roc
from troth.results import Json, Measurement, Record
from troth.runs.folders import RunFolder

__all__ = ["Listing", "Run", "Section", "Table", "build"]


@dataclass(frozen=True)
class Table:
    """A table of text cells; the first column names the row."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Listing:
    """A text shown as it is, folded away."""

    title: str
    text: str


@dataclass(frozen=True)
class Section:
    """One part of the page."""

    anchor: str
    title: str
    paragraphs: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    notes: tuple[str, ...] = ()
    listings: tuple[Listing, ...] = ()


@dataclass(frozen=True)
class Run:
    """A run as the report sees it: its label, all its measurements and series, and how it was made."""

    label: str
    record: Record
    measurements: tuple[Measurement, ...]
    series: Mapping[str, list[dict[str, Json]]]
    warnings: tuple[str, ...]
    provenance: Mapping[str, Json] = field(default_factory=dict)

    def named(self, prefix: str) -> list[Measurement]:
        """Return the measurements below a dotted prefix."""
        return [m for m in self.measurements if m.name.startswith(prefix)]


def read(folder: RunFolder) -> Run:
    """Return a run with its own record and the newest of each verb that ran alone on it."""
    own, *later = folder.records()
    measurements = {m.name: m for r in (own, *later) for m in r.measurements}
    series = {k: v for r in (own, *later) for k, v in r.series.items()}
    warnings = tuple(dict.fromkeys(w for r in (own, *later) for w in r.warnings))
    return Run(folder.path.name, own, tuple(measurements.values()), series, warnings, folder.provenance())


def build(folders: Sequence[RunFolder]) -> list[Section]:
    """Return the page's sections in reading order."""
    runs = [read(f) for f in folders]
    makers: tuple[Callable[[Sequence[Run]], Section | None], ...] = (
        _summary,
        _gates,
        _privacy,
        _quality,
        _training,
        _membership,
        _fairness,
        _federation,
        _methods,
        _provenance,
    )
    return [section for make in makers if (section := make(runs)) is not None]


def number(value: Json) -> str:
    """Return a number as people read it."""
    if value is None:
        return "not defined"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value if isinstance(value, str) else json.dumps(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def interval(m: Measurement) -> str:
    """Return a value with its interval, or the value alone where it is exact."""
    if m.value is None:
        return "not defined"
    if m.interval_method == "exact":
        return number(m.value)
    text = f"{number(m.value)} [{number(m.low)}, {number(m.high)}]"
    return text if m.supported else f"{text} (too few examples for this claim)"


def _summary(runs: Sequence[Run]) -> Section:
    names = list(dict.fromkeys(m.name for r in runs for m in r.measurements if m.name.split(".")[0] != "validation"))
    rows = []
    for name in names:
        found = [next((m for m in r.measurements if m.name == name), None) for r in runs]
        unit = next(m.unit for m in found if m is not None)
        rows.append((name, *("-" if m is None else interval(m) for m in found), unit))
    epsilon = tuple(_epsilon(r.record) for r in runs)
    rows.insert(0, ("privacy.epsilon", *epsilon, "natural-log units"))
    head = ("measurement", *(r.label for r in runs), "unit")
    paragraphs = (
        "Intervals are in square brackets, at 95 % confidence unless the methods section says otherwise; those of "
        "different runs are of each run alone, so overlap does not show that two runs are equal.",
    )
    warnings = tuple(f"{r.label}: {w}" for r in runs for w in r.warnings)
    return Section(
        "summary", "What was measured", paragraphs, (Table("All runs side by side", head, tuple(rows)),), notes=warnings
    )


def _epsilon(record: Record) -> str:
    privacy = record.privacy
    if privacy is None or privacy.epsilon is None or privacy.guarantee == "none":
        return "infinity (no guarantee)"
    return f"{number(privacy.epsilon)} at delta {number(privacy.delta)}"


def _gates(runs: Sequence[Run]) -> Section | None:
    rows = [
        (str(g["rule"]), r.label, "met" if g["met"] else "not met", number(g["actual"]), str(g["reason"]))
        for r in runs
        for g in r.series.get("gate", [])
    ]
    if not rows:
        return None
    return Section(
        "gates", "Gates", (), (Table("Rules of [gate]", ("rule", "run", "state", "number", "reason"), tuple(rows)),)
    )


def _privacy(runs: Sequence[Run]) -> Section | None:
    private = [r for r in runs if r.record.privacy is not None]
    if not private:
        return None
    keys = list(private[0].record.privacy.to_dict()) if private[0].record.privacy else []
    rows = []
    for key in keys:
        cells = [r.record.privacy.to_dict()[key] for r in private if r.record.privacy]
        rows.append((key.replace("_", " "), *(_privacy_cell(key, c) for c in cells)))
    lines = [_curve(r, "privacy.epsilon", "step", "epsilon") for r in private]
    drawn = [line for line in lines if line is not None]
    plots = (curves("Epsilon by step", drawn, ("step", "epsilon"), "What the accountant computes for the plan."),)
    paragraphs = (
        "Epsilon bounds how far one unit can change the probability of any outcome of training (by a factor of at most "
        "e to the epsilon, up to delta). It speaks of the listed outputs only. The number of examples, the label set "
        "and the maximum length are treated as public. Test scores, attacks and tables in this report read private "
        "rows outside of that guarantee.",
    )
    table = Table("The guarantee and its assumptions", ("", *(r.label for r in private)), tuple(rows))
    return Section("privacy", "Differential privacy", paragraphs, (table,), plots if drawn else ())


def _privacy_cell(key: str, value: Json) -> str:
    if key == "epsilon" and value is None:
        return "infinity"
    return ", ".join(map(str, value)) if isinstance(value, list) else number(value)


def _curve(run: Run, series: str, x: str, y: str) -> Curve | None:
    """Return a run's series as a line; rows without both numbers are left out."""
    points = [(r.get(x), r.get(y), r.get("low"), r.get("high")) for r in run.series.get(series, [])]
    good = [p for p in points if isinstance(p[0], int | float) and isinstance(p[1], int | float)]
    if not good:
        return None
    xs, ys, lows, highs = zip(*good, strict=True)
    band = all(isinstance(v, int | float) for v in (*lows, *highs))
    return Curve(run.label, xs, ys, lows if band else None, highs if band else None)


def _quality(runs: Sequence[Run]) -> Section | None:
    names = list(dict.fromkeys(m.name for r in runs for m in r.named("test.") if m.interval_method != "exact"))
    plots = []
    for name in names:
        rows = [(r.label, m) for r in runs for m in r.measurements if m.name == name]
        plots.append(
            forest(name, rows, f"{name} with {rows[0][1].confidence:.0%} intervals ({rows[0][1].interval_method}).")
        )
    return Section("quality", "Task quality", (), (), tuple(plots)) if plots else None


def _training(runs: Sequence[Run]) -> Section | None:
    lines = [line for r in runs if (line := _curve(r, "train", "step", "loss")) is not None]
    if not lines:
        return None
    private = any(r.record.privacy for r in runs)
    notes = (
        ("Losses of private runs were computed on private rows and lie outside of the guarantee.",) if private else ()
    )
    plot = curves("Training loss", lines, ("step", "loss"), "Mean loss of the training rows of each epoch, in nats.")
    return Section("training", "Training", (), (), (plot,), notes)


def _membership(runs: Sequence[Run]) -> Section | None:
    found = [(r, m) for r in runs for m in r.named("attack.membership.")]
    if not found:
        return None
    lines = [line for r in runs if (line := _curve(r, "attack.membership.loss.roc", "fpr", "tpr")) is not None]
    plots = (
        [roc("Loss attack", lines, "Log-log: the left end is where an attacker accuses few and is right.")]
        if lines
        else []
    )
    aucs = [(r.label, m) for r, m in found if m.name.endswith(".auc")]
    plots.insert(0, forest("AUC of the loss attack", aucs, "0.5 is guessing; lower is better. DeLong intervals."))
    paragraphs = (
        "The attacker sees a text, its label and the model's loss, and claims that texts with a low loss were trained "
        "on. A low figure shows that this attack found no leak; stronger attacks may find more.",
    )
    rows = tuple((r.label, m.name, interval(m), f"{m.n:,}", m.interval_method) for r, m in found)
    table = Table("Membership inference", ("run", "measurement", "value", "n", "interval"), rows)
    return Section("membership", "What the model leaks: membership inference", paragraphs, (table,), tuple(plots))


def _fairness(runs: Sequence[Run]) -> Section | None:
    found = [(r, m) for r in runs for m in r.named("fairness.")]
    if not found:
        return None
    rows, plots = [], []
    for run, m in found:
        rows.append((run.label, m.name, interval(m), f"{m.n:,}", m.interval_method))
        if m.groups:
            by_group = [(g, _group_measurement(m, g)) for g in m.groups]
            plots.append(forest(f"By group: {run.label}", by_group, f"{m.name}: each group's own value and interval."))
    groups = tuple(
        (run.label, name, f"{number(g.value)} [{number(g.low)}, {number(g.high)}]", f"{g.n:,}")
        for run, m in found
        for name, g in (m.groups or {}).items()
    )
    tables = [Table("Gaps", ("run", "measurement", "value", "n", "interval"), tuple(rows))]
    if groups:
        tables.append(Table("By group", ("run", "group", "value", "n"), groups))
    paragraphs = ("A gap of 0 means that all groups are served equally well by this metric; lower is better.",)
    return Section("fairness", "Who is served how well", paragraphs, tuple(tables), tuple(plots))


def _group_measurement(m: Measurement, name: str) -> Measurement:
    group = (m.groups or {})[name]
    return Measurement(m.name, group.value, group.low, group.high, m.confidence, m.interval_method, group.n, m.unit)


def _federation(runs: Sequence[Run]) -> Section | None:
    federated = [r for r in runs if "federated.round" in r.series]
    if not federated:
        return None
    axes = (("round", "rounds"), ("samples", "examples processed"), ("bytes", "bytes sent"))
    plots = []
    for key, label in axes:
        lines = [line for r in federated if (line := _curve(r, "federated.round", key, "accuracy")) is not None]
        if lines:
            plots.append(curves(f"Quality by {label}", lines, (label, "quality"), "On held-out rows, 95 % band."))
    paragraphs = (
        "The devices are simulated in one process. Rounds, examples and bytes are all shown: a rule that looks better "
        "per round may only have processed more examples.",
    )
    return Section("federation", "Federated learning", paragraphs, (), tuple(plots))


def _methods(runs: Sequence[Run]) -> Section:
    rows = []
    for run in runs:
        for m in run.measurements:
            if m.interval_method == "exact" and not m.protocol:
                continue
            protocol = "; ".join(f"{k.replace('_', ' ')}: {number(v)}" for k, v in m.protocol.items())
            outside = "outside the guarantee" if m.outside_guarantee else "-"
            rows.append(
                (
                    m.name,
                    run.label,
                    f"{m.interval_method}, {m.confidence:.0%}",
                    f"{m.n:,}",
                    m.direction,
                    outside,
                    protocol,
                )
            )
    head = ("measurement", "run", "interval", "n", "better", "privacy", "protocol")
    return Section("methods", "How it was measured", (), (Table("One row a measurement", head, tuple(rows)),))


def _provenance(runs: Sequence[Run]) -> Section:
    rows, listings = [], []
    for run in runs:
        cost = run.record.cost
        rows.append((run.label, "made", f"{run.record.created}, troth {run.record.version}"))
        if cost is not None:
            memory = f"{cost.peak_memory_bytes / 1e6:,.0f} MB peak"
            text = f"{cost.seconds:.1f} s in all, {cost.work_seconds:.1f} s of it work; {memory}"
            rows.append((run.label, "cost", text))
        for part in ("versions", "data"):
            values = run.provenance.get(part)
            if isinstance(values, dict):
                rows.append((run.label, part, ", ".join(f"{k} {v}" for k, v in values.items() if v is not None)))
        listings.append(Listing(f"Run file of {run.label}", to_toml(parse(dict(run.record.config)))))
    table = Table("Versions, cost and data fingerprints (SHA-256)", ("run", "what", "value"), tuple(rows))
    return Section("provenance", "How to make it again", (), (table,), (), (), tuple(listings))
