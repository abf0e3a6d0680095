"""``troth train``: train one model and evaluate it."""

from __future__ import annotations

from troth.cli.execution import execute
from troth.cli.options import AsJson, Device, Jobs, Quiet, Resume, RunFile, Set, Without, read_run_file

__all__ = ["train"]


def train(
    run_file: RunFile,
    assignments: Set = None,
    without: Without = None,
    device: Device = None,
    resume: Resume = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    jobs: Jobs = 1,
) -> None:
    """Train the model of [train] (privately where [privacy] is present) and evaluate it."""
    config = read_run_file(run_file, assignments, without, device)
    execute("train", config, run_file.resolve().parent, resume=resume, as_json=as_json, quiet=quiet, jobs=jobs)
