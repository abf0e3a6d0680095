"""What is said of a partition, and what is kept of it: figures against scipy's, index sets and their tables."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from troth.errors import ConfigError, DataError, RunError
from troth.federated.partition_files import (
    index_set_names,
    open_index_set,
    save_index_set,
    write_index_set_parquet,
)
from troth.federated.partition_report import label_divergence, partition_picture, partition_report
from troth.federated.partitions import iid, label_dirichlet
from troth.federated.population import FederatedData, by_user


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=80).map(np.array), st.booleans())
@settings(deadline=None)
def test_divergence_is_scipys(pairs: np.ndarray, keep_empty: bool) -> None:
    data = FederatedData.from_assignment(pairs[:, 0], 7, keep_empty=keep_empty)
    found = label_divergence(data, [f"l{n}" for n in pairs[:, 1]])
    overall = np.bincount(pairs[:, 1], minlength=5)
    for client in range(len(data)):
        own = np.bincount(pairs[data.rows_of(client), 1], minlength=5)
        if not own.any():
            assert np.isnan(found[client])
            continue
        expected = jensenshannon(own / own.sum(), overall / overall.sum(), base=2) ** 2
        assert found[client] == pytest.approx(np.nan_to_num(expected), abs=1e-7)


def test_divergence_goes_from_0_to_1() -> None:
    same = FederatedData.from_assignment(np.repeat([0, 1], 4), 2)
    assert label_divergence(same, list("aabbaabb")).tolist() == [0, 0]
    labels = np.arange(2000)
    alone = FederatedData.from_assignment(np.r_[0, np.ones(1999, dtype=int)], 2)
    assert label_divergence(alone, labels)[0] > 0.99  # one label of 2,000
    assert partition_report(alone, labels).divergence == pytest.approx(label_divergence(alone, labels).mean())


def test_a_population_of_part_of_a_table_is_compared_with_itself() -> None:
    data = FederatedData.from_assignment(np.repeat([0, 1, 2], 4), 3).subset(np.array([0, 1]))
    assert label_divergence(data, list("aabbaabbzzzz")).tolist() == [0, 0]


def test_figures_of_a_partition() -> None:
    owner = np.repeat([0, 1, 3, 4], [1, 2, 3, 10])
    report = partition_report(FederatedData.from_assignment(owner, 6, keep_empty=True))
    sizes = np.array([1, 2, 3, 10])
    assert (report.clients, report.empty, report.rows, report.smallest, report.largest) == (4, 2, 16, 1, 10)
    assert report.skew == pytest.approx((sizes**2).mean() / 16) and report.divergence is None
    assert report.quantiles[0.5] == 2.5 and report.quantiles[0.95] == pytest.approx(np.quantile(sizes, 0.95))
    dropped = partition_report(FederatedData.from_assignment(owner, 6))
    assert dropped.to_dict() == report.to_dict() and json.dumps(report.to_dict(), allow_nan=False)


def test_skewed_partitions_have_the_larger_divergence() -> None:
    labels = rng().integers(10, size=10_000)
    splits = [iid(10_000, 50, rng(1)), *(label_dirichlet(labels, 50, c, rng(1)) for c in (1.0, 0.1))]
    even, mild, strong = (
        partition_report(FederatedData.from_assignment(owner, 50), labels).divergence or 0 for owner in splits
    )
    assert even < 0.02 < mild < strong < 1


def test_the_picture_shows_every_client_and_label() -> None:
    labels = np.array(list("aabbbc"))
    data = FederatedData.from_assignment(np.array([0, 1, 1, 1, 2, 3]), 4)
    picture = partition_picture(data, labels, clients=3)
    assert picture["sizes"] == [{"rank": r, "rows": n} for r, n in [(1, 3), (2, 1), (3, 1), (4, 1)]]
    shown = {(row["client"], row["label"]): row["rows"] for row in picture["labels"]}
    expected = {(k, name): 0 for k in range(3) for name in "abc"}
    expected |= {(0, "a"): 1, (1, "a"): 1, (1, "b"): 2, (2, "b"): 1}
    assert shown == expected and len(picture["labels"]) == 9
    assert set(partition_picture(data)) == {"sizes"}
    json.dumps(picture, allow_nan=False)


def test_a_large_partition_has_a_small_picture() -> None:
    labels = np.minimum(rng().zipf(1.3, size=30_000), 500)
    data = FederatedData.from_assignment(rng(1).integers(5000, size=30_000), 5000)
    picture = partition_picture(data, labels)
    ranks = [row["rank"] for row in picture["sizes"]]
    assert len(ranks) <= 200 and ranks[0] == 1 and ranks[-1] == len(data)
    assert len(picture["labels"]) == 30 * 41
    rows, _ = data.gather(np.arange(30))
    assert sum(row["rows"] for row in picture["labels"]) == len(rows)  # type: ignore[misc]
    rest = sum(row["rows"] for row in picture["labels"] if row["label"] == "(other labels)")  # type: ignore[misc]
    frequent = np.argsort(-np.bincount(labels), kind="stable")[:40]
    assert rest == (~np.isin(labels[rows], frequent)).sum()


SETTINGS = {"partition": "label_dirichlet", "concentration": 0.1, "seed": 3}


def test_an_index_set_comes_back_with_its_settings(tmp_path: Path) -> None:
    data = by_user(["b", "a", "b", "c"])
    folder = save_index_set(tmp_path / "sets", "train", data, table="t1", settings=SETTINGS)
    assert folder == tmp_path / "sets" / "train"
    save_index_set(tmp_path / "sets", "test-0.1", by_user(["x"]), table="t2", settings={})
    assert index_set_names(tmp_path / "sets") == ("test-0.1", "train")
    found = open_index_set(tmp_path / "sets", "train", table="t1")
    assert found.settings == SETTINGS and found.table == "t1"
    assert found.data.fingerprint == data.fingerprint and not found.data.rows.flags.writeable
    assert found.data.names is not None and found.data.names.tolist() == ["b", "a", "c"]
    assert [found.data.rows_of(k).tolist() for k in range(3)] == [[0, 2], [1], [3]]


def test_an_index_set_is_for_its_table_only(tmp_path: Path) -> None:
    save_index_set(tmp_path, "train", by_user(["a", "b"]), table="t1", settings=SETTINGS)
    with pytest.raises(DataError, match="was made for another table"):
        open_index_set(tmp_path, "train", table="t2")
    with pytest.raises(DataError, match="no index set 'dev'; there: train"):
        open_index_set(tmp_path, "dev", table="t1")
    with pytest.raises(DataError, match="there: none"):
        open_index_set(tmp_path / "nowhere", "dev", table="t1")
    with pytest.raises(RunError, match="cannot be written"):
        save_index_set(tmp_path, "train", by_user(["a"]), table="t1", settings={})
    save_index_set(tmp_path, "train", by_user(["a"]), table="t1", settings={}, replace=True)
    assert len(open_index_set(tmp_path, "train", table="t1").data) == 1
    (tmp_path / "train" / "rows.npy").unlink()
    with pytest.raises(DataError, match=r"rows\.npy is missing or damaged"):
        open_index_set(tmp_path, "train", table="t1")


@pytest.mark.parametrize("name", ["", "../train", "a/b", ".hidden", "a\nb"])
def test_names_that_are_no_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="a name is made of letters"):
        save_index_set(tmp_path / "sets", name, by_user(["a"]), table="t", settings={})
    assert not (tmp_path / "sets").exists()


def test_other_tools_read_a_partition_from_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("troth.federated.partition_files._ROW_GROUP", 7)
    owner = rng().integers(6, size=50)
    owner[owner == 2] = 3  # an empty client in the middle
    write_index_set_parquet(
        FederatedData.from_assignment(owner, 7, keep_empty=True), tmp_path / "p" / "clients.parquet"
    )
    frame = pq.read_table(tmp_path / "p" / "clients.parquet").to_pandas()
    assert frame.columns.tolist() == ["row", "client"] and frame.dtypes.tolist() == [np.dtype("int64")] * 2
    assert frame.sort_values("row")["client"].tolist() == owner.tolist()
    assert [p.name for p in (tmp_path / "p").iterdir()] == ["clients.parquet"]
