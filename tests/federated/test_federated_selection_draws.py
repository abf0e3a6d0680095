"""Draws out of an index and as a race: against naive loops, enumeration and closed forms, on every path."""

from __future__ import annotations

import itertools
import mmap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chisquare, kstest

from troth.errors import DataError
from troth.federated import selection_draws
from troth.federated.mapped_columns import mapping_of, pages_of, prefetch
from troth.federated.selection_activity import AgeWeights, PowerWeights
from troth.federated.selection_draws import first_arrivals
from troth.federated.weighted_index import EvenRates, MixedRates, Rates, WeightedIndex

COUNTS = np.array([1, 2, 0, 3, 10, 4], dtype=np.uint32)
PATHS = {
    "race": {"_RACE_BELOW": 10**9},
    "meetings": {"_RACE_BELOW": 0, "_MEETINGS_WANTED": 10**6},
    "meetings, then race": {"_RACE_BELOW": 0, "_MEETINGS_WANTED": 1, "_CLIENTS_MEETING": 10**9},
}


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make first_arrivals go one way, whatever the sizes."""
    for name, value in PATHS[request.param].items():
        monkeypatch.setattr(selection_draws, name, value)
    return str(request.param)


def index(counts: NDArray[np.integer], power: float = 1.0) -> WeightedIndex:
    return WeightedIndex((counts,), PowerWeights(power))


def everyone(clients: NDArray[np.int64]) -> NDArray[np.bool_]:
    return np.ones(len(clients), dtype=bool)


def some_counts(clients: int, dtype: type, seed: int = 0) -> NDArray[np.integer]:
    generator = np.random.default_rng(seed)
    counts = np.minimum(generator.zipf(1.4, clients), 9000).astype(dtype)
    counts[generator.random(clients) < 0.2] = 0
    counts[clients // 2] = 7
    return counts


@pytest.mark.parametrize("clients", [1, 63, 64, 65, 1000, 140_001])
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int64])
def test_a_draw_is_where_the_point_falls_on_one_running_total(clients: int, power: float, dtype: type) -> None:
    counts = some_counts(clients, dtype)
    weights = np.where(counts > 0, counts.astype(float) ** power, 0.0)
    found = index(counts, power).draw(2000, np.random.default_rng(5))
    generator = np.random.default_rng(5)
    gaps = generator.standard_exponential(2001).cumsum()
    points = gaps[:-1] / gaps[-1] * weights.sum()
    naive = np.searchsorted(np.cumsum(weights), points, side="right")[generator.permutation(2000)]
    assert (weights[found] > 0).all()
    assert np.mean(found != naive) <= (0 if power in (0.0, 1.0) else 1e-3)  # rounding at a border


def test_clients_are_drawn_as_often_as_their_weights_say() -> None:
    """100,000 draws of 150 clients, chi-square; a right index fails with chance 1e-4."""
    counts = some_counts(150, np.uint16)
    drawn = np.bincount(index(counts, 0.5).draw(100_000, np.random.default_rng(1)), minlength=150)
    weights = np.sqrt(counts.astype(float))
    held = counts > 0
    assert drawn[~held].sum() == 0
    assert chisquare(drawn[held], 100_000 * weights[held] / weights.sum()).pvalue > 1e-4


def test_draws_are_in_random_order() -> None:
    """The chance that the first half of 2,000 draws differs so much from the second is below 1e-6."""
    drawn = (
        EvenRates(1000).draw(2000, np.random.default_rng(0)),
        index(np.ones(1000, np.uint32)).draw(2000, np.random.default_rng(0)),
    )
    for clients in drawn:
        assert abs(clients[:1000].mean() - clients[1000:].mean()) < 5 * 289 * np.sqrt(2 / 1000)


@pytest.mark.parametrize("power", [0.0, 0.3, 1.0])
def test_total_rates_and_drawable_equal_sums_over_clients(power: float) -> None:
    counts = some_counts(200_003, np.uint32)
    weights = np.where(counts > 0, counts.astype(float) ** power, 0.0)
    made = index(counts, power)
    assert made.listed == len(counts)
    assert made.drawable == np.count_nonzero(counts)
    assert made.total == pytest.approx(weights.sum(), rel=1e-12)
    numbers, rates = (np.concatenate(parts) for parts in zip(*made.pieces(), strict=True))
    assert np.array_equal(numbers, np.arange(len(counts))) and np.allclose(rates, weights, rtol=1e-14, atol=0)
    chosen = np.array([200_002, 5, 5])
    assert made.at(chosen) == pytest.approx(weights[chosen], rel=1e-14)


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_a_refreshed_index_equals_a_new_one(power: float) -> None:
    counts = some_counts(1000, np.uint32)
    made = index(counts, power)
    changed = np.array([999, 3, 70, 70, 64])
    counts[changed] = [5, 0, 11, 0, 900]
    made.refresh(changed)
    fresh = index(counts, power)
    assert made.total == fresh.total and made.drawable == fresh.drawable
    assert np.array_equal(*(i.draw(500, np.random.default_rng(2)) for i in (made, fresh)))


@pytest.mark.parametrize("count", [0, 50])
def test_counts_changed_behind_the_index_are_noticed(count: int) -> None:
    counts = np.full(100, 9, dtype=np.uint32)
    made = index(counts)
    counts[:] = count
    with pytest.raises(DataError, match="changed under their index: refresh"):
        made.draw(100, np.random.default_rng(0))


def test_a_memory_mapped_index_equals_one_in_memory(tmp_path: Path) -> None:
    counts = some_counts(5000, np.uint16)
    np.save(tmp_path / "counts.npy", counts)
    mapped = np.load(tmp_path / "counts.npy", mmap_mode="r", allow_pickle=False)
    drawn = [index(c).draw(3000, np.random.default_rng(4)) for c in (counts, mapped)]
    assert np.array_equal(*drawn)


@pytest.mark.parametrize("header", [0, 128, 4000])
@pytest.mark.parametrize("length", [1, 64])
def test_the_pages_asked_for_are_those_that_hold_the_values(tmp_path: Path, header: int, length: int) -> None:
    counts = some_counts(9000, np.uint32)
    path = tmp_path / "counts"
    path.write_bytes(b"x" * header + counts.tobytes())
    mapped = np.memmap(path, dtype=np.uint32, mode="r", offset=header)
    for column, skipped in ((mapped, 0), (np.asarray(mapped)[100:], 100)):
        mapping = mapping_of(column)
        assert mapping is not None
        first = np.array([0, 959, 7, 2000, len(column) - 3])
        naive = {
            (header % mmap.ALLOCATIONGRANULARITY + 4 * (skipped + k) + byte) // mmap.PAGESIZE
            for start in first.tolist()
            for k in range(start, min(start + length, len(column)))
            for byte in range(4)
        }
        assert pages_of(column, mapping, first, length).tolist() == sorted(naive)
        prefetch(column, first, length)
    prefetch(counts, first, length)
    assert mapping_of(counts) is None and mapping_of(counts[3:]) is None and np.array_equal(mapped, counts)


def test_an_index_without_weight_is_refused() -> None:
    with pytest.raises(DataError, match="no client holds a row"):
        index(np.zeros(100, dtype=np.uint32))
    counts = np.ones(2, dtype=np.uint32)
    emptied = index(counts)
    counts[:] = 0
    emptied.refresh(np.array([0, 1]))
    with pytest.raises(DataError, match="no client holds a row"):
        emptied.draw(1, np.random.default_rng(0))


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0, 4.0])
def test_power_weights_are_powers_also_beyond_the_table(power: float) -> None:
    counts = np.array([[0, 1, 2], [4095, 4096, 2**32 - 1]], dtype=np.uint32)
    expected = np.where(counts > 0, counts.astype(float) ** power, 0.0)
    assert np.asarray(PowerWeights(power)(counts), dtype=float) == pytest.approx(expected, rel=1e-14)


def test_age_weights_halve_and_have_a_floor() -> None:
    weigh = AgeWeights(half_life=2.0, now=200)
    counts = np.array([1, 9, 1, 0, 3], dtype=np.uint32)
    last_seen = np.array([200, 198, 195, 200, 0], dtype=np.uint16)
    assert weigh(counts, last_seen) == pytest.approx([1, 0.5, 2**-2.5, 0, 2**-50], rel=1e-14)


def test_listed_clients_are_drawn_evenly_and_others_never() -> None:
    """10,000 draws, chi-square; a right draw fails with chance 1e-4."""
    members = np.array([2, 3, 7])
    rates = EvenRates(9, members)
    assert (rates.listed, rates.drawable, rates.total) == (3, 3, 3.0)
    assert [(c.tolist(), r.tolist()) for c, r in rates.pieces()] == [([2, 3, 7], [1, 1, 1])]
    assert rates.at(np.array([7, 8, 2])).tolist() == [1, 0, 1]
    drawn = np.bincount(rates.draw(10_000, np.random.default_rng(0)), minlength=9)
    assert drawn.sum() == drawn[members].sum() and chisquare(drawn[members]).pvalue > 1e-4


def test_mixed_rates_are_the_mixture_of_both() -> None:
    """60,000 draws, chi-square; a right draw fails with chance 1e-4."""
    mixed = MixedRates(index(COUNTS, 0.0), index(COUNTS, 1.0), 0.3)
    expected = 0.3 * (COUNTS > 0) / 5 + 0.7 * COUNTS / 20
    assert mixed.at(np.arange(6)) == pytest.approx(expected, rel=1e-14)
    assert next(mixed.pieces())[1] == pytest.approx(expected, rel=1e-14)
    assert (mixed.total, mixed.drawable, mixed.listed) == (1.0, 5, 6)
    drawn = np.bincount(mixed.draw(60_000, np.random.default_rng(0)), minlength=6)
    held = COUNTS > 0
    assert drawn[2] == 0 and chisquare(drawn[held], 60_000 * expected[held]).pvalue > 1e-4


def test_orders_of_arrival_are_as_frequent_as_enumeration_says(path: str) -> None:
    """3,000 ordered pairs of 5 clients, chi-square over 20 orders; a right draw fails each path with chance 1e-4."""
    orders = list(itertools.permutations(np.flatnonzero(COUNTS).tolist(), 2))
    chances = [COUNTS[a] / 20 * COUNTS[b] / (20 - COUNTS[a]) for a, b in orders]
    rates, generator = index(COUNTS), np.random.default_rng(11)
    seen = dict.fromkeys(orders, 0)
    for _ in range(3000):
        seen[tuple(first_arrivals(rates, 2, everyone, generator).clients.tolist())] += 1
    assert chisquare(list(seen.values()), [3000 * p for p in chances]).pvalue > 1e-4, path


def arrived_by(time: NDArray[np.float64], rates: NDArray[np.float64], at_least: int) -> NDArray[np.float64]:
    """Return the chance that `at_least` of the clients have arrived by a time, by enumeration of sets."""
    chances = -np.expm1(-np.outer(rates, time))
    total = np.zeros(len(time))
    for inside in itertools.product([False, True], repeat=len(rates)):
        if sum(inside) >= at_least:
            total += np.prod(np.where(np.array(inside)[:, None], chances, 1 - chances), axis=0)
    return total


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_the_next_time_has_the_law_of_the_next_arrival(path: str, power: float) -> None:
    """1,000 draws of 2 of 4 eligible clients, Kolmogorov-Smirnov; a right draw fails each case with chance 1e-4."""
    held = np.array([0, 1, 3, 5])
    rates, generator = index(COUNTS, power), np.random.default_rng(3)
    times = [first_arrivals(rates, 2, lambda c: np.isin(c, held), generator).next_time for _ in range(1000)]
    speed = COUNTS[held].astype(float) ** power
    assert kstest(times, lambda t: arrived_by(np.atleast_1d(t), speed, 3)).pvalue > 1e-4, path


def test_rank_conditioning_is_unbiased_for_each_client(path: str) -> None:
    """The mean of 1 / chance over 1,500 draws is 1 for each of 5 clients, within 4.5 standard errors (1e-5 each)."""
    rates, generator = index(COUNTS), np.random.default_rng(8)
    found = np.zeros((1500, len(COUNTS)))
    for k in range(1500):
        arrivals = first_arrivals(rates, 3, everyone, generator)
        found[k, arrivals.clients] = 1 / -np.expm1(-rates.at(arrivals.clients) * arrivals.next_time)
    error = found.std(axis=0) / np.sqrt(1500)
    held = COUNTS > 0
    assert (np.abs(found.mean(axis=0) - 1)[held] <= 4.5 * error[held]).all(), path


@pytest.mark.parametrize("path", ["race", "meetings, then race"], indirect=True)
def test_too_few_eligible_clients_are_all_taken(path: str) -> None:
    generator = np.random.default_rng(0)
    for rates in (index(COUNTS), EvenRates(6), EvenRates(6, np.array([0, 1, 4]))):
        allowed = np.array([0, 1])
        arrivals = first_arrivals(rates, 2, lambda c, allowed=allowed: np.isin(c, allowed), generator)
        assert sorted(arrivals.clients.tolist()) == [0, 1] and arrivals.next_time == np.inf
        nobody = first_arrivals(rates, 3, lambda c: np.zeros(len(c), dtype=bool), generator)
        assert len(nobody.clients) == 0 and nobody.next_time == np.inf


def test_the_race_equals_a_sort_of_all_times() -> None:
    """More clients than one piece holds; one stream of random numbers for both."""
    counts = some_counts(200_000, np.uint32)
    seen = np.array([0, 65_535, 65_536, 199_999])
    for wanted in (1, 50, 90_000, 190_000):
        clients, times = selection_draws._race(
            index(counts), seen, wanted, lambda c: c % 3 > 0, np.random.default_rng(wanted)
        )
        with np.errstate(divide="ignore"):
            all_times = np.random.default_rng(wanted).standard_exponential(200_000) / counts
        all_times[seen] = np.inf
        all_times[::3] = np.inf
        order = np.argsort(all_times)[: min(wanted, np.isfinite(all_times).sum())]
        assert np.array_equal(clients, order) and np.array_equal(times, all_times[order])


def test_a_race_of_listed_clients_looks_at_no_other() -> None:
    """1,000 draws of all but one of 4 listed clients among a million: who is last, chi-square (fails with 1e-4)."""
    members = np.array([7, 70_000, 500_000, 999_999])
    rates, generator = EvenRates(1_000_000, members), np.random.default_rng(0)
    asked: set[int] = set()

    def eligible(clients: NDArray[np.int64]) -> NDArray[np.bool_]:
        asked.update(clients.tolist())
        return np.ones(len(clients), dtype=bool)

    first = [first_arrivals(rates, 3, eligible, generator).clients for _ in range(1000)]
    assert asked == set(members.tolist()) and all(len(set(f.tolist())) == 3 for f in first)
    last = [int(np.setdiff1d(members, f)[0]) for f in first]
    assert chisquare([last.count(m) for m in members.tolist()]).pvalue > 1e-4


class Counted:
    """Rates that count how often clients were met."""

    def __init__(self, rates: Rates) -> None:
        self._rates, self.met = rates, 0
        self.listed, self.drawable, self.total = rates.listed, rates.drawable, rates.total
        self.at, self.pieces = rates.at, rates.pieces

    def draw(self, draws: int, rng: np.random.Generator) -> NDArray[np.int64]:
        self.met += draws
        return self._rates.draw(draws, rng)


@pytest.mark.parametrize("case", ["one holds nearly all", "few can be reached", "nearly everybody is wanted"])
def test_work_is_bounded_where_meetings_would_go_on_for_ever(case: str) -> None:
    counts = np.ones(100_000, dtype=np.uint32)
    wanted = 90_000 if case == "nearly everybody is wanted" else 50
    if case == "one holds nearly all":
        counts[77] = 2**32 - 1
    rates = Counted(index(counts))

    def eligible(clients: NDArray[np.int64]) -> NDArray[np.bool_]:
        return clients % 1000 == 77 if case == "few can be reached" else np.ones(len(clients), dtype=bool)

    arrivals = first_arrivals(rates, wanted, eligible, np.random.default_rng(0))
    assert len(set(arrivals.clients.tolist())) == wanted and np.isfinite(arrivals.next_time)
    assert (
        rates.met <= selection_draws._MEETINGS_WANTED * (wanted + 1) + len(counts) // selection_draws._CLIENTS_MEETING
    )
    assert eligible(arrivals.clients).all()
    assert case != "one holds nearly all" or arrivals.clients[0] == 77


@settings(deadline=None, max_examples=60)
@given(
    counts=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=300).filter(any),
    power=st.sampled_from([0.0, 0.5, 1.0, 4.0]),
    wanted=st.integers(1, 40),
    modulus=st.integers(1, 4),
    seed=st.integers(0, 2**32),
)
def test_arrivals_are_distinct_eligible_and_as_many_as_there_can_be(
    counts: list[int], power: float, wanted: int, modulus: int, seed: int
) -> None:
    held = np.array(counts, dtype=np.uint32)
    arrivals = first_arrivals(index(held, power), wanted, lambda c: c % modulus == 0, np.random.default_rng(seed))
    able = np.flatnonzero((held > 0) & (np.arange(len(held)) % modulus == 0))
    assert len(arrivals.clients) == len(set(arrivals.clients.tolist())) == min(wanted, len(able))
    assert np.isin(arrivals.clients, able).all()
    assert (arrivals.next_time == np.inf) == (len(able) <= wanted)
