"""A grid of federations as tables of the page: quality, the gap to centralised training, and what it took."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from troth.report.federated_grid import CONFIDENCE, GridCell, GridTable, OverSeeds, megabytes
from troth.report.federated_groups import Group
from troth.report.tables import ABSENT, UNSUPPORTED, Cell, Table, interval, number, percent, text, unit

__all__ = ["grid_notes", "grid_section_tables"]

_COLUMNS = 4  # of a table; more do not fit a page on paper
_SEVERAL = "by partition, see the cells"


def grid_section_tables(grid: GridTable) -> tuple[Table, ...]:
    """Return a grid's tables: partitions down, algorithms across, with what was set on top of each."""
    better = "higher is better" if grid.higher else "lower is better"
    over = f"means over seeds with {percent(CONFIDENCE)} intervals over seeds (Student's t)"
    quality = f"{grid.title}: {grid.measurement} ({better}), {over}{_centralised(grid)}"
    gap = (
        f"{grid.title}: the gap to centralised training in {grid.measurement}, by how much the federation is worse, "
        f"paired by seed (below 0: it is better), {over}"
    )
    costs = f"{grid.title}: what a run took, means over seeds: examples processed and bytes sent"
    tables = _cut(grid, quality, grid.unit, lambda cell: _over_seeds(cell.quality))
    if any(cell.gap is not None for cell in grid.cells.values()):
        tables += _cut(grid, gap, grid.unit, lambda cell: _over_seeds(cell.gap))
    return tables + _cut(grid, costs, "examples, and bytes sent", _costs)


def grid_notes(found: Sequence[Group]) -> tuple[str, ...]:
    """Return a note for each group whose centralised runs differ in more than their seeds."""
    return tuple(
        f"{group.title}: centralised runs were trained in {group.ambiguous} ways ([train] differs); which of them the "
        "federations are to be held against is not said, so no gap is given. Leave the others out of the report."
        for group in found
        if group.ambiguous
    )


def _centralised(grid: GridTable) -> str:
    found = grid.centralised
    if found is None:
        return ""
    return f". Centralised training of the same model on the same rows: {found.told()} {_seeds(found)}"


def _cut(grid: GridTable, caption: str, units: str, make: Callable[[GridCell], Cell]) -> tuple[Table, ...]:
    """Return a table of all columns, or several of even size."""
    count = -(-len(grid.algorithms) // _COLUMNS)
    size = -(-len(grid.algorithms) // count)
    tables = []
    for i in range(count):
        part = grid.algorithms[i * size : (i + 1) * size]
        rows = [_setting(key, found, part) for key, found in grid.settings().items()]
        rows += [_partition(grid, partition, units, part, make) for partition in grid.partitions]
        said = caption if count == 1 else f"{caption} ({i + 1} of {count})"
        tables.append(Table(f"{said}.", ("partition", *part), tuple(rows), measured=True))
    return tuple(tables)


def _setting(key: str, found: dict[str, tuple[str, ...]], part: Sequence[str]) -> tuple[Cell, ...]:
    said = [found[algorithm] for algorithm in part]
    return (text(key), *(text(values[0] if len(values) == 1 else _SEVERAL) for values in said))


def _partition(
    grid: GridTable, partition: str, units: str, part: Sequence[str], make: Callable[[GridCell], Cell]
) -> tuple[Cell, ...]:
    cells = []
    for algorithm in part:
        cell = grid.cells.get((partition, algorithm))
        cells.append(ABSENT if cell is None else _with_settings(make(cell), grid, cell, algorithm))
    return (Cell(partition, note=unit(units)), *cells)


def _with_settings(made: Cell, grid: GridTable, cell: GridCell, algorithm: str) -> Cell:
    """Return a cell that says its own settings where they are not those of its whole column."""
    own = {
        "selection; weight": cell.facts.selection,
        "client optimizer": cell.facts.client_optimizer,
        "local work": cell.facts.local,
        "server optimizer": cell.facts.server_optimizer,
    }
    differing = [f"{key}: {own[key]}" for key, found in grid.settings().items() if len(found[algorithm]) > 1]
    if made.kind == "absent" or not differing:
        return made
    return Cell(made.text, made.detail, "; ".join([made.note, *differing]), made.mark, made.kind)


def _over_seeds(found: OverSeeds | None) -> Cell:
    if found is None:
        return ABSENT
    ends = "" if found.low is None else interval(found.low, found.high)
    mark = "" if found.supported else UNSUPPORTED
    return Cell(number(found.mean), ends, f"n = {len(found.seeds)} {_seeds(found)}", mark, "number")


def _seeds(found: OverSeeds) -> str:
    told = "seed" if len(found.seeds) == 1 else "seeds"
    if found.low is not None:
        return told
    return f"{told}, no interval" if len(found.seeds) == 1 else f"{told}, all alike: no interval"


def _costs(cell: GridCell) -> Cell:
    if "samples" not in cell.costs:
        return ABSENT
    rounds = f"{cell.costs['rounds']:,.4g} rounds, " if "rounds" in cell.costs else ""
    sent = f"and {megabytes(cell.costs['bytes'])}" if "bytes" in cell.costs else ""
    return Cell(f"{cell.costs['samples']:,.6g}", sent, f"{rounds}n = {cell.runs} runs", kind="number")
