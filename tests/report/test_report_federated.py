"""Federations in the report: grids against naive means and a known library, curves, streams, devices, participation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pytest
from hostile import HOSTILE, finished, hostile_record, read_aloud
from pydantic import BaseModel
from scipy import stats
from scipy.sparse import csr_array
from test_report_page import OUT_OF_SIGHT, opened

from troth.config_federated import FederatedConfig
from troth.federated.device_metrics import SPREAD_METRICS, device_measurements, unseen_device_measurements
from troth.federated.evaluation import DeviceStatistics, Ratio
from troth.federated.stream_metrics import StreamScores, stream_measurements
from troth.report import write_report
from troth.report.federated_facts import facts, partition_told, selection_told
from troth.report.federated_grid import grid_tables, over_seeds
from troth.report.federated_groups import groups
from troth.report.plots import Plot
from troth.report.section import Section
from troth.report.sections import build
from troth.report.tables import Table
from troth.results import Cost, Json, Measurement, Record, computed
from troth.runs.catalogue import MEASUREMENTS
from troth.runs.folders import RunFolder
from troth.seeds import PublicSeeds

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ALGORITHMS, SEEDS = ("fedavg", "fedadam"), (1, 2, 3)
IID: dict[str, Json] = {"partition": "iid", "clients": 50}
SKEWED: dict[str, Json] = {"partition": "label_dirichlet", "concentration": 0.1, "clients": 50}
COSTS = ("rounds", "examples processed", "bytes sent")


def share(name: str, value: float | None, n: int = 400, half: float = 0.04, **more: Any) -> Measurement:
    """A fraction with an interval of that half width."""
    low, high = (None, None) if value is None else (max(0.0, value - half), min(1.0, value + half))
    return Measurement(name, value, low, high, 0.95, "clopper-pearson", n, "fraction", "higher", **more)


def base(name: str, seed: int = 1, **sections: Json) -> dict[str, Json]:
    """A run file's mapping."""
    return {
        "run": {"name": name, "seed": seed},
        "model": {"preset": "tiny-bert"},
        "data": {"train": "corpus/train.jsonl", "text": "text", "label": "label"},
        "task": {"kind": "classification"},
        **sections,
    }


def central(seed: int, accuracy: float, created: str = "2026-01-01T00:00:00+00:00", **sections: Json) -> Record:
    """A run of centralised training."""
    found = (share("test.accuracy", accuracy), share("validation.accuracy", accuracy - 0.01))
    return Record("train", "central", created, "0", base("central", seed, **sections), seed, found)


def federated(
    algorithm: str = "fedavg",
    clients: Json = "user",
    seed: int = 1,
    accuracy: float = 0.8,
    *,
    rounds: int = 6,
    created: str = "2026-01-01T00:00:00+00:00",
    more: Mapping[str, Json] | None = None,
    optimizers: tuple[str, str] = ("sgd, learning rate 0.1", "sgd, learning rate 1"),
) -> Record:
    """A federation: its last round, costs, and a row a round."""
    section: dict[str, Json] = {"algorithm": algorithm, "clients": clients, "cohort_size": 10, **(more or {})}
    told: dict[str, Json] = {
        "rounds": rounds,
        "cohort_size": 10,
        "algorithm": algorithm,
        "selection": "uniform",
        "weight": "samples",
        "client_optimizer": optimizers[0],
        "server_optimizer": optimizers[1],
        "clients_run": "stacked by 16",
    }
    sizes: dict[str, Json] = {"rows_smallest": 1, "rows_median": 6.0, "rows_largest": 90, "skew": 3.5}
    found = (
        share("federated.round.accuracy", accuracy - 0.01, 300, protocol=told),
        computed("federated.clients", 50, 50, "clients", protocol=sizes),
        computed("federated.samples", 100 * rounds, rounds, "examples", direction="lower"),
        computed("federated.bytes_sent", 10**6 * rounds, rounds, "bytes", direction="lower"),
        computed("federated.participation_gini", 0.25, 50, "fraction"),
        share("validation.accuracy", accuracy - 0.01, 300),
        share("test.accuracy", accuracy),
    )
    by_round: list[dict[str, Json]] = []
    turns: list[dict[str, Json]] = []
    for r in range(1, rounds + 1):
        value = accuracy * r / rounds - 0.01
        row: dict[str, Json] = {"round": r, "accuracy": value, "low": value - 0.05, "high": value + 0.05}
        by_round.append({**row, "samples": 100 * r + seed, "bytes": 10**6 * r, "cohort": 10})
        turns.append(
            {
                "round": r,
                "asked": 12,
                "selected": 10,
                "dropped": 1,
                "surplus": r % 2,
                "rejected": 0,
                "gini": 0.5 / r,
                "seconds_select": 0.25,
                "seconds_clients": 2.0,
                "seconds_server": 0.5,
            }
        )
    return Record(
        "federate",
        f"{algorithm}_{seed}",
        created,
        "0",
        base(f"{algorithm}_{seed}", seed, federated=section),
        seed,
        found,
        {"federated.round": by_round, "federated.participation": turns},
        cost=Cost(10.0, 2.0, 8.0, 10**9),
    )


def quality(algorithm: str, clients: Json, seed: int) -> float:
    """The accuracy of a grid's run: some number that depends on all three."""
    return 0.7 + 0.05 * ALGORITHMS.index(algorithm) - 0.2 * (clients == SKEWED) + 0.003 * seed**2


def grid(seeds: Sequence[int] = SEEDS) -> list[Record]:
    """Algorithms x partitions x seeds."""
    return [
        federated(a, clients, seed, quality(a, clients, seed))
        for a in ALGORITHMS
        for clients in (IID, SKEWED)
        for seed in seeds
    ]


