"""Options that verbs share, declared once, and the run file they are applied to."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from troth.cli.output import say

if TYPE_CHECKING:
    from troth.config import RunConfig
    from troth.training import Progress

__all__ = [
    "AsJson",
    "Device",
    "Jobs",
    "Out",
    "Quiet",
    "Resume",
    "RunFile",
    "RunPath",
    "Set",
    "ShowText",
    "Without",
    "help_without_command",
    "make_progress",
    "read_run_file",
]

RunFile = Annotated[Path, typer.Argument(help="the run file (TOML)", show_default=False, metavar="RUN.toml")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="override a key; may be repeated")
]
Without = Annotated[list[str] | None, typer.Option("--without", metavar="SECTION", help="leave a section out")]
Device = Annotated[
    Literal["auto", "cpu", "cuda"] | None, typer.Option("--device", help="where to compute; overrides run.device")
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object on standard output")]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress on standard error")]
Resume = Annotated[bool, typer.Option("--resume", help="continue the newest unfinished run of this file")]
ShowText = Annotated[
    bool, typer.Option("--show-text", help="put the text of the most exposed rows into the attack's record and report")
]
RunPath = Annotated[Path | None, typer.Option("--run", metavar="FOLDER", help="a run folder instead of the newest")]
Jobs = Annotated[
    int, typer.Option("--jobs", min=1, max=256, metavar="N", help="runs of a grid at a time, in processes")
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="the folder that holds run folders")]


def make_progress(quiet: bool) -> Progress:
    """Return a bar on a terminal, plain lines where standard error is piped, nothing with ``--quiet``."""
    from troth.training import BarProgress, LineProgress, SilentProgress

    if quiet:
        return SilentProgress()
    return BarProgress() if sys.stderr.isatty() else LineProgress()


def read_run_file(
    run_file: Path,
    assignments: list[str] | None,
    without: list[str] | None = None,
    device: str | None = None,
) -> RunConfig:
    """Return the checked run file with the options applied; a section left out that is not there is told.

    Raises:
        ConfigError: as `troth.config.load`.
    """
    from troth.config import load, sections

    changes = [*(assignments or ()), *([] if device is None else [f"run.device={device}"])]
    config = load(run_file, changes, without or ())
    for section in sorted(set(without or ()) - sections(run_file, changes)):
        say(f"warning: --without {section}: {run_file} has no [{section}]; nothing was left out")
    return config


def help_without_command(context: typer.Context) -> None:
    """Print the help of a group of commands where none was named, and stop with exit code 2."""
    if context.invoked_subcommand is None:
        say(context.get_help())
        raise typer.Exit(2)
