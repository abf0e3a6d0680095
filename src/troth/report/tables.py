"""Tables of measurements: every value stands with its interval, its n and its unit, and is marked where n is too small.

A table is rows of cells under a head; the first cell of a row names it. On a narrow screen the page shows each row as
a card, its cells below the name, so that nothing has to be scrolled sideways.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from troth.report.reading import Run
from troth.results import Group, Json, Measurement

__all__ = [
    "ABSENT",
    "UNSUPPORTED",
    "Cell",
    "Table",
    "beside",
    "by_group",
    "interval",
    "measured",
    "name",
    "names_of",
    "number",
    "of_group",
    "percent",
    "side_by_side",
    "text",
    "unit",
]

UNSUPPORTED = "too few examples for this claim"
_RUNS_PER_TABLE = 3  # more columns do not fit a page on paper
_LONG_WORD = 24  # characters
_CONFIDENCE = 0.95  # what the page announces; another one is said in the cell
_EXACT = "exact"


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: what it says.
        detail: said behind the text, on a line of its own where both do not fit.
        note: small print below.
        mark: a warning below the small print.
        kind: a ``name`` may be torn at its dots and underscores, a ``number`` and its detail never are; an ``absent``
            one has nothing to say, and is left out where cells stand below each other.
    """

    text: str
    detail: str = ""
    note: str = ""
    mark: str = ""
    kind: Literal["text", "name", "number", "absent"] = "text"

    @property
    def long(self) -> bool:
        """Whether the text has a word, such as a fingerprint, that must be torn to fit a column."""
        return any(len(word) > _LONG_WORD for word in self.text.split())


ABSENT = Cell("-", kind="absent")


