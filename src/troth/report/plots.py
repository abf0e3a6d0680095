"""Figures that any section may use, each with the CSV of what it shows: intervals, lines, ROC curves."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from troth.report import drawing
from troth.report.drawing import INK, PALETTE, TICKS, amount, colour, plain_ticks, short
from troth.results import Json, Measurement

__all__ = ["Curve", "Plot", "curves", "forest", "roc"]


@dataclass(frozen=True)
class Plot:
    """A figure: inline SVG, a caption, and the rows it was drawn from."""

    svg: str
    caption: str
    rows: tuple[dict[str, Json], ...]

    def csv(self) -> str:
        """Return the rows as CSV; cells that a spreadsheet would take for a formula are quoted with an apostrophe."""
        buffer = io.StringIO()
        keys = list(dict.fromkeys(k for row in self.rows for k in row))
        writer = csv.DictWriter(buffer, keys, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: _cell(v) for k, v in row.items()} for row in self.rows)
        return buffer.getvalue()


@dataclass(frozen=True)
class Curve:
    """A named line: points in order, with an optional band; `n` is what each point rests on, where it is known."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    n: int | None = None


def _cell(value: Json) -> Json:
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def forest(title: str, rows: Sequence[tuple[str, Measurement]], caption: str) -> Plot:
    """Return values with their intervals, one row a label; the neutral value, where there is one, as a line."""
    shown = [(label, m) for label, m in rows if m.value is not None]
    data: tuple[dict[str, Json], ...] = tuple(
        {"label": label, "name": m.name, "value": m.value, "low": m.low, "high": m.high, "n": m.n} for label, m in shown
    )

    def paint(axes: Axes) -> None:
        for position, (_, m) in enumerate(reversed(shown)):
            value = m.value if m.value is not None else 0.0  # `shown` holds no missing value
            low, high = m.low if m.low is not None else value, m.high if m.high is not None else value
            axes.plot([low, high], [position, position], color=PALETTE[0], linewidth=2)
            axes.plot(value, position, "o", color=PALETTE[0])
        axes.set_yticks(range(len(shown)), [f"{short(label)}\nn = {m.n:,}" for label, m in reversed(shown)])
        axes.set_ylim(-0.6, len(shown) - 0.4)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=TICKS))
        neutral = shown[0][1].neutral if shown else None
        if neutral is not None:
            axes.axvline(neutral, color=INK, linewidth=0.8, linestyle="--")
        axes.set_xlabel(short(shown[0][1].unit) if shown else "")
        axes.set_title(short(title), loc="left")

    return Plot(drawing.draw(paint, 1.0 + 0.42 * max(1, len(shown)), title), caption, data)


def curves(title: str, lines: Sequence[Curve], labels: tuple[str, str], caption: str) -> Plot:
    """Return lines over a shared axis, with bands where a curve has them; `labels` names the axes x and y."""

    def paint(axes: Axes) -> None:
        for number, line in enumerate(lines):
            axes.plot(line.x, line.y, color=colour(number), marker="o", markersize=2.5, label=short(line.label))
            if line.low is not None and line.high is not None:
                axes.fill_between(line.x, line.low, line.high, color=colour(number), alpha=0.2, linewidth=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=TICKS, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: amount(value)))
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.set_title(short(title), loc="left")
        if len(lines) > 1:
            axes.legend()

    return Plot(drawing.draw(paint, 3.0, title), caption, line_rows(lines, labels))


def line_rows(lines: Sequence[Curve], labels: tuple[str, str]) -> tuple[dict[str, Json], ...]:
    """Return the points of lines as rows of a CSV; `labels` names x and y."""
    rows: list[dict[str, Json]] = []
    for line in lines:
        for i, (x, y) in enumerate(zip(line.x, line.y, strict=True)):
            row: dict[str, Json] = {"line": line.label, labels[0]: x, labels[1]: y}
            if line.low is not None and line.high is not None:
                row |= {"low": line.low[i], "high": line.high[i]}
            rows.append(row | {"n": line.n})
    return tuple(rows)


def roc(title: str, lines: Sequence[Curve], caption: str) -> Plot:
    """Return ROC curves on logarithmic axes with their bands, and the diagonal of an attacker who guesses.

    Points at a rate of 0, which a logarithmic axis does not have, are not drawn; bands end at the axis.
    """
    positive = [v for line in lines for v in (*line.x, *line.y) if v > 0]
    floor = max(min(positive, default=1e-3), 1e-5)

    def paint(axes: Axes) -> None:
        axes.plot([floor, 1], [floor, 1], color=INK, linewidth=0.8, linestyle="--", label="guessing")
        for number, line in enumerate(lines):
            points = [(x, y) for x, y in zip(line.x, line.y, strict=True) if x > 0 and y > 0]
            axes.plot(*zip(*points, strict=True), color=colour(number), label=short(line.label))
            _roc_band(axes, line, floor, colour(number))
        axes.set_xscale("log")
        axes.set_yscale("log")
        if any(line.low is not None for line in lines):
            axes.set_ylim(bottom=floor * 0.9)
        plain_ticks(axes.xaxis)
        plain_ticks(axes.yaxis)
        axes.set_xlabel("false positive rate")
        axes.set_ylabel("true positive rate")
        axes.set_title(short(title), loc="left")
        axes.legend()

    return Plot(
        drawing.draw(paint, 3.6, title), caption, line_rows(lines, ("false_positive_rate", "true_positive_rate"))
    )


def _roc_band(axes: Axes, line: Curve, floor: float, shown: str) -> None:
    """Fill between the ends of a curve's intervals, cut off at the foot of a logarithmic axis."""
    if line.low is None or line.high is None:
        return
    x, low, high = (np.asarray(v, dtype=np.float64) for v in (line.x, line.low, line.high))
    seen = x > 0
    ends = np.maximum(low[seen], floor), np.maximum(high[seen], floor)
    axes.fill_between(x[seen], *ends, color=shown, alpha=0.18, linewidth=0)
