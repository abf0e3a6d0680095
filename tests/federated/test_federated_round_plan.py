"""A round's chunks: every row once an epoch, shuffled by seed, round and client alone; padding bounded; rows capped."""

from __future__ import annotations

import numpy as np
import pytest

from troth.config_federated import LocalConfig
from troth.federated import FederatedData
from troth.federated.merged_round import plan_merged
from troth.federated.round_plan import Chunk, RoundWork, plan_chunks, round_work
from troth.seeds import PublicSeeds

SIZES = np.random.default_rng(0).zipf(1.6, 300).clip(max=90)
CLIENTS = FederatedData.from_assignment(np.repeat(np.arange(300), SIZES), 300)
LENGTHS = np.random.default_rng(1).integers(4, 40, size=int(SIZES.sum()))


def work_of(local: LocalConfig, clients: np.ndarray | None = None, round_index: int = 3, seed: int = 1) -> RoundWork:
    chosen = np.arange(300) if clients is None else clients
    weights = np.full(len(chosen), 1 / len(chosen))
    return round_work(CLIENTS, chosen, weights, LENGTHS, local, round_index, PublicSeeds(seed))


def batches(chunks: list[Chunk]) -> dict[int, list[list[int]]]:
    found: dict[int, list[list[int]]] = {}
    for chunk in chunks:
        for k, client in enumerate(chunk.clients.tolist()):
            steps = chunk.rows[k, : chunk.steps[k]]
            assert (chunk.rows[k, chunk.steps[k] :] == -1).all()
            found[client] = [[r for r in step.tolist() if r >= 0] for step in steps]
    return found


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("limit", [1, 7, 64])
def test_every_client_sees_each_of_its_rows_once_an_epoch(epochs: int, limit: int) -> None:
    local = LocalConfig(epochs=epochs, batch_size=8)
    chunks = plan_chunks(work_of(local), local, limit)
    assert max(len(c) for c in chunks) <= limit
    found = batches(chunks)
    assert sorted(found) == list(range(300))
    for client, steps in found.items():
        rows = CLIENTS.rows_of(client).tolist()
        per_epoch = -(-len(rows) // 8)
        assert len(steps) == epochs * per_epoch
        for epoch in range(epochs):
            mine = steps[epoch * per_epoch : (epoch + 1) * per_epoch]
            assert sorted(r for step in mine for r in step) == sorted(rows)
            assert [len(s) for s in mine[:-1]] == [8] * (per_epoch - 1)
    assert all((np.diff(c.steps) <= 0).all() for c in chunks), "those with most steps stand first"


def test_batches_depend_on_seed_round_and_client_alone() -> None:
    local = LocalConfig(epochs=2, batch_size=4)
    whole = batches(plan_chunks(work_of(local), local, 64))
    few = np.array([250, 3, 77])
    assert batches(plan_chunks(work_of(local, few), local, 2)) == {k: whole[k] for k in few.tolist()}
    long = [k for k in range(300) if SIZES[k] > 8]
    for other in (work_of(local, round_index=4), work_of(local, seed=2)):
        changed = batches(plan_chunks(other, local, 64))
        assert all(changed[k] != whole[k] for k in long)
    assert all(whole[k][: len(whole[k]) // 2] != whole[k][len(whole[k]) // 2 :] for k in long), "each epoch anew"


def test_the_first_row_of_a_shuffle_is_uniform() -> None:
    """Chi-square over 2,000 rounds of one client with 8 rows: false alarm below 1 in 1,000."""
    from scipy.stats import chisquare

    data = FederatedData.from_assignment(np.zeros(8, dtype=np.int64), 1)
    local = LocalConfig(batch_size=8)
    first = np.zeros(8, dtype=int)
    for r in range(2000):
        work = round_work(data, np.array([0]), np.ones(1), np.ones(8, dtype=np.int64), local, r, PublicSeeds(5))
        first[plan_chunks(work, local, 1)[0].rows[0, 0, 0]] += 1
    assert chisquare(first).pvalue > 1e-3


def test_padding_is_bounded_where_sizes_are_skewed() -> None:
    local = LocalConfig(batch_size=8)
    chunks = plan_chunks(work_of(local), local, 64)
    padded = real = 0
    for chunk in chunks:
        long = max(int(LENGTHS[r]) for r in chunk.rows[chunk.rows >= 0])
        padded += int(chunk.steps.sum()) * chunk.rows.shape[2] * long
        real += int(LENGTHS[chunk.rows[chunk.rows >= 0]].sum())
    assert padded < 2.5 * real + 4096 * len(chunks)
    assert len(chunks) < 40


def test_a_cap_draws_rows_anew_in_each_round() -> None:
    local = LocalConfig(batch_size=8, maximum_examples=5)
    seen = []
    for r in range(40):
        found = batches(plan_chunks(work_of(local, round_index=r), local, 64))
        for client, steps in found.items():
            rows = [x for step in steps for x in step]
            assert len(rows) == len(set(rows)) == min(5, SIZES[client])
            assert set(rows) <= set(CLIENTS.rows_of(client).tolist())
        big = int(np.argmax(SIZES))
        seen.append(frozenset(x for step in found[big] for x in step))
    assert len(set(seen)) == 40


def test_merged_batches_hold_each_row_with_its_clients_weight_over_its_rows() -> None:
    local = LocalConfig(batch_size=64)
    work = work_of(local)
    chosen = work.steps == 1
    parts = plan_merged(work, chosen, LENGTHS, draw=3)
    rows, weights = np.concatenate([p.rows for p in parts]), np.concatenate([p.weights for p in parts])
    expected = {r: 1 / 300 / SIZES[k] for k in np.flatnonzero(chosen) for r in CLIENTS.rows_of(k).tolist()}
    assert sorted(rows.tolist()) == sorted(expected)
    assert np.allclose(weights, [expected[r] for r in rows.tolist()])
    assert max(len(p.rows) * LENGTHS[p.rows].max() for p in parts) <= 4096
    assert len({p.seed for p in parts}) == len(parts)
