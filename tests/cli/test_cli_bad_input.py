"""Bad input: exit code 2, one line that names the thing, no traceback, nothing made or overwritten."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from troth.errors import RunError
from troth.runs import pipeline as pipeline_module
from troth.runs import stages as stages_module

GOOD = [{"text": f"turn on the light {i}", "intent": "on" if i % 2 else "off"} for i in range(8)]


def jsonl(rows: list) -> bytes:
    return "".join(json.dumps(r) + "\n" for r in rows).encode()


def changed(**last: object) -> bytes:
    """Eight good rows, the last one changed."""
    return jsonl([*GOOD[:-1], {**GOOD[-1], **last}])


ROLES = 'train = "t.jsonl"\ntext = "text"\nlabel = "intent"'
PRIVACY = "[privacy]\ntarget_epsilon = {e}\ntarget_delta = {d}\n"

# name: (files, [data] section, rest of the run file, what the line must hold)
TABLES = {
    "missing file": ({}, ROLES, "", "t.jsonl"),
    "empty file": ({"t.jsonl": b""}, ROLES, "", "t.jsonl"),
    "only blank lines": ({"t.jsonl": b"\n\n\n"}, ROLES, "", "t.jsonl"),
    "missing column": ({"t.jsonl": jsonl([{"text": "a", "other": 1}])}, ROLES, "", "intent"),
    "missing text column": ({"t.jsonl": jsonl([{"txt": "a", "intent": "b"}])}, ROLES, "", "text"),
    "one class": ({"t.jsonl": jsonl([{**r, "intent": "on"} for r in GOOD])}, ROLES, "", "one"),
    "null label": ({"t.jsonl": changed(intent=None)}, ROLES, "", "row 8"),
    "empty text": ({"t.jsonl": changed(text="   ")}, ROLES, "", "row 8"),
    "null text": ({"t.jsonl": changed(text=None)}, ROLES, "", "row 8"),
    "text is a number": ({"t.jsonl": jsonl([{**r, "text": i} for i, r in enumerate(GOOD)])}, ROLES, "", "text"),
    "broken json": ({"t.jsonl": jsonl(GOOD) + b'{"text": oops\n'}, ROLES, "", "9"),
    "json list": ({"t.jsonl": b"[1, 2]\n"}, ROLES, "", "t.jsonl"),
    "binary": ({"t.jsonl": b"\xff\xfe\x00garbage"}, ROLES, "", "t.jsonl"),
    "latin-1": ({"t.jsonl": jsonl(GOOD) + '{"text": "é", "intent": "on"}\n'.encode("latin-1")}, ROLES, "", "UTF-8"),
    "huge line": ({"t.jsonl": changed(text="x" * 10_000_000)}, ROLES, "", "8"),
    "duplicate ids": (
        {"t.jsonl": jsonl([{**r, "id": i // 2} for i, r in enumerate(GOOD)])},
        ROLES + '\nid = "id"',
        "",
        "id",
    ),
    "nan label": ({"t.jsonl": jsonl(GOOD) + b'{"text": "a", "intent": NaN}\n'}, ROLES, "", "9"),
    "unseen label in test": (
        {"t.jsonl": jsonl(GOOD), "e.jsonl": changed(intent="never seen")},
        ROLES + '\ntest = "e.jsonl"',
        "",
        "count_as_error",
    ),
    "missing test file": ({"t.jsonl": jsonl(GOOD)}, ROLES + '\ntest = "none.jsonl"', "", "none.jsonl"),
    "unknown ending": ({"t.xyz": b"a"}, 'train = "t.xyz"\ntext = "text"\nlabel = "intent"', "", "t.xyz"),
    "csv without the column": ({"t.csv": b"a,b\n1,2\n"}, 'train = "t.csv"\ntext = "text"\nlabel = "b"', "", "text"),
    "csv with a short row": (
        {"t.csv": b"text,intent\na,on\nb\n"},
        'train = "t.csv"\ntext = "text"\nlabel = "intent"',
        "",
        "t.csv",
    ),
    "wrong number of names": (
        {"t.tsv": b"on\ta light\noff\tb\n"},
        'train = "t.tsv"\ncolumns = ["intent", "text", "more"]\ntext = "text"\nlabel = "intent"',
        "",
        "t.tsv",
    ),
    "not parquet": (
        {"t.parquet": b"PAR1 not really"},
        'train = "t.parquet"\ntext = "text"\nlabel = "x"',
        "",
        "t.parquet",
    ),
    "group column missing": ({"t.jsonl": jsonl(GOOD)}, ROLES + '\ngroup = "region"', "", "region"),
}
CONFIGS = {
    "negative epsilon": (PRIVACY.format(e=-1, d=1e-5), "target_epsilon"),
    "delta above one over n": (PRIVACY.format(e=1, d=0.09), "delta"),
    "delta of one": (PRIVACY.format(e=1, d=1), "target_delta"),
    "batch larger than the data": (PRIVACY.format(e=1, d=1e-5), "expected_batch_size"),
    "fairness without groups": ("[fairness]\nmetrics = ['accuracy_gap']", "data.group"),
    "broken gate": ("[gate]\nrules = ['accuracy is good']", "gate.rules"),
    "unknown metric": ("[fairness]\nmetrics = ['niceness']", "niceness"),
    "gate on nothing": ("[gate]\nrules = ['test.acuracy >= 0.5']", "test.accuracy"),
    "gate on an attack not made": ("[gate]\nrules = ['attack.membership.loss.auc <= 1']", "[attack]"),
    "attack of another task": ("[attack]\nmembership = ['margin']\nnonmembers = { holdout = 0.5 }", "is for tagging"),
    "few shadows": ("[attack]\nmembership = ['lira']\nshadows = 2\nnonmembers = { holdout = 0.5 }", "shadows = 4"),
    "scores in a run": ("[attack]\nscores = 's.csv'", "use troth attack"),
    "no reference": ("[attack]\nmembership = ['reference']\nnonmembers = { holdout = 0.5 }", "attack.reference"),
    "distillation": ("[distill]\nteacher = 'x'", "[distill] is not part of this version yet"),
    "misspelt partition": (
        "[federated]\nclients = { partition = 'label_dirichlt', clients = 2 }",
        "federated.clients.partition = 'label_dirichlt'",
    ),
    "no concentration": (
        "[federated]\nclients = { partition = 'label_dirichlet', clients = 2, concentration = 0 }",
        "federated.clients.concentration = 0",
    ),
    "misspelt key in a grid": ("[grid]\n'train.learnig_rate' = [1]", "did you mean learning_rate"),
    "unknown attack": ("[attack]\nmembership = ['magic']", "magic"),
    "attack without non-members": ("[attack]\nmembership = ['loss']", "data.test"),
    "cohort above the population": (
        "[federated]\nclients = { partition = 'iid', clients = 2 }\ncohort_size = 5\nrounds = 1",
        "cohort_size",
    ),
    "federation without users": ("[federated]\nrounds = 1\ncohort_size = 1", "data.user"),
    "more clients than rows": (
        "[federated]\nclients = { partition = 'iid', clients = 99 }\ncohort_size = 5\nrounds = 1",
        "99",
    ),
    "double count": (
        "[federated]\nrounds = 1\nselection = { by = 'activity', weight = 'samples' }",
        "allow_double_count",
    ),
    "grid of nothing": ("[grid]\nseeds = []", "grid.seeds"),
}


def one_line(err: str) -> str:
    lines = [line for line in err.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and lines[-1] == errors[0], err
    assert "Traceback" not in err
    return errors[0]


@pytest.mark.parametrize("case", TABLES.values(), ids=TABLES.keys())
def test_bad_tables(case: tuple, troth: Callable, run_file: Callable, tmp_path: Path) -> None:
    files, data, more, expected = case
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    called = troth("train", run_file(data, more=more), "--json", "--quiet")
    assert called.code == 2 and called.out == ""
    line = one_line(called.err)
    assert expected in line and len(line) < 600
    assert "turn on the light" not in line
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


@pytest.mark.parametrize("case", CONFIGS.values(), ids=CONFIGS.keys())
def test_bad_settings(case: tuple, troth: Callable, run_file: Callable, tmp_path: Path) -> None:
    more, expected = case
    (tmp_path / "t.jsonl").write_bytes(jsonl(GOOD * 5))
    batch = 99 if expected == "expected_batch_size" else 2
    test = "" if expected == "data.test" else '\ntest = "e.jsonl"'
    (tmp_path / "e.jsonl").write_bytes(jsonl([{**row, "text": f"{row['text']} please"} for row in GOOD * 5]))
    called = troth("run", run_file(ROLES + test, more=more, batch=batch), "--json")
    assert called.code == 2 and called.out == ""
    assert expected in one_line(called.err) and len(called.err.splitlines()) == 1, "nothing is begun before it is seen"
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


def test_bad_models(troth: Callable, run_file: Callable, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(jsonl(GOOD))
    (tmp_path / "empty").mkdir()
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    for folder, expected in [("none", "none"), ("empty", "empty"), ("pickled", "pickled weights")]:
        path = run_file(ROLES)
        path.write_text(path.read_text().replace('preset = "tiny-bert"', f'checkpoint = "{folder}"'))
        called = troth("train", path, "--quiet")
        assert called.code == 2, called.err
        assert expected in one_line(called.err)


def test_verbs_that_need_a_finished_run(troth: Callable, run_file: Callable, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(jsonl(GOOD))
    path = run_file(ROLES + '\ntest = "t.jsonl"', more="[attack]\n[fairness]")
    for arguments in (
        ["attack", path],
        ["fairness", path],
        ["report", path],
        ["report"],
        ["attack", path, "--run", tmp_path],
        ["train", path, "--resume"],
        ["runs", "show", "none", "--out", tmp_path],
        ["runs", "compare", "none", "--out", tmp_path],
        ["runs", "list", "--out", tmp_path / "none"],
        ["federate", path],
        ["doctor", tmp_path / "none"],
        ["validate", tmp_path / "none.toml"],
        ["validate", path, "--set", "nonsense"],
        ["validate", path, "--without", "nonsense"],
        ["ledger", "set-budget", "x", "--epsilon", "-1", "--delta", "1e-5"],
        ["ledger", "forecast", "x", path],
    ):
        called = troth(*arguments)
        assert called.code == 2, (arguments, called.err)
        one_line(called.err)


def test_a_ledger_that_fails_leaves_no_run_behind(
    troth: Callable, run_file: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RunError("privacy ledger: the disk refused to write")

    (tmp_path / "t.jsonl").write_bytes(jsonl(GOOD))
    monkeypatch.setattr(stages_module, "Ledger", fail)
    for more in ("", PRIVACY.format(e=8, d=1e-3)):
        called = troth("train", run_file(ROLES, more=more), "--quiet")
        assert called.code == 1 and "refused to write" in one_line(called.err)
        assert not any((tmp_path / "runs").iterdir())


def test_columns_of_groups_and_ids_need_no_naming(
    troth: Callable, run_file: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A column called group or id plays its role unasked; what it shows of the data stands in the record."""
    monkeypatch.setattr(pipeline_module, "constant_predictions", lambda prepared, book: ("one label only",))
    rows = [{**row, "group": "xy"[i // 4], "id": i} for i, row in enumerate(GOOD)]
    (tmp_path / "t.jsonl").write_bytes(jsonl(rows))
    (tmp_path / "e.jsonl").write_bytes(jsonl([{**row, "text": f"{row['text']} please"} for row in rows]))
    path = run_file(ROLES + '\ntest = "e.jsonl"', more="[fairness]")
    called = troth("run", path, "--json", "--quiet")
    assert called.code == 0, called.err
    assert "fairness.accuracy_gap" in {m["name"] for m in called.json["measurements"]}
    shared = "8 of 8 ids of the test split also stand in the train split, 0 of them with equal rows"
    assert any(shared in line for line in called.json["warnings"])
    assert "one label only" in called.json["warnings"]
    alone = troth("fairness", path, "--json", "--quiet").json
    assert any(shared in line for line in alone["warnings"]) and "one label only" in alone["warnings"]
