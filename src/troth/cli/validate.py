"""``troth validate``: check a run file and print it resolved."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer

from troth import __version__
from troth.cli.options import AsJson, RunFile, Set, Without, read_run_file
from troth.cli.output import costed, emit
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
    from troth.config import json_schema, to_toml
    from troth.runs.preflight import check_file

    begun = time.perf_counter()
    if schema:
        print(json.dumps(json_schema(), indent=1))  # noqa: T201
        return
    config = read_run_file(run_file, assignments, without)
    check_file(config, "run")
    if as_json:
        record = Record(
            "validate",
            config.run.name,
            now(),
            __version__,
            config.to_dict(),
            config.run.seed,
            cost=costed(begun),
        )
        emit(record, as_json=True)
    else:
        print(to_toml(config))  # noqa: T201
