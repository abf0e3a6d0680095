"""``troth runs``: list, show and compare what was run."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from troth.cli.options import AsJson, Out, help_without_command
from troth.cli.output import costed, emit, listing
from troth.errors import ConfigError

if TYPE_CHECKING:
    from troth.runs.folders import RunFolder

__all__ = ["app"]

app = typer.Typer(
    help="List, show and compare runs.",
    callback=help_without_command,
    invoke_without_command=True,
    rich_markup_mode=None,
)
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
        raise _no_folder(out)

    def rows() -> list[dict[str, Any]]:
        if fresh:
            rebuild(out)
        return [row.row() for row in list_runs(out)]

    emit(listing("runs", rows, out=str(out)), as_json=as_json)


def _no_folder(out: Path) -> ConfigError:
    """Return the error for a folder that is not there, naming folders beside it that hold runs."""
    what = "is a file, not a folder" if out.exists() else "no such folder"
    beside = out.absolute().parent
    there = sorted(p.parent.parent for p in beside.glob("*/*/run.toml")) if beside.is_dir() else []
    near = next(iter(there), None)
    way_out = f"name the folder that holds runs with --out, such as --out {near.name if near else 'troth-demo'}"
    return ConfigError(f"{out}: {what}; {way_out}" + ("" if near else " after troth demo"))


def _find(name: str, out: Path) -> RunFolder:
    """Return the run at a path, or below `out` by its folder's name.

    Raises:
        ConfigError: there is none.
    """
    from troth.runs.folders import open_run

    path = Path(name)
    if (path / "run.toml").is_file():
        return open_run(path)
    if not out.is_dir():
        raise _no_folder(out)
    return open_run(out / name)


@app.command("show")
def show(
    run: Annotated[str, typer.Argument(help="a run folder, or its name below --out")],
    out: Out = _DEFAULT_OUT,
    as_json: AsJson = False,
) -> None:
    """Print the record of one run, with those of verbs that ran alone on it."""
    begun = time.perf_counter()
    first, *later = _find(run, out).records()
    shown = replace(first, runs=tuple(later)) if later else first
    emit(shown if shown.cost else replace(shown, cost=costed(begun)), as_json=as_json)


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

    def rows() -> list[dict[str, Any]]:
        folders = [_find(run, out) for run in runs]
        labels = [f.path.name for f in folders]
        if len(set(labels)) < len(labels):
            labels = [str(f.path) for f in folders]
        found = compare_records([(label, f.record()) for label, f in zip(labels, folders, strict=True)])
        return found if as_json else [_flat(row) for row in found]

    emit(listing("runs", rows, runs=list(runs)), as_json=as_json)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of a comparison with each run's value and interval as one text."""
    cells = {name: _shown(cell) for name, cell in row["runs"].items()}
    return {"name": row["name"], **cells, **{f"{k} - first": v for k, v in row["differences"].items()}}


def _shown(cell: dict[str, Any] | None) -> str | None:
    return None if cell is None else f"{_n(cell['value'])} [{_n(cell['low'])}, {_n(cell['high'])}]"


def _n(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
