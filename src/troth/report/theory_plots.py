"""Figures of theory and practice: what is proved and what succeeds at each epsilon, and what it costs in quality."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from troth.report import drawing
from troth.report.drawing import INK, PALETTE, colour, short
from troth.report.plots import Plot
from troth.report.tables import number
from troth.results import Json

__all__ = ["Cloud", "Spot", "epsilon_figure", "tradeoff"]

_MARKERS = ("o", "s", "^", "D", "v", "P")
_MOST_TICKS = 7
_ROOM = 0.3  # of the width of the finite epsilons, before infinity


@dataclass(frozen=True)
class Cloud:
    """The values of runs that differ by their seed alone, at one theoretical epsilon.

    Attributes:
        line: what was measured, such as an attack's name.
        setting: the runs' name.
        epsilon: theoretical, in nats; infinity without privacy.
        values: one a run.
        low: lower end: of the values, or of a single value's interval.
        high: upper end.
        largest: the largest epsilon that an audit could have proved, where the values are of an audit.
    """

    line: str
    setting: str
    epsilon: float
    values: tuple[float, ...]
    low: float | None = None
    high: float | None = None
    largest: float | None = None

    @property
    def mean(self) -> float:
        """Mean of the values."""
        return sum(self.values) / len(self.values)


@dataclass(frozen=True)
class Spot:
    """One setting's quality and leakage: means over its runs and their ranges; `best` where in the Pareto set."""

    setting: str
    epsilon: float
    quality: Cloud
    leakage: Cloud
    best: bool


def _told(epsilon: float) -> str:
    return "infinity" if math.isinf(epsilon) else number(epsilon)


