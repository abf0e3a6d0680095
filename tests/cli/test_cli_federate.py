"""The federate verb as a script sees it: every way to make clients, streams, personal models, grids, bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from troth.federated.partition_files import open_index_set

pytestmark = pytest.mark.slow

DATA = 'builtin = { name = "home", rows = 400, users = 30 }\n'
SMALL = 'preset = "tiny-bert"\nmax_length = 16\nlayers = 1\nwidth = 16\nheads = 2'
SHORT = "rounds = 2\ncohort_size = 4\nevaluate_every = 1\n"


@pytest.fixture
def small_file(run_file: Callable) -> Callable[..., Path]:
    def write(federated: str, data: str = DATA, more: str = "", **options: object) -> Path:
        path = run_file(data, more=f"[federated]\n{federated}\n{more}", batch=32, **options)
        path.write_text(path.read_text().replace('preset = "tiny-bert"', SMALL))
        return path

    return write


def found(record: dict) -> dict[str, dict]:
    return {m["name"]: m for m in record["measurements"]}


@pytest.mark.parametrize(
    "clients",
    [
        '{ partition = "iid", clients = 9 }',
        '{ partition = "label_dirichlet", clients = 9, concentration = 0.1, convention = "per_label" }',
        '{ partition = "quantity", clients = 9, distribution = "zipf" }',
        '{ partition = "quantity", clients = 9, distribution = "log_normal", sigma = 1.5 }',
        '{ partition = "features", clients = 9, clusters = 5, concentration = 0.1 }',
        '{ partition = "shards", clients = 9, labels_per_client = 3 }',
        '{ partition = "time", clients = 9 }',
        '{ partition = "natural", by = "user" }',
    ],
)
def test_every_partition_federates_and_is_kept_with_the_run(
    clients: str, troth: Callable, small_file: Callable, tmp_path: Path
) -> None:
    called = troth("federate", small_file(f"clients = {clients}\n{SHORT}"), "--json", "--quiet")
    assert called.code == 0, called.err
    record = called.json
    assert {"federated.population.sizes", "federated.population.labels", "federated.participation"} <= set(
        record["series"]
    )
    told = found(record)
    assert 0 <= told["federated.label_divergence"]["value"] <= 1
    folder = Path(record["artifacts"]["run"])
    facts = json.loads(next(folder.glob("clients/train/*.json")).read_text())
    kept = open_index_set(folder / "clients", "train", table=facts.get("facts", facts)["table"])
    assert sorted(kept.data.rows.tolist()) == list(range(int(told["data.train.rows"]["value"])))
    assert len(kept.data) == told["federated.clients"]["value"]


def test_a_stream_is_told_period_by_period_and_deletions_are_read(
    troth: Callable, small_file: Callable, tmp_path: Path
) -> None:
    (tmp_path / "gone.csv").write_text("time,user\n2000-01-01,user-3\n")
    stream = (
        'stream = { periods = 3, retention = 2, rounds_per_period = 2, replay = { size = 2 }, deletions = "gone.csv" }'
    )
    path = small_file(f"cohort_size = 3\nselection = 'activity'\n{stream}")
    (path.parent / "gone.csv").write_text((tmp_path / "gone.csv").read_text())
    called = troth("run", path, "--json", "--quiet")
    assert called.code == 0, called.err
    series = called.json["series"]
    assert [row["period"] for row in series["federated.participation"]] == [0, 0, 1, 1, 2, 2]
    assert {(row["period"], row["tested"]) for row in series["federated.period"]} == {
        (p, t) for p in range(3) for t in range(3)
    }
    assert "federated.stream.accuracy.forgetting" in found(called.json)
    assert Path(called.json["artifacts"]["report"]).read_text().count("<html") == 1


@pytest.mark.parametrize("algorithm", ["ditto", "local_head"])
def test_personal_models_and_held_out_devices_are_measured(
    algorithm: str, troth: Callable, small_file: Callable
) -> None:
    more = f"held_out_clients = 0.4\nalgorithm = '{algorithm}'\nevaluation_minimum = 5\n{SHORT}"
    told = found(troth("federate", small_file(more), "--json", "--quiet").json)
    for group in ("devices", "unseen_devices", "personal"):
        for weight in ("sample_weighted", "device_weighted"):
            assert told[f"federated.{group}.accuracy.{weight}"]["value"] is not None, group
    assert "federated.devices.accuracy.worst_decile" in told
    assert told["federated.clients"]["value"] < 30


def test_few_devices_get_no_figures_of_their_own(troth: Callable, small_file: Callable) -> None:
    told = found(troth("federate", small_file(f"evaluation_minimum = 31\n{SHORT}"), "--json", "--quiet").json)
    figure = told["federated.devices.accuracy.p10"]
    assert figure["value"] is None and not figure["supported"]


def test_a_grid_runs_two_at_a_time_and_gives_the_same_records(
    troth: Callable, small_file: Callable, tmp_path: Path
) -> None:
    grid = '[grid]\n"federated.algorithm" = ["fedavg", "scaffold"]\nseeds = [1, 2]\n'
    path = small_file(f"chunk_size = 8\n{SHORT}", more=grid)
    alone = troth("federate", path, "--json", "--quiet").json
    path.write_text(path.read_text().replace('name = "x"', 'name = "y"'))
    together = troth("federate", path, "--json", "--quiet", "--jobs", "2").json
    assert [r["config"]["federated"]["algorithm"] for r in together["runs"]] == [
        "fedavg",
        "fedavg",
        "scaffold",
        "scaffold",
    ]
    for one, two in zip(alone["runs"], together["runs"], strict=True):
        assert found(one)["test.loss"]["value"] == found(two)["test.loss"]["value"]
    again = troth("federate", path, "--json", "--quiet", "--jobs", "2", "--resume").json
    assert [r["artifacts"]["run"] for r in again["runs"]] == [r["artifacts"]["run"] for r in together["runs"]]


def test_a_point_of_a_grid_that_is_refused_is_named(troth: Callable, small_file: Callable) -> None:
    grid = '[grid]\n"federated.cohort_size" = [4, 400]\n'
    called = troth("federate", small_file("rounds = 1\n", more=grid), "--quiet", "--jobs", "2")
    assert called.code == 2
    assert called.err.count("\n") == 1 and "federated.cohort_size = 400: the population has" in called.err


ROWS = [
    {
        "text": f"turn the lamp {i} on",
        "intent": f"label{i % 4}",
        "who": f"u{i % 6}",
        "when": f"2026-01-{1 + i % 28:02d}",
    }
    for i in range(60)
]


def own(tmp_path: Path, rows: list[dict], roles: str = "") -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f'train = "{path}"\ntext = "text"\nlabel = "intent"\n{roles}'


WHO, WHEN = 'user = "who"\n', 'time = "when"\n'


@pytest.mark.parametrize(
    ("change", "roles", "federated", "said"),
    [
        ({"who": None}, WHO, "", "row 8: no user (a missing value"),
        ({}, WHO, "cohort_size = 50", "federated.cohort_size = 50: the population has 6 clients"),
        ({}, WHO, "stream = { periods = 3 }", "no time column, which federated.stream needs"),
        ({"when": "soon"}, WHO + WHEN, "stream = { periods = 3 }", "has no time that can be read"),
        ({}, WHO + WHEN, 'stream = { period = "9w" }', "choose a shorter period"),
        ({}, WHO + WHEN, 'stream = { periods = 3, deletions = "none.csv" }', "none.csv"),
        ({}, "", 'clients = { partition = "shards", clients = 6, labels_per_client = 9 }', "labels_per_client = 9"),
        ({}, "", 'clients = { partition = "iid", clients = 90 }', "90 clients"),
        ({}, "", 'clients = { partition = "time", clients = 6 }', "time"),
        ({}, "", "", "federated.clients = 'user' needs data.user"),
        ({}, WHO, "selection = { by = 'recency' }", "time"),
        ({}, WHO, "selection = { by = 'power_of_choice' }", "wants candidates"),
        ({}, WHO, "selection = { by = 'activity', weight = 'samples' }", "counts each client's rows twice"),
        ({}, WHO, "algorithm = 'scaffold'\nlocal = { optimizer = 'adamw' }", "is defined for"),
        ({}, WHO, "algorithm = 'fedavg'\nbuffer = { mean_delay = 1 }", "goes with algorithm = 'fedbuff'"),
        ({}, WHO, "algorithm = 'fedadam'\nserver = { optimizer = 'yogi' }", "is server.optimizer = 'adam'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    change: dict, roles: str, federated: str, said: str, troth: Callable, small_file: Callable, tmp_path: Path
) -> None:
    rows = [{**row, **(change if i == 7 else {})} for i, row in enumerate(ROWS)]
    cohort = "" if "cohort_size" in federated else "cohort_size = 3\n"
    path = small_file(f"{federated}\n{cohort}", data=own(tmp_path, rows, roles))
    called = troth("federate", path, "--quiet")
    assert called.code == 2 and called.out == ""
    assert said in called.err and called.err.startswith("error: ") and called.err.count("\n") == 1
    assert "lamp" not in called.err
    assert not [p for p in (path.parent / "runs").glob("*") if p.is_dir()]
