"""The section on membership inference: every attack beside the baseline that knows no model, curves and histograms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from troth.report.attack_names import BLIND, MEMBERSHIP, USES, loss_alone, membership_attacks
from troth.report.attack_plots import Bin, histogram
from troth.report.lines import FEWEST_POINTS, counted, curve, points, split
from troth.report.nonmembers import nonmembers_told
from troth.report.plots import Curve, Plot, forest, roc
from troth.report.reading import Run
from troth.report.section import DETAILED_RUNS, Fold, Section
from troth.report.slices import slices
from troth.report.tables import (
    ABSENT,
    Cell,
    Table,
    interval,
    measured,
    names_of,
    number,
    percent,
    side_by_side,
    text,
    unit,
)
from troth.results import Json, Measurement

__all__ = ["membership", "roc_curve"]

_LINES = 4  # of a figure, so that their bands can be told apart
_ANCHOR, _TITLE = "membership", "What the model leaks: membership inference"
_RATES = ("0.001", "0.01", "0.1")
_PRIORS = ("0.01", "0.1", "0.5")
_LEFT = "Log-log: the left end is where an attacker accuses few and is right"


def membership(runs: Sequence[Run]) -> Section | None:
    """Return the section, or None where no run holds a membership attack."""
    having = [r for r in runs if r.named(MEMBERSHIP)]
    if not having:
        return None
    return _loss_section(having, runs) if loss_alone(having) else _attacks_section(having)


def roc_curve(run: Run, attack: str) -> Curve | None:
    """Return an attack's ROC curve, its band where the record has one."""
    area = run.measurement(f"{MEMBERSHIP}{attack}.auc")
    n = None if area is None else area.n
    return curve(run, f"{MEMBERSHIP}{attack}.roc", "fpr", "tpr", n)


def _loss_section(having: Sequence[Run], runs: Sequence[Run]) -> Section:
    """Return the section of runs of which only the loss attack at one rate is known."""
    areas = [(r.label, m) for r in runs if (m := r.measurement("attack.membership.loss.auc")) is not None]
    drawn, said = split([line for r in runs if (line := roc_curve(r, "loss")) is not None])
    plots = []
    if areas:
        plots.append(forest("AUC of the loss attack", areas, "0.5 is guessing; lower is better. DeLong intervals."))
    if drawn:
        plots.append(roc("Loss attack", drawn, f"{_LEFT} ({counted(drawn)} members and non-members)."))
    paragraphs = (
        "The attacker sees a text, its label and the model's loss, and claims that texts with a low loss were trained "
        "on. A low figure shows that this attack found no leak; stronger attacks may find more.",
        *_nonmembers(having),
    )
    tables = side_by_side("Membership inference", having, names_of(runs, MEMBERSHIP), method=True)
    tables += points("ROC curve of the loss attack", said, ("false positive rate", "true positive rate"), "fraction")
    return Section(_ANCHOR, _TITLE, paragraphs, tables, tuple(plots))


def _nonmembers(having: Sequence[Run]) -> list[str]:
    """Return one sentence for each source of non-members, with the runs that it holds for."""
    told: dict[str, dict[str, None]] = {}
    for run in having:
        for m in run.named(MEMBERSHIP):
            told.setdefault(nonmembers_told(m, run.sources[m.name]), {})[run.label] = None
    return [f"Non-members of {', '.join(labels)}: {sentence}" for sentence, labels in told.items()]


def _attacks_section(having: Sequence[Run]) -> Section:
    attacks = membership_attacks(having)
    detailed = len(having) <= DETAILED_RUNS
    tables = tuple(t for r in having for t in _run_tables(r, membership_attacks([r])))
    known = _known(attacks)
    plots: tuple[Plot, ...] = ()
    folds: tuple[Fold, ...] = ()
    paragraphs = _paragraphs(having, detailed=detailed)
    if detailed:
        exposed = [slices(r, membership_attacks([r])) for r in having]
        curves_drawn, curves_said = _rocs(having, attacks)
        bins_drawn, bins_said = _histograms(having, attacks)
        tables += (*known, *curves_said, *bins_said, *(t for e in exposed for t in e.tables))
        plots = (*_areas(having, attacks), *curves_drawn, *(p for e in exposed for p in e.plots))
        folds = tuple(f for e in exposed for f in e.folds)
        paragraphs += tuple(said for e in exposed for said in e.said)
        if bins_drawn:
            folds = (Fold("Histograms of the scores, members beside non-members", plots=bins_drawn), *folds)
    else:
        tables, folds = known, tuple(Fold(f"Membership attacks on {r.label}", _own_tables(r)) for r in having)
    return Section(_ANCHOR, _TITLE, paragraphs, tables, plots, _shifted(having), folds=folds)


def _own_tables(run: Run) -> tuple[Table, ...]:
    return _run_tables(run, membership_attacks([run]))