@dataclass(frozen=True)
class Table:
    """Cells in rows; the first column names the row. `measured` where its cells hold measured values."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    measured: bool = False


def number(value: Json) -> str:
    """Return a number as people read it.

    >>> number(12345), number(0.123456), number(None), number(["a", 2])
    ('12,345', '0.1235', 'not defined', 'a, 2')
    """
    if value is None:
        return "not defined"
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ", ".join(map(number, value))
    if isinstance(value, bool | dict):
        return json.dumps(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def interval(low: Json, high: Json) -> str:
    """Return an interval in square brackets; an end that is not there is infinite: the interval has one side.

    >>> interval(0.25, 0.5), interval(1.5, None)
    ('[0.25, 0.5]', '[1.5, infinity)')
    """
    if low is not None and high is None:
        return f"[{number(low)}, infinity)"
    if low is None and high is not None:
        return f"(-infinity, {number(high)}]"
    return f"[{number(low)}, {number(high)}]"


def text(value: str) -> Cell:
    """Return a cell of plain text."""
    return Cell(value)


def name(value: str, units: str) -> Cell:
    """Return a cell that names a measurement and its unit."""
    return Cell(value, note=unit(units), kind="name")


def unit(value: str) -> str:
    """Return the small print that says a unit."""
    return f"unit: {value}"


def percent(share: float) -> str:
    r"""Return a share as a percentage, its sign never torn from it.

    >>> percent(0.95), percent(0.999)
    ('95\xa0%', '99.9\xa0%')
    """
    return f"{100 * share:.6g}\N{NO-BREAK SPACE}%"


def measured(m: Measurement, *, method: bool = False) -> Cell:
    """Return a value with its interval, n and, where asked for, how the interval was made; marked where unsupported."""
    facts = [f"n = {m.n:,}"]
    if m.interval_method == _EXACT:
        facts.append(_EXACT)
    elif method or m.confidence != _CONFIDENCE:
        facts.append(f"{m.interval_method}, {percent(m.confidence)}")
    mark = "" if m.supported else UNSUPPORTED
    if m.value is None:
        return Cell("not defined", "", ", ".join(facts), mark)
    ends = "" if m.interval_method == _EXACT or (m.low is None and m.high is None) else interval(m.low, m.high)
    return Cell(number(m.value), ends, ", ".join(facts), mark, "number")


def names_of(runs: Sequence[Run], prefix: str = "") -> list[str]:
    """Return the names below a prefix that any run has measured, each once."""
    return list(dict.fromkeys(m.name for r in runs for m in r.named(prefix)))


def beside(
    caption: str,
    head: str,
    labels: Sequence[str],
    rows: Sequence[tuple[Cell, Sequence[Cell]]],
    *,
    measured: bool = False,
) -> tuple[Table, ...]:
    """Return one column a run, cut into tables of even size that fit the width of a page.

    Args:
        caption: says what the tables show.
        head: says what the first column names.
        labels: the runs.
        rows: a name and a cell for each run; what is absent from all runs of a table is left out of it.
        measured: whether the cells hold measured values.
    """
    count = -(-len(labels) // _RUNS_PER_TABLE)
    size = -(-len(labels) // max(1, count))
    tables = []
    for i in range(count):
        part = slice(i * size, (i + 1) * size)
        here = tuple((title, *cells[part]) for title, cells in rows if any(c.kind != "absent" for c in cells[part]))
        said = caption if count == 1 else f"{caption} ({i + 1} of {count})"
        tables.append(Table(said, (head, *labels[part]), here, measured))
    return tuple(t for t in tables if t.rows)


def side_by_side(
    caption: str,
    runs: Sequence[Run],
    names: Sequence[str],
    *,
    first: Sequence[tuple[Cell, Sequence[Cell]]] = (),
    method: bool = False,
) -> tuple[Table, ...]:
    """Return measurements as rows and runs as columns, in as many tables as the width of a page asks for.

    Args:
        caption: says what the tables show.
        runs: one column each.
        names: one row each.
        first: rows ahead of the measurements: the name, and a cell for each of `runs`.
        method: whether the cells say how their intervals were made.
    """
    rows = list(first)
    for wanted in names:
        found = [r.measurement(wanted) for r in runs]
        units = dict.fromkeys(m.unit for m in found if m is not None)
        cells = [ABSENT if m is None else measured(m, method=method) for m in found]
        rows.append((name(wanted, ", ".join(units)), cells))
    return beside(caption, "measurement", [r.label for r in runs], rows, measured=True)


def of_group(m: Measurement, title: str) -> Measurement:
    """Return one group's value as a measurement of its own, unsupported where the group is small.

    What means 'no effect' is not taken over: a gap of 0 says nothing about a group's own value.
    """
    group = (m.groups or {})[title]
    return replace(
        m,
        value=group.value,
        low=group.low,
        high=group.high,
        n=group.n,
        neutral=None,
        groups=None,
        supported=title not in _small(m),
        protocol={},
    )


def _small(m: Measurement) -> list[str]:
    """Return the groups that a measurement says are too small for a claim."""
    small = m.protocol.get("small_groups")
    return [g for g in small if isinstance(g, str)] if isinstance(small, list) else []


def by_group(runs: Sequence[Run], wanted: str) -> tuple[Table, ...]:
    """Return the groups of one measurement as rows and runs as columns; no table where no run has any."""
    having = [(r.label, m) for r in runs if (m := r.measurement(wanted)) is not None and m.groups]
    groups = dict.fromkeys(g for _, m in having for g in m.groups or {})
    units = unit(", ".join(dict.fromkeys(m.unit for _, m in having)))
    rows = [(Cell(g or "(empty)", note=units), [_group_cell(m, g) for _, m in having]) for g in groups]
    caption = f"{wanted}: each group's own value"
    return beside(caption, "group", [label for label, _ in having], rows, measured=True)


def _group_cell(m: Measurement, title: str) -> Cell:
    group: Group | None = (m.groups or {}).get(title)
    if group is None:
        return ABSENT
    mark = UNSUPPORTED if title in _small(m) else ""
    if group.value is None:
        return Cell("not defined", "", f"n = {group.n:,}", mark)
    return Cell(number(group.value), interval(group.low, group.high), f"n = {group.n:,}", mark, "number")
