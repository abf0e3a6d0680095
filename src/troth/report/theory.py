"""The section on theory and practice: over runs of different epsilon, what was promised, proved and leaked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from troth.report.attack_names import AUDIT, BLIND, MEMBERSHIP, loss_alone, membership_attacks
from troth.report.audits import BOUND, claimed_epsilon
from troth.report.lines import FEWEST_POINTS
from troth.report.plots import Plot
from troth.report.rank_correlation import RankCorrelation, rank_correlation
from troth.report.reading import Run
from troth.report.section import Section
from troth.report.settings import Setting, settings, theoretical_epsilon
from troth.report.tables import ABSENT, UNSUPPORTED, Cell, Table, interval, measured, number, percent, text, unit
from troth.report.theory_plots import Cloud, Spot, epsilon_figure, tradeoff
from troth.results import Measurement
from troth.runs.catalogue import METRICS

__all__ = ["pareto", "theory"]

_FEWEST_RUNS = 5  # of a rank correlation
_ATTACKS_SHOWN = 4  # of a figure
_TRADEOFFS = 2
_PREFERRED = ("rmia", "loss", "student_t", "lira", "reference", "quantile")  # fixed ahead, not by how well they do
_RANGE = "Small dots are runs, large marks the mean of runs that differ by their seed alone, lines their range"


@dataclass(frozen=True)
class _Quality:
    """What the settings' task quality is measured by."""

    name: str
    unit: str
    higher: bool


def theory(runs: Sequence[Run]) -> Section | None:
    """Return the section, or None where fewer than two epsilons were attacked, or only as first versions did."""
    having = [r for r in runs if r.named(MEMBERSHIP) or r.measurement(BOUND) is not None]
    first_versions = loss_alone(having) and not any(r.named(AUDIT) for r in having)
    if first_versions or len({theoretical_epsilon(r) for r in having}) < 2:
        return None
    found = settings(having)
    attacks = _by_preference(membership_attacks(having))
    quality = _quality(having)
    tables = [_table(found, attacks, quality), *_correlations(having, attacks)]
    plots = [*_ladder(found), *_successes(found, attacks), *_tradeoffs(found, attacks, quality)]
    return Section("theory", "Theory against practice", _PARAGRAPHS, tuple(tables), tuple(plots))


_PARAGRAPHS = (
    "Theoretical epsilon bounds what any attacker can do; an audit proves what one attacker did at least. The room "
    "between the two is what these attacks did not show: other attacks may. Runs that differ by their seed alone make "
    "one setting; a mean of audited bounds over seeds is no bound itself.",
)


def pareto(points: Sequence[tuple[float, float]], *, higher: bool = True) -> list[bool]:
    """Return for each point (quality, leakage) whether no other has as good a quality with less leakage, or better.

    Args:
        points: quality, and leakage of which less is better.
        higher: whether more quality is better.

    >>> pareto([(0.9, 0.7), (0.8, 0.6), (0.8, 0.65)])
    [True, True, False]
    """
    signed = [(q if higher else -q, leak) for q, leak in points]
    return [
        not any(oq >= q and ol <= leak and (oq > q or ol < leak) for oq, ol in signed) for q, leak in signed
    ]  # fmt: skip


def _by_preference(attacks: Sequence[str]) -> list[str]:
    """Return the attacks on the model, those that are preferred first; the baseline without a model is none."""
    rest = [a for a in attacks if a not in _PREFERRED and a != BLIND]
    return [a for a in _PREFERRED if a in attacks] + rest


def _quality(runs: Sequence[Run]) -> _Quality | None:
    """Return the headline metric that most runs have, on test rows or else on validation rows."""
    counts: dict[str, list[Measurement]] = {}
    for run in runs:
        task = run.record.config.get("task")
        headline = METRICS.get(str(task.get("kind")) if isinstance(task, dict) else "", ("",))[0]
        names = (f"test.{headline}", f"validation.{headline}")
        first = next((m for n in names if (m := run.measurement(n)) is not None), None)
        if first is not None and first.value is not None:
            counts.setdefault(first.name, []).append(first)
    if not counts:
        return None
    m = max(counts.values(), key=len)[0]
    return _Quality(m.name, m.unit, m.direction != "lower")


def _values(setting: Setting, wanted: str) -> list[Measurement]:
    """Return a measurement of each run of a setting, those that rest on too few examples left out."""
    found = [m for r in setting.runs if (m := r.measurement(wanted)) is not None]
    return [m for m in found if m.value is not None and m.supported]


