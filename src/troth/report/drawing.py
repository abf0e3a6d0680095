"""How figures are drawn: one pair of axes as inline SVG that follows the page's light or dark colours.

Ink is drawn in one sentinel colour and becomes ``currentColor``; series keep the Okabe-Ito palette, which stays
apart for colour-blind readers on both backgrounds. No text is parsed as mathematics, so a label is shown as it is.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

__all__ = ["INK", "PALETTE", "TICKS", "amount", "colour", "draw", "plain_ticks", "shade", "short"]

INK = "#010203"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
TICKS = 6  # labels of an axis at most, so that they stay apart
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
_LABEL_LENGTH = 28
_WIDTH = 4.6  # inches: two figures side by side on a page, readable where a phone shrinks one to its width
_LIGHTEST, _DARKEST = (0.93, 0.96, 0.99), (0.03, 0.19, 0.42)
_EVEN = 0.179  # relative luminance against which black and white stand out alike (WCAG 2)


def draw(paint: Callable[[Axes], None], height: float, salt: str) -> str:
    """Return the SVG of what `paint` draws on one pair of axes; `salt` names it for those who cannot see it."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": salt}):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        figure.patch.set_alpha(0)
        paint(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{_attribute(salt)}" ', 1)


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")


def short(label: str) -> str:
    """Return a label without characters that cannot be printed, cut where it would not fit."""
    clean = "".join(c if c.isprintable() else " " for c in label)
    return clean if len(clean) <= _LABEL_LENGTH else clean[: _LABEL_LENGTH - 1] + "…"


def colour(index: int) -> str:
    """Return the colour of the line with that number."""
    return PALETTE[index % len(PALETTE)]


def shade(share: float) -> tuple[tuple[float, float, float], str]:
    """Return the fill of a cell for a share in [0, 1], light to dark, and the colour of text that is read on it."""
    red, green, blue = (a + share * (b - a) for a, b in zip(_LIGHTEST, _DARKEST, strict=True))
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (red, green, blue), "#000000" if luminance > _EVEN else "#ffffff"


def plain_ticks(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers: the usual labels are mathematics, which is not parsed here."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def amount(value: float) -> str:
    """Return a count as a tick's label.

    >>> amount(2.5e9), amount(3e6), amount(1500)
    ('2.5 G', '3 M', '1,500')
    """
    for scale, suffix in ((1e9, " G"), (1e6, " M")):
        if abs(value) >= scale:
            return f"{value / scale:g}{suffix}"
    return f"{value:,.10g}"
