"""``troth run``: every section of a run file, in order."""

from __future__ import annotations

from troth.cli.execution import execute
from troth.cli.options import AsJson, Quiet, Resume, RunFile, Set, Without

__all__ = ["run"]


def run(
    run_file: RunFile,
    assignments: Set = None,
    without: Without = None,
    resume: Resume = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run every section present: train or federate, attack, fairness, report, gate."""
    execute("run", run_file, assignments, without, resume=resume, as_json=as_json, quiet=quiet)
