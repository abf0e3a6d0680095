"""Figures of attacks: histograms of scores, exposure against repetitions, extraction by setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from troth.report import drawing
from troth.report.drawing import INK, PALETTE, colour, plain_ticks, shade, short
from troth.report.plots import Curve, Plot, line_rows
from troth.results import Json

__all__ = ["Bin", "Decoys", "Extracted", "exposure", "extraction", "histogram"]


@dataclass(frozen=True)
class Bin:
    """How many scores lie between two numbers; an end that is None is infinite."""

    low: float | None
    high: float | None
    members: int
    nonmembers: int


@dataclass(frozen=True)
class Decoys:
    """Exposure of codes that were never inserted, with its interval and how many they are."""

    label: str
    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Extracted:
    """The share of canaries of one setting that were extracted exactly, with its interval and their number."""

    unknown_tokens: int
    repeats: int
    value: float
    low: float | None
    high: float | None
    n: int


def histogram(title: str, bins: Sequence[Bin], caption: str) -> Plot:
    """Return what share of members and of non-members has scores in each bin; bins without an end are not drawn."""
    rows: tuple[dict[str, Json], ...] = tuple(
        {"low": b.low, "high": b.high, "members": b.members, "nonmembers": b.nonmembers} for b in bins
    )
    totals = [max(1, sum(b.members for b in bins)), max(1, sum(b.nonmembers for b in bins))]
    shown = sorted((b.low, b.high, b.members, b.nonmembers) for b in bins if b.low is not None and b.high is not None)
    uneven = len({round(high - low, 9) for low, high, *_ in shown}) > 1

    def paint(axes: Axes) -> None:
        for side, (label, style) in enumerate((("members", "-"), ("non-members", "--"))):
            ends, heights = _outline([(b[0], b[1], b[2 + side] / totals[side]) for b in shown], per_width=uneven)
            axes.fill_between(ends, heights, color=PALETTE[1 - side], alpha=0.25, linewidth=0)
            axes.plot(ends, heights, style, color=PALETTE[1 - side], linewidth=1.2, label=label)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("score, higher = more likely a member")
        axes.set_ylabel("density" if uneven else "share of each side")
        axes.set_title(short(title), loc="left")
        axes.legend()

    return Plot(drawing.draw(paint, 2.6, f"Scores: {title}"), caption, rows)


def _outline(bars: Sequence[tuple[float, float, float]], *, per_width: bool) -> tuple[list[float], list[float]]:
    """Return the outline of bars (low, high, share); their areas are the shares where widths differ."""
    ends, heights = [], []
    for low, high, share in bars:
        height = share / (high - low) if per_width and high > low else share
        ends += [low, low, high, high]
        heights += [0.0, height, height, 0.0]
    return ends, heights


def exposure(title: str, lines: Sequence[Curve], decoys: Sequence[Decoys], caption: str) -> Plot:
    """Return exposure in bits against repetitions on a logarithmic axis, and the band of codes never inserted."""
    rows = line_rows(lines, ("repeats", "exposure_bits"))
    rows += tuple(
        {"line": d.label, "repeats": 0, "exposure_bits": d.value, "low": d.low, "high": d.high, "n": d.n}
        for d in decoys
    )

    def paint(axes: Axes) -> None:
        for number, line in enumerate(lines):
            axes.plot(line.x, line.y, color=colour(number), marker="o", markersize=3, label=short(line.label))
            if line.low is not None and line.high is not None:
                axes.fill_between(line.x, line.low, line.high, color=colour(number), alpha=0.2, linewidth=0)
        for number, d in enumerate(decoys):
            style = ("--", ":", "-.")[number % 3]
            axes.axhspan(d.low, d.high, color=INK, alpha=0.12, linewidth=0)
            axes.axhline(d.value, color=INK, linewidth=0.8, linestyle=style, label=short(d.label))
        axes.set_xscale("log")
        plain_ticks(axes.xaxis)
        axes.set_xticks(sorted({float(x) for line in lines for x in line.x}))
        axes.set_ylim(bottom=0)
        axes.set_xlabel("repetitions of the canary")
        axes.set_ylabel("exposure, bits")
        axes.set_title(short(title), loc="left")
        axes.legend()

    return Plot(drawing.draw(paint, 3.2, title), caption, rows)


def extraction(title: str, cells: Sequence[Extracted], caption: str) -> Plot:
    """Return the share extracted exactly by unknown tokens and repetitions, each cell with its share and n."""
    unknown = sorted({c.unknown_tokens for c in cells})
    repeats = sorted({c.repeats for c in cells})
    rows: tuple[dict[str, Json], ...] = tuple(
        {
            "unknown_tokens": c.unknown_tokens,
            "repeats": c.repeats,
            "exact_match": c.value,
            "low": c.low,
            "high": c.high,
            "n": c.n,
        }
        for c in cells
    )

    def paint(axes: Axes) -> None:
        for c in cells:
            x, y = repeats.index(c.repeats), unknown.index(c.unknown_tokens)
            fill, ink = shade(c.value)
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=fill, edgecolor=INK, linewidth=0.5))
            axes.text(x, y, f"{c.value:.2f}\nn = {c.n:,}", ha="center", va="center", color=ink)
        axes.set_xlim(-0.5, len(repeats) - 0.5)
        axes.set_ylim(-0.5, len(unknown) - 0.5)
        axes.set_xticks(range(len(repeats)), [f"{r:,}" for r in repeats])
        axes.set_yticks(range(len(unknown)), [f"{u:,}" for u in unknown])
        axes.set_xlabel("repetitions of the canary")
        axes.set_ylabel("unknown tokens")
        axes.set_title(short(title), loc="left")

    return Plot(drawing.draw(paint, 1.0 + 0.55 * len(unknown), title), caption, rows)
