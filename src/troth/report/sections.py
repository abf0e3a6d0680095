"""Sections of the report: each made from the runs that have something to say in it, left out where none has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from troth.config import parse, to_toml
from troth.report.methods import Method, methods
from troth.report.nonmembers import nonmembers_told
from troth.report.plots import Curve, Plot, curves, forest, roc
from troth.report.reading import Run, read
from troth.report.tables import (
    ABSENT,
    Cell,
    Table,
    beside,
    by_group,
    interval,
    name,
    names_of,
    number,
    percent,
    side_by_side,
    text,
    unit,
)
from troth.results import Json, Measurement, Record
from troth.runs.folders import RunFolder

__all__ = ["Listing", "Section", "build"]

_MEMBERSHIP = "attack.membership."
_ROUND = "federated.round."
_FEWEST_POINTS = 3  # of a curve; below that the numbers are said


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
    methods: tuple[Method, ...] = ()


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


def _summary(runs: Sequence[Run]) -> Section:
    names = [n for n in names_of(runs) if n.split(".")[0] != "validation"]
    epsilon = name("privacy.epsilon", "natural-log units"), [_epsilon(r.record) for r in runs]
    paragraphs = (
        "Intervals are in square brackets, at 95 % confidence unless a cell says otherwise; n is the number of "
        "independent units, rows as a rule, that a number rests on. Intervals of different runs are of each run alone, "
        "so overlap does not show that two runs are equal.",
    )
    warnings = tuple(f"{r.label}: {w}" for r in runs for w in r.warnings)
    caption = "All runs side by side" if len(runs) > 1 else f"The measurements of {runs[0].label}"
    tables = side_by_side(caption, runs, names, first=(epsilon,))
    return Section("summary", "What was measured", paragraphs, tables, notes=warnings)


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
    lines = [line for r, _ in private if (line := _curve(r, "privacy.epsilon", "step", "epsilon")) is not None]
    drawn, said = _split(lines)
    caption = "What the accountant computes for the plan: an upper bound, not a sample."
    plots = (curves("Epsilon by step", drawn, ("step", "epsilon"), caption),) if drawn else ()
    paragraphs = (
        "Epsilon bounds how far one unit can change the probability of any outcome of training (by a factor of at most "
        "e to the epsilon, up to delta). It speaks of the listed outputs only. The number of examples, the label set "
        "and the maximum length are treated as public. Test scores, attacks and tables in this report read private "
        "rows outside of that guarantee.",
    )
    tables += _points("Epsilon by step", said, ("step", "epsilon"), "natural-log units")
    return Section("privacy", "Differential privacy", paragraphs, tables, plots)


def _privacy_cell(key: str, value: Json) -> str:
    return "infinity" if key == "epsilon" and value is None else number(value)


def _curve(run: Run, series: str, x: str, y: str, n: int | None = None) -> Curve | None:
    """Return a run's series as a line; rows without both numbers are left out."""
    points = [(r.get(x), r.get(y), r.get("low"), r.get("high")) for r in run.series.get(series, [])]
    good = [p for p in points if isinstance(p[0], int | float) and isinstance(p[1], int | float)]
    if not good:
        return None
    xs, ys, lows, highs = zip(*good, strict=True)
    band = all(isinstance(v, int | float) for v in (*lows, *highs))
    return Curve(run.label, xs, ys, lows if band else None, highs if band else None, n)


def _split(lines: Sequence[Curve]) -> tuple[list[Curve], list[Curve]]:
    """Return the lines that make a curve, and those of so few points that their numbers are said instead."""
    return [c for c in lines if len(c.x) >= _FEWEST_POINTS], [c for c in lines if len(c.x) < _FEWEST_POINTS]


def _points(caption: str, lines: Sequence[Curve], labels: tuple[str, str], units: str) -> tuple[Table, ...]:
    """Return the points of lines as a table, none where there are no lines; `labels` names x and y."""
    rows = tuple(
        (text(line.label), text(number(x)), _point(line, i), text(units))
        for line in lines
        for i, x in enumerate(line.x)
    )
    return (Table(caption, ("run", *labels, "unit"), rows, measured=True),) if rows else ()


def _point(line: Curve, i: int) -> Cell:
    ends = interval(line.low[i], line.high[i]) if line.low is not None and line.high is not None else ""
    return Cell(number(line.y[i]), ends, "" if line.n is None else f"n = {line.n:,}", kind="number")


def _counted(lines: Sequence[Curve]) -> str:
    """Return what each line rests on, for a caption; n that all share is said once."""
    counts = {line.label: line.n for line in lines if line.n is not None}
    if len(set(counts.values())) == 1 and len(counts) == len(lines):
        return f"n = {next(iter(counts.values())):,}"
    return "; ".join(f"{label}: n = {n:,}" for label, n in counts.items()) or "n is not in the record"


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
        lines.append(_curve(run, "train", "step", "loss", rows.n if rows is not None else None))
    drawn, said = _split([line for line in lines if line is not None])
    if not drawn and not said:
        return None
    notes = (
        ("Losses of private runs were computed on private rows and lie outside of the guarantee.",)
        if any(r.record.privacy for r in runs)
        else ()
    )
    what = "Mean loss of the training rows of each epoch, in nats"
    plots = (curves("Training loss", drawn, ("step", "loss"), f"{what} ({_counted(drawn)} rows)."),) if drawn else ()
    tables = _points(f"{what}; n counts training rows", said, ("step", "loss"), "nats")
    return Section("training", "Training", (), tables, plots, notes)


