"""Label partitions, minimum sizes and the run file's entry: disjoint, exhaustive, seeded, bounded, as promised."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from troth import federated
from troth.config_federated import PartitionConfig
from troth.data import from_rows
from troth.errors import ConfigError, DataError
from troth.federated.partitions import PartitionInputs, partition, partition_inputs
from troth.federated.partitions_label import (
    label_dirichlet,
    label_dirichlet_per_label,
    label_numbers,
    log_dirichlet,
)
from troth.federated.partitions_sizes import iid, rounded_shares, with_minimum
from troth.federated.population import FederatedData
from troth.seeds import PublicSeeds

SEEDS = PublicSeeds(4)
TINY = [1e-3, 0.01, 0.3, 1.0, 100.0]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def table(labels: np.ndarray, owner: np.ndarray, clients: int) -> np.ndarray:
    counts = np.zeros((clients, labels.max() + 1), dtype=int)
    np.add.at(counts, (owner, labels), 1)
    return counts


labels_of_rows = st.lists(st.integers(0, 5), min_size=1, max_size=120).map(np.array)


@given(labels_of_rows, st.integers(1, 40), st.sampled_from(TINY), st.integers(0, 9))
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


@given(st.lists(st.integers(0, 7), min_size=8, max_size=80).map(np.array), st.integers(0, 4), st.integers(0, 9))
@settings(max_examples=200, deadline=None)
def test_repair_moves_no_more_rows_than_it_must_and_levels_the_largest(
    owner: np.ndarray, minimum: int, seed: int
) -> None:
    before = np.bincount(owner, minlength=8)
    if len(owner) < 8 * minimum:
        with pytest.raises(ConfigError, match="ask for fewer clients"):
            with_minimum(owner, 8, minimum, rng(seed))
        return
    repaired = with_minimum(owner, 8, minimum, rng(seed))
    after = np.bincount(repaired, minlength=8)
    assert (repaired != owner).sum() == np.maximum(minimum - before, 0).sum()
    assert after.min() >= minimum
    gave = after < before
    if gave.any():  # nobody who gave is smaller than one who could have given, but for rounding
        could = before > minimum
        assert after[gave].max() - after[gave].min() <= 1
        assert after[could].max() - after[gave].min() <= 1


def test_repair_of_what_is_large_enough_changes_nothing() -> None:
    owner = np.arange(40) % 8
    assert (with_minimum(owner, 8, 5, rng()) == owner).all()


def test_who_receives_is_as_skewed_as_who_gives() -> None:
    """Two large clients of one label each serve 30 empty ones of 10 rows: nearly all of them get one label."""
    owner = np.repeat([0, 1], 1000)
    counts = table(owner.copy(), with_minimum(owner, 32, 10, rng(3)), 32)[2:]
    assert (counts.sum(axis=1) == 10).all() and (counts.max(axis=1) == 10).sum() >= 29


def test_moved_rows_are_drawn_at_random() -> None:
    """A client of 10 gives 5 of its rows, 400 times: binomial(400, 1/2) each; 5 sd miss with chance below 1e-5."""
    often = np.zeros(10)
    for seed in range(400):
        often += with_minimum(np.zeros(10, dtype=int), 2, 5, rng(seed)) == 1
    assert np.abs(often - 200).max() < 5 * np.sqrt(400 / 4)


@given(st.integers(1, 9), st.integers(1, 6), st.integers(0, 99))
@settings(deadline=None)
def test_rounded_shares_are_next_to_the_exact_ones(rows: int, columns: int, seed: int) -> None:
    generator = rng(seed)
    shares = generator.dirichlet(np.full(columns, 0.3), size=rows)
    sizes = generator.integers(0, 50, size=rows)
    counts = rounded_shares(shares, sizes, generator)
    assert (counts.sum(axis=1) == sizes).all()
    assert np.abs(counts - shares * sizes[:, None]).max() < 1 + 1e-9 and counts.min() >= 0


def test_rounding_is_unbiased() -> None:
    """20,000 rows of the same shares: each mean within 5 standard errors, a cell's deviation being at most 1/2."""
    shares = np.array([0.07, 0.5, 0.003, 0.427])
    counts = rounded_shares(np.tile(shares, (20_000, 1)), np.full(20_000, 7), rng(1))
    assert np.abs(counts.mean(axis=0) - 7 * shares).max() < 5 * 0.5 / np.sqrt(20_000)


