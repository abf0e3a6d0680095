"""``troth train``: train one model and evaluate it."""

from __future__ import annotations

from troth.cli.execution import execute
from troth.cli.options import AsJson, Quiet, Resume, RunFile, Set, Without

__all__ = ["train"]


def train(
    run_file: RunFile,
    assignments: Set = None,
    without: Without = None,
    resume: Resume = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train the model of [train] (privately where [privacy] is present) and evaluate it."""
    execute("train", run_file, assignments, without, resume=resume, as_json=as_json, quiet=quiet)
