"""Populations and partitions: disjoint, exhaustive, seeded, bounded, and what each convention promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from troth import federated
from troth.config import PartitionConfig
from troth.errors import ConfigError, DataError
from troth.federated import (
    FederatedData,
    by_user,
    iid,
    label_dirichlet,
    label_dirichlet_per_label,
    partition,
    with_minimum,
)
from troth.seeds import PublicSeeds

SEEDS = PublicSeeds(4)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def table(labels: np.ndarray, owner: np.ndarray, clients: int) -> np.ndarray:
    counts = np.zeros((clients, labels.max() + 1), dtype=int)
    np.add.at(counts, (owner, labels), 1)
    return counts


labels_of_rows = st.lists(st.integers(0, 5), min_size=1, max_size=120).map(np.array)


@given(labels_of_rows, st.integers(1, 40), st.sampled_from([1e-3, 0.01, 0.3, 1.0, 100.0]), st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_label_dirichlet_gives_every_row_once_in_equal_sizes(
    labels: np.ndarray, clients: int, concentration: float, seed: int
) -> None:
    owner = label_dirichlet(labels, clients, concentration, rng(seed))
    assert owner.shape == labels.shape and owner.min() >= 0 and owner.max() < clients
    sizes = np.bincount(owner, minlength=clients)
    assert sizes.max() - sizes.min() <= 1
    assert (owner == label_dirichlet(labels, clients, concentration, rng(seed))).all()


@given(labels_of_rows, st.integers(1, 40), st.sampled_from([1e-3, 0.01, 1.0]), st.integers(0, 3), st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_per_label_keeps_the_minimum_by_repair(
    labels: np.ndarray, clients: int, concentration: float, minimum: int, seed: int
) -> None:
    if len(labels) < clients * minimum:
        with pytest.raises(ConfigError, match="ask for fewer clients"):
            label_dirichlet_per_label(labels, clients, concentration, rng(seed), minimum=minimum)
        return
    owner = label_dirichlet_per_label(labels, clients, concentration, rng(seed), minimum=minimum)
    assert owner.shape == labels.shape
    assert np.bincount(owner, minlength=clients).min() >= minimum


@given(st.lists(st.integers(0, 7), min_size=8, max_size=80).map(np.array), st.integers(0, 1), st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_repair_moves_no_more_rows_than_it_must(owner: np.ndarray, minimum: int, seed: int) -> None:
    repaired = with_minimum(owner, 8, minimum, rng(seed))
    counts = np.bincount(owner, minlength=8)
    assert (repaired != owner).sum() == np.maximum(minimum - counts, 0).sum()
    assert np.bincount(repaired, minlength=8).min() >= minimum


def test_high_concentration_looks_like_the_whole_table() -> None:
    labels = rng().choice(4, p=[0.5, 0.3, 0.15, 0.05], size=20_000)
    counts = table(labels, label_dirichlet(labels, 10, 1e6, rng(1)), 10)
    shares = counts / counts.sum(axis=1, keepdims=True)
    assert np.abs(shares - np.bincount(labels) / len(labels)).max() < 0.05  # multinomial of 2,000: 4 x 0.011


def test_low_concentration_gives_one_label_to_most_clients() -> None:
    labels = rng().integers(20, size=50_000)
    counts = table(labels, label_dirichlet(labels, 500, 0.01, rng(1)), 500)
    largest = counts.max(axis=1) / counts.sum(axis=1)
    assert np.median(largest) == 1.0 and largest.mean() > 0.95


def test_clients_are_not_served_in_the_order_of_their_numbers() -> None:
    """Leftovers fall on clients at random: the last tenth is as pure as the first (FedNLP's are not)."""
    labels = rng().integers(10, size=20_000)
    purity = np.zeros(200)
    for seed in range(30):
        counts = table(labels, label_dirichlet(labels, 200, 0.05, rng(seed)), 200)
        purity += (counts.max(axis=1) / counts.sum(axis=1)) / 30
    error = np.sqrt(purity[:20].var() / 20 + purity[-20:].var() / 20)
    assert abs(purity[:20].mean() - purity[-20:].mean()) < 4 * error


@pytest.mark.parametrize("split", [label_dirichlet, label_dirichlet_per_label])
def test_tiny_concentration_and_many_clients_end(split: object) -> None:
    labels = rng().integers(4, size=100_000)
    owner = split(labels, 10_000, 0.01, rng(2))
    assert np.bincount(owner, minlength=10_000).min() >= 1


def test_more_clients_than_rows_end_with_empty_ones_dropped_and_counted() -> None:
    data = FederatedData.from_assignment(label_dirichlet(np.array([0, 1, 1]), 8, 0.01, rng()), 8)
    assert len(data) == 3 and data.dropped == 5 and data.summary()["dropped_clients"] == 5
    assert np.bincount(iid(3, 8, rng())).sum() == 3


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60).map(np.array))
@settings(max_examples=100, deadline=None)
def test_population_holds_every_row_once_in_table_order(owner: np.ndarray) -> None:
    data = FederatedData.from_assignment(owner, 10)
    assert sorted(data.rows.tolist()) == list(range(len(owner)))
    assert data.counts.min() >= 1 and data.counts.sum() == len(owner)
    assert data.dropped + len(data) == 10
    kept = np.unique(owner)
    for k in range(len(data)):
        assert data.rows_of(k).tolist() == np.flatnonzero(owner == kept[k]).tolist()


