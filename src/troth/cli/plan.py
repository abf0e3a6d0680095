"""``troth plan``: what a private run would cost, before it starts."""

from __future__ import annotations

from pathlib import Path

from troth.cli.options import AsJson, Quiet, RunFile, Set, Without
from troth.cli.output import emit

__all__ = ["plan"]


def plan(
    run_file: RunFile, assignments: Set = None, without: Without = None, as_json: AsJson = False, quiet: Quiet = False
) -> None:
    """Print noise multiplier, steps, epsilon curve, and an estimate of time and memory. Trains nothing."""
    from troth.config import load

    config = load(run_file, assignments or (), without or ())
    from troth.cli.options import make_progress
    from troth.runs.planning import plan as make

    emit(make(config, Path(run_file).parent, make_progress(quiet)), as_json=as_json)
