"""``troth attack``: measure what a finished run's model leaks."""

from __future__ import annotations

from troth.cli.execution import execute_alone
from troth.cli.options import AsJson, Quiet, RunFile, RunPath, Set

__all__ = ["attack"]


def attack(
    run_file: RunFile,
    assignments: Set = None,
    run: RunPath = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Attack the model of the newest finished run of that name, or of --run FOLDER."""
    execute_alone("attack", run_file, assignments, run, as_json=as_json, quiet=quiet)
