"""``troth runs``: list, show and compare what was run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from troth.cli.options import AsJson, Out
from troth.cli.output import emit, listing
from troth.errors import ConfigError

if TYPE_CHECKING:
    from troth.runs.folders import RunFolder

__all__ = ["app"]

app = typer.Typer(help="List, show and compare runs.", no_args_is_help=True, rich_markup_mode=None)
_DEFAULT_OUT = Path("runs")


@app.command("list")
def list_(
    out: Out = _DEFAULT_OUT,
    as_json: AsJson = False,
    fresh: Annotated[bool, typer.Option("--rebuild", help="throw the index away and read every folder")] = False,
) -> None:
    """List the runs below a folder: state, privacy, headline number."""
    from troth.runs.index import list_runs, rebuild

    if not out.is_dir():
        raise ConfigError(f"{out}: no such folder; name the one that holds runs with --out")
    if fresh:
        rebuild(out)
    emit(listing("runs", [row.row() for row in list_runs(out)], out=str(out)), as_json=as_json)


def _find(name: str, out: Path) -> RunFolder:
    """Return the run at a path, or below `out` by its folder's name."""
    from troth.runs.folders import open_run

    path = Path(name)
    return open_run(path if (path / "run.toml").is_file() else out / name)


@app.command("show")
def show(
    run: Annotated[str, typer.Argument(help="a run folder, or its name below --out")],
    out: Out = _DEFAULT_OUT,
    as_json: AsJson = False,
) -> None:
    """Print the record of one run, with those of verbs that ran alone on it."""
    first, *later = _find(run, out).records()
    emit(replace(first, runs=tuple(later)) if later else first, as_json=as_json)


@app.command("compare")
def compare(
    runs: Annotated[list[str], typer.Argument(help="two or more runs")],
    out: Out = _DEFAULT_OUT,
    as_json: AsJson = False,
) -> None:
    """Put the measurements of several runs side by side, with differences to the first."""
    from troth.runs.comparison import compare as compare_records

    if len(runs) < 2:
        raise ConfigError("troth runs compare: name at least two runs")
    folders = [_find(run, out) for run in runs]
    labels = [f.path.name for f in folders]
    if len(set(labels)) < len(labels):
        labels = [str(f.path) for f in folders]
    rows = compare_records([(label, f.record()) for label, f in zip(labels, folders, strict=True)])
    if not as_json:
        rows = [_flat(row) for row in rows]
    emit(listing("runs", rows, runs=list(runs)), as_json=as_json)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of a comparison with each run's value and interval as one text."""
    cells = {name: _shown(cell) for name, cell in row["runs"].items()}
    return {"name": row["name"], **cells, **{f"{k} - first": v for k, v in row["differences"].items()}}


def _shown(cell: dict[str, Any] | None) -> str | None:
    return None if cell is None else f"{_n(cell['value'])} [{_n(cell['low'])}, {_n(cell['high'])}]"


def _n(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
