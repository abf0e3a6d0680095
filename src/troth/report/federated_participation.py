"""Who took part in a federation: totals over its rounds, how evenly turns fell on clients, and who was lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from troth.report.federated_groups import Group
from troth.report.federated_lines import MOST_LINES, mean_line
from troth.report.lines import FEWEST_POINTS, curve
from troth.report.plots import Curve, Plot, curves
from troth.report.reading import Run
from troth.report.tables import ABSENT, Cell, Table, beside, name, number
from troth.results import Json

__all__ = ["participation_figures", "participation_table", "seed_ginis", "upload_notes"]

_SERIES = "federated.participation"
_MOST_POINTS = 100  # of a line that has one every round
_DENSE = 0.95  # of what is sent down: an upload of all of it has as much
_NAMED = 3  # runs of a note
_GINI = (
    "Gini coefficient of how often each client took part so far: 0 where all did equally often, near 1 where few did "
    "it all"
)
_COUNTS = {"selected": "counted", "dropped": "dropped out", "surplus": "too late", "rejected": "left out"}
_TOTALS = {
    "asked": ("clients asked", "turns"),
    "selected": ("updates that counted", "updates"),
    "dropped": ("clients that dropped out", "turns"),
    "surplus": ("clients that reported too late", "turns"),
    "rejected": ("updates left out", "updates"),
    "probed": ("candidates that said their loss", "turns"),
    "seconds_select": ("drawing cohorts", "seconds"),
    "seconds_clients": ("clients' work", "seconds"),
    "seconds_server": ("the server's work", "seconds"),
}
_MEANS = {"active": ("clients with rows in the window", "clients"), "staleness": ("staleness of updates", "rounds")}


def participation_table(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Return totals over the rounds of each run, one column a run; nothing where records hold no rounds."""
    having = [r for r in runs if r.series.get(_SERIES)]
    rows: list[tuple[Cell, Sequence[Cell]]] = []
    for key, (told, units) in _TOTALS.items():
        if key != "probed" or any(row.get(key) for r in having for row in r.series[_SERIES]):
            rows.append((name(told, units), [_total(r, key, mean=False) for r in having]))
    for key, (told, units) in _MEANS.items():
        rows.append((name(f"{told}, mean over rounds", units), [_total(r, key, mean=True) for r in having]))
    labels = [r.label for r in having]
    return beside("Who took part, and how long it took", "over all rounds", labels, rows, measured=True)


def participation_figures(runs: Sequence[Run]) -> list[Plot]:
    """Return the Gini coefficient by round, and where clients or updates were lost a figure of that, a run each."""
    lines = [line for r in runs if (line := _gini(r)) is not None]
    plots = []
    for i in range(0, len(lines), MOST_LINES):
        part = lines[i : i + MOST_LINES]
        counts = "; ".join(f"{line.label}: n = {line.n:,} clients" for line in part if line.n is not None)
        plots.append(curves("Evenness of participation", part, ("rounds", "Gini coefficient"), f"{_GINI} ({counts})."))
    return plots + [plot for r in runs if (plot := _lost(r)) is not None]


def seed_ginis(group: Group, partition: str) -> list[Plot]:
    """Return the mean over seeds of the Gini coefficient by round on one partition, a line an algorithm."""
    lines = []
    for algorithm in group.algorithms:
        runs = group.runs.get((partition, algorithm), ())
        line = mean_line(algorithm, runs, "round", "gini", _SERIES, limits=(0.0, 1.0))
        if line is not None:
            lines.append(_thinned(line))
    caption = f"{_GINI}. Means over seeds, with 95\N{NO-BREAK SPACE}% bands where there are several: {partition}."
    return [
        curves(f"Evenness: {partition}", lines[i : i + MOST_LINES], ("rounds", "Gini coefficient"), caption)
        for i in range(0, len(lines), MOST_LINES)
    ]


