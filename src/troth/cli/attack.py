"""``troth attack``: measure what a finished run's model leaks."""

from __future__ import annotations

from troth.cli.execution import execute_alone
from troth.cli.options import AsJson, Device, Quiet, RunFile, RunPath, Set, ShowText, read_run_file

__all__ = ["attack"]


def attack(
    run_file: RunFile,
    assignments: Set = None,
    run: RunPath = None,
    device: Device = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    show_text: ShowText = False,
) -> None:
    """Attack the model of the newest finished run of that name (of each point of [grid]), or of --run FOLDER.

    With attack.scores or attack.members no run is needed.
    """
    config = read_run_file(run_file, assignments, device=device)
    base = run_file.resolve().parent
    execute_alone("attack", config, base, run, as_json=as_json, quiet=quiet, show_text=show_text)
