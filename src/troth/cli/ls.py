"""``troth ls``: what this version knows."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from troth.cli.options import AsJson
from troth.cli.output import emit, listing

__all__ = ["ls"]


def ls(
    what: Annotated[
        Literal["measurements", "presets", "tasks", "formats"], typer.Argument(help="what to list", metavar="WHAT")
    ],
    as_json: AsJson = False,
) -> None:
    """List measurements (names, units, directions), presets, tasks or formats (of data)."""
    from troth.runs.catalogue import CATALOGUES

    emit(listing("ls", CATALOGUES[what], what=what), as_json=as_json)