def _cloud(setting: Setting, wanted: str, line: str) -> Cloud | None:
    found = _values(setting, wanted)
    values = tuple(m.value for m in found if m.value is not None)
    if not values:
        return None
    ends = (min(values), max(values)) if len(values) > 1 else (found[0].low, found[0].high)
    return Cloud(line, setting.name, setting.epsilon, values, *ends)


def _clouds(found: Sequence[Setting], wanted: str, line: str) -> list[Cloud]:
    return [c for s in found if s.epsilon > 0 and (c := _cloud(s, wanted, line)) is not None]


def _distinct(clouds: Sequence[Cloud]) -> int:
    return len({c.epsilon for c in clouds})


def _ladder(found: Sequence[Setting]) -> list[Plot]:
    """Return theoretical against audited epsilon."""
    clouds = []
    for s in found:
        bounds = [(r, m) for r in s.runs if (m := r.measurement(BOUND)) is not None and m.value is not None]
        groups: dict[float, list[Measurement]] = {}
        for run, m in bounds:
            groups.setdefault(float(f"{claimed_epsilon(run, m):.6g}"), []).append(m)
        clouds += [_audited(s, claim, ms) for claim, ms in groups.items() if claim > 0]
    if _distinct(clouds) < FEWEST_POINTS:
        return []
    caption = (
        f"Audited lower bounds against theoretical epsilon ({_runs(clouds)}). {_RANGE}. Each run's bound has its own "
        "confidence. The dashed line is where practice would be theory; the wide marks are what perfect guesses could "
        "have proved."
    )
    return [epsilon_figure("Theory and audit: epsilon", clouds, "audited: epsilon at least, nats", caption)]


def _audited(setting: Setting, claim: float, found: Sequence[Measurement]) -> Cloud:
    values = tuple(m.value for m in found if m.value is not None)
    largest = [v for m in found if isinstance(v := m.protocol.get("largest_provable_epsilon"), int | float)]
    low, high = (min(values), max(values)) if len(values) > 1 else (None, None)
    return Cloud("audited", setting.name, claim, values, low, high, max(largest, default=None))


def _runs(clouds: Sequence[Cloud]) -> str:
    settings_, runs = len({(c.setting, c.epsilon) for c in clouds}), max(_per_line(clouds, lambda c: len(c.values)))
    return f"{settings_} settings, n = {runs} runs"


def _per_line(clouds: Sequence[Cloud], count: Callable[[Cloud], int]) -> list[int]:
    lines = dict.fromkeys(c.line for c in clouds)
    return [sum(count(c) for c in clouds if c.line == line) for line in lines]


def _successes(found: Sequence[Setting], attacks: Sequence[str]) -> list[Plot]:
    """Return the success of attacks against theoretical epsilon, by AUC and by the rate at 1 % false positives."""
    plots = []
    for last, title, neutral in (("auc", "AUC", 0.5), ("tpr_at_fpr_0.01", "TPR at FPR 1 %", 0.01)):
        by_attack = {a: _clouds(found, f"{MEMBERSHIP}{a}.{last}", a) for a in attacks}
        drawn = [a for a, clouds in by_attack.items() if _distinct(clouds) >= FEWEST_POINTS]
        for i in range(0, len(drawn), _ATTACKS_SHOWN):
            clouds = [c for a in drawn[i : i + _ATTACKS_SHOWN] for c in by_attack[a]]
            part = f" ({i // _ATTACKS_SHOWN + 1})" if len(drawn) > _ATTACKS_SHOWN else ""
            caption = (
                f"{title} of attacks against theoretical epsilon ({_runs(clouds)}). {_RANGE}, or a single run's "
                "interval. The dashed line is guessing; values on too few examples are left out."
            )
            plots.append(epsilon_figure(f"Epsilon and {title}{part}", clouds, title, caption, neutral=neutral))
    return plots


