"""``troth attack``: measure what a finished run's model leaks."""

from __future__ import annotations

from troth.cli.execution import execute_alone
from troth.cli.options import AsJson, Device, Quiet, RunFile, RunPath, Set, read_run_file

__all__ = ["attack"]


def attack(
    run_file: RunFile,
    assignments: Set = None,
    run: RunPath = None,
    device: Device = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Attack the model of the newest finished run of that name, or of --run FOLDER."""
    config = read_run_file(run_file, assignments, device=device)
    execute_alone("attack", config, run_file.resolve().parent, run, as_json=as_json, quiet=quiet)