def upload_notes(runs: Sequence[Run]) -> tuple[str, ...]:
    """Return a note where some uploads were counted as the token rows that clients touched and others as whole tables.

    An upload is as large as the model that was sent, or smaller by the rows that the client never looked up.
    """
    shares = {r.label: share for r in runs if (share := _upload_share(r)) is not None}
    sparse, dense = [k for k, v in shares.items() if v < _DENSE], [k for k, v in shares.items() if v >= _DENSE]
    if not sparse or not dense:
        return ()
    named = [", ".join(labels[:_NAMED]) + (", ..." if len(labels) > _NAMED else "") for labels in (sparse, dense)]
    return (
        f"Bytes of these runs do not compare: uploads of {named[0]} were counted as the token rows that clients "
        f"touched, uploads of {named[1]} as whole tables. That goes by how clients were run (stacked or one by one), "
        "not by the algorithm: set federated.execution to hold it fixed.",
    )


def _upload_share(run: Run) -> float | None:
    """Return the bytes of an upload over those sent down to a client; None where rounds do not tell.

    Rounds with updates that were left out do not tell, nor do those in which others report than were asked.
    """
    up = down = 0.0
    for row in run.series.get(_SERIES, []):
        known = [row.get(k) for k in ("bytes_up", "bytes_down", "asked", "dropped")]
        sent, received, asked, dropped = (float(v) if isinstance(v, int | float) else None for v in known)
        probed = row.get("probed")
        if row.get("rejected") or "staleness" in row or dropped is None or not asked or asked <= dropped:
            continue
        if sent is None or received is None:
            continue
        sent_to = asked + (float(probed) if isinstance(probed, int | float) else 0.0)
        up, down = up + sent / (asked - dropped), down + received / sent_to
    return up / down if down else None


def _total(run: Run, key: str, *, mean: bool) -> Cell:
    """Return the sum or the mean of a column over the rounds that have it; absent where none has."""
    found = [v for row in run.series[_SERIES] if isinstance(v := row.get(key), int | float)]
    if not found:
        return ABSENT
    value: Json = sum(found) / len(found) if mean else sum(found)
    return Cell(number(value), note=f"n = {len(found):,} rounds, exact", kind="number")


def _gini(run: Run) -> Curve | None:
    clients = run.measurement("federated.clients")
    found = curve(run, _SERIES, "round", "gini", None if clients is None else clients.n)
    return None if found is None or len(found.x) < FEWEST_POINTS else _thinned(found)


def _lost(run: Run) -> Plot | None:
    """Return who counted and who did not by round; None where nobody was ever lost, or rounds are few."""
    rows = run.series.get(_SERIES, [])
    lost = any(row.get(key) for row in rows for key in _COUNTS if key != "selected")
    if len(rows) < FEWEST_POINTS or not lost:
        return None
    step = -(-len(rows) // _MOST_POINTS)
    blocks = [rows[i : i + step] for i in range(0, len(rows), step)]
    lines = []
    for key, told in _COUNTS.items():
        heights = [_mean(block, key) for block in blocks]
        if key == "selected" or any(heights):
            lines.append(Curve(told, [_mean(block, "round") for block in blocks], heights, n=len(rows)))
    caption = f"Clients of {run.label} in a round (n = {len(rows):,} rounds)."
    if step > 1:
        caption = f"Clients of {run.label} in a round, means of {step} rounds each (n = {len(rows):,} rounds)."
    return curves(f"Clients by round: {run.label}", lines, ("rounds", "clients"), caption)


def _mean(rows: Sequence[Mapping[str, Json]], key: str) -> float:
    found = [float(v) for row in rows if isinstance(v := row.get(key), int | float)]
    return sum(found) / len(found) if found else 0.0


def _thinned(line: Curve) -> Curve:
    """Return a line of at most a hundred points, evenly spaced, the last one kept."""
    count = len(line.x)
    step = -(-count // _MOST_POINTS)
    kept = sorted({*range(step - 1, count, step), count - 1})

    def of(values: Sequence[float]) -> list[float]:
        return [values[i] for i in kept]

    if line.low is None or line.high is None:
        return Curve(line.label, of(line.x), of(line.y), n=line.n)
    return Curve(line.label, of(line.x), of(line.y), of(line.low), of(line.high), line.n)
