"""``troth plan``: what a private run would cost, before it starts."""

from __future__ import annotations

from troth.cli.options import AsJson, Device, Quiet, RunFile, Set, Without, make_progress, read_run_file
from troth.cli.output import emit

__all__ = ["plan"]


def plan(
    run_file: RunFile,
    assignments: Set = None,
    without: Without = None,
    device: Device = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Print noise multiplier, steps, epsilon curve, and an estimate of time and memory. Trains nothing."""
    config = read_run_file(run_file, assignments, without, device)
    from troth.runs.planning import plan as make

    emit(make(config, run_file.resolve().parent, make_progress(quiet)), as_json=as_json)
