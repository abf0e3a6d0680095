"""Who is most exposed: an attack's success by class, length, group and activity of users, the most exposed first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from troth.report.attack_names import BLIND, MEMBERSHIP
from troth.report.plots import Plot, forest
from troth.report.reading import Run
from troth.report.section import Fold
from troth.report.tables import ABSENT, Cell, Table, measured, of_group, text, unit
from troth.results import Measurement

__all__ = ["Exposed", "slices"]

_KINDS = {
    "auc_by_label": "label",
    "auc_by_length": "length",
    "auc_by_group": "group",
    "auc_by_user_activity": "user activity",
}
_RANKED = ("row", "id", "words", "label", "text")  # the columns of a list of rows that may be shown
_SHOWN = 12  # slices of a table or figure; all of them stand in the fold


@dataclass(frozen=True)
class Exposed:
    """What a run's page says about slices: those of one attack open, all others folded away; `said` in sentences."""

    said: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    folds: tuple[Fold, ...] = ()


def slices(run: Run, attacks: Sequence[str]) -> Exposed:
    """Return who is most exposed to the attack with the highest AUC on all rows, and the other attacks' slices folded.

    Args:
        run: whose measurements.
        attacks: names of its membership attacks.
    """
    sliced = [a for a in attacks if any(_sliced(run, a, k) for k in _KINDS)]
    said, ranked = _too_small(run, attacks), _ranked(run, attacks)
    if not sliced:
        return Exposed(said, folds=ranked)
    first = _strongest(run, sliced)
    tables, plots, folded = [], [], []
    for attack in sliced:
        for kind in _KINDS:
            rows = _sliced(run, attack, kind)
            if not rows:
                continue
            if attack == first:
                tables.append(_table(run, attack, kind, rows[:_SHOWN], len(rows)))
                plots += _figure(run, attack, kind, rows)
            if attack != first or len(rows) > _SHOWN:
                folded.append(_table(run, attack, kind, rows, len(rows)))
    folds = (Fold(f"All slices of {run.label}, by every attack", tuple(folded)),) if folded else ()
    return Exposed(said, tuple(tables), tuple(plots), folds + ranked)


def _too_small(run: Run, attacks: Sequence[str]) -> tuple[str, ...]:
    """Return a sentence for each kind of slice of which none has enough rows."""
    said = []
    for kind, title in _KINDS.items():
        found = [m for a in attacks if (m := run.measurement(f"{MEMBERSHIP}{a}.{kind}")) is not None]
        if found and not any(m.groups for m in found):
            count = found[0].protocol.get("slices_left_out")
            which = f"all {count:,} slices are" if isinstance(count, int) and count > 1 else "every slice is"
            said.append(f"By {title}, {which} too small for a value of its own: {run.label}.")
    return tuple(said)


def _ranked(run: Run, attacks: Sequence[str]) -> tuple[Fold, ...]:
    """Return the members that each attack is surest of, by row, id and length; by text where ``--show-text`` put it."""
    tables = []
    for attack in attacks:
        rows = [r for r in run.series.get(f"{MEMBERSHIP}{attack}.most_exposed", []) if isinstance(r.get("row"), int)]
        head = ("place", *(key for key in _RANKED if any(key in row for row in rows)))
        cells = tuple(
            (text(str(place)), *(text(str(row[key])) if key in row else ABSENT for key in head[1:]))
            for place, row in enumerate(rows, 1)
        )
        if cells:
            tables.append(Table(f"Members with the highest scores by {attack}: {run.label}", head, cells))
    return (Fold(f"Members of {run.label} that the attacks are surest of", tuple(tables)),) if tables else ()


def _strongest(run: Run, attacks: Sequence[str]) -> str:
    """Return the attack with the highest AUC on all rows; the baseline without a model only where there is no other."""

    def area(attack: str) -> tuple[bool, float]:
        m = run.measurement(f"{MEMBERSHIP}{attack}.auc")
        return attack != BLIND, -1.0 if m is None or m.value is None else m.value

    return max(attacks, key=area)


def _sliced(run: Run, attack: str, kind: str) -> list[tuple[str, Measurement]]:
    """Return slices by exposure, the highest AUC first; those of too few rows follow, those without a value last."""
    m = run.measurement(f"{MEMBERSHIP}{attack}.{kind}")
    if m is None or not m.groups:
        return []
    rows = [(title, replace(of_group(m, title), neutral=m.neutral)) for title in m.groups]
    return sorted(rows, key=lambda row: (row[1].value is None, not row[1].supported, -(row[1].value or 0.0)))


def _table(run: Run, attack: str, kind: str, rows: Sequence[tuple[str, Measurement]], count: int) -> Table:
    which = f"the {len(rows)} most exposed of {count}" if len(rows) < count else f"{count} slices"
    caption = (
        f"Who is most exposed, by {_KINDS[kind]}: {run.label}, {attack} ({which}; {_left_out(run, attack, kind)})."
    )
    cells = tuple((Cell(title or "(empty)", note=unit(m.unit)), measured(m)) for title, m in rows)
    return Table(caption, (_KINDS[kind], "AUC"), cells, measured=True)


def _left_out(run: Run, attack: str, kind: str) -> str:
    """Return what the intervals speak of, and how many slices were too small to be told."""
    m = run.measurement(f"{MEMBERSHIP}{attack}.{kind}")
    facts = {} if m is None else m.protocol
    intervals = facts.get("intervals")
    said = f"intervals {intervals}" if isinstance(intervals, str) else "each interval is of its slice alone"
    count = facts.get("slices_left_out")
    return f"{said}; {count:,} smaller slices are left out" if isinstance(count, int) and count else said


def _figure(run: Run, attack: str, kind: str, rows: Sequence[tuple[str, Measurement]]) -> list[Plot]:
    shown = [(title or "(empty)", m) for title, m in rows if m.value is not None and m.supported][:_SHOWN]
    if len(shown) < 2:
        return []
    caption = f"The most exposed slices by {_KINDS[kind]}: AUC of {attack} on {run.label}; dashed: guessing."
    return [forest(f"By {_KINDS[kind]}: {run.label}", shown, caption)]
