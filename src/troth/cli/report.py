"""``troth report``: one page about finished runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from troth import __version__
from troth.cli.options import AsJson
from troth.cli.output import costed, emit
from troth.errors import ConfigError
from troth.results import Record, now

if TYPE_CHECKING:
    from troth.runs.folders import RunFolder

__all__ = ["report"]


def report(
    run_file: Annotated[
        Path | None,
        typer.Argument(help="the run file: its newest finished run, or each of its grid", metavar="RUN.toml"),
    ] = None,
    run: Annotated[
        list[Path] | None, typer.Option("--run", metavar="FOLDER", help="a run folder; may be repeated")
    ] = None,
    path: Annotated[Path | None, typer.Option("--path", help="where the page goes")] = None,
    as_json: AsJson = False,
) -> None:
    """Write one self-contained HTML page about finished runs."""
    folders, target = _find(run_file, run or [])
    from troth.report import write_report
    from troth.runs.preflight import check_writable

    begun = time.perf_counter()
    place = path or target
    check_writable(place.parent, f"--path {place}")
    if place.is_dir():
        raise ConfigError(f"--path {place}: is a folder; name the page's file")
    written = write_report(folders, place)
    emit(
        Record(
            "report",
            folders[0].record().name,
            now(),
            __version__,
            cost=costed(begun),
            artifacts={"report": str(written)},
        ),
        as_json=as_json,
    )


def _find(run_file: Path | None, runs: list[Path]) -> tuple[list[RunFolder], Path]:
    """Return the runs to report and where the page goes by default."""
    from troth.config import load
    from troth.runs.folders import find_finished, open_run
    from troth.runs.grid import expand

    if run_file is None and not runs:
        raise ConfigError("troth report: name a run file or --run FOLDER")
    name = "report.html"
    folders = [open_run(p) for p in runs]
    if run_file is not None:
        config = load(run_file)
        name = config.report.path if config.report else name
        points = [config] if config.grid is None else [point.config for point in expand(config)]
        out = run_file.resolve().parent / config.run.out
        folders = folders or [find_finished(point, out) for point in points]
        if config.grid is not None and not runs:
            return folders, out / f"{config.run.name}.html"
    return folders, folders[0].path / name