@pytest.mark.parametrize("concentration", [0.5, 4.0])
def test_dirichlet_draws_have_the_law_of_numpys(concentration: float) -> None:
    """Means q and variances q (1 - q) / (c + 1) of Dir(c q), n = 40,000; 6 standard errors, false alarms below 1e-7."""
    q = np.array([0.6, 0.3, 0.1])
    logs = log_dirichlet(concentration, q, 40_000, rng(2))
    shares = np.exp(logs) / np.exp(logs).sum(axis=1, keepdims=True)
    variance = q * (1 - q) / (concentration + 1)
    assert np.abs(shares.mean(axis=0) - q).max() < 6 * np.sqrt(variance.max() / 40_000)
    assert np.abs(shares.var(axis=0) - variance).max() < 6 * 0.5 / np.sqrt(40_000)


def test_the_smallest_shapes_do_not_underflow() -> None:
    logs = log_dirichlet(1e-8, np.full(50, 0.02), 200, rng(3))
    assert np.isfinite(logs).all() and (np.exp(logs).sum(axis=1) >= 1).all()
    assert np.unique(logs.argmax(axis=1)).size > 30  # who wins is drawn, not decided by underflow


def test_high_concentration_looks_like_the_whole_table() -> None:
    labels = rng().choice(4, p=[0.5, 0.3, 0.15, 0.05], size=20_000)
    prior = np.bincount(labels) / len(labels)
    counts = table(labels, label_dirichlet(labels, 10, 1e9, rng(1)), 10)
    assert np.abs(counts / 2000 - prior).max() < 2 / 2000  # rounding, and what a label that ran out moved
    counts = table(labels, label_dirichlet_per_label(labels, 10, 1e9, rng(1)), 10)
    assert np.abs(counts - np.bincount(labels) / 10).max() < 2


def test_low_concentration_gives_one_label_to_most_clients() -> None:
    labels = rng().integers(20, size=50_000)
    counts = table(labels, label_dirichlet(labels, 500, 0.01, rng(1)), 500)
    largest = counts.max(axis=1) / counts.sum(axis=1)
    assert np.median(largest) == 1.0 and largest.mean() > 0.95


@pytest.mark.parametrize("concentration", [0.001, 0.1])
def test_per_label_spreads_each_label_by_the_law(concentration: float) -> None:
    """400 labels over 50 clients: E[sum of squared shares] = (c + 1) / (50 c + 1); 5 standard errors."""
    labels = np.repeat(np.arange(400), 500)
    counts = table(labels, label_dirichlet_per_label(labels, 50, concentration, rng(1), minimum=0), 50)
    squares = ((counts / 500) ** 2).sum(axis=0)
    expected = (concentration + 1) / (50 * concentration + 1)
    assert abs(squares.mean() - expected) < 5 * squares.std() / np.sqrt(400)


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
@pytest.mark.parametrize("concentration", [0.01, 0.3])
def test_tiny_concentration_and_many_clients_end(split: object, concentration: float) -> None:
    """FedLab hangs at 0.3 and below; a label that runs out makes NaN in Flower's."""
    labels = rng().integers(4, size=100_000)
    labels[:5] = 4  # a label with fewer rows than clients
    owner = split(labels, 10_000, concentration, rng(2))  # type: ignore[operator]
    assert np.bincount(owner, minlength=10_000).min() >= 1


@pytest.mark.parametrize("split", [label_dirichlet, label_dirichlet_per_label])
def test_rows_of_a_label_are_dealt_at_random(split: object) -> None:
    """Where a label's rows stand in the table says nothing of who gets them: 60 partitions, means over 50 rows of a
    half; the difference of the halves' mean client number is within 5 standard errors of 0.
    """
    labels = np.zeros(100, dtype=int)
    found = np.array([split(labels, 4, 1.0, rng(seed)) for seed in range(60)])  # type: ignore[operator]
    difference = found[:, :50].mean(axis=1) - found[:, 50:].mean(axis=1)
    assert abs(difference.mean()) < 5 * difference.std() / np.sqrt(60)


def test_label_numbers_are_sorted_whatever_the_form() -> None:
    words = ["b", "a", "ü", "b"]
    arrow = pa.array(words)
    plain = [words, np.array(words), np.array(words, dtype=object)]
    for form in (*plain, arrow, arrow.dictionary_encode(), pa.chunked_array([words[:1], words[1:]])):
        kinds, names = label_numbers(form)
        assert kinds.tolist() == [1, 0, 2, 1] and names == ["a", "b", "ü"]
    for form in ([5, -3, 5], np.array([5, -3, 5], dtype=np.int8), np.array([10**12, 7, 10**12]), [2.5, 1.5, 2.5]):
        kinds, names = label_numbers(form)
        assert kinds.tolist() == [1, 0, 1] and len(names) == 2 and names[0] < names[1]  # type: ignore[operator]