def section(records: Sequence[Record], out: Path) -> Section:
    """The section on federations of a report about these runs."""
    folders = [finished(r, out) for r in records]
    return next(s for s in build(folders) if s.anchor == "federation")


def cell(tables: Sequence[Table], caption: str, row: str, column: str) -> tuple[str, str, str]:
    """The text, detail and note of the only cell of that place."""
    (table,) = [t for t in tables if caption in t.caption and column in t.head]
    (cells,) = [r for r in table.rows if r[0].text == row]
    found = cells[table.head.index(column)]
    return found.text, found.detail, found.note


def named(plots: Sequence[Plot], key: str) -> list[Plot]:
    """The figures whose rows have that column."""
    return [p for p in plots if p.rows and key in p.rows[0]]


@pytest.mark.parametrize("values", [[0.8, 0.9], [0.51, 0.55, 0.5, 0.62, 0.7], [-0.3, 0.1, 0.4]])
def test_the_interval_over_seeds_is_students(values: list[float]) -> None:
    found = over_seeds(dict(enumerate(values)))
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(values), low, high))


def test_one_seed_or_seeds_that_are_alike_give_no_interval() -> None:
    assert over_seeds({1: 0.5}).low is None
    alike = over_seeds({1: 0.5, 2: 0.5, 3: 0.5})
    assert (alike.mean, alike.low, alike.high, alike.seeds) == (0.5, None, None, (1, 2, 3))


def test_an_interval_of_shares_stays_within_their_limits() -> None:
    found = over_seeds({1: 0.9, 2: 1.0, 3: 1.0}, limits=(0.0, 1.0))
    assert found.high == 1.0 and found.low == pytest.approx(stats.t.interval(0.95, 2, 29 / 30, 1 / 30)[0])


def test_the_grid_is_the_naive_mean_and_the_gap_is_the_paired_test_of_scipy() -> None:
    centre = {1: 0.9, 2: 0.93, 3: 0.91}
    (table,) = grid_tables([*grid(), *(central(s, v) for s, v in centre.items())])
    assert table.partitions == ("IID", "label Dirichlet 0.1") and table.algorithms == ALGORITHMS
    assert (table.measurement, table.unit, table.higher) == ("test.accuracy", "fraction", True)
    for algorithm in ALGORITHMS:
        for partition, clients in (("IID", IID), ("label Dirichlet 0.1", SKEWED)):
            own = [quality(algorithm, clients, s) for s in SEEDS]
            found = table.cells[partition, algorithm]
            assert found.quality is not None and found.gap is not None
            assert found.quality.mean == pytest.approx(np.mean(own)) and found.quality.seeds == SEEDS
            test = stats.ttest_rel(list(centre.values()), own).confidence_interval(0.95)
            wanted = (np.mean(list(centre.values())) - np.mean(own), test.low, test.high)
            assert (found.gap.mean, found.gap.low, found.gap.high) == pytest.approx(wanted)
            assert found.costs == {"rounds": 6.0, "samples": 600.0, "bytes": 6e6}
    assert table.centralised is not None and table.centralised.mean == pytest.approx(np.mean(list(centre.values())))


def test_only_seeds_that_both_have_are_paired() -> None:
    (table,) = grid_tables([*grid(), central(2, 0.95), central(7, 0.1)])
    gap = table.cells["IID", "fedavg"].gap
    assert gap is not None and gap.seeds == (2,) and gap.low is None
    assert gap.mean == pytest.approx(0.95 - quality("fedavg", IID, 2))


def test_where_lower_is_better_a_gap_above_zero_is_worse_all_the_same() -> None:
    def told(record: Record, value: float) -> Record:
        found = replace(share("test.loss", value), unit="nats", direction="lower")
        return replace(record, measurements=(*record.measurements, found))

    records = [told(federated(seed=s), 2.0 + s) for s in (1, 2)] + [told(central(s, 0.9), 1.0) for s in (1, 2)]
    (table,) = grid_tables(records, "test.loss")
    gap = table.cells["one client a user", "fedavg"].gap
    assert not table.higher and gap is not None and gap.mean == pytest.approx(2.5)


def test_the_newer_of_two_runs_of_one_seed_counts() -> None:
    old = federated(accuracy=0.1, created="2026-01-01T00:00:00+00:00")
    new = federated(accuracy=0.8, created="2026-02-01T00:00:00+00:00")
    for order in ([old, new], [new, old]):
        (table,) = grid_tables([*order, federated(seed=2, accuracy=0.6)])
        found = table.cells["one client a user", "fedavg"].quality
        assert found is not None and found.mean == pytest.approx(0.7) and found.seeds == (1, 2)


def test_a_run_without_the_number_is_left_out_of_the_mean() -> None:
    failed = federated(seed=2)
    failed = replace(failed, measurements=(*failed.measurements[:-1], share("test.accuracy", None)))
    (table,) = grid_tables([federated(accuracy=0.8), failed, federated(seed=3, accuracy=0.6)])
    found = table.cells["one client a user", "fedavg"].quality
    assert found is not None and found.seeds == (1, 3) and found.mean == pytest.approx(0.7)


def test_centralised_runs_of_another_model_or_with_privacy_are_not_held_against() -> None:
    other = replace(central(1, 0.9), config={**base("c"), "model": {"preset": "mini-bert"}})
    private = replace(central(1, 0.9), config={**base("c"), "privacy": {"target_epsilon": 8.0, "target_delta": 1e-5}})
    (table,) = grid_tables([*grid(), other, private])
    assert table.centralised is None and all(c.gap is None for c in table.cells.values())


