"""What the verbs that run something share: load the file, run the pipeline, print the record, hold the gates."""

from __future__ import annotations

from pathlib import Path

from troth.cli.options import make_progress
from troth.cli.output import emit
from troth.errors import GateNotMet
from troth.results import Record

__all__ = ["execute", "execute_alone"]


def execute(
    verb: str,
    run_file: Path,
    assignments: list[str] | None,
    without: list[str] | None,
    *,
    resume: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run `verb` on a run file (or on its grid), print the record and hold its gates.

    Raises:
        GateNotMet: after printing, where a rule of [gate] does not hold.
    """
    from troth.config import load
    from troth.report import ReportWriter
    from troth.runs.pipeline import Pipeline

    config = load(run_file, assignments or (), without or ())
    pipeline = Pipeline(run_file.resolve().parent, make_progress(quiet), ReportWriter())
    record = pipeline.grid(config, verb, resume=resume) if config.grid else pipeline.run(config, verb, resume=resume)
    emit(record, as_json=as_json)
    hold_gates(record)


def execute_alone(
    verb: str,
    run_file: Path,
    assignments: list[str] | None,
    folder: Path | None,
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run a verb on the model of a finished run, print its record and hold its gates."""
    from troth.config import load
    from troth.report import ReportWriter
    from troth.runs.pipeline import Pipeline

    config = load(run_file, assignments or ())
    pipeline = Pipeline(run_file.resolve().parent, make_progress(quiet), ReportWriter())
    record = pipeline.alone(config, verb, folder)
    emit(record, as_json=as_json)
    hold_gates(record)


def hold_gates(record: Record) -> None:
    """Raise where a rule of the record, or of a record it holds, is not met.

    Raises:
        GateNotMet: the text names the rules.
    """
    rows = [row for r in (record, *(record.runs or ())) for row in r.series.get("gate", [])]
    missed = [f"{row['rule']} ({row['reason']})" for row in rows if not row["met"]]
    if missed:
        raise GateNotMet(f"gate not met: {'; '.join(missed)}")
