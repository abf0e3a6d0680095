"""Sections of the report: each made from the runs that have something to say in it, left out where none has."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from troth.config import parse, to_toml
from troth.report.attack_names import is_detail
from troth.report.audits import audits
from troth.report.canaries import canaries
from troth.report.federated import federation
from troth.report.lines import counted, curve, points, split
from troth.report.membership import membership
from troth.report.methods import method_groups, methods
from troth.report.plots import curves, forest
from troth.report.reading import Run, read
from troth.report.section import Fold, Listing, Section
from troth.report.tables import (
    ABSENT,
    Cell,
    Table,
    beside,
    by_group,
    name,
    names_of,
    number,
    of_group,
    percent,
    side_by_side,
    text,
    unit,
)
from troth.report.theory import theory
from troth.results import Json, Measurement, Record
from troth.runs.folders import RunFolder

__all__ = ["Listing", "Section", "build"]


def build(folders: Sequence[RunFolder]) -> list[Section]:
    """Return the page's sections in reading order."""
    runs = [read(f) for f in folders]
    makers: tuple[Callable[[Sequence[Run]], Section | None], ...] = (
        _summary,
        _gates,
        _privacy,
        _quality,
        _training,
        membership,
        audits,
        canaries,
        theory,
        _fairness,
        federation,
        _methods,
        _provenance,
    )
    return [section for make in makers if (section := make(runs)) is not None]


def _summary(runs: Sequence[Run]) -> Section:
    measured = [n for n in names_of(runs) if n.split(".")[0] != "validation"]
    names = [n for n in measured if not is_detail(n)]
    epsilon = name("privacy.epsilon", "natural-log units"), [_epsilon(r.record) for r in runs]
    paragraphs: tuple[str, ...] = (
        "Intervals are in square brackets, at 95 % confidence unless a cell says otherwise; n is the number of "
        "independent units, rows as a rule, that a number rests on. Intervals of different runs are of each run alone, "
        "so overlap does not show that two runs are equal.",
    )
    if names != measured:
        paragraphs += ("Of attacks the main numbers stand here, all others in the sections on them.",)
    warnings = tuple(f"{r.label}: {w}" for r in runs for w in _merged(r))
    caption = "All runs side by side" if len(runs) > 1 else f"The measurements of {runs[0].label}"
    tables = side_by_side(caption, runs, names, first=(epsilon,))
    return Section("summary", "What was measured", paragraphs, tables, notes=warnings)


def _merged(run: Run) -> list[str]:
    """Return a run's warnings; what is said alike of more than two measurements is said once, with their number."""
    same: dict[str, list[str]] = {}
    for warning in run.warnings:
        title, _, said = warning.partition(": ")
        key = said if "." in title and " " not in title else warning
        same.setdefault(key, []).append(warning)
    told = []
    for said, warnings in same.items():
        first = warnings[0].removesuffix(f": {said}")
        told += warnings if len(warnings) < 3 else [f"{first} and {len(warnings) - 1} more measurements: {said}"]
    return told


def _epsilon(record: Record) -> Cell:
    privacy = record.privacy
    if privacy is None or privacy.epsilon is None or privacy.guarantee == "none":
        return text("infinity (no guarantee)")
    detail, note = f"at delta {number(privacy.delta)}", f"computed bound, {privacy.steps:,} steps"
    return Cell(number(privacy.epsilon), detail, note, kind="number")


def _gates(runs: Sequence[Run]) -> Section | None:
    rows = tuple(
        (
            Cell(str(g["rule"]), kind="name"),
            text(r.label),
            text("met" if g["met"] else "not met"),
            Cell(number(g["actual"]), note=_gate_n(r, str(g["rule"])), kind="number"),
            text(str(g["reason"])) if g["reason"] else ABSENT,
        )
        for r in runs
        for g in r.series.get("gate", [])
    )
    if not rows:
        return None
    table = Table("Rules of [gate]", ("rule", "run", "state", "number", "reason"), rows)
    return Section("gates", "Gates", (), (table,))


def _gate_n(run: Run, rule: str) -> str:
    """Return n and unit of the measurement that a rule speaks of; a bound that was computed has none."""
    named = [m for m in run.measurements if rule == m.name or rule.startswith((f"{m.name} ", f"{m.name}."))]
    longest = max(named, key=lambda m: len(m.name), default=None)
    return "" if longest is None else f"n = {longest.n:,}, {unit(longest.unit)}"


def _privacy(runs: Sequence[Run]) -> Section | None:
    private = [(r, r.record.privacy.to_dict()) for r in runs if r.record.privacy is not None]
    if not private:
        return None
    rows = [
        (text(key.replace("_", " ")), [text(_privacy_cell(key, facts[key])) for _, facts in private])
        for key in private[0][1]
    ]
    tables = beside("The guarantee and its assumptions", "property", [r.label for r, _ in private], rows)
    lines = [line for r, _ in private if (line := curve(r, "privacy.epsilon", "step", "epsilon")) is not None]
    drawn, said = split(lines)
    caption = "What the accountant computes for the plan: an upper bound, not a sample."
    plots = (curves("Epsilon by step", drawn, ("step", "epsilon"), caption),) if drawn else ()
    paragraphs = (
        "Epsilon bounds how far one unit can change the probability of any outcome of training (by a factor of at most "
        "e to the epsilon, up to delta). It speaks of the listed outputs only. The number of examples, the label set "
        "and the maximum length are treated as public. Test scores, attacks and tables in this report read private "
        "rows outside of that guarantee.",
    )
    tables += points("Epsilon by step", said, ("step", "epsilon"), "natural-log units")
    return Section("privacy", "Differential privacy", paragraphs, tables, plots)