@pytest.mark.usefixtures("undrawn")
def test_two_ways_of_centralised_training_are_told_and_not_chosen_from(tmp_path: Path) -> None:
    ways: list[dict[str, Json]] = [{"epochs": 1}, {"epochs": 9}]
    records = [*grid(), *(central(1, 0.9, train=way) for way in ways)]
    (table,) = grid_tables(records)
    assert table.ambiguous == 2 and table.centralised is None
    (note,) = section(records, tmp_path).notes
    assert "trained in 2 ways" in note


def test_what_differs_within_a_cell_sets_columns_apart_and_nothing_else_does() -> None:
    rules: list[dict[str, Json]] = [
        {"by": "uniform"},
        {"by": "activity", "power": 0.5},
        {"by": "activity", "power": 1.0},
    ]
    study = [federated(seed=s, more={"selection": rule, "workers": s}) for rule in rules for s in SEEDS]
    (group,) = groups(study)
    assert group.algorithms == ("fedavg, uniform", "fedavg, activity, power 0.5", "fedavg, activity, power 1")
    assert all(len(runs) == 3 for runs in group.runs.values())
    weights = [federated(more={"selection": {"by": "activity", "weight": w}}) for w in ("equal", "inverse_probability")]
    assert groups(weights)[0].algorithms == (
        "fedavg, activity; weight: equal", "fedavg, activity; weight: inverse probability",
    )  # fmt: skip
    streams = [federated(more={"stream": {"periods": 5, "protocol": p}}) for p in ("stream", "last")]
    assert groups(streams)[0].algorithms == ("fedavg, stream protocol stream", "fedavg, stream protocol last")


@pytest.mark.usefixtures("undrawn")
def test_settings_that_were_tuned_by_partition_stand_in_the_cells(tmp_path: Path) -> None:
    records = [
        federated(
            a,
            c,
            s,
            quality(a, c, s),
            optimizers=(f"sgd, learning rate {0.3 if c == SKEWED else 0.1:g}", f"server of {a}"),
        )
        for a in ALGORITHMS
        for c in (IID, SKEWED)
        for s in (1, 2)
    ]
    (group,) = groups(records)
    assert group.algorithms == ALGORITHMS
    tables = section(records, tmp_path).tables
    for caption in ("test.accuracy (higher", "what a run took"):
        assert cell(tables, caption, "client optimizer", "fedavg")[0] == "by partition, see the cells"
        assert cell(tables, caption, "server optimizer", "fedadam")[0] == "server of fedadam"
        assert "client optimizer: sgd, learning rate 0.3" in cell(tables, caption, "label Dirichlet 0.1", "fedavg")[2]
        assert "client optimizer: sgd, learning rate 0.1" in cell(tables, caption, "IID", "fedavg")[2]


@pytest.mark.usefixtures("undrawn")
def test_the_section_of_a_grid_gives_mean_interval_seeds_gap_and_both_optimizers(tmp_path: Path) -> None:
    found = section([*grid(), *(central(s, 0.9 + s / 100) for s in SEEDS)], tmp_path)
    value, ends, note = cell(found.tables, "test.accuracy (higher", "IID", "fedavg")
    wanted = over_seeds({s: quality("fedavg", IID, s) for s in SEEDS})
    assert value == f"{wanted.mean:.4g}" and ends == f"[{wanted.low:.4g}, {wanted.high:.4g}]" and note == "n = 3 seeds"
    gap = over_seeds({s: 0.9 + s / 100 - quality("fedavg", IID, s) for s in SEEDS})
    assert cell(found.tables, "the gap to centralised", "IID", "fedavg")[0] == f"{gap.mean:.4g}"
    grids = [t for t in found.tables if t.head[0] == "partition"]
    assert len(grids) == 3
    for table in grids:
        rows = {row[0].text for row in table.rows}
        assert {"client optimizer", "server optimizer", "selection; weight", "IID", "label Dirichlet 0.1"} <= rows
    assert "Centralised training of the same model on the same rows: 0.92 [" in grids[0].caption
    (fold,) = found.folds
    (rows_,) = fold.tables
    assert len(rows_.rows) == 12 and all("clients: sgd, learning rate 0.1" in row[0].note for row in rows_.rows)
    assert all(row[0].note.startswith("unit: fraction") for row in rows_.rows)


@pytest.mark.usefixtures("undrawn")
def test_many_algorithms_are_cut_into_tables_that_fit_a_page(tmp_path: Path) -> None:
    rules: list[dict[str, Json]] = [{"by": "activity", "power": p / 4} for p in range(1, 7)]
    study = [federated(seed=s, more={"selection": rule}) for rule in rules for s in (1, 2)]
    tables = [t for t in section(study, tmp_path).tables if t.head[0] == "partition"]
    assert [len(t.head) - 1 for t in tables] == [3, 3, 3, 3]
    assert tables[0].caption.endswith("(1 of 2).")


def test_people_read_the_grid_on_a_terminal_and_programs_read_it_row_by_row() -> None:
    (table,) = grid_tables([*grid(), *(central(s, 0.9) for s in SEEDS)])
    rows = {str(item["partition"]): item for item in table.items()}
    assert rows["client optimizer"] == {
        "partition": "client optimizer",
        **dict.fromkeys(ALGORITHMS, "sgd, learning rate 0.1"),
    }
    assert re.fullmatch(r"0\.714 \[0\.6839, 0\.7441\], n = 3", str(rows["IID: test.accuracy"]["fedavg"]))
    assert "gap" in str(list(rows)) and rows["centralised"]["fedavg"] == "0.9, n = 3"
    long = table.long_rows()
    assert len(long) == 4 and {row["server_optimizer"] for row in long} == {"sgd, learning rate 1"}
    assert all(isinstance(row[k], float) for row in long for k in ("quality", "quality_low", "gap", "samples", "bytes"))


