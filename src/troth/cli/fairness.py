"""``troth fairness``: measure how a finished run's model treats groups."""

from __future__ import annotations

from troth.cli.execution import execute_alone
from troth.cli.options import AsJson, Device, Quiet, RunFile, RunPath, Set, read_run_file

__all__ = ["fairness"]


def fairness(
    run_file: RunFile,
    assignments: Set = None,
    run: RunPath = None,
    device: Device = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure fairness of the model of the newest finished run of that name, or of --run FOLDER."""
    config = read_run_file(run_file, assignments, device=device)
    execute_alone("fairness", config, run_file.resolve().parent, run, as_json=as_json, quiet=quiet)
