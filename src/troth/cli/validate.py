"""``troth validate``: check a run file and print it resolved."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from troth import __version__
from troth.cli.options import AsJson, RunFile, Set, Without
from troth.results import Record, now

__all__ = ["validate"]


def validate(
    run_file: RunFile,
    assignments: Set = None,
    without: Without = None,
    as_json: AsJson = False,
    schema: Annotated[bool, typer.Option("--schema", help="print the JSON schema of run files and stop")] = False,
) -> None:
    """Check a run file and print it with every default filled in. Reads no data."""
    from troth.config import json_schema, load, to_toml

    if schema:
        print(json.dumps(json_schema(), indent=1))  # noqa: T201
        return
    config = load(run_file, assignments or (), without or ())
    if as_json:
        record = Record("validate", config.run.name, now(), __version__, config.to_dict(), config.run.seed)
        print(record.to_json())  # noqa: T201
    else:
        print(to_toml(config))  # noqa: T201