def _privacy_cell(key: str, value: Json) -> str:
    return "infinity" if key == "epsilon" and value is None else number(value)


def _quality(runs: Sequence[Run]) -> Section | None:
    found = [(r, m) for split in ("test.", "validation.") for r in runs for m in r.named(split) if not _exact(m)]
    if not found:
        return None
    tables = side_by_side("On held-out rows", runs, list(dict.fromkeys(m.name for _, m in found)), method=True)
    plots = []
    for title, rows in _compared([(r, m) for r, m in found if m.name.startswith("test.")]).items():
        how = ", ".join(dict.fromkeys(m.interval_method for _, m in rows))
        plots.append(forest(title, rows, f"{title}, with {percent(rows[0][1].confidence)} intervals ({how})."))
    return Section("quality", "Task quality", (), tables, tuple(plots))


def _exact(m: Measurement) -> bool:
    return m.interval_method == "exact"


def _compared(found: Sequence[tuple[Run, Measurement]]) -> dict[str, list[tuple[str, Measurement]]]:
    """Return labelled measurements by what one plot can compare: a metric of several runs, or a run's by their unit."""
    several = len({r.label for r, _ in found}) > 1
    plots: dict[str, list[tuple[str, Measurement]]] = {}
    for run, m in found:
        if m.value is not None:
            title, label = (m.name, run.label) if several else (f"Test split, in {m.unit}", m.name)
            plots.setdefault(title, []).append((label, m))
    return {title: rows for title, rows in plots.items() if len(rows) > 1}


def _training(runs: Sequence[Run]) -> Section | None:
    lines = []
    for run in runs:
        rows = run.measurement("data.train.rows")
        lines.append(curve(run, "train", "step", "loss", rows.n if rows is not None else None))
    drawn, said = split([line for line in lines if line is not None])
    if not drawn and not said:
        return None
    notes = (
        ("Losses of private runs were computed on private rows and lie outside of the guarantee.",)
        if any(r.record.privacy for r in runs)
        else ()
    )
    what = "Mean loss of the training rows of each epoch, in nats"
    plots = (curves("Training loss", drawn, ("step", "loss"), f"{what} ({counted(drawn)} rows)."),) if drawn else ()
    tables = points(f"{what}; n counts training rows", said, ("step", "loss"), "nats")
    return Section("training", "Training", (), tables, plots, notes)


def _fairness(runs: Sequence[Run]) -> Section | None:
    found = [(r, m) for r in runs for m in r.named("fairness.")]
    if not found:
        return None
    names = names_of(runs, "fairness.")
    plots = []
    for run, m in found:
        rows = [(g, of_group(m, g)) for g, group in (m.groups or {}).items() if group.value is not None]
        if len(rows) > 1:
            plots.append(forest(f"By group: {run.label}", rows, f"{m.name}: each group's own value and interval."))
    tables = [*side_by_side("Gaps", runs, names, method=True), *(t for n in names for t in by_group(runs, n))]
    paragraphs = ("A gap of 0 means that all groups are served equally well by this metric; lower is better.",)
    return Section("fairness", "Who is served how well", paragraphs, tuple(tables), tuple(plots))


def _methods(runs: Sequence[Run]) -> Section:
    told = methods(runs)
    groups = method_groups(told)
    folded = {method.name for group in groups.values() for method in group}
    shown = tuple(method for method in told if method.name not in folded)
    folds = tuple(Fold(title, methods=group) for title, group in groups.items())
    return Section("methods", "How it was measured", methods=shown, folds=folds)


def _provenance(runs: Sequence[Run]) -> Section:
    rows, listings = [], []
    for run in runs:
        cost = run.record.cost
        rows.append((run.label, "made", f"{run.record.created}, troth {run.record.version}"))
        if cost is not None:
            memory = f"{cost.peak_memory_bytes / 1e6:,.0f} MB peak"
            said = f"{cost.seconds:.1f} s in all, {cost.work_seconds:.1f} s of it work; {memory}"
            rows.append((run.label, "cost", said))
        for part in ("versions", "data"):
            values = run.provenance.get(part)
            if isinstance(values, dict):
                rows.append((run.label, part, ", ".join(f"{k} {v}" for k, v in values.items() if v is not None)))
        listings.append(Listing(f"Run file of {run.label}", to_toml(parse(dict(run.record.config)))))
    cells = tuple(tuple(map(text, row)) for row in rows)
    table = Table("Versions, cost and data fingerprints (SHA-256)", ("run", "what", "value"), cells)
    return Section("provenance", "How to make it again", (), (table,), listings=tuple(listings))
