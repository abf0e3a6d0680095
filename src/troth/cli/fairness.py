"""``troth fairness``: measure how a finished run's model treats groups."""

from __future__ import annotations

from troth.cli.execution import execute_alone
from troth.cli.options import AsJson, Quiet, RunFile, RunPath, Set

__all__ = ["fairness"]


def fairness(
    run_file: RunFile,
    assignments: Set = None,
    run: RunPath = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure fairness of the model of the newest finished run of that name, or of --run FOLDER."""
    execute_alone("fairness", run_file, assignments, run, as_json=as_json, quiet=quiet)