@pytest.mark.usefixtures("undrawn")
def test_quality_is_drawn_against_rounds_samples_and_bytes_beside_centralised_training(tmp_path: Path) -> None:
    records = [federated(accuracy=0.8), federated("fedadam", accuracy=0.7), central(1, 0.9)]
    plots = named(section(records, tmp_path).plots, "accuracy")
    assert [next(k for k in p.rows[0] if k in COSTS) for p in plots] == list(COSTS)
    for plot, key in zip(plots, ("round", "samples", "bytes"), strict=True):
        label = next(k for k in plot.rows[0] if k in COSTS)
        lines = {str(row["line"]) for row in plot.rows}
        assert lines == {"fedavg_1", "fedadam_1", "centralised"}
        drawn = [(r[label], r["accuracy"], r["low"], r["high"]) for r in plot.rows if r["line"] == "fedavg_1"]
        series = records[0].series["federated.round"]
        assert drawn == [(r[key], r["accuracy"], r["low"], r["high"]) for r in series]
        (level,) = [r for r in plot.rows if r["line"] == "centralised"]
        assert (
            level["accuracy"] == pytest.approx(0.89) and level[label] is None
        )  # of validation rows, as the rounds are
        assert "Broken line: centralised, 0.89 [0.85, 0.93] (n = 400 rows)" in plot.caption


@pytest.mark.usefixtures("undrawn")
def test_centralised_training_of_another_task_draws_no_line(tmp_path: Path) -> None:
    other = replace(central(1, 0.9), config={**base("c"), "data": {"train": "other.jsonl", "text": "t", "label": "l"}})
    plots = named(section([federated(), other], tmp_path).plots, "accuracy")
    assert len(plots) == 3 and {r["line"] for p in plots for r in p.rows} == {"fedavg_1"}


@pytest.mark.usefixtures("undrawn")
def test_the_curves_of_a_grid_are_means_over_seeds_a_set_for_each_partition(tmp_path: Path) -> None:
    records = grid()
    plots = named(section(records, tmp_path).plots, "accuracy")
    assert len(plots) == 6
    naive = np.array([[row["accuracy"] for row in r.series["federated.round"]] for r in records[:3]], dtype=float)
    rows = [r for r in plots[0].rows if r["line"] == "fedavg"]
    assert [r["accuracy"] for r in rows] == pytest.approx(naive.mean(axis=0))
    low, high = stats.t.interval(0.95, 2, naive.mean(axis=0), stats.sem(naive))
    assert [r["low"] for r in rows] == pytest.approx(low) and [r["high"] for r in rows] == pytest.approx(high)
    assert [r["examples processed"] for r in plots[1].rows[:6]] == pytest.approx([100 * r + 2 for r in range(1, 7)])
    assert all("n = 3 runs a line" in p.caption for p in plots)


@pytest.mark.usefixtures("undrawn")
def test_runs_of_different_metrics_do_not_share_an_axis(tmp_path: Path) -> None:
    other = federated("fedadam")
    renamed = tuple(
        replace(m, name="federated.round.span_f1") if m.name == "federated.round.accuracy" else m
        for m in other.measurements
    )
    rows = [{("span_f1" if k == "accuracy" else k): v for k, v in r.items()} for r in other.series["federated.round"]]
    tagger = replace(
        other,
        config={**other.config, "task": {"kind": "tagging"}, "data": {"train": "t", "tokens": "a", "tags": "b"}},
        measurements=renamed,
        series={**other.series, "federated.round": rows},
    )
    found = section([federated(), tagger], tmp_path)
    assert len(named(found.plots, "accuracy")) == 3 and len(named(found.plots, "span_f1")) == 3


@pytest.mark.usefixtures("undrawn")
def test_few_rounds_are_said_with_all_three_costs_and_not_drawn(tmp_path: Path) -> None:
    found = section([federated(rounds=2)], tmp_path)
    assert not named(found.plots, "accuracy")
    table = found.tables[-1]
    assert table.head == ("round", "run", "examples processed", "bytes sent", "accuracy", "unit")
    assert [c.text for c in table.rows[1]] == ["2", "fedavg_1", "201", "2,000,000", "0.79", "fraction"]


@pytest.mark.usefixtures("undrawn")
def test_what_was_run_stands_above_what_was_measured(tmp_path: Path) -> None:
    more: dict[str, Json] = {
        "selection": {"by": "activity", "power": 0.5},
        "local": {"epochs": 2, "batch_size": 4},
        "participation": {"drop_out": 0.2, "over_selection": 1.2},
        "aggregation": {"rule": "trimmed_mean", "reject_above": 10.0},
    }
    table = section([federated("fedprox", SKEWED, more=more)], tmp_path).tables[0]
    rows = {row[0].text: row[1].text for row in table.rows}
    assert rows["algorithm"] == "fedprox" and rows["clients"] == "label Dirichlet 0.1"
    assert rows["selection; weight"] == "activity, power 0.5; weight: samples (rows counted twice)"
    assert rows["client optimizer"] == "sgd, learning rate 0.1" and rows["server optimizer"] == "sgd, learning rate 1"
    assert rows["local work"] == "epochs: 2; batches of 4"
    assert rows["cohort"] == "10 a round, 6 rounds; asked: times 1.2; dropping out with chance 0.2"
    assert rows["aggregation"] == "trimmed mean, 0.1 at each end, refused above norm 10"
    assert rows["population"] == "50 clients of 1 to 90 rows, 6 in the middle; E[n²]/E[n]² = 3.5"
    assert "stream" not in rows and rows["federated.participation_gini"] == "0.25"


