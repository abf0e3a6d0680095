"""``troth federate``: train one model where the data lives."""

from __future__ import annotations

from troth.cli.execution import execute
from troth.cli.options import AsJson, Device, Jobs, Quiet, Resume, RunFile, Set, Without, read_run_file

__all__ = ["federate"]


def federate(
    run_file: RunFile,
    assignments: Set = None,
    without: Without = None,
    device: Device = None,
    resume: Resume = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    jobs: Jobs = 1,
) -> None:
    """Train the model by the federation of [federated], simulated in this process, and evaluate it."""
    config = read_run_file(run_file, assignments, without, device)
    execute("federate", config, run_file.resolve().parent, resume=resume, as_json=as_json, quiet=quiet, jobs=jobs)
