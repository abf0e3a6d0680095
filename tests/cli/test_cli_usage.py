"""The command line apart from what it runs: usage, options, costs, tables, and what it says where."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from troth.accounting import Ledger, PrivacyPlan, SpendRequest
from troth.cli import attack, execution, fairness, federate, plan, run, train
from troth.cli.execution import hold_gates
from troth.cli.output import emit
from troth.config import RunConfig, parse
from troth.errors import GateNotMet
from troth.results import Cost, Measurement, Record
from troth.runs.folders import create

BUILTIN = 'builtin = { name = "home", rows = 400 }'
COST = {"seconds", "setup_seconds", "work_seconds", "peak_memory_bytes"}
PLAN = PrivacyPlan(1000, 100, 0.1, 30, 1.0, 0.1, 1e-5)


def config(name: str = "r") -> RunConfig:
    return parse(
        {
            "run": {"name": name},
            "model": {"preset": "tiny-bert"},
            "data": {"builtin": {}},
            "task": {"kind": "classification"},
        }
    )


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with two finished runs."""
    accuracy = Measurement("test.accuracy", 0.5, 0.4, 0.6, 0.95, "clopper-pearson", 10, "fraction")
    for name in ("a", "b"):
        record = Record("train", name, "2026-01-01", "0", measurements=(accuracy,), cost=Cost(1.0, 0.5, 0.5, 10))
        made = replace(record, config=config(name).to_dict())
        create(config(name), tmp_path / "done").write_record(made)
    return tmp_path / "done"


@pytest.mark.parametrize(
    "arguments,expected",
    [
        (["nonsense"], "No such command 'nonsense'; see troth --help"),
        (["trian", "x"], "Did you mean 'train'?"),
        (["train"], "Missing argument 'RUN.toml'; see troth train --help"),
        (["train", "--nonsense", "x"], "No such option: --nonsense; see troth train --help"),
        (["ls", "nonsense"], "'nonsense' is not one of 'measurements'"),
        (["train", "x.toml", "--device", "tpu"], "'tpu' is not one of 'auto', 'cpu', 'cuda'"),
        (["ledger", "nonsense"], "see troth ledger --help"),
        (["ledger", "set-budget", "x", "--epsilon", "much", "--delta", "1e-5"], "'--epsilon'"),
    ],
)
def test_wrong_usage_is_one_line(troth: Callable, arguments: list[str], expected: str) -> None:
    called = troth(*arguments)
    assert called.code == 2 and called.out == ""
    (line,) = called.err.splitlines()
    assert line.startswith("error: ") and expected in line


@pytest.mark.parametrize("arguments", [[], ["runs"], ["ledger"]])
def test_no_command_shows_the_help(troth: Callable, arguments: list[str]) -> None:
    called = troth(*arguments)
    assert called.code == 2 and called.out == "" and "Commands:" in called.err


def test_help_and_version_are_no_errors(troth: Callable) -> None:
    assert troth("--help").code == 0 and troth("--version").out.startswith("troth ")
    for verb in ("run", "train", "federate", "attack", "fairness", "plan"):
        called = troth(verb, "--help")
        assert called.code == 0 and "--device" in called.out and "RUN.toml" in called.out


def test_a_reader_that_goes_away_is_no_fault_to_tell() -> None:
    code = "import sys; sys.argv = ['troth', 'ls', 'measurements']; from troth.cli.main import main; main()"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.returncode == 1 and done.stderr == ""


@pytest.mark.parametrize("module", [run, train, federate, attack, fairness, plan])
def test_the_device_of_the_option_is_the_run_s(
    troth: Callable, run_file: Callable, monkeypatch: pytest.MonkeyPatch, module: object
) -> None:
    verb, seen = module.__name__.rpartition(".")[2], []  # type: ignore[attr-defined]

    def note(*arguments: object, **options: object) -> Record:
        seen.extend(a for a in arguments if isinstance(a, RunConfig))
        return Record(verb, "x", "2026-01-01", "0")

    if verb == "plan":
        monkeypatch.setattr("troth.runs.planning.plan", note)
    else:
        monkeypatch.setattr(module, "execute" if verb in ("run", "train", "federate") else "execute_alone", note)
    path = run_file(BUILTIN, more="[federated]\n[attack]\n[fairness]")
    assert troth(verb, path, "--set", "run.device=auto", "--device", "cpu", "--quiet").code == 0
    assert [c.run.device for c in seen] == ["cpu"]
    assert troth(verb, path, "--set", "run.device=cuda", "--quiet").code == 0
    assert seen[1].run.device == "cuda"


