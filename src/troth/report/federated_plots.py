"""Figures of federations: quality beside centralised training, who took part, quality by period trained and tested."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from troth.report import drawing
from troth.report.drawing import INK, TICKS, amount, colour, shade, short
from troth.report.plots import Curve, Plot, line_rows
from troth.results import Json

__all__ = ["Level", "heat_map", "quality_curves"]

_STYLES = ("--", ":", "-.")
_NUMBERED = 10  # periods up to which cells hold their numbers
_MOST_PERIODS = 30  # of a heat map; of more, evenly spaced ones


@dataclass(frozen=True)
class Level:
    """A value that does not change along the axis, such as centralised training; `n` says what it rests on."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    n: str = ""


def quality_curves(
    title: str, lines: Sequence[Curve], levels: Sequence[Level], labels: tuple[str, str], caption: str
) -> Plot:
    """Return lines over a shared axis with bands where a line has them, and levels as broken horizontal lines.

    Args:
        title: the figure's name.
        lines: what is drawn.
        levels: what it is held against.
        labels: names of the axes x and y.
        caption: said below.
    """
    rows = line_rows(lines, labels)
    rows += tuple(
        {"line": v.label, labels[0]: None, labels[1]: v.value, "low": v.low, "high": v.high, "n": v.n} for v in levels
    )

    def paint(axes: Axes) -> None:
        for number, line in enumerate(lines):
            axes.plot(line.x, line.y, color=colour(number), marker="o", markersize=2.5, label=short(line.label))
            if line.low is not None and line.high is not None:
                axes.fill_between(line.x, line.low, line.high, color=colour(number), alpha=0.2, linewidth=0)
        for number, level in enumerate(levels):
            style = _STYLES[number % len(_STYLES)]
            axes.axhline(level.value, color=INK, linewidth=0.9, linestyle=style, label=short(level.label))
            if level.low is not None and level.high is not None:
                axes.axhspan(level.low, level.high, color=INK, alpha=0.08, linewidth=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=TICKS, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: amount(value)))
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.set_title(short(title), loc="left")
        if len(lines) + len(levels) > 1:
            axes.legend()

    named = title if labels[0] in title else f"{title}, by {labels[0]}"
    return Plot(drawing.draw(paint, 2.7, named), caption, rows)


def heat_map(
    title: str, periods: Sequence[int], quality: NDArray[np.float64], *, metric: str, higher: bool, caption: str
) -> Plot:
    """Return quality by period trained (down) and period tested (across); darker is better.

    Args:
        title: the figure's name.
        periods: their numbers.
        quality: [trained, tested], NaN where nothing was tested.
        metric: what quality is.
        higher: whether more is better.
        caption: said below.
    """
    step = -(-len(periods) // _MOST_PERIODS)
    kept = list(range(0, len(periods), step))
    shown, called = quality[np.ix_(kept, kept)], [periods[i] for i in kept]
    rows: tuple[dict[str, Json], ...] = tuple(
        {"trained_to_period": called[i], "tested_on_period": called[j], metric: float(shown[i, j])}
        for i in range(len(called))
        for j in range(len(called))
        if math.isfinite(shown[i, j])
    )
    finite = shown[np.isfinite(shown)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)

    def paint(axes: Axes) -> None:
        for i, row in enumerate(shown):
            for j, value in enumerate(row):
                if math.isfinite(value):
                    share = (float(value) - low) / (high - low) if high > low else 0.5
                    fill, ink = shade(share if higher else 1 - share)
                    axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=fill, edgecolor=fill, linewidth=0.3))
                    if len(called) <= _NUMBERED:
                        axes.text(j, i, _cell(float(value)), ha="center", va="center", color=ink, fontsize=7)
        axes.plot([-0.5, len(called) - 0.5], [-0.5, len(called) - 0.5], color=INK, linewidth=0.6, linestyle=":")
        axes.set_xlim(-0.5, len(called) - 0.5)
        axes.set_ylim(len(called) - 0.5, -0.5)
        every = -(-len(called) // _NUMBERED)
        ticks = range(0, len(called), every)
        axes.set_xticks(ticks, [str(called[i]) for i in ticks])
        axes.set_yticks(ticks, [str(called[i]) for i in ticks])
        axes.set_xlabel("period tested")
        axes.set_ylabel("after training on period")
        axes.set_title(short(title), loc="left")

    return Plot(drawing.draw(paint, 3.6, title), caption, rows)


def _cell(value: float) -> str:
    """Return a number of three or four characters, as a cell has room for.

    >>> _cell(0.8765), _cell(1.0), _cell(123.4)
    ('.88', '1', '123')
    """
    if 0 <= value < 0.995:
        return f"{value:.2f}".removeprefix("0")
    return f"{value:.3g}"