def _membership(runs: Sequence[Run]) -> Section | None:
    having = [(r, found) for r in runs if (found := r.named(_MEMBERSHIP))]
    if not having:
        return None
    areas = [(r.label, m) for r, found in having for m in found if m.name.endswith(".auc") and m.value is not None]
    lines = []
    for run, _ in having:
        area = run.measurement("attack.membership.loss.auc")
        n = area.n if area is not None else None
        lines.append(_curve(run, "attack.membership.loss.roc", "fpr", "tpr", n))
    drawn, said = _split([line for line in lines if line is not None])
    plots = []
    if areas:
        plots.append(forest("AUC of the loss attack", areas, "0.5 is guessing; lower is better. DeLong intervals."))
    if drawn:
        caption = "Log-log: the left end is where an attacker accuses few and is right"
        plots.append(roc("Loss attack", drawn, f"{caption} ({_counted(drawn)} members and non-members)."))
    paragraphs = (
        "The attacker sees a text, its label and the model's loss, and claims that texts with a low loss were trained "
        "on. A low figure shows that this attack found no leak; stronger attacks may find more.",
        *_nonmembers(having),
    )
    tables = side_by_side("Membership inference", [r for r, _ in having], names_of(runs, _MEMBERSHIP), method=True)
    tables += _points("ROC curve of the loss attack", said, ("false positive rate", "true positive rate"), "fraction")
    return Section("membership", "What the model leaks: membership inference", paragraphs, tables, tuple(plots))


def _nonmembers(having: Sequence[tuple[Run, Sequence[Measurement]]]) -> list[str]:
    """Return one sentence for each source of non-members, with the runs that it holds for."""
    told: dict[str, dict[str, None]] = {}
    for run, found in having:
        for m in found:
            told.setdefault(nonmembers_told(m, run.sources[m.name]), {})[run.label] = None
    return [f"Non-members of {', '.join(labels)}: {sentence}" for sentence, labels in told.items()]


def _fairness(runs: Sequence[Run]) -> Section | None:
    found = [(r, m) for r in runs for m in r.named("fairness.")]
    if not found:
        return None
    names = names_of(runs, "fairness.")
    plots = []
    for run, m in found:
        rows = [(g, _group_measurement(m, g)) for g, group in (m.groups or {}).items() if group.value is not None]
        if len(rows) > 1:
            plots.append(forest(f"By group: {run.label}", rows, f"{m.name}: each group's own value and interval."))
    tables = [*side_by_side("Gaps", runs, names, method=True), *(t for n in names for t in by_group(runs, n))]
    paragraphs = ("A gap of 0 means that all groups are served equally well by this metric; lower is better.",)
    return Section("fairness", "Who is served how well", paragraphs, tuple(tables), tuple(plots))


def _group_measurement(m: Measurement, title: str) -> Measurement:
    group = (m.groups or {})[title]
    return Measurement(m.name, group.value, group.low, group.high, m.confidence, m.interval_method, group.n, m.unit)


def _federation(runs: Sequence[Run]) -> Section | None:
    federated = [r for r in runs if r.named("federated.")]
    if not federated:
        return None
    paragraphs = (
        "The devices are simulated in one process. Rounds, examples and bytes are all shown: a rule that looks better "
        "per round may only have processed more examples.",
    )
    tables = side_by_side("The federation and its last round", federated, names_of(runs, "federated."), method=True)
    plots = []
    for key, label in (("round", "rounds"), ("samples", "examples processed"), ("bytes", "bytes sent")):
        lines = [(m, line) for r, m in _by_round(federated) if (line := _round_curve(r, m, key)) is not None]
        drawn, _ = _split([line for _, line in lines])
        if drawn:
            metric = ", ".join(dict.fromkeys(m.name.removeprefix(_ROUND) for m, _ in lines))
            caption = f"On held-out rows ({_counted(drawn)}), with {percent(lines[0][0].confidence)} bands."
            plots.append(curves(f"Quality by {label}", drawn, (label, metric), caption))
    return Section("federation", "Federated learning", paragraphs, (*tables, *_few_rounds(federated)), tuple(plots))


def _by_round(federated: Sequence[Run]) -> list[tuple[Run, Measurement]]:
    """Return each run with its first metric by round: the one that the intervals of its series belong to."""
    return [(r, found[0]) for r in federated if (found := r.named(_ROUND))]


def _round_curve(run: Run, m: Measurement, key: str) -> Curve | None:
    return _curve(run, "federated.round", key, m.name.removeprefix(_ROUND), m.n)


def _few_rounds(federated: Sequence[Run]) -> tuple[Table, ...]:
    """Return quality by round of the runs with too few evaluated rounds for a curve."""
    rows = []
    for run, m in _by_round(federated):
        rounds, samples, sent = (_round_curve(run, m, key) for key in ("round", "samples", "bytes"))
        if rounds is None or samples is None or sent is None or len(rounds.x) >= _FEWEST_POINTS:
            continue
        for i, index in enumerate(rounds.x):
            cost = text(number(samples.x[i])), text(number(sent.x[i]))
            rows.append((text(number(index)), text(run.label), *cost, _point(rounds, i), text(m.unit)))
    metric = ", ".join(dict.fromkeys(m.name.removeprefix(_ROUND) for _, m in _by_round(federated)))
    head = ("round", "run", "examples processed", "bytes sent", metric, "unit")
    return (Table("Quality by round, on held-out rows", head, tuple(rows), measured=True),) if rows else ()


def _methods(runs: Sequence[Run]) -> Section:
    return Section("methods", "How it was measured", methods=methods(runs))


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