@pytest.mark.parametrize("labels", [["a", None, "b", None], [1.0, np.nan, 2.0, np.nan], [1, None, 2, None]])
def test_a_row_without_a_label_is_named(labels: list[object]) -> None:
    with pytest.raises(DataError, match=r"row 1 has no label \(2 such rows\)"):
        label_dirichlet(labels, 2, 1.0, rng())


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 9))
@settings(deadline=None)
def test_iid_deals_equal_sizes(rows: int, clients: int, seed: int) -> None:
    sizes = np.bincount(iid(rows, clients, rng(seed)), minlength=clients)
    assert len(sizes) == clients and sizes.sum() == rows and sizes.max() - sizes.min() <= 1


def test_more_clients_than_rows_end_with_empty_ones_dropped_and_counted() -> None:
    owner = label_dirichlet(np.array([0, 1, 1]), 8, 0.01, rng())
    data = FederatedData.from_assignment(owner, 8)
    assert len(data) == 3 and data.dropped == 5 and data.counts.tolist() == [1, 1, 1]
    assert sorted(data.rows.tolist()) == [0, 1, 2]


# The run file's entry

ROWS = 80
LABELS = [str(i % 4) for i in range(ROWS)]
TEXTS = [f"{'play sing hum' if i % 3 else 'rain sun wind'} number{i}" for i in range(ROWS)]
INPUTS = PartitionInputs(
    ROWS,
    labels=lambda: LABELS,
    texts=lambda: TEXTS,
    times=lambda: np.arange(ROWS) * 3600,
    keys={"group": lambda: ["x", "y", "x", "z"] * 20},
)
SECTIONS: list[dict[str, object]] = [
    {"partition": "iid", "clients": 5},
    {"partition": "label_dirichlet", "clients": 5},
    {"partition": "label_dirichlet", "clients": 5, "concentration": 0.1, "convention": "per_label"},
    {"partition": "quantity", "clients": 5, "concentration": 0.1},
    {"partition": "quantity", "clients": 5, "distribution": "zipf", "exponent": 2.0},
    {"partition": "quantity", "clients": 5, "distribution": "log_normal", "sigma": 3.0},
    {"partition": "features", "clients": 5, "clusters": 4, "concentration": 0.1},
    {"partition": "features", "clients": 5, "clusters": 4, "concentration": 0.1, "convention": "per_label"},
    {"partition": "shards", "clients": 5, "labels_per_client": 1},
    {"partition": "time", "clients": 5},
]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: "-".join(str(v) for v in s.values()))
def test_every_partition_of_a_run_file_is_disjoint_exhaustive_seeded_and_keeps_its_minimum(
    section: dict[str, object],
) -> None:
    config = PartitionConfig(**section, minimum=10)  # type: ignore[arg-type]
    data = partition(config, INPUTS, seeds=SEEDS)
    assert len(data) == 5 and data.counts.min() >= 10 and data.names is None
    assert sorted(data.rows.tolist()) == list(range(ROWS))
    assert data.fingerprint == partition(config, INPUTS, seeds=SEEDS).fingerprint
    other = partition(config, INPUTS, seeds=PublicSeeds(5)).fingerprint
    assert (other == data.fingerprint) == (section["partition"] == "time")  # where nothing is drawn


@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: "-".join(str(v) for v in s.values()))
def test_every_partition_ends_where_it_is_hardest(section: dict[str, object]) -> None:
    """As many clients as rows, concentration 0.001: FedNLP's quantity skew never ends, others draw for ever."""
    hard = {"concentration": 0.001} if "concentration" in section else {}
    config = PartitionConfig(**{**section, **hard, "clients": ROWS})  # type: ignore[arg-type]
    assert partition(config, INPUTS, seeds=SEEDS).counts.tolist() == [1] * ROWS


def test_natural_keys_are_clients_with_names() -> None:
    data = partition(PartitionConfig(partition="natural", by="group"), INPUTS, seeds=SEEDS)
    assert data.names is not None and data.names.tolist() == ["x", "y", "z"] and data.counts.tolist() == [40, 20, 20]


def test_nothing_is_fetched_that_is_not_needed() -> None:
    def never() -> list[object]:
        raise AssertionError("fetched")

    inputs = PartitionInputs(ROWS, never, never, never, never, {"group": never})  # type: ignore[arg-type]
    assert len(partition(PartitionConfig(partition="iid", clients=4), inputs, seeds=SEEDS)) == 4
    assert len(partition(PartitionConfig(partition="quantity", clients=4), inputs, seeds=SEEDS)) == 4


