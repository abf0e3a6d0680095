"""Options that verbs share, declared once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from troth.training import Progress

__all__ = ["AsJson", "Out", "Quiet", "Resume", "RunFile", "RunPath", "Set", "Without", "make_progress"]

RunFile = Annotated[Path, typer.Argument(help="the run file (TOML)", show_default=False)]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="override a key; may be repeated")
]
Without = Annotated[list[str] | None, typer.Option("--without", metavar="SECTION", help="leave a section out")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object on standard output")]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress on standard error")]
Resume = Annotated[bool, typer.Option("--resume", help="continue the newest unfinished run of this file")]
RunPath = Annotated[Path | None, typer.Option("--run", metavar="FOLDER", help="a run folder instead of the newest")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="the folder that holds run folders")]


def make_progress(quiet: bool) -> Progress:
    """Return a bar on a terminal, plain lines where standard error is piped, nothing with ``--quiet``."""
    from troth.training import BarProgress, LineProgress, SilentProgress

    if quiet:
        return SilentProgress()
    return BarProgress() if sys.stderr.isatty() else LineProgress()
