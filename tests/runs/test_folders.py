"""Run folders: nothing overwritten, nothing half-written, found again."""

import errno
import json
import sqlite3
from pathlib import Path

import pytest

from troth.config import RunConfig, parse
from troth.errors import ConfigError, ResumeError, RunError
from troth.results import Measurement, Record
from troth.runs import folders as folders_module
from troth.runs.comparison import compare
from troth.runs.folders import create, find_finished, find_unfinished, open_run, run_folders
from troth.runs.index import list_runs, rebuild


def config(name: str = "r", seed: int = 1) -> RunConfig:
    return parse(
        {
            "run": {"name": name, "seed": seed},
            "model": {"preset": "tiny-bert"},
            "data": {"builtin": {}},
            "task": {"kind": "classification"},
        }
    )


def record(value: float = 0.5, name: str = "r") -> Record:
    m = Measurement("test.accuracy", value, value - 0.1, value + 0.1, 0.95, "clopper-pearson", 10, "fraction")
    return Record("train", name, "2026-01-01", "0", measurements=(m,))


def test_folders_count_up_and_never_overwrite(tmp_path: Path) -> None:
    paths = [create(config(), tmp_path).path.name for _ in range(3)]
    assert paths == ["r", "r-2", "r-3"]
    assert [f.path.name for f in run_folders(tmp_path, "r")] == paths
    other = create(config("r-x"), tmp_path)
    assert other.path.name == "r-x" and len(run_folders(tmp_path, "r")) == 3


def test_places_that_cannot_hold_runs_are_bad_input(tmp_path: Path) -> None:
    file, nowhere = tmp_path / "file", tmp_path / "link"
    file.write_text("x")
    nowhere.symlink_to(tmp_path / "not there")
    for out in (file, file / "below", nowhere):
        with pytest.raises(ConfigError, match=r"choose another (folder|one) with run\.out"):
            create(config(), out)


@pytest.mark.parametrize("code,kind", [(errno.ENOSPC, RunError), (errno.EACCES, ConfigError)])
def test_a_folder_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception]
) -> None:
    def fail(path: Path, **options: object) -> None:
        raise OSError(code, "no")

    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(kind, match="cannot be made: no"):
        create(config(), tmp_path)


def test_a_run_file_that_cannot_be_written_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, text: str) -> None:
        raise RunError("no space left on the disk")

    monkeypatch.setattr(folders_module, "write_text", fail)
    with pytest.raises(RunError, match="no space"):
        create(config(), tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_run_named_like_a_number_is_not_mistaken(tmp_path: Path) -> None:
    create(config("r-2"), tmp_path)
    assert run_folders(tmp_path, "r") == []
    assert create(config("r"), tmp_path).path.name == "r"
    assert create(config("r"), tmp_path).path.name == "r-3"


def test_resume_finds_the_newest_unfinished_of_the_same_configuration(tmp_path: Path) -> None:
    first, second = create(config(), tmp_path), create(config(), tmp_path)
    second.write_record(record())
    assert find_unfinished(config(), tmp_path).path == first.path
    assert find_finished(config(), tmp_path).path == second.path
    first.write_record(record())
    with pytest.raises(ResumeError, match="no unfinished run named r"):
        find_unfinished(config(), tmp_path)


def test_resume_names_what_changed(tmp_path: Path) -> None:
    create(config(seed=1), tmp_path)
    with pytest.raises(ResumeError, match=r"changed: run\.seed"):
        find_unfinished(config(seed=2), tmp_path)


def test_verbs_that_ran_alone_stand_beside_the_record(tmp_path: Path) -> None:
    folder = create(config(), tmp_path)
    folder.write_record(record(0.1))
    names = [folder.write_record(record(v), "attack").name for v in (0.2, 0.3)]
    assert names == ["attack.json", "attack-2.json"]
    assert [r.measurements[0].value for r in folder.records()] == [0.1, 0.2, 0.3]


def test_damaged_and_missing_records_are_named(tmp_path: Path) -> None:
    folder = create(config(), tmp_path)
    with pytest.raises(ResumeError, match="not a finished run"):
        folder.record()
    (folder.path / "record.json").write_text("{}")
    with pytest.raises(RunError, match="damaged record"):
        folder.record()
    with pytest.raises(ConfigError, match="not a run folder"):
        open_run(tmp_path / "nothing")
    with pytest.raises(ResumeError, match="no finished run"):
        find_finished(config("other"), tmp_path)


def test_index_follows_the_folders_and_can_be_thrown_away(tmp_path: Path) -> None:
    a, b = create(config("a"), tmp_path), create(config("b"), tmp_path)
    a.write_record(record(0.7, "a"))
    states = {r.folder: (r.state, r.headline_value) for r in list_runs(tmp_path)}
    assert states == {"a": ("finished", 0.7), "b": ("unfinished", None)}
    b.write_record(record(0.8, "b"))
    assert {r.folder: r.headline_value for r in list_runs(tmp_path)} == {"a": 0.7, "b": 0.8}
    (tmp_path / "index.sqlite3").write_bytes(b"not a database, not at all, certainly not")
    assert {r.folder: r.headline_value for r in list_runs(tmp_path)} == {"a": 0.7, "b": 0.8}
    rebuild(tmp_path)
    with sqlite3.connect(tmp_path / "index.sqlite3") as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (2,)
    connection.close()
    (a.path / "record.json").write_text(json.dumps({"kind": 1}))
    assert {r.folder: r.state for r in list_runs(tmp_path)} == {"a": "damaged", "b": "finished"}


def test_comparison_gives_differences_to_the_first() -> None:
    rows = compare([("a", record(0.5)), ("b", record(0.75)), ("c", Record("train", "c", "x", "0"))])
    assert rows == [
        {
            "name": "test.accuracy",
            "unit": "fraction",
            "runs": {
                "a": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10},
                "b": {"value": 0.75, "low": 0.65, "high": 0.85, "n": 10},
                "c": None,
            },
            "differences": {"b": 0.25, "c": None},
        }
    ]
