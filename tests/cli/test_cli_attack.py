"""The attack verb as a script sees it: every kind of target, what is written, what is refused, what never leaks."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from troth.config import BuiltinConfig
from troth.data import home

pytestmark = pytest.mark.slow

DATA = 'builtin = { name = "home", rows = 500 }\n'
ALL = (
    "[attack]\n"
    'membership = ["loss", "modified_entropy", "quantile", "rmia", "lira", "shokri"]\n'
    "shadows = 4\nnonmembers = { holdout = 0.5 }\n"
    'canaries = { count = 4, repeats = [1, 20], extraction = ["enumerate", "beam"] }\n'
    "audit = { canaries = 40 }\n"
)
SMALL = 'preset = "tiny-bert"\nmax_length = 16\nlayers = 1\nwidth = 32\nheads = 2'


def names(record: dict) -> set[str]:
    return {m["name"] for m in record["measurements"]}


@pytest.fixture
def small_file(run_file: Callable) -> Callable[..., Path]:
    def write(more: str = "", data: str = DATA, **options: object) -> Path:
        path = run_file(data, more=more, batch=32, **options)
        path.write_text(path.read_text().replace('preset = "tiny-bert"', SMALL))
        return path

    return write


def test_a_run_with_every_attack(troth: Callable, small_file: Callable, tmp_path: Path) -> None:
    called = troth("run", small_file(ALL), "--json", "--quiet")
    assert called.code == 0, called.err
    record = called.json
    wanted = {f"attack.membership.{a}.auc" for a in ("loss", "modified_entropy", "quantile", "rmia", "lira", "shokri")}
    wanted |= {"attack.membership.blind.auc", "attack.audit.epsilon_lower_bound", "attack.audit.canary_auc"}
    wanted |= {"attack.canaries.exposure", "attack.canaries.decoy.exposure", "attack.canaries.beam.exact_match"}
    wanted |= {"attack.membership.rmia.auc_by_label", "attack.membership.rmia.auc_by_user_activity"}
    assert wanted <= names(record)
    area = next(m for m in record["measurements"] if m["name"] == "attack.membership.rmia.auc")
    assert area["protocol"]["shadows"] == 4 and area["protocol"]["nonmembers_from"] == "held out of the training rows"
    folder = tmp_path / "runs" / "x" / "attack"
    assert oct((folder / "canaries.key.json").stat().st_mode)[-3:] == "600"
    assert not list(folder.rglob("*.safetensors"))
    written = (tmp_path / "runs" / "x" / "report.html").read_text() + called.out
    for code in json.loads((folder / "canaries.key.json").read_text())["codes"]:
        assert " ".join(f"{code:04d}") not in written
    again = troth("attack", small_file(ALL), "--json", "--quiet")  # with the shadows that are there
    assert again.code == 0, again.err
    assert {m["value"] for m in again.json["measurements"] if m["name"] == area["name"]} == {area["value"]}


def test_the_texts_of_the_most_exposed_need_a_word(troth: Callable, small_file: Callable) -> None:
    path = small_file("[attack]\n")
    first = troth("run", path, "--json", "--quiet").json
    rows = first["series"]["attack.membership.loss.most_exposed"]
    assert len(rows) == 10 and all(set(r) == {"row", "words", "id", "label", "score"} for r in rows)
    shown = troth("attack", path, "--json", "--quiet", "--show-text").json
    texts = [r["text"] for r in shown["series"]["attack.membership.loss.most_exposed"]]
    assert all(texts) and not any(f'"{text}"' in json.dumps(first) for text in texts)
    corpus = home(BuiltinConfig(rows=500), "classification").train
    assert [corpus.column("id")[r["row"]] for r in rows] == [r["id"] for r in rows]


def test_scores_made_elsewhere(troth: Callable, small_file: Callable, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    with (tmp_path / "s.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["score", "member"])
        writer.writerows([[generator.normal(1, 1), 1] for _ in range(100)])
        writer.writerows([[generator.normal(0, 1), 0] for _ in range(100)])
    called = troth("attack", small_file('[attack]\nscores = "s.csv"\n'), "--json", "--quiet")
    assert called.code == 0, called.err
    area = next(m for m in called.json["measurements"] if m["name"] == "attack.membership.scores.auc")
    assert 0.65 < area["value"] < 0.85
    assert (tmp_path / "runs" / "x" / "record.json").is_file()
    (tmp_path / "s.csv").write_text("score,member\nnan,1\n0.5,0\n")
    wrong = troth("attack", small_file('[attack]\nscores = "s.csv"\n'))
    assert wrong.code == 2 and len(wrong.err.splitlines()) == 1 and "s.csv" in wrong.err
    assert not (tmp_path / "runs" / "x-2").exists()


def test_a_model_trained_elsewhere(troth: Callable, small_file: Callable, tmp_path: Path) -> None:
    splits = home(BuiltinConfig(rows=500), "classification")
    assert splits.validation is not None
    for name, table in (("inner", splits.train), ("outer", splits.validation)):
        rows = zip(table.column("text"), table.column("label"), strict=True)
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)
        )
    assert troth("train", small_file(data='train = "inner.jsonl"'), "--quiet").code == 0
    path = small_file(
        '[attack]\nmembers = "inner.jsonl"\nnonmembers = "outer.jsonl"\n', data='train = "inner.jsonl"', name="b.toml"
    )
    path.write_text(path.read_text().replace(SMALL, 'checkpoint = "runs/x/model"\nmax_length = 16'))
    called = troth("attack", path, "--json", "--quiet")
    assert called.code == 0, called.err
    assert "attack.membership.loss.auc" in names(called.json)
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"x")
    path.write_text(path.read_text().replace("runs/x/model", "pickled"))
    wrong = troth("attack", path)
    assert wrong.code == 2 and len(wrong.err.splitlines()) == 1 and "pickled" in wrong.err


def test_shadows_on_a_data_set_with_a_budget_are_refused(troth: Callable, small_file: Callable) -> None:
    data = DATA + 'dataset_id = "d"'
    more = "[privacy]\ntarget_epsilon = 8\ntarget_delta = 1e-4\n[attack]\nmembership = ['rmia']\nshadows = 2\n"
    budget = ("ledger", "set-budget", "d", "--epsilon", "20", "--delta", "1e-3", "--unit", "example")
    assert troth(*budget).code == 0
    assert troth("train", small_file(more, data=data), "--quiet").code == 0
    refused = troth("attack", small_file(more, data=data), "--quiet")
    assert refused.code == 2 and "guarantee" in refused.err and len(refused.err.splitlines()) == 1
    given_up = troth("attack", small_file(more, data=data), "--quiet", "--json", "--set", "run.guarantee=none")
    assert given_up.code == 0, given_up.err


def spent(troth: Callable) -> list:
    return [run["steps_spent"] for item in troth("ledger", "show", "--json").json["items"] for run in item["runs"]]


def test_what_the_attack_refuses_is_refused_before_anything_is_trained(troth: Callable, small_file: Callable) -> None:
    private = "[privacy]\ntarget_epsilon = 8\ntarget_delta = 1e-4\n"
    assert troth("ledger", "set-budget", "d", "--epsilon", "20", "--delta", "1e-3", "--unit", "example").code == 0
    budget = small_file(private + "[attack]\naudit = {}\n", data=DATA + 'dataset_id = "d"')
    for path, why in (
        (budget, "guarantee"),
        (small_file(private + "[attack]\ncanaries = { label = 'nosuch' }\n", name="a.toml"), "no such label"),
        (small_file(private + "[attack]\ncanaries = { pattern = 'pin {d*0}' }\n", name="b.toml"), "give 1 or more"),
        (small_file(private + "[attack]\nnonmembers = 'no.jsonl'\n", name="c.toml"), "attack.nonmembers = 'no.jsonl'"),
        (
            small_file(
                private + "[attack]\nmembership = ['quantile']\nnonmembers = { holdout = 0.05 }\n", name="d.toml"
            ),
            "100",
        ),
    ):
        called = troth("run", path, "--quiet")
        assert called.code == 2 and why in called.err and len(called.err.splitlines()) == 1, called.err
        assert not (path.parent / "runs" / "x").exists()
    assert spent(troth) == []


def test_a_run_that_stopped_in_its_attack_goes_on_with_another(
    troth: Callable, small_file: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from troth.errors import DataError
    from troth.runs import membership_stage

    def fail(*arguments: object, **options: object) -> None:
        raise DataError("planted")

    path = small_file("[privacy]\ntarget_epsilon = 8\ntarget_delta = 1e-4\n[attack]\n")
    with monkeypatch.context() as patch:
        patch.setattr(membership_stage, "signals_of", fail)
        assert troth("run", path, "--quiet").code == 2
    steps = spent(troth)
    again = troth("run", path, "--resume", "--json", "--quiet", "--set", "attack.membership=['modified_entropy']")
    assert again.code == 0, again.err
    assert "attack.membership.modified_entropy.auc" in names(again.json) and spent(troth) == steps
    assert "modified_entropy" in (tmp_path / "runs" / "x" / "run.toml").read_text()


def test_a_damaged_shadow_is_made_again(troth: Callable, small_file: Callable, tmp_path: Path) -> None:
    path = small_file("[attack]\nmembership = ['rmia']\nshadows = 2\n")
    first = troth("run", path, "--json", "--quiet").json
    (file,) = (tmp_path / "runs" / "x" / "attack").glob("*/shadow-1.npz")
    file.write_bytes(file.read_bytes()[:100])
    again = troth("attack", path, "--json", "--quiet")
    assert again.code == 0, again.err
    value = {m["name"]: m["value"] for m in first["measurements"]}["attack.membership.rmia.auc"]
    assert {m["name"]: m["value"] for m in again.json["measurements"]}["attack.membership.rmia.auc"] == pytest.approx(
        value
    )


def test_a_tokenizer_of_another_model_is_refused(troth: Callable, small_file: Callable, tmp_path: Path) -> None:
    path = small_file("[attack]\n")
    assert troth("train", path, "--quiet").code == 0
    settings = tmp_path / "runs" / "x" / "model" / "tokenizer_config.json"
    known = json.loads(settings.read_text())
    for size in (known["vocabulary_size"] * 2, known["vocabulary_size"] // 2):
        settings.write_text(json.dumps(known | {"vocabulary_size": size}))
        wrong = troth("attack", path)
        assert wrong.code == 2 and len(wrong.err.splitlines()) == 1 and "tokenizer" in wrong.err


def test_a_grid_is_attacked_point_by_point(troth: Callable, small_file: Callable, tmp_path: Path) -> None:
    path = small_file("[attack]\n[grid]\nseeds = [1, 2]\n")
    assert troth("train", path, "--quiet").code == 0
    called = troth("attack", path, "--json", "--quiet")
    assert called.code == 0, called.err
    assert len(called.json["runs"]) == 2 and all("attack.membership.loss.auc" in row for row in called.json["items"])
    report = troth("report", path, "--json").json["artifacts"]["report"]
    assert Path(report) == tmp_path / "runs" / "x.html"


@pytest.mark.parametrize(
    ("kind", "preset", "attacks"),
    [
        ("tagging", "tiny-bert", ["loss", "margin", "rmia"]),
        ("question_answering", "tiny-bert", ["loss", "rmia"]),
        ("seq2seq", "tiny-t5", ["loss", "zlib", "min_k", "rmia"]),
        ("language_modeling", "tiny-gpt2", ["loss", "zlib", "min_k", "min_k_plus_plus", "rmia"]),
    ],
)
def test_every_task_is_attacked(troth: Callable, run_file: Callable, kind: str, preset: str, attacks: list) -> None:
    more = f"[attack]\nmembership = {attacks}\nshadows = 2\nnonmembers = 'validation'\naudit = {{ canaries = 20 }}\n"
    more += "canaries = { count = 2, repeats = [1] }\n"
    path = run_file('builtin = { name = "home", rows = 200 }', kind=kind, more=more, batch=32)
    path.write_text(path.read_text().replace('"tiny-bert"', f'"{preset}"\nmax_length = 32\nlayers = 1'))
    called = troth("run", path, "--json", "--quiet")
    assert called.code == 0, called.err
    wanted = {f"attack.membership.{a}.auc" for a in attacks}
    assert wanted | {"attack.audit.epsilon_lower_bound", "attack.canaries.exposure"} <= names(called.json)