CLIENTS: list[Json] = [
    "user",
    IID,
    SKEWED,
    {**SKEWED, "concentration": 1.0},
    {**SKEWED, "convention": "per_label"},
    {**SKEWED, "minimum": 5},
    {"partition": "quantity", "clients": 9, "concentration": 0.5},
    {"partition": "quantity", "clients": 9, "distribution": "zipf", "exponent": 1.2},
    {"partition": "quantity", "clients": 9, "distribution": "log_normal", "sigma": 2.0},
    {"partition": "features", "clients": 9, "concentration": 0.1, "clusters": 10},
    {"partition": "features", "clients": 9, "concentration": 0.1, "clusters": 20},
    {"partition": "shards", "clients": 9, "labels_per_client": 2},
    {"partition": "natural", "by": "group"},
    {"partition": "time", "clients": 9},
]


def test_partitions_that_differ_are_told_apart() -> None:
    told = [partition_told(clients) for clients in CLIENTS]
    assert len(set(told)) == len(CLIENTS), told
    assert partition_told({"partition": "quantity", "distribution": "zipf", "exponent": 1.2}) == "quantity zipf 1.2"


def test_partitions_of_the_same_kind_are_told_apart_by_their_clients() -> None:
    (group,) = groups([federated(clients={**IID, "clients": n}, seed=s) for n in (50, 500) for s in (1, 2)])
    assert group.partitions == ("IID, 50 clients", "IID, 500 clients")


@pytest.mark.parametrize(
    ("selection", "told"),
    [
        ({}, "uniform; weight: samples"),
        ({"by": "activity", "power": 1.0}, "activity, power 1; weight: equal"),
        ({"by": "activity", "power": 0}, "activity, power 0; weight: equal"),
        ({"by": "mixture", "uniform_share": 0.5}, "mixture, uniform share 0.5; weight: equal"),
        ({"by": "activity", "power": 0.0, "weight": "samples"}, "activity, power 0; weight: samples"),
        (
            {"by": "mixture", "power": 1.0, "uniform_share": 0.5, "weight": "samples"},
            "mixture, power 1, uniform share 0.5; weight: samples (rows counted twice)",
        ),
        ({"by": "top_active", "top": 100}, "top active, top 100; weight: samples"),
        (
            {"by": "power_of_choice", "candidates": 40, "weight": "samples"},
            "power of choice, candidates 40; weight: samples (rows counted twice)",
        ),
        ({"by": "recency", "half_life": 2.0, "weight": "equal"}, "recency, half life 2; weight: equal"),
    ],
)
def test_selection_and_weight_are_told_as_one(selection: dict[str, Json], told: str) -> None:
    assert selection_told({"selection": selection}) == told


@pytest.mark.usefixtures("undrawn")
def test_a_record_of_an_older_version_says_less_and_guesses_nothing(tmp_path: Path) -> None:
    found = facts(hostile_record())
    assert found.algorithm == found.client_optimizer == "not in the record"
    old = federated()
    bare = replace(old, measurements=tuple(replace(m, protocol={}) for m in old.measurements))
    assert facts(bare).client_optimizer == "sgd"
    assert facts(bare).server_optimizer == "the algorithm's own"


@pytest.mark.usefixtures("undrawn")
def test_who_took_part_is_summed_over_rounds_and_drawn(tmp_path: Path) -> None:
    found = section([federated()], tmp_path)
    caption = "Who took part"
    for row, value in {
        "clients asked": "72",
        "updates that counted": "60",
        "clients that dropped out": "6",
        "clients that reported too late": "3",
        "updates left out": "0",
        "clients' work": "12",
    }.items():
        assert cell(found.tables, caption, row, "fedavg_1") == (value, "", "n = 6 rounds, exact")
    (gini,) = named(found.plots, "Gini coefficient")
    assert [r["Gini coefficient"] for r in gini.rows] == pytest.approx([0.5 / r for r in range(1, 7)])
    (lost,) = named(found.plots, "clients")
    assert {r["line"] for r in lost.rows} == {"counted", "dropped out", "too late"}
    assert [r["clients"] for r in lost.rows if r["line"] == "too late"] == [1, 0, 1, 0, 1, 0]


def uploads(record: Record, share: float, **more: Json) -> Record:
    """The record with uploads of that share of what was sent down."""
    rows: list[dict[str, Json]] = [
        {**r, "dropped": 0, "asked": 10, "bytes_down": 1000.0, "bytes_up": 1000.0 * share, **more}
        for r in record.series["federated.participation"]
    ]
    return replace(record, series={**record.series, "federated.participation": rows})


@pytest.mark.usefixtures("undrawn")
def test_bytes_of_sparse_and_of_dense_uploads_are_said_not_to_compare(tmp_path: Path) -> None:
    sparse, dense = uploads(federated(), 0.3), uploads(federated("fedadam"), 1.0)
    (note,) = section([sparse, dense], tmp_path / "a").notes
    assert note.startswith("Bytes of these runs do not compare: uploads of fedavg_1 were counted as the token rows")
    assert section([sparse, uploads(federated("fedadam"), 0.4)], tmp_path / "b").notes == ()
    for telling in ({"rejected": 2}, {"staleness": 0.5}):
        assert section([sparse, uploads(federated("fedadam"), 1.0, **telling)], tmp_path / str(telling)).notes == ()
    probing = uploads(federated("fedadam"), 0.5, probed=10)  # 20 were sent the model, 10 sent an update
    assert len(section([sparse, probing], tmp_path / "c").notes) == 1


