"""Figures as inline SVG that follow the page's light or dark colours, each with the CSV of what it shows.

Ink is drawn in one sentinel colour and becomes ``currentColor``; series keep the Okabe-Ito palette, which stays
apart for colour-blind readers on both backgrounds. No text is parsed as mathematics, so a label is shown as it is.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from troth.results import Json, Measurement

__all__ = ["Curve", "Plot", "curves", "forest", "roc"]

_INK = "#010203"
_PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "axes.facecolor": "none",
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
_LABEL_LENGTH = 28
_TICKS = 6  # labels of an axis at most, so that they stay apart
_WIDTH = 4.6  # inches: two figures side by side on a page, readable where a phone shrinks one to its width


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


def _short(label: str) -> str:
    clean = "".join(c if c.isprintable() else " " for c in label)
    return clean if len(clean) <= _LABEL_LENGTH else clean[: _LABEL_LENGTH - 1] + "…"


def _draw(paint: Callable[[Axes], None], height: float, salt: str) -> str:
    """Return the SVG of what `paint` draws on one pair of axes."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": salt}):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        figure.patch.set_alpha(0)
        paint(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{_attribute(salt)}" ', 1)


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")


def _plain_ticks(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers: the usual labels are mathematics, which is not parsed here."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _amount(value: float) -> str:
    """Return a count as a tick's label.

    >>> _amount(2.5e9), _amount(3e6), _amount(1500)
    ('2.5 G', '3 M', '1,500')
    """
    for scale, suffix in ((1e9, " G"), (1e6, " M")):
        if abs(value) >= scale:
            return f"{value / scale:g}{suffix}"
    return f"{value:,.10g}"


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
            axes.plot([low, high], [position, position], color=_PALETTE[0], linewidth=2)
            axes.plot(value, position, "o", color=_PALETTE[0])
        axes.set_yticks(range(len(shown)), [f"{_short(label)}\nn = {m.n:,}" for label, m in reversed(shown)])
        axes.set_ylim(-0.6, len(shown) - 0.4)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=_TICKS))
        neutral = shown[0][1].neutral if shown else None
        if neutral is not None:
            axes.axvline(neutral, color=_INK, linewidth=0.8, linestyle="--")
        axes.set_xlabel(_short(shown[0][1].unit) if shown else "")
        axes.set_title(_short(title), loc="left")

    return Plot(_draw(paint, 1.0 + 0.42 * max(1, len(shown)), title), caption, data)


def curves(title: str, lines: Sequence[Curve], labels: tuple[str, str], caption: str) -> Plot:
    """Return lines over a shared axis, with bands where a curve has them; `labels` names the axes x and y."""
    rows: list[dict[str, Json]] = []
    for line in lines:
        for i, (x, y) in enumerate(zip(line.x, line.y, strict=True)):
            row: dict[str, Json] = {"line": line.label, labels[0]: x, labels[1]: y}
            if line.low is not None and line.high is not None:
                row |= {"low": line.low[i], "high": line.high[i]}
            rows.append(row | {"n": line.n})

    def paint(axes: Axes) -> None:
        for number, line in enumerate(lines):
            colour = _PALETTE[number % len(_PALETTE)]
            axes.plot(line.x, line.y, color=colour, marker="o", markersize=2.5, label=_short(line.label))
            if line.low is not None and line.high is not None:
                axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.2, linewidth=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=_TICKS, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _amount(value)))
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.set_title(_short(title), loc="left")
        if len(lines) > 1:
            axes.legend()

    return Plot(_draw(paint, 3.0, title), caption, tuple(rows))


def roc(title: str, lines: Sequence[Curve], caption: str) -> Plot:
    """Return ROC curves on logarithmic axes, with the diagonal of an attacker who guesses."""
    rows: tuple[dict[str, Json], ...] = tuple(
        {"line": line.label, "false_positive_rate": x, "true_positive_rate": y, "n": line.n}
        for line in lines
        for x, y in zip(line.x, line.y, strict=True)
    )
    positive = [v for line in lines for v in (*line.x, *line.y) if v > 0]
    floor = max(min(positive, default=1e-3), 1e-5)

    def paint(axes: Axes) -> None:
        axes.plot([floor, 1], [floor, 1], color=_INK, linewidth=0.8, linestyle="--", label="guessing")
        for number, line in enumerate(lines):
            points = [(x, y) for x, y in zip(line.x, line.y, strict=True) if x > 0 and y > 0]
            axes.plot(*zip(*points, strict=True), color=_PALETTE[number % len(_PALETTE)], label=_short(line.label))
        axes.set_xscale("log")
        axes.set_yscale("log")
        _plain_ticks(axes.xaxis)
        _plain_ticks(axes.yaxis)
        axes.set_xlabel("false positive rate")
        axes.set_ylabel("true positive rate")
        axes.set_title(_short(title), loc="left")
        axes.legend()

    return Plot(_draw(paint, 3.6, title), caption, rows)
