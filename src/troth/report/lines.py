"""A run's series as a line, and its points as numbers where there are too few for a line to have a shape."""

from __future__ import annotations

from collections.abc import Sequence

from troth.report.plots import Curve
from troth.report.reading import Run
from troth.report.tables import Cell, Table, interval, number, text

__all__ = ["FEWEST_POINTS", "counted", "curve", "point", "points", "split"]

FEWEST_POINTS = 3  # of a line; below that the numbers are said


def curve(run: Run, series: str, x: str, y: str, n: int | None = None) -> Curve | None:
    """Return a run's series as a line, with a band where every row has ``low`` and ``high``.

    Rows without both numbers are left out.

    Args:
        run: whose series.
        series: its name.
        x: the key of what the line runs over.
        y: the key of its height.
        n: what each point rests on.
    """
    rows = [[row.get(key) for key in (x, y, "low", "high")] for row in run.series.get(series, [])]
    good = [row for row in rows if isinstance(row[0], int | float) and isinstance(row[1], int | float)]
    if not good:
        return None
    xs, ys, lows, highs = zip(*good, strict=True)
    banded = all(isinstance(v, int | float) for v in (*lows, *highs))
    return Curve(run.label, xs, ys, lows if banded else None, highs if banded else None, n)


def split(lines: Sequence[Curve]) -> tuple[list[Curve], list[Curve]]:
    """Return the lines that make a curve, and those of so few points that their numbers are said instead."""
    return [c for c in lines if len(c.x) >= FEWEST_POINTS], [c for c in lines if len(c.x) < FEWEST_POINTS]


def points(caption: str, lines: Sequence[Curve], labels: tuple[str, str], units: str) -> tuple[Table, ...]:
    """Return the points of lines as a table, none where there are no lines; `labels` names x and y."""
    rows = tuple(
        (text(line.label), text(number(x)), point(line, i), text(units)) for line in lines for i, x in enumerate(line.x)
    )
    return (Table(caption, ("run", *labels, "unit"), rows, measured=True),) if rows else ()


def point(line: Curve, i: int) -> Cell:
    """Return the height of a line's point with its interval and n."""
    ends = interval(line.low[i], line.high[i]) if line.low is not None and line.high is not None else ""
    return Cell(number(line.y[i]), ends, "" if line.n is None else f"n = {line.n:,}", kind="number")


def counted(lines: Sequence[Curve]) -> str:
    """Return what each line rests on, for a caption; n that all share is said once."""
    counts = {line.label: line.n for line in lines if line.n is not None}
    if len(set(counts.values())) == 1 and len(counts) == len(lines):
        return f"n = {next(iter(counts.values())):,}"
    return "; ".join(f"{label}: n = {n:,}" for label, n in counts.items()) or "n is not in the record"