def with_population(record: Record, sizes: Sequence[int]) -> Record:
    """The record with sizes by rank, and three clients' rows of two labels."""
    series: dict[str, list[dict[str, Json]]] = {
        "federated.population.sizes": [{"rank": i, "rows": rows} for i, rows in enumerate(sizes, 1)],
        "federated.population.labels": [
            {"client": client, "label": label, "rows": rows}
            for client, counts in enumerate([(3, 1), (0, 5), (0, 0)])
            for label, rows in zip(("a", HOSTILE), counts, strict=True)
        ],
    }
    return replace(record, series={**record.series, **series})


@pytest.mark.usefixtures("undrawn")
def test_who_holds_what_is_drawn_and_populations_that_are_alike_are_one_line(tmp_path: Path) -> None:
    records = [
        with_population(federated(), [9, 4, 1, 0]),
        with_population(federated("fedadam"), [9, 4, 1, 0]),
        with_population(federated("fedprox"), [5, 5, 5, 5]),
    ]
    found = section(records, tmp_path)
    (sizes,) = named(found.plots, "rank of the client")
    lines = {str(r["line"]): [q["rows"] for q in sizes.rows if q["line"] == r["line"]] for r in sizes.rows}
    assert lines == {"fedavg_1, fedadam_1": [9, 4, 1], "fedprox_1": [5, 5, 5, 5]}
    (fold,) = [f for f in found.folds if f.title == "Which labels clients hold"]
    assert len(fold.plots) == 3
    shares = [r["share_of_the_client"] for r in fold.plots[0].rows]
    assert shares == [0.75, 0.25, 0.0, 1.0, 0.0, 0.0]


@pytest.mark.usefixtures("undrawn")
def test_a_grid_draws_one_population_a_partition(tmp_path: Path) -> None:
    found = section([with_population(r, [9, 4, 1] if r.seed == 1 else [8, 8, 8]) for r in grid()], tmp_path)
    (sizes,) = named(found.plots, "rank of the client")
    assert {str(r["line"]) for r in sizes.rows} == {"IID, label Dirichlet 0.1"}  # alike, and of the first seed


@pytest.mark.usefixtures("undrawn")
def test_candidates_that_said_their_loss_are_counted_where_there_were_any(tmp_path: Path) -> None:
    row = "candidates that said their loss"
    tables = section([uploads(federated(), 1.0, probed=40)], tmp_path / "a").tables
    assert cell(tables, "Who took part", row, "fedavg_1")[0] == "240"
    told = {cells[0].text for t in section([federated()], tmp_path / "b").tables for cells in t.rows}
    assert row not in told


@pytest.mark.usefixtures("undrawn")
def test_where_nobody_was_lost_there_is_no_figure_of_that(tmp_path: Path) -> None:
    record = federated()
    rows = [{**r, "dropped": 0, "surplus": 0} for r in record.series["federated.participation"]]
    quiet = replace(record, series={**record.series, "federated.participation": rows})
    assert not named(section([quiet], tmp_path).plots, "clients")


@pytest.mark.usefixtures("undrawn")
def test_long_federations_are_drawn_with_a_hundred_points_and_end_at_their_end(tmp_path: Path) -> None:
    record = federated(rounds=1001)
    plots = section([record], tmp_path).plots
    (gini,), (lost,) = named(plots, "Gini coefficient"), named(plots, "clients")
    assert len(gini.rows) <= 101 and gini.rows[-1]["rounds"] == 1001
    late = [float(str(r["clients"])) for r in lost.rows if r["line"] == "too late"]
    assert len(late) == 91 and late[0] == pytest.approx(6 / 11)


def periods(values: Sequence[Sequence[float | None]], tested: bool = True) -> list[dict[str, Json]]:
    """The series of a stream: quality by period trained and tested."""
    rows: list[dict[str, Json]] = []
    for trained, line in enumerate(values):
        for column, value in enumerate(line):
            if value is not None:
                row: dict[str, Json] = {
                    "round": 2 * trained + 2,
                    "period": trained,
                    "tested": column if tested else None,
                }
                ends: dict[str, Json] = {"low": value - 0.1, "high": value + 0.1, "n": 40 + column}
                rows.append({**row, "metric": "accuracy", "value": value, **ends})
    return rows


MATRIX = [[0.9, 0.2, 0.1], [0.6, 0.8, 0.3], [0.5, 0.7, 0.9]]


def streaming(values: Sequence[Sequence[float | None]], seed: int = 1) -> Record:
    """A federation over a stream."""
    record = federated(seed=seed, more={"stream": {"periods": 3, "retention": 2, "rounds_per_period": 2}})
    return replace(record, series={**record.series, "federated.period": periods(values)})


def test_a_stream_is_a_map_of_periods_the_present_one_and_what_was_forgotten(tmp_path: Path) -> None:
    plots = section([streaming(MATRIX)], tmp_path).plots
    (heat,) = named(plots, "tested_on_period")
    drawn = {(r["trained_to_period"], r["tested_on_period"]): r["accuracy"] for r in heat.rows}
    assert drawn == {(i, j): MATRIX[i][j] for i in range(3) for j in range(3)}
    assert "n = 40 rows or more each" in heat.caption and ".9" in heat.svg
    (present,) = [p for p in plots if "period" in p.rows[0] and "accuracy" in p.rows[0]]
    assert [(r["period"], r["accuracy"]) for r in present.rows] == [(0, 0.9), (1, 0.8), (2, 0.9)]
    assert [r["low"] for r in present.rows] == pytest.approx([0.8, 0.7, 0.8])
    (lost,) = named(plots, "accuracy lost on past periods")
    naive = [0.9 - 0.6, ((0.9 - 0.5) + (0.8 - 0.7)) / 2]
    assert [r["accuracy lost on past periods"] for r in lost.rows] == pytest.approx(naive)


