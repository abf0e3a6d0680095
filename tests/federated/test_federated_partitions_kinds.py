"""Quantity, shards, feature clusters and time slices: what each promises of sizes and labels."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from troth.errors import ConfigError, DataError
from troth.federated.partitions_features import feature_clusters, text_embeddings
from troth.federated.partitions_quantity import quantity_dirichlet, quantity_log_normal, quantity_zipf
from troth.federated.partitions_shards import shards
from troth.federated.partitions_sizes import apportioned
from troth.federated.partitions_time import time_slices


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def held_by(labels: np.ndarray, owner: np.ndarray, clients: int) -> np.ndarray:
    counts = np.zeros((clients, labels.max() + 1), dtype=int)
    np.add.at(counts, (owner, labels), 1)
    return counts


@given(st.integers(0, 400), st.lists(st.floats(0, 5), min_size=1, max_size=30), st.integers(0, 9))
@settings(deadline=None)
def test_apportioned_sizes_sum_up_and_are_next_to_their_share(rows: int, weights: list[float], seed: int) -> None:
    shares = np.array(weights) + 1e-6
    sizes = apportioned(rows, shares, rng(seed))
    assert sizes.sum() == rows and np.abs(sizes - rows * shares / shares.sum()).max() < 1 + 1e-9


QUANTITIES = [
    (quantity_dirichlet, 0.001),
    (quantity_dirichlet, 0.5),
    (quantity_dirichlet, 1e6),
    (quantity_zipf, 1.2),
    (quantity_zipf, 40.0),
    (quantity_log_normal, 1.0),
    (quantity_log_normal, 300.0),
]


@pytest.mark.parametrize(("law", "parameter"), QUANTITIES)
@pytest.mark.parametrize(("rows", "clients"), [(1, 1), (5, 9), (1000, 9), (1000, 1000)])
def test_quantities_deal_every_row_and_are_seeded(law: object, parameter: float, rows: int, clients: int) -> None:
    owner = law(rows, clients, parameter, rng(1))  # type: ignore[operator]
    assert owner.shape == (rows,) and owner.min() >= 0 and owner.max() < clients
    assert (owner == law(rows, clients, parameter, rng(1))).all()  # type: ignore[operator]
    if rows == 1000:  # three other seeds: where the heaviest gets all, it may be the same client in one of them
        others = [law(rows, clients, parameter, rng(seed)) for seed in (2, 3, 4)]  # type: ignore[operator]
        assert any((owner != other).any() for other in others)


@pytest.mark.parametrize(("law", "name"), [(quantity_zipf, "exponent"), (quantity_log_normal, "sigma")])
@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan")])
def test_laws_want_a_positive_parameter(law: object, name: str, wrong: float) -> None:
    with pytest.raises(ConfigError, match=f"{name} = {wrong}"):
        law(10, 2, wrong, rng())  # type: ignore[operator]
    with pytest.raises(ConfigError, match="concentration"):
        quantity_dirichlet(10, 2, wrong, rng())


def test_zipf_sizes_follow_their_rank() -> None:
    sizes = np.sort(np.bincount(quantity_zipf(100_000, 50, 1.3, rng())))[::-1]
    law = np.arange(1, 51) ** -1.3
    assert np.abs(sizes - 100_000 * law / law.sum()).max() < 1
    heaviest = [np.bincount(quantity_zipf(1000, 5, 1.3, rng(seed))).argmax() for seed in range(40)]
    assert len(set(heaviest)) == 5  # who is the heaviest is drawn


def test_quantity_skew_is_that_of_its_law() -> None:
    """E[n^2] / E[n]^2, averaged over 300 partitions of 20 clients: exact for Dirichlet, 5 standard errors."""
    found = []
    for seed in range(300):
        sizes = np.bincount(quantity_dirichlet(20_000, 20, 0.5, rng(seed)), minlength=20)
        found.append((sizes**2).mean() / sizes.mean() ** 2)
    assert abs(np.mean(found) - (1 + 19 / (20 * 0.5 + 1))) < 5 * np.std(found) / np.sqrt(300)
    sizes = np.bincount(quantity_log_normal(10**6, 2_000, 0.7, rng()), minlength=2_000)
    logs = np.log(sizes[sizes > 0])
    assert logs.std() == pytest.approx(0.7, abs=5 * 0.7 / np.sqrt(2 * 2_000))


def test_quantity_skew_leaves_labels_alone() -> None:
    """20,000 rows of two labels on clients of Zipf sizes: each share within 5 standard errors of a half."""
    labels = np.arange(20_000) % 2
    counts = held_by(labels, quantity_zipf(20_000, 10, 1.0, rng()), 10)
    sizes = counts.sum(axis=1)
    assert (np.abs(counts[:, 0] / sizes - 0.5) < 5 * 0.5 / np.sqrt(sizes)).all()


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=150).map(np.array),
    st.integers(1, 30),
    st.integers(1, 7),
    st.integers(0, 9),
)
@settings(deadline=None, max_examples=200)
def test_shards_keep_to_their_number_of_labels(labels: np.ndarray, clients: int, each: int, seed: int) -> None:
    kinds = len(np.unique(labels))
    if each > kinds or clients * each < kinds:
        with pytest.raises(ConfigError, match="labels_per_client"):
            shards(labels, clients, each, rng(seed))
        return
    owner = shards(labels, clients, each, rng(seed))
    assert owner.shape == labels.shape and owner.min() >= 0 and owner.max() < clients
    assert ((held_by(labels, owner, clients) > 0).sum(axis=1) <= each).all()
    assert (owner == shards(labels, clients, each, rng(seed))).all()


def test_shards_of_large_labels_are_exactly_as_many_as_asked_for_and_about_equal() -> None:
    labels = rng().choice(6, p=[0.4, 0.2, 0.2, 0.1, 0.05, 0.05], size=30_000)
    counts = held_by(labels, shards(labels, 40, 3, rng(1)), 40)
    assert ((counts > 0).sum(axis=1) == 3).all()
    pieces = counts[counts > 0]
    assert pieces.min() > 0.8 * 30_000 / 120 and pieces.max() < 1.3 * 30_000 / 120
    for column in counts.T:  # the rows of a label are cut into equal parts
        assert np.ptp(column[column > 0]) <= 1


def test_every_label_for_every_client_is_iid_up_to_rounding() -> None:
    labels = np.repeat(np.arange(3), [30, 60, 90])
    assert (held_by(labels, shards(labels, 10, 3, rng()), 10) == [3, 6, 9]).all()


def test_every_pair_of_labels_is_as_likely() -> None:
    """6 labels of 20 rows, 12 clients of 2 labels, 300 times: a pair's count has mean 240; held to 15 %.

    Were pieces only dealt round the table, 6 of the 15 pairs would never occur.
    """
    labels = np.repeat(np.arange(6), 20)
    pairs = dict.fromkeys(combinations(range(6), 2), 0)
    for seed in range(300):
        for row in held_by(labels, shards(labels, 12, 2, rng(seed)), 12) > 0:
            pairs[tuple(np.flatnonzero(row).tolist())] += 1  # type: ignore[index]
    mean = 300 * 12 / comb(6, 2)
    assert max(abs(count - mean) for count in pairs.values()) < 0.15 * mean


def test_more_labels_per_client_than_exist_are_refused() -> None:
    with pytest.raises(ConfigError, match="labels_per_client = 3, and the table has 2 labels; ask for 1 to 2"):
        shards(["a", "b", "a"], 2, 3, rng())
    with pytest.raises(ConfigError, match="leave some of the 5 labels to nobody"):
        shards(list("abcde"), 2, 2, rng())


def test_clusters_are_found_and_seeded() -> None:
    centres = rng(1).normal(size=(5, 8)) * 20
    truth = rng(2).integers(5, size=900)
    embeddings = centres[truth] + rng(3).normal(size=(900, 8))
    found = feature_clusters(embeddings, 5, rng(4))
    assert {(t, f) for t, f in zip(truth.tolist(), found.tolist(), strict=True)} == {
        (t, found[truth == t][0]) for t in range(5)
    }
    assert (found == feature_clusters(embeddings, 5, rng(4))).all()


def test_clusters_of_a_large_table_are_found_on_a_sample() -> None:
    truth = rng(2).choice(3, p=[0.9, 0.09, 0.01], size=50_000)
    embeddings = np.eye(3)[truth] * 50 + rng(3).normal(size=(50_000, 3))
    found = feature_clusters(embeddings.astype(np.float32), 3, rng(5))
    sizes = sorted(np.bincount(found, minlength=3).tolist())
    assert sizes == sorted(np.bincount(truth).tolist())


def test_clusters_do_not_hang_on_the_number_of_threads() -> None:
    from threadpoolctl import threadpool_limits

    embeddings = rng().normal(size=(5000, 16))
    found = []
    for threads in (1, 4):
        with threadpool_limits(threads):
            found.append(feature_clusters(embeddings, 7, rng(1)))
    assert (found[0] == found[1]).all()


def test_texts_of_like_words_lie_together() -> None:
    words = [["rain", "sun", "wind", "storm"], ["play", "song", "band", "tune"], ["wake", "alarm", "clock", "time"]]
    truth = rng().integers(3, size=300)
    texts = [" ".join(rng(i).choice(words[t], size=3)) + f" x{i}" for i, t in enumerate(truth)]
    embeddings = text_embeddings(texts, rng(1), dimensions=8)
    assert embeddings.shape == (300, 8) and np.allclose(np.linalg.norm(embeddings, axis=1), 1)
    found = feature_clusters(embeddings, 3, rng(2))
    assert sum(np.bincount(truth[found == c]).max() for c in range(3)) >= 270
    assert (embeddings == text_embeddings(texts, rng(1), dimensions=8)).all()


def test_few_words_are_taken_as_they_are() -> None:
    embeddings = text_embeddings(["a b", "b c", "", "a b"], rng())
    assert embeddings.shape == (4, 3) and (embeddings[0] == embeddings[3]).all() and not embeddings[2].any()


def test_features_that_tell_nothing_apart_are_refused() -> None:
    with pytest.raises(DataError, match="no text has a word"):
        text_embeddings(["", " ", "!"], rng())
    with pytest.raises(ConfigError, match="clusters = 3: the table has 2 different rows; ask for fewer"):
        feature_clusters(np.array([[0.0], [1.0], [1.0]]), 3, rng())
    with pytest.raises(DataError, match=r"row 1: its embedding is not finite \(1 such rows\)"):
        feature_clusters(np.array([[0.0], [np.nan], [1.0]]), 2, rng())


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=60), st.integers(1, 12))
@settings(deadline=None)
def test_time_slices_follow_one_another(times: list[int], clients: int) -> None:
    owner = time_slices(times, clients)
    sizes = np.bincount(owner, minlength=clients)
    assert sizes.sum() == len(times) and sizes.max() - sizes.min() <= 1
    order = sorted(range(len(times)), key=lambda i: (times[i], i))  # the naive way
    assert owner[order].tolist() == sorted(owner.tolist())


def test_time_slices_read_times_as_the_table_has_them() -> None:
    assert time_slices(["2026-03-01", "2026-01-05T10:00:00", "2026-01-05"], 3).tolist() == [2, 1, 0]
    with pytest.raises(DataError, match=r"rows: row 2 has no time"):
        time_slices(["2026-03-01", None, "2026-01-05"], 2, "rows")
    with pytest.raises(DataError, match="rows: row 3 has no time that can be read"):
        time_slices(["2026-03-01", "2026-03-01", "lately"], 2, "rows")