class _Scale:
    """Where epsilons stand on a logarithmic axis with infinity at its right edge."""

    def __init__(self, epsilons: Sequence[float]) -> None:
        self.known = sorted({e for e in epsilons if 0 < e < math.inf})
        logs = [math.log10(e) for e in self.known] or [0.0]
        self.unbounded = any(math.isinf(e) for e in epsilons)
        self.first, self.last = logs[0], logs[-1]
        self.edge = self.last + max(0.3, _ROOM * (self.last - self.first))

    def __call__(self, epsilon: float) -> float:
        return self.edge if math.isinf(epsilon) else math.log10(epsilon)

    def dress(self, axes: Axes) -> None:
        """Label the axis with the epsilons themselves, and set infinity apart."""
        step = -(-len(self.known) // _MOST_TICKS) if self.known else 1
        ticks = self.known[::step]
        positions, labels = [self(e) for e in ticks], [number(e) for e in ticks]
        if self.unbounded:
            positions, labels = [*positions, self.edge], [*labels, "infinity"]
            between = (self.last + self.edge) / 2
            axes.axvline(between, color=INK, linewidth=0.6, linestyle=":")
        axes.set_xticks(positions, labels)
        margin = 0.12 + 0.04 * (self.edge - self.first)
        axes.set_xlim(self.first - margin, (self.edge if self.unbounded else self.last) + margin)


def epsilon_figure(
    title: str, clouds: Sequence[Cloud], measured: str, caption: str, *, neutral: float | None = None
) -> Plot:
    """Return values against theoretical epsilon (log axis, infinity at the right edge), a colour for each line.

    Each run is a small dot, each setting's mean a large one with the range of its runs, or a single run's interval.
    Clouds of an audit (they have a largest provable epsilon) come with the diagonal on which practice would be theory.

    Args:
        title: the figure's name.
        clouds: what to show; epsilons above 0.
        measured: the name of the vertical axis.
        caption: said below.
        neutral: the value that means 'no effect', drawn as a line.
    """
    lines = list(dict.fromkeys(c.line for c in clouds))
    scale = _Scale([c.epsilon for c in clouds])
    audited = any(c.largest is not None for c in clouds)

    def paint(axes: Axes) -> None:
        for i, line in enumerate(lines):
            aside = 0.02 * (i - (len(lines) - 1) / 2) * (1 + scale.edge - scale.first)
            _paint_clouds(axes, [c for c in clouds if c.line == line], (scale, aside), i)
        if audited:
            _paint_theory(axes, clouds, scale)
        if neutral is not None:
            axes.axhline(neutral, color=INK, linewidth=0.8, linestyle="--")
        scale.dress(axes)
        axes.set_xlabel("theoretical epsilon, nats")
        axes.set_ylabel(measured)
        axes.set_title(short(title), loc="left")
        if len(lines) > 1 or audited:
            axes.legend()

    return Plot(drawing.draw(paint, 3.4, title), caption, tuple(row for c in clouds for row in _cloud_rows(c)))


def _cloud_rows(cloud: Cloud) -> list[dict[str, Json]]:
    """Return one row a run: infinity is said in words, which CSV readers understand."""
    return [
        {
            "line": cloud.line,
            "setting": cloud.setting,
            "theoretical_epsilon": "infinity" if math.isinf(cloud.epsilon) else cloud.epsilon,
            "value": value,
            "mean": cloud.mean,
            "low": cloud.low,
            "high": cloud.high,
            "largest_provable_epsilon": cloud.largest,
            "runs": len(cloud.values),
        }
        for value in cloud.values
    ]


def _paint_clouds(axes: Axes, clouds: Sequence[Cloud], where: tuple[_Scale, float], index: int) -> None:
    """Paint one line's clouds; `where` is the scale and how far aside the line stands of others."""
    scale, aside = where
    shown = colour(index)
    for i, cloud in enumerate(clouds):
        x = scale(cloud.epsilon) + aside
        if cloud.low is not None and cloud.high is not None:
            axes.plot([x, x], [cloud.low, cloud.high], color=shown, linewidth=1.2)
        if len(cloud.values) > 1:
            axes.plot([x] * len(cloud.values), cloud.values, ".", color=shown, alpha=0.6, markersize=4)
        label = short(cloud.line) if i == 0 else None
        axes.plot(x, cloud.mean, _MARKERS[index % len(_MARKERS)], color=shown, markersize=5, label=label)


def _paint_theory(axes: Axes, clouds: Sequence[Cloud], scale: _Scale) -> None:
    """Paint the diagonal, which is a curve on a logarithmic axis, and what could have been proved at each epsilon."""
    provable = [(scale(c.epsilon), c.largest) for c in clouds if c.largest is not None]
    top = max(v for c in clouds for v in (*c.values, c.largest or 0.0))
    if scale.known:
        logs = np.linspace(scale.first, scale.last, 100)
        axes.plot(logs, 10**logs, color=INK, linewidth=0.8, linestyle="--", label="audited = theoretical")
    axes.plot(*zip(*provable, strict=True), "_", color=PALETTE[1], markersize=14, label="largest provable")
    axes.set_ylim(-0.04 * top, 1.12 * max(top, 1e-3))


def tradeoff(title: str, spots: Sequence[Spot], labels: tuple[str, str], caption: str) -> Plot:
    """Return leakage against quality, one point a setting with the range of its runs; the Pareto set is marked.

    Args:
        title: the figure's name.
        spots: the settings.
        labels: names of quality (horizontal) and leakage (vertical).
        caption: said below.
    """
    rows: tuple[dict[str, Json], ...] = tuple(
        {
            "setting": s.setting,
            "theoretical_epsilon": "infinity" if math.isinf(s.epsilon) else s.epsilon,
            "quality": s.quality.mean,
            "quality_low": s.quality.low,
            "quality_high": s.quality.high,
            "leakage": s.leakage.mean,
            "leakage_low": s.leakage.low,
            "leakage_high": s.leakage.high,
            "runs": len(s.leakage.values),
            "pareto": s.best,
        }
        for s in spots
    )

    def paint(axes: Axes) -> None:
        for best, shown, label in ((False, PALETTE[5], "others"), (True, PALETTE[1], "Pareto set")):
            chosen = [s for s in spots if s.best == best]
            if not chosen:
                continue
            for s in chosen:
                _paint_range(axes, s, shown)
            places = [s.quality.mean for s in chosen], [s.leakage.mean for s in chosen]
            axes.plot(*places, "D" if best else "o", color=shown, label=label)
        for s in spots:
            if s.best:
                place = (s.quality.mean, s.leakage.mean)
                axes.annotate(_told(s.epsilon), place, (5, 5), textcoords="offset points", fontsize=8)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.set_title(short(title), loc="left")
        axes.legend()

    return Plot(drawing.draw(paint, 3.4, title), caption, rows)


def _paint_range(axes: Axes, spot: Spot, shown: str) -> None:
    x, y = spot.quality, spot.leakage
    if x.low is not None and x.high is not None:
        axes.plot([x.low, x.high], [y.mean, y.mean], color=shown, linewidth=0.8)
    if y.low is not None and y.high is not None:
        axes.plot([x.mean, x.mean], [y.low, y.high], color=shown, linewidth=0.8)