@pytest.mark.usefixtures("undrawn")
def test_periods_without_test_rows_are_blank_and_two_periods_are_told(tmp_path: Path) -> None:
    holes = [[0.9, None, 0.1], [0.6, None, 0.3], [0.5, None, 0.9]]
    (heat,) = named(section([streaming(holes)], tmp_path / "a").plots, "tested_on_period")
    assert len(heat.rows) == 6
    found = section([streaming([[0.9, 0.2], [0.6, 0.8]])], tmp_path / "b")
    assert not named(found.plots, "tested_on_period")
    (table,) = [t for t in found.tables if t.head[0] == "after training on period"]
    assert [c.text for c in table.rows[2]] == ["1", "0", "0.6"] and table.rows[2][2].note == "n = 40"


@pytest.mark.usefixtures("undrawn")
def test_a_stream_without_times_of_test_rows_is_a_line_and_no_map(tmp_path: Path) -> None:
    record = streaming(MATRIX)
    rows = periods([[0.5], [0.6], [0.8]], tested=False)
    timeless = replace(record, series={**record.series, "federated.period": rows})
    plots = section([timeless], tmp_path).plots
    assert not named(plots, "tested_on_period")
    (line,) = [p for p in plots if "period" in p.rows[0]]
    assert [(r["period"], r["accuracy"], r["n"]) for r in line.rows] == [(0, 0.5, 40), (1, 0.6, 40), (2, 0.8, 40)]


@pytest.mark.usefixtures("undrawn")
def test_the_maps_of_a_grid_are_means_over_seeds_below_a_fold(tmp_path: Path) -> None:
    records = [streaming([[v + s / 100 for v in line] for line in MATRIX], s) for s in range(1, 7)]
    found = section(records, tmp_path)
    assert not named(found.plots, "tested_on_period")
    (fold,) = [f for f in found.folds if f.title == "Quality by period: one client a user"]
    (heat,) = named(fold.plots, "tested_on_period")
    assert [r["accuracy"] for r in heat.rows] == pytest.approx((np.array(MATRIX) + 0.035).ravel())
    assert "mean over n = 6 seeds" in heat.caption


def with_devices(record: Record, *, few: bool = False) -> Record:
    """The record with figures of devices; withheld where they are few."""
    found = [share("federated.devices.accuracy.sample_weighted", 0.8, 40)]
    for prefix, shift in (("federated.devices", 0.0), ("federated.unseen_devices", 0.1)):
        names = ["device_weighted", "worst_decile", *(f"p{level}" for level in range(10, 100, 10))]
        for i, name in enumerate(names):
            told: dict[str, Json] = {"suppressed": "3 devices, fewer than the minimum of 10"} if few else {}
            value = None if few else 0.3 + 0.05 * i - shift
            found.append(share(f"{prefix}.accuracy.{name}", value, 40, supported=not few, protocol=told))
    found.append(replace(share("federated.unseen_devices.accuracy.gap", 0.1, 12), neutral=0.0, direction="lower"))
    return replace(record, measurements=(*record.measurements, *found))


@pytest.mark.usefixtures("undrawn")
def test_how_devices_fare_is_told_and_their_deciles_are_drawn(tmp_path: Path) -> None:
    found = section([with_devices(federated())], tmp_path)
    assert cell(found.tables, "How devices fare", "federated.devices.accuracy.worst_decile", "fedavg_1")[0] == "0.35"
    assert cell(found.tables, "How unseen", "federated.unseen_devices.accuracy.gap", "fedavg_1")[0] == "0.1"
    told = {row[0].text for t in found.tables for row in t.rows}
    assert not any(re.search(r"\.p\d0$", name) for name in told)
    (deciles,) = named(found.plots, "share of devices, %")
    assert [r["accuracy"] for r in deciles.rows] == pytest.approx([0.4 + 0.05 * i for i in range(9)])
    assert any("Device-weighted" in p for p in found.paragraphs) and any(
        "held out whole" in p for p in found.paragraphs
    )


@pytest.mark.usefixtures("undrawn")
def test_figures_that_are_withheld_are_said_to_be(tmp_path: Path) -> None:
    found = section([with_devices(federated(), few=True)], tmp_path)
    assert not named(found.plots, "share of devices, %")
    assert (
        cell(found.tables, "How devices fare", "federated.devices.accuracy.worst_decile", "fedavg_1")[0]
        == "not defined"
    )


@pytest.mark.usefixtures("undrawn")
def test_devices_of_many_runs_are_rows_below_a_fold(tmp_path: Path) -> None:
    found = section([with_devices(r) for r in grid()], tmp_path)
    (fold,) = [f for f in found.folds if f.title.startswith("How devices fare")]
    (table,) = fold.tables
    assert table.head == (
        "run", "sample-weighted", "device-weighted", "worst decile", "unseen: device-weighted", "unseen: gap",
    )  # fmt: skip
    assert len(table.rows) == 12 and all(row[0].note == "unit: fraction" for row in table.rows)


@pytest.mark.usefixtures("undrawn")
def test_a_report_without_a_federation_has_no_such_section_and_a_training_run_of_the_same_file_is_none(
    tmp_path: Path,
) -> None:
    trained = replace(central(1, 0.9), config=federated().config)  # troth train on a file with [federated]
    assert "federation" not in [s.anchor for s in build([finished(trained, tmp_path)])]
    assert groups([trained]) == ()
    (group,) = groups([federated(), trained])
    assert [r.kind for r in group.centralised] == ["train"]


