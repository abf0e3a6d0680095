"""Replay: the reservoir's law by enumeration, gradient diversity by brute force, deletions leave no trace."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from troth.config_federated import StreamConfig
from troth.errors import ModelError
from troth.federated.deletions import Deletions
from troth.federated.replay import ReplayMemory, gradient_diverse, most_diverse, reservoir, reservoir_keys
from troth.federated.stream import Stream
from troth.federated.stream_events import Events, Periods
from troth.seeds import PublicSeeds

FALSE_ALARM = 1e-4  # of each statistical test below


def stream_of(
    devices: int, per_device: int, size: int, *, seed: int = 0, deleted: np.ndarray | None = None, periods: int = 0
) -> Stream:
    """Return a stream in which each device gets one row a period and keeps it for one."""
    owner = np.repeat(np.arange(devices), per_device)
    times = np.tile(np.arange(per_device) + 0.5, devices)
    count = periods or per_device + 1
    return Stream(
        Events.of(owner, times, devices),
        StreamConfig(periods=count, retention=1, replay={"size": size}),
        seeds=PublicSeeds(seed),
        deletions=None if deleted is None else Deletions(deleted),
        periods=Periods(np.arange(count + 1.0)),
    )


def replayed(stream: Stream) -> np.ndarray:
    """Return [devices, rows of a device] what each device replays after the last period."""
    for _ in range(len(stream)):
        period = stream.advance()
    table = np.zeros(len(stream.allowed(period.index)), dtype=bool)
    table[period.training.rows] = True
    assert not len(period.population.rows)
    return table.reshape(len(period.training), -1)


def test_every_subset_of_the_expired_rows_is_as_likely() -> None:
    """n = 20,000 devices of 5 rows, 2 kept: 10 subsets, chi-square with 9 degrees of freedom, false alarm 1e-4."""
    found = replayed(stream_of(20_000, 5, 2))
    assert (found.sum(axis=1) == 2).all()
    counts = [int((found[:, a] & found[:, b]).sum()) for a, b in combinations(range(5), 2)]
    assert sum(counts) == 20_000
    assert stats.chisquare(counts).pvalue > FALSE_ALARM


def test_the_law_holds_after_every_period() -> None:
    """n = 5,000 devices; after k rows each is kept with chance 2 / k: binomial, 14 tests, false alarm 1e-4 in all."""
    stream = stream_of(5_000, 5, 2)
    for period in range(6):
        rows = stream.advance().training.rows % 5
        old = rows[rows != period]
        for place in range(period):
            hits = int((old == place).sum())
            assert stats.binomtest(hits, 5_000, min(1, 2 / period)).pvalue > FALSE_ALARM / 14


def test_given_its_size_what_a_deletion_leaves_is_uniform() -> None:
    """n = 20,000 devices, rows 1 and 3 of 6 deleted midway, 3 kept: subsets of the others by size, false alarm 1e-4."""
    deleted = np.full((20_000, 6), 7)
    deleted[:, 1], deleted[:, 3] = 3, 5
    found = replayed(stream_of(20_000, 6, 3, deleted=deleted.ravel()))
    assert not found[:, [1, 3]].any()
    left = found[:, [0, 2, 4, 5]]
    for size in (1, 2, 3):
        chosen = left[left.sum(axis=1) == size]
        counts = [int(chosen[:, list(c)].all(axis=1).sum()) for c in combinations(range(4), size)]
        assert sum(counts) == len(chosen) > 1_000
        assert stats.chisquare(counts).pvalue > FALSE_ALARM / 3


def test_a_memory_with_room_keeps_all_and_seeds_differ() -> None:
    assert replayed(stream_of(50, 4, 4)).all()
    one, other, again = (replayed(stream_of(50, 6, 2, seed=s)) for s in (1, 2, 1))
    assert (one == again).all() and (one != other).any()


def test_what_a_device_keeps_depends_on_no_other_device_and_no_period() -> None:
    whole = replayed(stream_of(40, 6, 2))
    alone = stream_of(40, 6, 2)
    some = Events.of(np.where(alone._events.devices % 3 == 0, alone._events.devices, -1), alone._events.times, 40)
    fewer = Stream(some, alone._config, seeds=PublicSeeds(0), periods=alone.periods)
    coarse = Stream(some, alone._config, seeds=PublicSeeds(0), periods=Periods(np.array([0.0, 4.0, 6.0, 7.0])))
    for _ in range(len(fewer)):
        period = fewer.advance()
    for _ in range(len(coarse)):
        rough = coarse.advance()
    for device in range(0, 40, 3):
        mine = sorted(period.training.rows_of(device).tolist())
        assert mine == sorted((np.flatnonzero(whole[device]) + 6 * device).tolist())
        assert mine == sorted(rough.training.rows_of(device).tolist())


def test_the_fast_reservoir_equals_one_that_sorts_each_device_by_hand() -> None:
    rng = np.random.default_rng(0)
    memory, by_hand = ReplayMemory.empty(), {d: [] for d in range(9)}
    for step in range(5):
        devices = np.sort(rng.integers(0, 9, 30))
        rows, keys = rng.permutation(1000)[:30] + 1000 * step, rng.integers(0, 2**62, 30)
        memory = reservoir(memory, ReplayMemory(rows, devices, keys), 4)
        for device, row, key in zip(devices.tolist(), rows.tolist(), keys.tolist(), strict=True):
            by_hand[device] = sorted([*by_hand[device], (key, row)])
        by_hand = {d: found[:4] for d, found in by_hand.items()}
        for device in range(9):
            assert memory.rows[memory.devices == device].tolist() == [row for _, row in by_hand[device]]


def test_keys_are_uniform_and_differ() -> None:
    """n = 100,000 keys: Kolmogorov-Smirnov, false alarm 1e-4; neighbours in device, place and seed are unrelated."""
    devices, places = np.repeat(np.arange(1000), 100), np.tile(np.arange(100), 1000)
    keys = reservoir_keys(7, devices, places)
    assert keys.min() >= 0 and len(np.unique(keys)) == len(keys)
    assert stats.kstest(keys / 2**63, "uniform").pvalue > FALSE_ALARM
    other = reservoir_keys(8, devices, places)
    for one, two in ((keys[1:], keys[:-1]), (keys[100:], keys[:-100]), (keys, other)):
        assert abs(np.corrcoef(one.astype(float), two.astype(float))[0, 1]) < 4.5 / np.sqrt(len(one))


def length_of_sum(gradients: np.ndarray, rows: tuple[int, ...] | np.ndarray) -> float:
    chosen = gradients[list(rows)]
    return float(np.linalg.norm((chosen / np.linalg.norm(chosen, axis=1, keepdims=True)).sum(axis=0)))


@pytest.mark.parametrize("rows", [3, 6, 9])
@pytest.mark.parametrize("seed", range(8))
def test_most_diverse_against_all_subsets(rows: int, seed: int) -> None:
    gradients = np.random.default_rng(seed).normal(loc=[1.0, 0.0, 0.0], size=(rows, 3))
    for size in range(1, rows):
        chosen = most_diverse(gradients, size)
        found = length_of_sum(gradients, chosen)
        assert len(set(chosen.tolist())) == size and chosen.tolist() == sorted(chosen.tolist())
        for out in chosen.tolist():  # no exchange is better
            for new in set(range(rows)) - set(chosen.tolist()):
                other = [new if row == out else row for row in chosen.tolist()]
                assert length_of_sum(gradients, np.array(other)) >= found - 1e-7
        lengths = sorted(length_of_sum(gradients, c) for c in combinations(range(rows), size))
        if size in (1, rows - 1):
            assert found == pytest.approx(lengths[0], abs=1e-7)
        assert found <= lengths[len(lengths) // 2] + 1e-7  # better than half of all subsets in any case


def test_most_diverse_takes_one_of_each_kind() -> None:
    """Twenty near copies of four directions that sum to zero: the best four are one of each."""
    rng = np.random.default_rng(0)
    kinds = np.repeat(np.arange(4), [12, 5, 2, 1])
    directions = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    gradients = directions[kinds] * rng.uniform(0.1, 9, (20, 1)) + rng.normal(scale=0.01, size=(20, 3))
    assert sorted(kinds[most_diverse(gradients.astype(np.float32), 4)].tolist()) == [0, 1, 2, 3]


def test_most_diverse_ignores_lengths_and_leaves_zero_gradients_for_last() -> None:
    gradients = np.random.default_rng(1).normal(size=(7, 4))
    scaled = gradients * np.array([[1e-3], [1], [1e3], [5], [7], [1], [2]])
    assert most_diverse(gradients, 3).tolist() == most_diverse(scaled, 3).tolist()
    gradients[[0, 2, 5]] = 0
    assert not {0, 2, 5} & set(most_diverse(gradients, 4).tolist())
    assert most_diverse(gradients, 6).tolist() == [0, 1, 2, 3, 4, 6]
    assert most_diverse(gradients, 7).tolist() == most_diverse(gradients, 99).tolist() == list(range(7))
    assert most_diverse(np.zeros((4, 2)), 2).tolist() == [0, 1]


def test_gradient_diverse_chooses_for_each_device_by_itself() -> None:
    rng = np.random.default_rng(2)
    gradients = rng.normal(size=(40, 5))
    asked: list[list[int]] = []

    def of_rows(rows: np.ndarray) -> np.ndarray:
        asked.append(rows.tolist())
        return gradients[rows].astype(np.float32)

    devices = np.sort(rng.integers(0, 4, 20))
    memory = ReplayMemory(np.arange(20), devices, np.zeros(20, dtype=np.int64))
    memory.rows[3] = -1
    offered = ReplayMemory(np.arange(20, 40), np.full(20, 2), np.zeros(20, dtype=np.int64))
    found = gradient_diverse(memory, offered, 5, of_rows)
    for device in range(4):
        had = [r for r, d in zip(memory.rows.tolist(), devices, strict=True) if d == device and r >= 0]
        had += list(range(20, 40)) if device == 2 else []
        mine = found.rows[found.devices == device].tolist()
        if len(had) <= 5:
            assert mine == had and had not in asked
        else:
            assert mine == [had[i] for i in most_diverse(gradients[had].astype(np.float32), 5)] and had in asked
    assert -1 not in found.rows


def test_bad_gradients_are_refused() -> None:
    memory = ReplayMemory(np.arange(3), np.zeros(3, dtype=np.int64), np.zeros(3, dtype=np.int64))
    with pytest.raises(ModelError, match="1 of 3 rows have a gradient that is not finite"):
        gradient_diverse(memory, ReplayMemory.empty(), 2, lambda rows: np.array([[1.0], [np.nan], [2.0]]))
    for shape in ((3,), (2, 4)):
        with pytest.raises(ModelError, match="one vector for each row"):
            gradient_diverse(memory, ReplayMemory.empty(), 2, lambda rows, shape=shape: np.zeros(shape))