def _paragraphs(having: Sequence[Run], *, detailed: bool) -> tuple[str, ...]:
    """Return what the numbers mean, and what they do not."""
    said = [
        "Each attack gives a text a score and claims that texts with a high score were trained on. AUC is the chance "
        "that a member scores above a non-member; 0.5 is guessing. TPR at an FPR is the share of members found at the "
        "threshold that is to accuse that share of non-members; the share that it did accuse stands below it. A low "
        "figure shows that this attack found no leak; stronger attacks may find more.",
    ]
    if any(_is_ppv(m) for r in having for m in r.named(MEMBERSHIP)):
        said.append(
            "PPV at a prior is the share of accused texts that are members, where the prior is the share of members "
            "among all texts that the attacker considers: 50 % is the usual experiment, few attackers are so lucky. It "
            f"is taken at the threshold for {_ppv_rate(having)}."
        )
    if any(r.named(f"{MEMBERSHIP}{BLIND}.") for r in having):
        said.append(
            "The blind baseline reads the words alone and knows no model. An AUC above 0.5 means that members and "
            "non-members differ by their text: the figures of all other attacks then contain that shift."
        )
    if detailed and any(".auc_by_" in m.name for r in having for m in r.named(MEMBERSHIP)):
        said.append("Who is most exposed is told by the attack that has the highest AUC on all rows of the run.")
    if not detailed:
        said.append(
            f"With {len(having)} runs on the page, curves, histograms and slices are left out; the page of a single "
            "run has them."
        )
    return (*said, *_nonmembers(having))


def _ppv_rate(having: Sequence[Run]) -> str:
    """Return the false-positive rates at whose thresholds predictive values were taken."""
    found = [m.protocol.get("target_false_positive_rate") for r in having for m in r.named(MEMBERSHIP) if _is_ppv(m)]
    rates = sorted({v for v in found if isinstance(v, int | float)})
    return f"an FPR of {', '.join(percent(v) for v in rates)}" if rates else "an FPR that the record does not name"


def _is_ppv(m: Measurement) -> bool:
    return ".ppv_at_prior_" in m.name


def _shifted(having: Sequence[Run]) -> tuple[str, ...]:
    """Return a note for each run whose blind baseline does better than guessing, beyond its interval."""
    found = [(r.label, m) for r in having if (m := r.measurement(f"{MEMBERSHIP}{BLIND}.auc")) is not None]
    return tuple(
        f"{label}: the blind baseline, without any model, has an AUC of {number(m.value)} {interval(m.low, m.high)} "
        f"(n = {m.n:,}): members and non-members differ by their words, and other attacks can succeed by that alone."
        for label, m in found
        if m.value is not None and m.low is not None and m.low > 0.5
    )


def _run_tables(run: Run, attacks: Sequence[str]) -> tuple[Table, ...]:
    """Return a run's attacks as rows: how well each tells members apart, and what an accusation is worth."""
    rates = [
        (_title(a), measured(m) if (m := run.measurement(f"{MEMBERSHIP}{a}.auc")) is not None else ABSENT,
         *(_rate(run, a, r) for r in _RATES))
        for a in attacks
    ]  # fmt: skip
    priors = [(_title(a), *(_cell(run, f"{a}.ppv_at_prior_{p}") for p in _PRIORS)) for a in attacks]
    heads = (
        ("AUC", *(f"TPR at FPR {percent(float(r))}" for r in _RATES)),
        tuple(f"PPV at prior {percent(float(p))}" for p in _PRIORS),
    )
    captions = f"Membership attacks on {run.label}", f"What an accusation is worth: {run.label}"
    return tuple(
        table
        for caption, head, rows in zip(captions, heads, (rates, priors), strict=True)
        for table in _without_empty(caption, ("attack", *head), rows)
    )


def _without_empty(caption: str, head: tuple[str, ...], rows: Sequence[tuple[Cell, ...]]) -> tuple[Table, ...]:
    """Return a table without the rows and columns that have nothing to say; none where nothing is left."""
    full = [row for row in rows if any(c.kind != "absent" for c in row[1:])]
    kept = [i for i in range(len(head)) if i == 0 or any(row[i].kind != "absent" for row in full)]
    cells = tuple(tuple(row[i] for i in kept) for row in full)
    return (Table(caption, tuple(head[i] for i in kept), cells, measured=True),) if cells else ()


def _title(attack: str) -> Cell:
    return Cell(attack, note=unit("fraction"), mark="no model: the words alone" if attack == BLIND else "", kind="name")


def _cell(run: Run, last: str) -> Cell:
    m = run.measurement(f"{MEMBERSHIP}{last}")
    return ABSENT if m is None else measured(m)