def test_every_verb_that_runs_nothing_says_what_it_cost(
    troth: Callable, run_file: Callable, runs: Path, tmp_path: Path
) -> None:
    Ledger().set_budget("d", 8.0, 1e-5, "example")
    private = run_file(BUILTIN, more="[privacy]\nnoise_multiplier = 1.0\ntarget_delta = 1e-5", batch=32)
    reservation = Ledger().reserve(SpendRequest("d", "r", PLAN, "differential_privacy", None, "0"))
    for arguments in (
        ["ledger", "show"],
        ["ledger", "set-budget", "d", "--epsilon", "9", "--delta", "1e-5"],
        ["ledger", "forecast", "d", private],
        ["ledger", "release", reservation.id],
        ["runs", "list", "--out", runs],
        ["runs", "show", "a", "--out", runs],
        ["runs", "compare", "a", "b", "--out", runs],
        ["ls", "measurements"],
        ["validate", private],
        ["report", "--run", runs / "a"],
    ):
        called = troth(*arguments, "--json")
        assert called.code == 0, called.err
        cost = called.json["cost"]
        assert set(cost) == COST, arguments
        assert cost["seconds"] == pytest.approx(cost["setup_seconds"] + cost["work_seconds"])
        assert all(value > 0 for value in cost.values())


def test_leaving_out_what_is_not_there_is_told(troth: Callable, run_file: Callable) -> None:
    path = run_file(BUILTIN)
    called = troth("validate", path, "--without", "privacy", "--json")
    assert called.code == 0 and called.json["kind"] == "validate"
    assert called.err == f"warning: --without privacy: {path} has no [privacy]; nothing was left out\n"
    assert troth("validate", path, "--without", "train").err == ""
    assert troth("validate", path, "--set", "attack.nonmembers=test", "--without", "attack").err == ""


@pytest.mark.parametrize(
    "more,expected",
    [
        ("[gate]\nrules = ['accuracy is good']", "gate.rules"),
        ("[gate]\nrules = ['test.acuracy >= 0.9']", "did you mean test.accuracy?"),
        ("[gate]\nrules = ['attack.membership.loss.auc <= 0.6']", "no [attack]"),
        ("[grid]\n'train.learnig_rate' = [1]", "did you mean learning_rate?"),
        ("[grid]\nseeds = []", "grid.seeds"),
        ("[grid]", "[grid] is empty"),
    ],
)
@pytest.mark.parametrize("verb", ["validate", "run"])
def test_a_file_that_cannot_be_run_is_refused_before_anything(
    troth: Callable, run_file: Callable, tmp_path: Path, verb: str, more: str, expected: str
) -> None:
    called = troth(verb, run_file(BUILTIN, more=more))
    assert called.code == 2 and called.out == ""
    (line,) = called.err.splitlines()
    assert line.startswith("error: ") and expected in line
    assert not (tmp_path / "runs").exists()


def test_gates_of_a_grid_name_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    def made(name: str, met: bool) -> Record:
        row = {"rule": "test.accuracy >= 0.9", "met": met, "actual": 0.5, "reason": "" if met else "0.5 is not >= 0.9"}
        return Record("run", "g", "x", "0", series={"gate": [row]}, artifacts={"run": f"/somewhere/{name}"})

    grid = Record("run", "g", "x", "0", runs=(made("g_seed-1", True), made("g_seed-2", False), made("g_seed-3", False)))
    with pytest.raises(GateNotMet) as caught:
        hold_gates(grid)
    assert str(caught.value) == (
        "gate not met: g_seed-2: test.accuracy >= 0.9 (0.5 is not >= 0.9); "
        "g_seed-3: test.accuracy >= 0.9 (0.5 is not >= 0.9)"
    )
    with pytest.raises(GateNotMet, match=r"^gate not met: test\.accuracy >= 0\.9 \(0\.5"):
        hold_gates(made("alone", False))


