"""Run the command line inside the test process, as a script would see it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from troth.cli.main import main


@dataclass(frozen=True)
class Called:
    """What a call of the command line gave: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on standard output."""
        return json.loads(self.out)


Troth = Callable[..., Called]


@pytest.fixture
def troth(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Troth:
    """Call ``troth ARGUMENTS...`` and return what it gave."""

    def call(*arguments: str | Path) -> Called:
        monkeypatch.setattr(sys, "argv", ["troth", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return Called(code, out, err)

    return call


BASE = """
[run]
name = "x"
seed = 1
[model]
preset = "tiny-bert"
[data]
{data}
[task]
kind = "{kind}"
[train]
epochs = 1
learning_rate = 1e-3
expected_batch_size = {batch}
{more}
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Callable[..., Path]:
    """Write a run file; ``data`` is the [data] section, ``more`` comes after [train]."""

    def write(
        data: str, *, kind: str = "classification", more: str = "", batch: int = 2, name: str = "run.toml"
    ) -> Path:
        path = tmp_path / name
        path.write_text(BASE.format(data=data, kind=kind, more=more, batch=batch), encoding="utf-8")
        return path

    return write