def test_given_embeddings_come_before_those_of_texts() -> None:
    far = np.repeat([[0.0, 0.0], [9.0, 9.0]], ROWS // 2, axis=0)
    inputs = PartitionInputs(ROWS, texts=lambda: TEXTS, embeddings=lambda: far)
    config = PartitionConfig(partition="features", clients=4, clusters=2, concentration=0.001)
    data = partition(config, inputs, seeds=SEEDS)
    assert sum(len(set((data.rows_of(k) >= ROWS // 2).tolist())) == 1 for k in range(4)) >= 3


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"partition": "label_dirichlet", "clients": 5}, "needs one label per row, which this task has not; use"),
        ({"partition": "shards", "clients": 5}, "needs one label per row, which this task has not; use"),
        ({"partition": "features", "clients": 5}, "'features' needs text"),
        ({"partition": "time", "clients": 5}, r"'time' needs data\.time"),
        ({"partition": "natural", "by": "group"}, r"by = 'group' needs that column.*or use another partition"),
        ({"partition": "iid", "clients": 81}, "need 81 rows, there are 80; ask for fewer clients"),
        ({"partition": "iid", "clients": 81, "minimum": 0}, "need 81 rows"),
        ({"partition": "quantity", "clients": 5, "minimum": 17}, "need 85 rows, there are 80"),
    ],
)
def test_partitions_that_cannot_be_are_refused_with_a_way_out(section: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        partition(PartitionConfig(**section), PartitionInputs(ROWS), seeds=SEEDS)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_other_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="labels_per_client = 5, and the table has 4 labels; ask for 1 to 4"):
        partition(PartitionConfig(partition="shards", clients=5, labels_per_client=5), INPUTS, seeds=SEEDS)
    with pytest.raises(ConfigError, match=r"'user' needs that column.*or use by = 'group'"):
        partition(PartitionConfig(partition="natural", by="user"), INPUTS, seeds=SEEDS)
    with pytest.raises(ConfigError, match="minimum = 3 would move rows from one group to another"):
        partition(PartitionConfig(partition="natural", by="group", minimum=3), INPUTS, seeds=SEEDS)
    with pytest.raises(ConfigError, match="concentration = 0"):
        label_dirichlet(["a", "b"], 2, 0.0, rng())
    with pytest.raises(ConfigError, match="wants one client or more"):
        iid(5, 0, rng())


def test_clients_may_stay_empty_where_the_minimum_is_0() -> None:
    section = {"partition": "quantity", "clients": 40, "concentration": 0.01, "minimum": 0}
    data = partition(PartitionConfig(**section), INPUTS, seeds=SEEDS)  # type: ignore[arg-type]
    assert data.dropped > 20 and len(data) + data.dropped == 40 and len(data.rows) == ROWS


def test_a_table_gives_what_its_roles_are() -> None:
    rows = [{"text": f"t{i}", "label": "ab"[i % 2], "user": f"u{i % 3}", "time": i} for i in range(6)]
    inputs = partition_inputs(from_rows(rows, "rows"))
    assert inputs.rows == 6 and inputs.source == "rows" and set(inputs.keys) == {"user", "label"}
    assert inputs.texts is not None and list(inputs.texts()) == [f"t{i}" for i in range(6)]
    data = partition(PartitionConfig(partition="natural", by="user"), inputs, seeds=SEEDS)
    assert data.names is not None and data.names.tolist() == ["u0", "u1", "u2"]
    data = partition(PartitionConfig(partition="time", clients=3), inputs, seeds=SEEDS)
    assert data.rows.tolist() == list(range(6))


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"tokens": ["play", "jazz"], "tags": ["O", "O"]}, "play jazz"),
        ({"question": "who?", "context": "me", "answers": {"text": ["me"], "answer_start": [0]}}, "who? me"),
        ({"source": "s", "target": "t"}, "s"),
    ],
)
def test_every_task_has_a_text_to_embed(row: dict[str, object], text: str) -> None:
    inputs = partition_inputs(from_rows([row], "rows"))
    assert inputs.labels is None and inputs.times is None
    assert inputs.texts is not None and list(inputs.texts()) == [text]


def test_a_table_with_rows_without_a_user_is_refused() -> None:
    inputs = partition_inputs(from_rows([{"text": "a", "user": "u"}, {"text": "b", "user": None}], "train.jsonl"))
    with pytest.raises(DataError, match=r"train.jsonl: row 1 has no user"):
        partition(PartitionConfig(partition="natural", by="user"), inputs, seeds=SEEDS)


def test_public_names_are_there() -> None:
    assert all(name in vars(federated) for name in federated.__all__)