def hostile_grid(out: Path) -> list[RunFolder]:
    """Six runs of two algorithms whose every text of a record tries to break out of the page."""
    records = []
    data: dict[str, Json] = {"train": f"{HOSTILE}.jsonl", "text": HOSTILE, "label": "label"}
    for record in [with_devices(with_population(r, [9, 4, 1])) for r in grid() if facts(r).clients == "IID"]:
        told = tuple(replace(m, protocol=_hostile(m.protocol)) for m in record.measurements)
        series = {**record.series, "federated.period": periods(MATRIX)}
        records.append(replace(record, config={**record.config, "data": data}, measurements=told, series=series))
    return [finished(r, out) for r in records]


def _hostile(protocol: Mapping[str, Json]) -> dict[str, Json]:
    return {k: HOSTILE if isinstance(v, str) and k != "algorithm" else v for k, v in protocol.items()}


@pytest.mark.usefixtures("undrawn")
def test_texts_of_records_are_escaped(tmp_path: Path) -> None:
    folders = hostile_grid(tmp_path)
    html = write_report(folders, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in html and "<img" not in html
    assert HOSTILE[:30] in read_aloud(html)  # as text it is there


@pytest.fixture
def grid_page(browser: Browser, tmp_path: Path) -> Iterator[Any]:
    """The page of the hostile grid and a centralised run, drawn and opened, folds open."""
    folders = [*hostile_grid(tmp_path), finished(streaming(MATRIX), tmp_path)]
    page = opened(browser, write_report(folders, tmp_path / "report.html"), 1200)
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    yield page
    page.close()


@pytest.mark.browser
def test_in_a_browser_nothing_breaks_out_and_every_cell_is_in_sight(grid_page: Any) -> None:
    assert grid_page.heard == []
    assert grid_page.evaluate("document.querySelectorAll('script, img, iframe').length") == 0
    out_of_sight = {}
    for width in (320, 768, 1200):
        grid_page.set_viewport_size({"width": width, "height": 900})
        out_of_sight[width] = grid_page.evaluate(OUT_OF_SIGHT)
    grid_page.set_viewport_size({"width": 718, "height": 900})
    grid_page.emulate_media(media="print")
    out_of_sight[0] = grid_page.evaluate(OUT_OF_SIGHT)
    assert out_of_sight == {320: [], 768: [], 1200: [], 0: []}
    assert grid_page.locator("#federation svg").count() >= 12


def every_device_figure() -> DeviceStatistics:
    """Sums of 40 devices that allow each figure of every task."""
    rng, devices = np.random.default_rng(0), 40
    names = (*SPREAD_METRICS, "span_precision", "span_recall")
    whole = np.ones(devices)
    counts = csr_array(rng.integers(1, 5, (devices, 6)).astype(float))
    bins = csr_array(rng.integers(0, 3, (devices, 8)).astype(float))
    return DeviceStatistics(
        np.full(devices, 10),
        {name: Ratio(rng.random(devices), whole) for name in names},
        counts,
        rng.random((devices, 3, 15)),
        bins,
    )


def test_every_figure_of_devices_is_in_the_catalogue_with_its_unit_and_direction() -> None:
    seeds, sums = PublicSeeds(1), every_device_figure()
    made = [
        *device_measurements(sums, seeds=seeds),
        *device_measurements(sums, seeds=seeds, prefix="federated.personal"),
        *unseen_device_measurements(sums, sums, seeds=seeds),
    ]
    wanted = {(m.name, m.unit, m.direction, m.neutral) for m in made if not re.search(r"\.p[2-8]0$", m.name)}
    wanted |= {(m.name, m.unit, m.direction, m.neutral) for m in made if m.name.endswith(".p50")}
    prefixes = ("federated.devices.", "federated.unseen_devices.", "federated.personal.")
    assert {row[:4] for row in MEASUREMENTS if row[0].startswith(prefixes)} == wanted
    assert len({row[0] for row in MEASUREMENTS}) == len(MEASUREMENTS)


@pytest.mark.parametrize(("metric", "unit"), [("accuracy", "fraction"), ("perplexity", "perplexity")])
def test_what_streams_measure_is_in_the_catalogue(metric: str, unit: str) -> None:
    rng, rows = np.random.default_rng(0), 60
    scores = StreamScores.of(rng.random((3, rows)), np.ones(rows), np.arange(rows) % 3)
    made = stream_measurements(scores, metric, seeds=PublicSeeds(1), better="higher", unit=unit)
    known = {row[:4] for row in MEASUREMENTS}
    assert len(made) == 2 and {(m.name, m.unit, m.direction, m.neutral) for m in made} <= known


def test_the_reference_of_the_run_file_names_every_key_of_federations() -> None:
    reference = (Path(__file__).parents[2] / "docs" / "reference" / "run-file.md").read_text(encoding="utf-8")
    told = set(re.findall(r"^\| `([a-z0-9_.]+)`", reference, re.MULTILINE))
    assert told == set(keys_of(FederatedConfig, "federated")), sorted(told ^ set(keys_of(FederatedConfig, "federated")))


def keys_of(section: type[BaseModel], prefix: str) -> Iterator[str]:
    """The dotted keys of a section; tables below it by their own keys."""
    for name, info in section.model_fields.items():
        below = [t for t in (info.annotation, *get_args(info.annotation)) if isinstance(t, type)]
        tables = [t for t in below if issubclass(t, BaseModel)]
        if not tables or name == "clients":
            yield f"{prefix}.{name}"
        for table in tables:
            yield from keys_of(table, f"{prefix}.{name}")
