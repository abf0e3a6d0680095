"""Verbs as a script sees them: one JSON object, the contract's keys, exit codes, folders that are never overwritten."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

HOME = 'builtin = {{ name = "home", rows = {rows}, bias = 0.5 }}'
PRIVACY = "[privacy]\ntarget_epsilon = 8.0\ntarget_delta = 1e-5\n"
KEYS = {
    "kind", "name", "created", "version", "config", "seed", "measurements", "series", "privacy", "cost", "warnings",
    "artifacts",
}  # fmt: skip
STAGES = (
    "training",
    "scoring",
    "membership by loss",
    "comparing groups: accuracy_gap",
    "writing the report",
)
pytestmark = pytest.mark.slow


def names(record: dict) -> set[str]:
    return {m["name"] for m in record["measurements"]}


@pytest.fixture
def home_file(run_file: Callable) -> Callable[..., Path]:
    def write(more: str = "", rows: int = 400, **options: object) -> Path:
        path = run_file(HOME.format(rows=rows), more=more, batch=32, **options)
        path.write_text(path.read_text().replace('preset = "tiny-bert"', 'preset = "tiny-bert"\nmax_length = 16'))
        return path

    return write


def test_run_private_with_everything(troth: Callable, home_file: Callable, tmp_path: Path) -> None:
    path = home_file(PRIVACY + '[attack]\n[fairness]\n[gate]\nrules = ["privacy.epsilon <= 8.0", "test.accuracy <= 1"]')
    called = troth("run", path, "--json", "--quiet")
    assert called.code == 0, called.err
    record = called.json
    assert set(record) == KEYS and called.err == ""
    assert {"test.accuracy", "test.macro_f1", "attack.membership.loss.auc", "fairness.accuracy_gap"} <= names(record)
    assert all(m["outside_guarantee"] for m in record["measurements"] if m["name"].split(".")[0] != "data")
    privacy = record["privacy"]
    assert privacy["guarantee"] == "differential_privacy" and 7.9 < privacy["epsilon"] <= 8
    assert [g["met"] for g in record["series"]["gate"]] == [True, True]
    folder = tmp_path / "runs" / "x"
    assert json.loads((folder / "record.json").read_text()) == record
    card = (folder / "model" / "README.md").read_text()
    assert "unit: example" in card and "add_remove" in card
    assert (folder / "report.html").read_text().count("<svg ") >= 5
    assert not [p for p in (folder / "model").iterdir() if p.suffix in (".bin", ".pt", ".pkl")]
    shown = troth("ledger", "show", "--json").json["items"]
    assert len(shown) == 1 and shown[0]["runs"][0]["steps_spent"] == privacy["steps"]


def test_each_stage_says_that_it_begins(troth: Callable, home_file: Callable) -> None:
    called = troth("run", home_file('[attack]\n[fairness]\n[gate]\nrules = ["test.accuracy >= 0"]'))
    assert called.code == 0, called.err
    lines = called.err.splitlines()
    begun = [next(i for i, line in enumerate(lines) if line.startswith(word)) for word in STAGES]
    assert begun == sorted(begun)


def test_gate_not_met_prints_the_record_and_ends_with_three(troth: Callable, home_file: Callable) -> None:
    called = troth(
        "run", home_file('[gate]\nrules = ["test.accuracy > 1", "privacy.epsilon <= 8"]'), "--json", "--quiet"
    )
    assert called.code == 3
    assert [g["met"] for g in called.json["series"]["gate"]] == [False, False]
    assert called.err.startswith("error: gate not met: test.accuracy > 1") and len(called.err.splitlines()) == 1


def test_train_then_verbs_alone(troth: Callable, home_file: Callable, tmp_path: Path) -> None:
    path = home_file("[attack]\n[fairness]")
    first = troth("train", path, "--json", "--quiet").json
    assert first["privacy"] is None and "attack.membership.loss.auc" not in names(first)
    again = troth("train", path, "--json", "--quiet").json
    assert [Path(r["artifacts"]["run"]).name for r in (first, again)] == ["x", "x-2"]
    accuracies = [next(m["value"] for m in r["measurements"] if m["name"] == "test.accuracy") for r in (first, again)]
    assert accuracies[0] == accuracies[1]
    attack = troth("attack", path, "--json", "--quiet")
    assert attack.code == 0 and attack.json["kind"] == "attack" and "attack.membership.loss.auc" in names(attack.json)
    assert (tmp_path / "runs" / "x-2" / "attack.json").is_file()
    fairness = troth("fairness", path, "--run", tmp_path / "runs" / "x", "--json", "--quiet")
    assert fairness.code == 0 and (tmp_path / "runs" / "x" / "fairness.json").is_file()
    report = troth("report", path, "--json")
    assert Path(report.json["artifacts"]["report"]).read_text().count("attack.membership.loss.auc") >= 1
    rows = troth("runs", "list", "--out", tmp_path / "runs", "--json").json["items"]
    assert [(r["folder"], r["state"]) for r in rows] == [("x", "finished"), ("x-2", "finished")]
    compared = troth("runs", "compare", "x", "x-2", "--out", tmp_path / "runs", "--json").json["items"]
    assert next(r for r in compared if r["name"] == "test.accuracy")["differences"] == {"x-2": 0.0}
    assert troth("runs", "show", "x", "--out", tmp_path / "runs").code == 0


def test_federate_and_run_agree(troth: Callable, home_file: Callable) -> None:
    more = "[federated]\nrounds = 2\ncohort_size = 3\nevaluate_every = 1\nselection = 'activity'"
    called = troth("federate", home_file(more), "--json", "--quiet")
    assert called.code == 0, called.err
    assert "federated.round.accuracy" in names(called.json) and "test.accuracy" in names(called.json)
    assert [r["round"] for r in called.json["series"]["federated.round"]] == [1, 2]
    same = troth("run", home_file(more), "--json", "--quiet").json
    assert same["series"]["federated.round"][-1]["accuracy"] == called.json["series"]["federated.round"][-1]["accuracy"]


def test_grid_makes_each_run_once_and_resumes(troth: Callable, home_file: Callable, tmp_path: Path) -> None:
    path = home_file("[grid]\nseeds = [1, 2]")
    record = troth("train", path, "--json", "--quiet").json
    assert [r["config"]["run"]["seed"] for r in record["runs"]] == [1, 2]
    assert record["cost"]["work_seconds"] == pytest.approx(sum(r["cost"]["work_seconds"] for r in record["runs"]))
    assert [i["seeds"] for i in record["items"]] == [1, 2] and all("test.accuracy" in i for i in record["items"])
    before = sorted(p.name for p in (tmp_path / "runs").iterdir() if p.is_dir())
    again = troth("train", path, "--json", "--quiet", "--resume").json
    assert sorted(p.name for p in (tmp_path / "runs").iterdir() if p.is_dir()) == before
    assert [r["measurements"] for r in again["runs"]] == [r["measurements"] for r in record["runs"]]


def test_plan_trains_nothing(troth: Callable, home_file: Callable, tmp_path: Path) -> None:
    called = troth("plan", home_file(PRIVACY), "--json", "--quiet")
    assert called.code == 0, called.err
    found = {m["name"]: m for m in called.json["measurements"]}
    assert set(found) <= {row["name"] for row in troth("ls", "measurements", "--json").json["items"]}
    values = {name: m["value"] for name, m in found.items()}
    assert 7.9 < values["plan.epsilon"] <= 8 and values["plan.noise_multiplier"] > 0
    assert called.json["series"]["privacy.epsilon"][-1]["step"] == values["plan.steps"]
    seconds = found["plan.seconds"]
    assert seconds["interval_method"] == "range" and seconds["low"] < seconds["value"] < seconds["high"]
    assert seconds["confidence"] == (seconds["n"] - 1) / (seconds["n"] + 1) < 1
    assert seconds["protocol"]["timed_steps"] >= seconds["n"] and seconds["outside_guarantee"] is True
    assert values["plan.physical_batch_size"] == 32
    assert not (tmp_path / "runs").exists()
    assert troth("ledger", "show", "--json").json["items"] == []


def test_plan_of_a_plain_run_and_of_a_federation(troth: Callable, home_file: Callable, tmp_path: Path) -> None:
    shown = troth("plan", home_file(), "--quiet").out
    assert "plan.seconds" in shown and "range of 9" in shown and "at 100%" not in shown and "epsilon" not in shown
    federation = "[federated]\nrounds = 50\ncohort_size = 3\nlocal = { epochs = 1, batch_size = 8 }"
    called = troth("plan", home_file(federation), "--json", "--quiet")
    assert called.code == 0, called.err
    found = {m["name"]: m for m in called.json["measurements"]}
    assert found["plan.rounds"]["value"] == 50 and "plan.steps" not in found
    assert found["plan.seconds"]["protocol"]["timed_rounds"] >= 2
    assert not (tmp_path / "runs").exists()


def test_budget_is_shared_and_held(troth: Callable, home_file: Callable, tmp_path: Path) -> None:
    path = home_file(PRIVACY)
    path.write_text(path.read_text().replace("[task]", 'dataset_id = "d"\n[task]'))
    assert troth("ledger", "set-budget", "d", "--epsilon", "9", "--delta", "1e-5").code == 0
    assert troth("train", path, "--quiet").code == 0
    refused = troth("train", path, "--quiet")
    assert refused.code == 2 and "budget" in refused.err and len(refused.err.splitlines()) == 1
    plain = troth("train", path, "--without", "privacy", "--quiet")
    assert plain.code == 2 and "guarantee" in plain.err
    assert [p.name for p in (tmp_path / "runs").iterdir() if p.is_dir()] == ["x"]
    given_up = troth("train", path, "--without", "privacy", "--set", "run.guarantee=none", "--quiet")
    assert given_up.code == 0, given_up.err
    (row,) = troth("ledger", "show", "--json").json["items"]
    assert row["spent_epsilon"] is None


def test_insecure_seed_is_stamped_everywhere(troth: Callable, home_file: Callable, tmp_path: Path) -> None:
    path = home_file(PRIVACY)
    path.write_text(path.read_text().replace("seed = 1", 'seed = 1\ninsecure_seed = 3\nguarantee = "none"'))
    records = [troth("run", path, "--json", "--quiet").json for _ in range(2)]
    for record in records:
        assert record["privacy"]["guarantee"] == "none" and record["privacy"]["epsilon"] is None
    assert records[0]["measurements"] == records[1]["measurements"]
    assert "no privacy guarantee" in (tmp_path / "runs" / "x" / "model" / "README.md").read_text()
    assert "infinity (no guarantee)" in (tmp_path / "runs" / "x" / "report.html").read_text()


def test_doctor_lists_rules_and_refuses_by_name(troth: Callable, home_file: Callable, tmp_path: Path) -> None:
    assert troth("train", home_file(), "--quiet").code == 0
    called = troth("doctor", tmp_path / "runs" / "x" / "model", "--json")
    assert called.code == 0 and all(item["supported"] for item in called.json["items"])
    assert called.json["cost"]["work_seconds"] > 0


def test_validate_prints_what_it_would_run(troth: Callable, home_file: Callable, tmp_path: Path) -> None:
    called = troth("validate", home_file(), "--set", "train.epochs=7")
    assert called.code == 0 and "epochs = 7" in called.out and "sampler" not in called.out
    again = tmp_path / "again.toml"
    again.write_text(called.out)
    assert troth("validate", again).out == called.out
    assert json.loads(troth("validate", again, "--schema").out)["title"] == "troth run file"


@pytest.mark.parametrize("what", ["measurements", "presets", "tasks", "formats"])
def test_ls(troth: Callable, what: str) -> None:
    called = troth("ls", what, "--json")
    assert called.code == 0 and len(called.json["items"]) >= 4
    assert troth("ls", what).out.count("\n") == len(called.json["items"]) + 1


def test_demo_makes_three_models_and_one_report(troth: Callable, tmp_path: Path) -> None:
    called = troth("demo", "--out", tmp_path / "demo", "--rows", "1000", "--json", "--quiet")
    assert called.code == 0, called.err
    record = called.json
    assert [r["name"] for r in record["runs"]] == ["plain", "private", "federated"]
    for run in record["runs"]:
        assert {"test.accuracy", "attack.membership.loss.auc", "fairness.accuracy_gap"} <= names(run)
    private, federated = record["runs"][1:]
    assert private["privacy"]["epsilon"] <= 8 and federated["series"]["federated.round"][-1]["round"] == 20
    page = Path(record["artifacts"]["report"]).read_text()
    assert page.count("<svg ") >= 10 and all(f'<th scope="col">{name}</th>' in page for name in ("plain", "private"))
    assert (tmp_path / "demo" / "home" / "ledger.sqlite3").is_file()