def test_users_become_clients_in_order_of_appearance() -> None:
    data = by_user(["b", "a", "b", 7, "a", "b"])
    assert data.names.tolist() == ["b", "a", "7"]
    assert data.counts.tolist() == [3, 2, 1]
    assert data.rows_of(0).tolist() == [0, 2, 5]
    assert data.summary()["skew"] == pytest.approx((9 + 4 + 1) / 3 / 4)


def test_fingerprint_tells_populations_apart() -> None:
    one, two = by_user(["a", "a", "b"]), by_user(["a", "b", "b"])
    assert one.fingerprint == by_user(["x", "x", "y"]).fingerprint != two.fingerprint


@pytest.mark.parametrize("nobody", [None, "", float("nan")])
def test_a_row_without_a_user_is_named(nobody: object) -> None:
    with pytest.raises(DataError, match=r"train.jsonl: row 1 has no user \(2 such rows\)"):
        by_user(["a", nobody, "b", nobody], "train.jsonl")


def test_bad_assignments_are_refused() -> None:
    with pytest.raises(DataError, match="no rows"):
        by_user([])
    with pytest.raises(DataError, match="assigned to client 3"):
        FederatedData.from_assignment(np.array([0, 3]), 3)
    with pytest.raises(IndexError):
        by_user(["a"]).rows_of(1)


def test_run_file_partitions() -> None:
    labels = [str(i % 4) for i in range(80)]
    for kind in ("iid", "label_dirichlet"):
        data = partition(PartitionConfig(partition=kind, clients=5), 80, labels, seeds=SEEDS)
        assert len(data) == 5 and data.counts.tolist() == [16] * 5 and data.names is None
    skewed = PartitionConfig(partition="label_dirichlet", clients=5, concentration=0.1, convention="per_label")
    data = partition(skewed, 80, labels, seeds=SEEDS)
    assert data.counts.std() > 0
    assert data.fingerprint == partition(skewed, 80, labels, seeds=SEEDS).fingerprint
    assert data.fingerprint != partition(skewed, 80, labels, seeds=PublicSeeds(5)).fingerprint


def test_partitions_that_cannot_be_are_refused() -> None:
    skewed = PartitionConfig(partition="label_dirichlet", clients=5, concentration=0.1)
    with pytest.raises(ConfigError, match="needs one label per row"):
        partition(skewed, 50, None, seeds=SEEDS)
    with pytest.raises(ConfigError, match="need 5 rows, there are 3"):
        partition(skewed, 3, ["a", "b", "c"], seeds=SEEDS)
    with pytest.raises(ConfigError, match="concentration = 0"):
        label_dirichlet(["a", "b"], 2, 0.0, rng())


def test_public_names_are_there() -> None:
    assert all(name in vars(federated) for name in federated.__all__)