def _rate(run: Run, attack: str, rate: str) -> Cell:
    """Return a true-positive rate, below it the share of non-members that its threshold accused."""
    cell = _cell(run, f"{attack}.tpr_at_fpr_{rate}")
    achieved = run.measurement(f"{MEMBERSHIP}{attack}.fpr_at_threshold_{rate}")
    if cell.kind == "absent" or achieved is None or achieved.value is None:
        return cell
    ends = interval(achieved.low, achieved.high).replace(" ", "\N{NO-BREAK SPACE}")
    return replace(cell, note=f"{cell.note}; FPR {number(achieved.value)} {ends}, n = {achieved.n:,}")


def _known(attacks: Sequence[str]) -> tuple[Table, ...]:
    """Return what each attack uses, for those that are known by name."""
    rows = tuple((text(a), text(USES[a])) for a in attacks if a in USES)
    return (Table("What each attack makes its score from", ("attack", "what it uses"), rows),) if rows else ()


def _areas(having: Sequence[Run], attacks: Sequence[str]) -> list[Plot]:
    """Return for each run its attacks' areas side by side."""
    plots = []
    for run in having:
        rows = [(a, m) for a in attacks if (m := run.measurement(f"{MEMBERSHIP}{a}.auc")) is not None]
        rows = [(a, m) for a, m in rows if m.value is not None]
        if len(rows) > 1:
            how = ", ".join(dict.fromkeys(m.interval_method for _, m in rows))
            caption = f"AUC of each attack on {run.label}; the dashed line is guessing; lower is better ({how})."
            plots.append(forest(f"AUC: {run.label}", rows, caption))
    return plots


def _rocs(having: Sequence[Run], attacks: Sequence[str]) -> tuple[list[Plot], tuple[Table, ...]]:
    """Return ROC curves, of one run its attacks, of several each attack's runs; those of too few points as tables."""
    if len(having) == 1:
        found = [replace(line, label=a) for a in attacks if (line := roc_curve(having[0], a)) is not None]
        groups = {f"ROC: {having[0].label}": found}
    else:
        groups = {f"ROC: {a}": [line for r in having if (line := roc_curve(r, a)) is not None] for a in attacks}
    plots: list[Plot] = []
    tables: tuple[Table, ...] = ()
    for title, lines in groups.items():
        drawn, said = split(lines)
        parts = _parts(drawn)
        for i, part in enumerate(parts, 1):
            shown = title if len(parts) == 1 else f"{title} ({i} of {len(parts)})"
            band = " Bands are pointwise." if any(line.low is not None for line in part) else ""
            plots.append(roc(shown, part, f"{_LEFT} ({counted(part)} members and non-members).{band}"))
        tables += points(title, said, ("false positive rate", "true positive rate"), "fraction")
    return plots, tables


def _parts(lines: Sequence[Curve]) -> list[Sequence[Curve]]:
    """Return lines in parts of even size; the blind baseline stands in each, to be compared with."""
    blind = [line for line in lines if line.label == BLIND]
    rest = [line for line in lines if line.label != BLIND]
    count = max(1, -(-len(rest) // (_LINES - len(blind))))
    size = max(1, -(-len(rest) // count))
    return [[*rest[i : i + size], *blind] for i in range(0, max(1, len(rest)), size)] if lines else []


def _histograms(having: Sequence[Run], attacks: Sequence[str]) -> tuple[tuple[Plot, ...], tuple[Table, ...]]:
    """Return the scores' histograms, and as tables those of too few bins for a shape."""
    plots: list[Plot] = []
    tables: list[Table] = []
    for run in having:
        for attack in attacks:
            bins = [b for row in run.series.get(f"{MEMBERSHIP}{attack}.histogram", []) if (b := _bin(row)) is not None]
            title = f"{attack}: {run.label}"
            if len(bins) >= FEWEST_POINTS:
                plots.append(histogram(title, bins, f"Scores of {attack} on {run.label}: {_sides(bins)}."))
            elif bins:
                rows = tuple((text(_range(b)), text(f"{b.members:,}"), text(f"{b.nonmembers:,}")) for b in bins)
                tables.append(Table(f"Scores, {title}", ("score", "members", "non-members"), rows))
    return tuple(plots), tuple(tables)


def _bin(row: dict[str, Json]) -> Bin | None:
    members, nonmembers, low, high = (row.get(k) for k in ("members", "nonmembers", "low", "high"))
    if not isinstance(members, int | float) or not isinstance(nonmembers, int | float):
        return None
    ends = [float(v) if isinstance(v, int | float) else None for v in (low, high)]
    return Bin(ends[0], ends[1], int(members), int(nonmembers))


def _sides(bins: Sequence[Bin]) -> str:
    """Return how many scores a histogram holds, and how many lie beyond its ends."""
    beyond = sum(b.members + b.nonmembers for b in bins if b.low is None or b.high is None)
    counts = f"n = {sum(b.members for b in bins):,} members and {sum(b.nonmembers for b in bins):,} non-members"
    return counts + (f", {beyond:,} of them beyond the ends" if beyond else "")


def _range(b: Bin) -> str:
    return interval(b.low, b.high) if b.low is not None or b.high is not None else "any"
