"""``troth demo``: the main job on the built-in corpus, with no network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from troth.cli.options import AsJson, Quiet, make_progress
from troth.cli.output import emit, say

__all__ = ["demo"]


def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="where runs and report go")] = Path("troth-demo"),
    rows: Annotated[int, typer.Option(help="utterances of the built-in corpus", min=1000, max=100_000)] = 10_000,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a plain and a private model, attack both, compare groups, run a federation, write report.html."""
    from troth.runs.preflight import check_writable

    folder = out.resolve()
    check_writable(folder, f"--out {out}")
    os.environ["TROTH_HOME"] = str(folder / "home")  # the demo's own ledger, never the user's
    from troth.report import ReportWriter
    from troth.runs.demonstration import demonstrate
    from troth.runs.pipeline import Pipeline

    record = demonstrate(Pipeline(folder, make_progress(quiet), ReportWriter()), folder, rows)
    emit(record, as_json=as_json)
    if not as_json:
        say(f"open {record.artifacts['report']} in a browser")