def _tradeoffs(found: Sequence[Setting], attacks: Sequence[str], quality: _Quality | None) -> list[Plot]:
    """Return leakage against quality for the preferred attacks that enough settings have."""
    if quality is None:
        return []
    plots: list[Plot] = []
    for attack in attacks:
        spots = _spots(found, attack, quality)
        if len(spots) < FEWEST_POINTS or len(plots) == _TRADEOFFS:
            continue
        better = "higher is better" if quality.higher else "lower is better"
        caption = (
            f"AUC of {attack} against {quality.name} ({better}) of {len(spots)} settings, n = "
            f"{sum(len(s.leakage.values) for s in spots)} runs: means, with ranges over seeds or a single run's "
            "interval. In the Pareto set no other setting has at least that quality at no more leakage; it is of the "
            "means, which chance moves. Numbers in the figure are theoretical epsilons."
        )
        labels = (f"{quality.name}, {quality.unit} ({better})", f"AUC of {attack} (lower is better)")
        plots.append(tradeoff(f"Leakage and quality: {attack}", spots, labels, caption))
    return plots


def _spots(found: Sequence[Setting], attack: str, quality: _Quality) -> list[Spot]:
    both = [(s, _cloud(s, quality.name, quality.name), _cloud(s, f"{MEMBERSHIP}{attack}.auc", attack)) for s in found]
    known = [(s, q, leak) for s, q, leak in both if q is not None and leak is not None]
    best = pareto([(q.mean, leak.mean) for _, q, leak in known], higher=quality.higher)
    return [Spot(s.name, s.epsilon, q, leak, b) for (s, q, leak), b in zip(known, best, strict=True)]


def _table(found: Sequence[Setting], attacks: Sequence[str], quality: _Quality | None) -> Table:
    """Return one row a setting: quality, the audited bound, and the preferred attacks' areas."""
    columns = [(f"{quality.name}, {quality.unit}", quality.name)] if quality is not None else []
    if any(_values(s, BOUND) for s in found):
        columns.append(("audited: at least, nats", BOUND))
    columns += [(f"AUC of {a}, fraction", f"{MEMBERSHIP}{a}.auc") for a in attacks[:_TRADEOFFS]]
    rows = tuple(
        (
            text(s.name),
            text("infinity" if math.isinf(s.epsilon) else number(s.epsilon)),
            *(_mean(s, wanted) for _, wanted in columns),
        )
        for s in found
    )
    head = ("setting", "theoretical epsilon, nats", *(title for title, _ in columns))
    return Table("Settings side by side: the mean and range of their runs, or one run's interval", head, rows)


def _mean(setting: Setting, wanted: str) -> Cell:
    """Return one run's measurement, or the mean of several with their range."""
    found = [m for r in setting.runs if (m := r.measurement(wanted)) is not None and m.value is not None]
    if not found:
        return ABSENT
    if len(found) == 1:
        return measured(found[0])
    values = [m.value for m in found if m.value is not None]
    mark = "" if all(m.supported for m in found) else UNSUPPORTED
    note = f"range of n = {len(found)} runs"
    return Cell(number(sum(values) / len(values)), interval(min(values), max(values)), note, mark, "number")


def _correlations(runs: Sequence[Run], attacks: Sequence[str]) -> list[Table]:
    """Return the rank correlation of theoretical epsilon with each attack's area over the runs."""
    rows = []
    for attack in attacks:
        areas = [(theoretical_epsilon(r), _area(r, attack)) for r in runs]
        found = [(epsilon, value) for epsilon, value in areas if value is not None]
        correlation = rank_correlation([e for e, _ in found], [v for _, v in found]) if len(found) > 2 else None
        if correlation is not None:
            rows.append((Cell(attack, note=unit("rank correlation, -1 to 1")), *_told(correlation)))
    caption = (
        "Spearman's rank correlation of theoretical epsilon with the AUC of each attack, over runs: 1 where more "
        "epsilon always comes with more leakage, 0 where the two are unrelated."
    )
    return [Table(caption, ("attack", "rank correlation", "p value"), tuple(rows), measured=True)] if rows else []


def _area(run: Run, attack: str) -> float | None:
    m = run.measurement(f"{MEMBERSHIP}{attack}.auc")
    return m.value if m is not None and m.supported else None


def _told(found: RankCorrelation) -> tuple[Cell, Cell]:
    marks = []
    if found.n < _FEWEST_RUNS:
        marks.append(UNSUPPORTED)
    if found.low == found.high:
        marks.append("every resample has the same order: no certainty")
    note = f"n = {found.n} runs, bootstrap-percentile, {percent(0.95)}"
    how = "all orders of the runs" if found.exact else "9,999 orders of the runs"
    value = Cell(number(found.value), interval(found.low, found.high), note, "; ".join(marks), "number")
    return value, Cell(number(found.p_value), "", f"n = {found.n} runs, permutation test, {how}", kind="number")
