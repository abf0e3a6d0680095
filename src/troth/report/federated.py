"""The section on federations: what was run, what it reached for what it cost, who took part, how devices fare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from troth.report.federated_devices import decile_figures, device_paragraphs, device_rows, device_tables
from troth.report.federated_facts import DEVICES, PERSONAL, ROUND, UNSEEN, Facts, facts, is_federated
from troth.report.federated_grid import grid_of
from troth.report.federated_grid_tables import grid_notes, grid_section_tables
from troth.report.federated_groups import Group, groups, headline
from troth.report.federated_lines import COSTS, by_round, mean_panels, run_panels
from troth.report.federated_participation import participation_figures, participation_table, seed_ginis, upload_notes
from troth.report.federated_population import label_maps, size_figures
from troth.report.federated_stream import stream_figures, stream_means
from troth.report.lines import FEWEST_POINTS, curve, point
from troth.report.plots import Curve, Plot
from troth.report.reading import Run
from troth.report.section import DETAILED_RUNS, Fold, Section
from troth.report.tables import ABSENT, Cell, Table, measured, names_of, number, side_by_side, text, unit
from troth.results import Measurement, Record

__all__ = ["federation"]

_PARAGRAPH = (
    "The devices are simulated on one machine. Quality stands beside rounds, examples processed and bytes sent: a rule "
    "that looks better per round may only have processed more examples. Selection and the weight of updates are one "
    "choice; the clients' optimizer and the server's are two, and a comparison of algorithms that changes both says "
    "nothing about either."
)
_FACTS = {
    "algorithm": "algorithm",
    "clients": "clients",
    "sizes": "population",
    "cohort": "cohort",
    "selection": "selection; weight",
    "client_optimizer": "client optimizer",
    "local": "local work",
    "server_optimizer": "server optimizer",
    "aggregation": "aggregation",
    "stream": "stream",
    "clients_run": "clients were run",
}


def federation(runs: Sequence[Run]) -> Section | None:
    """Return the section, or None where no run is a federation.

    A few runs are shown one by one. Of more, those that make a grid are shown as means over their seeds, and all of
    them as rows below a fold.
    """
    having = [r for r in runs if is_federated(r.record)]
    if not having:
        return None
    found = groups([r.record for r in runs])
    grids = [g for g in found if g.is_grid]
    many = len(having) > DETAILED_RUNS
    averaged = grids if many else []
    alone = [r for r in having if not any(g.holds(r.record) for g in averaged)]
    tables = [t for g in grids if (made := grid_of(g)) is not None for t in grid_section_tables(made)]
    shown, rest = device_tables(having)
    if many:
        folds = _folds(having, found, averaged)
    else:
        tables += [*_runs(having), *participation_table(having), *shown]
        folds = _few_folds(having, rest)
    streams = stream_figures(alone)
    plots = [p for panel in run_panels(alone, found) for p in panel.plots()]
    plots += [p for g in averaged for p in _averaged(g)]
    plots += [*size_figures(_populations(alone, averaged)), *participation_figures(alone), *streams.plots]
    plots += [] if many else decile_figures(having)
    return Section(
        "federation",
        "Federated learning",
        (_PARAGRAPH, *device_paragraphs(having)),
        (*tables, *streams.tables, *_few_rounds(having)),
        tuple(plots),
        notes=(*grid_notes(found), *upload_notes(having)),
        folds=folds,
    )


def _populations(alone: Sequence[Run], averaged: Sequence[Group]) -> list[tuple[str, Record]]:
    """Return records that show a population each: every run, or a run of each partition of a grid."""
    named = [(r.label, r.record) for r in alone]
    for group in averaged:
        firsts = {partition: runs[0] for (partition, _), runs in reversed(list(group.runs.items()))}
        named += [(partition, firsts[partition]) for partition in group.partitions]
    return named


def _few_folds(having: Sequence[Run], devices: tuple[Table, ...]) -> tuple[Fold, ...]:
    maps = label_maps(_populations(having, ()))
    folds = [Fold("Further figures of devices", devices)] if devices else []
    return (*folds, *([Fold("Which labels clients hold", plots=tuple(maps))] if maps else []))


def _runs(having: Sequence[Run]) -> tuple[Table, ...]:
    """Return what was run and what it measured, one column a run."""
    told = [facts(r.record) for r in having]
    settings = [(text(called), [_fact(f, key) for f in told]) for key, called in _FACTS.items()]
    settings = [(title, cells) for title, cells in settings if any(c.kind != "absent" for c in cells)]
    names = [n for n in names_of(having, "federated.") if not n.startswith((DEVICES, UNSEEN, PERSONAL))]
    tables = side_by_side("The federation and its last round", having, names, first=settings, method=True)
    return tuple(replace(t, measured=False) for t in tables)  # the names of settings have no unit


def _fact(found: Facts, key: str) -> Cell:
    said = str(getattr(found, key))
    return text(said) if said else ABSENT


def _folds(having: Sequence[Run], found: Sequence[Group], averaged: Sequence[Group]) -> tuple[Fold, ...]:
    """Return all runs as rows, devices by run, and the streams of grids."""
    folds = [Fold("All federated runs", tuple(_rows(g, having) for g in found))]
    devices = device_rows(having)
    if devices:
        folds.append(Fold("How devices fare, run by run", devices, tuple(decile_figures(having[:DETAILED_RUNS]))))
    maps = label_maps(_populations((), averaged))
    folds += [Fold("Which labels clients hold", plots=tuple(maps))] if maps else []
    for group in averaged:
        for partition in group.partitions:
            streams = stream_means(group, partition)
            if streams.plots:
                folds.append(Fold(f"Quality by period: {partition}", streams.tables, streams.plots))
    return tuple(folds)


def _averaged(group: Group) -> list[Plot]:
    """Return the figures of a grid: quality by all three costs and evenness of participation, for each partition."""
    plots = [p for panel in mean_panels(group) for p in panel.plots()]
    return plots + [p for partition in group.partitions for p in seed_ginis(group, partition)]


def _rows(group: Group, having: Sequence[Run]) -> Table:
    """Return the federations of one task as rows: what was run in small print, quality, and what it cost."""
    own = [r for r in having if group.holds(r.record)]
    best = headline(group.records) or next((m.name for r in own for m in r.named(ROUND)), "")
    rows = []
    for run in own:
        f, m = facts(run.record), run.measurement(best)
        said = (
            f"{unit('' if m is None else m.unit)}. {f.algorithm} on {f.clients}; {f.selection}; clients: "
            f"{f.client_optimizer}, {f.local}; server: {f.server_optimizer}"
        )
        costs = ("federated.samples", "federated.bytes_sent", "federated.participation_gini")
        cells = [ABSENT if c is None else measured(c) for c in map(run.measurement, costs)]
        title = Cell(run.label, note=said, kind="name")
        rows.append((title, ABSENT if m is None else measured(m), *cells))
    head = ("run", best, "examples processed", "bytes sent", "Gini of participation")
    return Table(f"Federations: {group.title}", head, tuple(rows), measured=True)


def _few_rounds(having: Sequence[Run]) -> tuple[Table, ...]:
    """Return quality by round of the runs with too few evaluated rounds for a curve."""
    rows: list[tuple[Cell, ...]] = []
    metrics: dict[str, None] = {}
    for run, m in by_round(having):
        lines = [_round_curve(run, m, key) for key, _ in COSTS]
        if any(line is None for line in lines) or len(lines[0].x) >= FEWEST_POINTS:  # type: ignore[union-attr]
            continue
        rounds, samples, sent = (line for line in lines if line is not None)
        metrics[m.name.removeprefix(ROUND)] = None
        for i, index in enumerate(rounds.x):
            cost = text(number(samples.x[i])), text(number(sent.x[i]))
            rows.append((text(number(index)), text(run.label), *cost, point(rounds, i), text(m.unit)))
    head = ("round", "run", *(label for key, label in COSTS if key != "round"), ", ".join(metrics), "unit")
    return (Table("Quality by round, on held-out rows", head, tuple(rows), measured=True),) if rows else ()


def _round_curve(run: Run, m: Measurement, key: str) -> Curve | None:
    return curve(run, "federated.round", key, m.name.removeprefix(ROUND), m.n)
