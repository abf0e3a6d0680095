"""What the verbs that run something share: run the pipeline, print the record, hold the gates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from troth.cli.options import make_progress
from troth.cli.output import emit, show, table
from troth.errors import GateNotMet

if TYPE_CHECKING:
    from troth.config import RunConfig
    from troth.results import Json, Record

__all__ = ["execute", "execute_alone"]


def execute(
    verb: str,
    config: RunConfig,
    base: Path,
    *,
    resume: bool,
    as_json: bool,
    quiet: bool,
    show_text: bool = False,
    jobs: int = 1,
) -> None:
    """Run `verb` on a run file (or on its grid, `jobs` of its runs at a time), print the record and hold its gates.

    Raises:
        GateNotMet: after printing, where a rule of [gate] does not hold.
    """
    from troth.report import ReportWriter
    from troth.runs.pipeline import Pipeline

    pipeline = Pipeline(base, make_progress(quiet), ReportWriter(), show_text)
    if config.grid is None:
        record = pipeline.run(config, verb, resume=resume)
    else:
        record = pipeline.grid(config, verb, resume=resume, jobs=jobs)
    emit(record, as_json=as_json)
    if record.runs and not as_json:
        _show_federations(record)
    hold_gates(record)


def _show_federations(record: Record) -> None:
    """Print algorithms against partitions where a grid holds federations: means over seeds, gaps to central runs."""
    from troth.report.federated_grid import grid_tables

    for grid in grid_tables(record.runs or ()):
        show(["", grid.title, *table(grid.items())])


def execute_alone(
    verb: str,
    config: RunConfig,
    base: Path,
    folder: Path | None,
    *,
    as_json: bool,
    quiet: bool,
    show_text: bool = False,
) -> None:
    """Run a verb on the model of a finished run (attack: of each point of a grid), print its record and hold its gates.

    Raises:
        GateNotMet: after printing, where a rule of [gate] does not hold.
    """
    from troth.report import ReportWriter
    from troth.runs.pipeline import Pipeline

    pipeline = Pipeline(base, make_progress(quiet), ReportWriter(), show_text)
    if config.grid is not None and verb == "attack" and folder is None:
        record = pipeline.grid(config, verb)
    else:
        record = pipeline.alone(config, verb, folder)
    emit(record, as_json=as_json)
    hold_gates(record)


def hold_gates(record: Record) -> None:
    """Raise where a rule of the record, or of a run it holds, is not met.

    Raises:
        GateNotMet: the text names the rules, and in a grid the run of each.
    """
    missed = [_missed(row) for row in record.series.get("gate", []) if not row["met"]]
    for run in record.runs or ():
        name = Path(run.artifacts["run"]).name if "run" in run.artifacts else run.name
        missed += [f"{name}: {_missed(row)}" for row in run.series.get("gate", []) if not row["met"]]
    if missed:
        raise GateNotMet(f"gate not met: {'; '.join(missed)}")


def _missed(row: Mapping[str, Json]) -> str:
    return f"{row['rule']} ({row['reason']})"