def test_a_range_is_no_interval_of_a_confidence(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = Measurement("plan.seconds", 12.0, 10.0, 15.0, 0.8, "range", 9, "seconds", "lower")
    accuracy = replace(seconds, name="test.accuracy", interval_method="clopper-pearson", confidence=0.95)
    emit(Record("plan", "x", "now", "0", measurements=(seconds, accuracy)), as_json=False)
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("12  [10, 15] range of 9") and second.endswith("[10, 15] at 95%, n = 9")


def test_the_ledger_is_a_table_for_people(troth: Callable) -> None:
    Ledger().set_budget("d", 8.0, 1e-5, "example")
    for name in ("one", "two"):
        Ledger().reserve(SpendRequest("d", name, PLAN, "differential_privacy", None, "0"))
    Ledger().reserve(SpendRequest("e", "plain", None, "none", None, "0"))
    out = troth("ledger", "show").out
    assert not set("{}[]") & set(out)
    lines = out.splitlines()
    assert lines[0].split("  ")[0] == "data set" and "epsilon 8 at delta 1e-05" in out and "infinity" in out
    start = lines.index("runs on d")
    assert [line.split()[0] for line in lines[start + 1 : start + 4]] == ["run", "one", "two"]
    assert "0 of 30" in lines[start + 2] and lines.index("runs on e") == start + 5
    assert len(troth("ledger", "show", "--json").json["items"][0]["runs"]) == 2


def test_an_empty_ledger_is_a_table_too(troth: Callable) -> None:
    assert troth("ledger", "show").out == "(nothing)\n"


def test_a_missing_folder_of_runs_names_the_way(
    troth: Callable, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (["runs", "list"], ["runs", "show", "a"], ["runs", "compare", "a", "b"]):
        called = troth(*arguments)
        assert called.code == 2
        assert called.err == (
            "error: runs: no such folder; name the folder that holds runs with --out, such as --out done\n"
        )
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert "--out troth-demo after troth demo" in troth("runs", "list").err
    assert "no such folder" in troth("runs", "show", "none", "--out", runs).err
    assert troth("runs", "show", runs / "a").code == 0


@pytest.mark.parametrize("what", ["run.out", "TROTH_HOME", "demo", "report", "ledger"])
def test_places_that_are_files_are_bad_input(
    troth: Callable, run_file: Callable, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    path = run_file(BUILTIN)
    if what in ("TROTH_HOME", "ledger"):
        monkeypatch.setenv("TROTH_HOME", str(file))
    called = {
        "run.out": lambda: troth("train", path, "--set", "run.out=file"),
        "TROTH_HOME": lambda: troth("train", path),
        "demo": lambda: troth("demo", "--out", file),
        "report": lambda: troth("report", "--run", runs / "a", "--path", file / "page.html"),
        "ledger": lambda: troth("ledger", "set-budget", "d", "--epsilon", "8", "--delta", "1e-5"),
    }[what]()
    assert called.code == 2 and called.out == ""
    (line,) = called.err.splitlines()
    assert line.startswith("error: ") and "is a file" in line and "choose a folder of your own" in line
    assert file.read_text() == "x" and not (tmp_path / "runs").exists()


def test_a_damaged_ledger_is_no_bad_input(troth: Callable) -> None:
    (Ledger().home / "ledger.sqlite3").write_bytes(b"not a database, not at all, certainly not")
    called = troth("ledger", "show")
    assert called.code == 1 and len(called.err.splitlines()) == 1


def test_execution_has_one_way_for_a_file_and_one_for_its_grid(
    run_file: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = []

    class Noting:
        def __init__(self, *arguments: object) -> None: ...

        def run(self, config: RunConfig, verb: str, *, resume: bool) -> Record:
            seen.append("run")
            return Record(verb, "x", "now", "0")

        def grid(self, config: RunConfig, verb: str, *, resume: bool, jobs: int) -> Record:
            seen.append("grid")
            return Record(verb, "x", "now", "0")

    monkeypatch.setattr("troth.runs.pipeline.Pipeline", Noting)
    for grid in (None, {"seeds": [1]}, {}):
        made = config() if grid is None else parse({**config().to_dict(), "grid": grid})
        execution.execute("run", made, tmp_path, resume=False, as_json=True, quiet=True)
    assert seen == ["run", "grid", "grid"]


def test_listings_are_read_back(troth: Callable, runs: Path) -> None:
    listed = troth("runs", "list", "--out", runs, "--json")
    assert Record.from_json(listed.out).cost == Cost(**listed.json["cost"])
    assert json.loads(listed.out)["items"][0]["folder"] == "a"
