"""Who holds what: sizes of clients by rank, and labels by client, as a partition came out."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from troth.report import drawing
from troth.report.drawing import colour, plain_ticks, shade, short
from troth.report.lines import FEWEST_POINTS
from troth.report.plots import Curve, Plot, line_rows
from troth.results import Json, Record

__all__ = ["label_maps", "size_figures"]

_SIZES, _LABELS = "federated.population.sizes", "federated.population.labels"
_MOST_LINES, _MOST_NAMED = 6, 24


def size_figures(named: Sequence[tuple[str, Record]]) -> list[Plot]:
    """Return how many rows each client holds, by rank; a line a population, those that are alike together.

    Args:
        named: records with what their lines are called.
    """
    lines: dict[tuple[tuple[float, float], ...], list[str]] = {}
    for label, record in named:
        points = _points(record)
        if len(points) >= FEWEST_POINTS:
            lines.setdefault(tuple(points), []).append(label)
    shown = [
        Curve(", ".join(labels), [x for x, _ in points], [y for _, y in points]) for points, labels in lines.items()
    ]
    caption = "Rows of each client, the largest first, on logarithmic axes. A straight line is a Zipf law."
    return [_sizes(shown[i : i + _MOST_LINES], caption) for i in range(0, len(shown), _MOST_LINES)]


def label_maps(named: Sequence[tuple[str, Record]]) -> list[Plot]:
    """Return which share of its rows a client has of each label: a map a population, its first clients."""
    return [plot for label, record in named if (plot := _map(label, record)) is not None]


def _points(record: Record) -> list[tuple[float, float]]:
    """Return rank and rows of clients with rows: others have no place on a logarithmic axis."""
    found = [(row.get("rank"), row.get("rows")) for row in record.series.get(_SIZES, [])]
    numbers = [(float(x), float(y)) for x, y in found if isinstance(x, int | float) and isinstance(y, int | float)]
    return [(x, y) for x, y in numbers if x > 0 and y > 0]


def _sizes(lines: Sequence[Curve], caption: str) -> Plot:
    labels = ("rank of the client", "rows")

    def paint(axes: Axes) -> None:
        for number, line in enumerate(lines):
            axes.plot(line.x, line.y, color=colour(number), label=short(line.label))
        axes.set_xscale("log")
        axes.set_yscale("log")
        plain_ticks(axes.xaxis)
        plain_ticks(axes.yaxis)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.set_title("Sizes of clients", loc="left")
        if len(lines) > 1:
            axes.legend()

    return Plot(drawing.draw(paint, 2.7, f"Sizes of clients: {lines[0].label}"), caption, line_rows(lines, labels))


def _map(called: str, record: Record) -> Plot | None:
    cells: dict[tuple[int, str], float] = {}
    for row in record.series.get(_LABELS, []):
        client, label, rows = row.get("client"), row.get("label"), row.get("rows")
        if isinstance(client, int) and isinstance(rows, int | float):
            cells[client, str(label)] = float(rows)
    if not cells:
        return None
    clients, labels = list(dict.fromkeys(c for c, _ in cells)), list(dict.fromkeys(label for _, label in cells))
    totals = {c: sum(rows for (owner, _), rows in cells.items() if owner == c) for c in clients}
    shares = {place: rows / totals[place[0]] for place, rows in cells.items() if rows and totals[place[0]]}
    data: tuple[dict[str, Json], ...] = tuple(
        {"client": c, "label": label, "rows": rows, "share_of_the_client": shares.get((c, label), 0.0)}
        for (c, label), rows in cells.items()
    )

    def paint(axes: Axes) -> None:
        for (c, label), share in shares.items():
            fill, _ = shade(share)
            place = clients.index(c) - 0.5, labels.index(label) - 0.5
            axes.add_patch(Rectangle(place, 1, 1, facecolor=fill, edgecolor=fill, linewidth=0.3))
        axes.set_xlim(-0.5, len(clients) - 0.5)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set_yticks(range(len(labels)), [short(label) for label in labels] if len(labels) <= _MOST_NAMED else [])
        axes.tick_params(axis="y", labelsize=7)
        axes.set_xlabel("client")
        axes.set_title(short(called), loc="left")

    caption = (
        f"Labels of the first {len(clients):,} clients of {called}: the darker, the larger the share of the client's "
        "own rows; the most frequent label on top."
    )
    return Plot(drawing.draw(paint, 1.2 + 0.13 * len(labels), f"Labels by client: {called}"), caption, data)
