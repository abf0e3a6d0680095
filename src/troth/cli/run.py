"""``troth run``: every section of a run file, in order."""

from __future__ import annotations

from troth.cli.execution import execute
from troth.cli.options import AsJson, Device, Jobs, Quiet, Resume, RunFile, Set, ShowText, Without, read_run_file

__all__ = ["run"]


def run(  # noqa: PLR0913  one argument an option
    run_file: RunFile,
    assignments: Set = None,
    without: Without = None,
    device: Device = None,
    resume: Resume = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    *,
    jobs: Jobs = 1,
    show_text: ShowText = False,
) -> None:
    """Run every section present: train or federate, attack, fairness, report, gate."""
    config = read_run_file(run_file, assignments, without, device)
    base = run_file.resolve().parent
    execute("run", config, base, resume=resume, as_json=as_json, quiet=quiet, jobs=jobs, show_text=show_text)
