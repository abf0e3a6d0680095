"""Who takes part: availability, rest, over-selection, drop-outs, losses, unbiased weights, and the Gini coefficient."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest, chisquare, kstest

from troth.config_federated import ParticipationConfig
from troth.errors import ConfigError, DataError
from troth.federated import participation
from troth.federated.participation import CohortSampler, gini, keyed_uniforms
from troth.federated.selection import (
    ByActivity,
    Mixture,
    PowerOfChoice,
    Recency,
    Selection,
    TopActive,
    Uniform,
)
from troth.federated.selection_activity import Activity
from troth.seeds import PublicSeeds

COUNTS = np.array([1, 2, 0, 3, 10, 4], dtype=np.uint32)
VALUES = np.array([5.0, -3.0, 99.0, 2.0, 1.0, 7.0])
SEEDS = PublicSeeds(5)
INVERSE: list[Selection] = [
    Uniform("inverse_probability"),
    ByActivity(1.0, "inverse_probability"),
    ByActivity(0.5, "inverse_probability"),
    Mixture(1.0, 0.5, "inverse_probability"),
    Recency(2.0, "inverse_probability"),
]


def registry(counts: NDArray[np.uint32] = COUNTS) -> Activity:
    clients = len(counts)
    return Activity(counts, np.arange(clients, dtype=np.uint16) % 5, np.zeros(clients, dtype=np.uint16), now=5)


def settings(**changed: float) -> ParticipationConfig:
    return ParticipationConfig.model_validate(changed)


@pytest.mark.parametrize("rule", INVERSE)
@pytest.mark.parametrize(
    ("cohort", "who"), [(1, {}), (3, {}), (5, {}), (2, {"available": 0.6}), (2, {"drop_out": 0.3, "available": 0.8})]
)
def test_inverse_probability_weights_are_unbiased(rule: Selection, cohort: int, who: dict[str, float]) -> None:
    """The mean of sum(weights * values) over 600 rounds lies within 4.5 standard errors (1e-5 a case) of the mean."""
    sampler = CohortSampler(rule, registry(), settings(**who))
    cohorts = [sampler.draw(cohort, k, SEEDS) for k in range(600)]
    found = [c.weights @ VALUES[c.clients] for c in cohorts]
    expected = COUNTS @ VALUES / COUNTS.sum()
    assert abs(np.mean(found) - expected) <= 4.5 * np.std(found) / np.sqrt(600) + 1e-12
    assert not cohorts[0].sums_to_one


def test_chances_divided_by_are_those_of_being_reached_and_reporting() -> None:
    """Everybody is asked: the only chances left are availability and drop-out, and the weights must show them."""
    rule = ByActivity(1.0, "inverse_probability")
    sampler = CohortSampler(rule, registry(), settings(available=0.5, drop_out=0.2))
    for k in range(20):
        cohort = sampler.draw(5, k, SEEDS)
        assert cohort.weights == pytest.approx(COUNTS[cohort.clients] / 20 / (0.5 * 0.8))


@pytest.mark.parametrize(
    ("who", "key"),
    [({"minimum_separation": 3}, "minimum_separation = 3"), ({"over_selection": 1.3}, r"over_selection = 1\.3")],
)
def test_weights_that_would_be_biased_are_refused(who: dict[str, float], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"weight = 'inverse_probability' and federated\.participation\.{key}"):
        CohortSampler(ByActivity(1.0, "inverse_probability"), registry(), settings(**who))
    assert CohortSampler(ByActivity(1.0, "equal"), registry(), settings(**who)).rates.drawable == 5


def test_the_weight_does_not_decide_who_is_drawn() -> None:
    who = settings(available=0.7, drop_out=0.2)
    counts = np.random.default_rng(0).integers(0, 9, 3000).astype(np.uint32)
    samplers = [CohortSampler(ByActivity(1.0, w), registry(counts), who) for w in ("equal", "inverse_probability")]
    for k in range(5):
        equal, inverse = (s.draw(20, k, SEEDS) for s in samplers)
        assert np.array_equal(equal.clients, inverse.clients) and np.array_equal(
            equal.asked_clients, inverse.asked_clients
        )


def test_cohorts_differ_between_rounds_and_between_seeds_and_repeat_with_both() -> None:
    """FedNLP seeds the draw with the round number alone: every run and seed meets the same cohorts."""
    sampler = CohortSampler(ByActivity(), registry(np.ones(1000, dtype=np.uint32)), settings(available=0.5))

    def cohort(seed: int, round_index: int) -> tuple[int, ...]:
        drawn = sampler.draw(20, round_index, PublicSeeds(seed))
        assert len(set(drawn.clients.tolist())) == 20
        return tuple(drawn.clients.tolist())

    drawn = [cohort(seed, r) for seed in range(5) for r in range(5)]
    assert len(set(drawn)) == 25
    assert drawn[0] == cohort(0, 0) and drawn[7] == cohort(1, 2)


def test_keyed_uniforms_are_uniform_and_belong_to_their_client() -> None:
    """Kolmogorov-Smirnov on 50,000 clients (fails with chance 1e-4), and the same whichever clients are asked about."""
    clients = np.arange(50_000)
    lots = keyed_uniforms(SEEDS, "available", 3, clients)
    assert kstest(lots, "uniform").pvalue > 1e-4
    some = np.array([49_999, 7, 7, 123])
    assert np.array_equal(keyed_uniforms(SEEDS, "available", 3, some), lots[some])
    assert lots.min() >= 0 and lots.max() < 1
    assert len(keyed_uniforms(SEEDS, "available", 3, np.array([], dtype=np.int64))) == 0


def test_keyed_uniforms_are_independent_between_rounds_purposes_seeds_and_neighbours() -> None:
    """Correlations of 50,000 pairs: beyond 4.5 standard errors with chance 1e-5 each; and 8 x 8 cells, chi-square."""
    clients = np.arange(50_000)
    lots = keyed_uniforms(SEEDS, "available", 0, clients)
    others = [
        keyed_uniforms(SEEDS, "available", 1, clients),
        keyed_uniforms(SEEDS, "drop-out", 0, clients),
        keyed_uniforms(PublicSeeds(6), "available", 0, clients),
        np.roll(lots, 1),
        np.roll(lots, 64),
    ]
    for other in others:
        assert abs(np.corrcoef(lots, other)[0, 1]) < 4.5 / np.sqrt(50_000)
        cells = np.histogram2d(lots, other, bins=8, range=[[0, 1], [0, 1]])[0]
        assert chisquare(cells.ravel()).pvalue > 1e-4


def test_the_share_that_can_be_reached_is_the_one_asked_for() -> None:
    """Of 20,000 clients all are asked and 30 % can be reached; a binomial test fails with chance 1e-4."""
    sampler = CohortSampler(Uniform(), registry(np.ones(20_000, dtype=np.uint32)), settings(available=0.3))
    cohort = sampler.draw(20_000, 0, SEEDS)
    assert binomtest(cohort.asked, 20_000, 0.3).pvalue > 1e-4
    assert cohort.dropped == cohort.surplus == 0 and np.array_equal(cohort.clients, cohort.asked_clients)


def test_sets_with_unavailable_clients_are_as_frequent_as_enumeration_says() -> None:
    """Cohorts of up to 2 of 5 clients, each reachable with chance 0.5; 2,000 rounds, chi-square, fails with 1e-4."""
    held = np.flatnonzero(COUNTS)
    chances: dict[tuple[int, ...], float] = {}
    for reached in itertools.product([False, True], repeat=5):
        there = held[list(reached)].tolist()
        orders = list(itertools.permutations(there, min(2, len(there))))
        for order in orders:
            chance, left = 0.5**5, float(COUNTS[there].sum())
            for i in order:
                chance, left = chance * COUNTS[i] / left, left - COUNTS[i]
            key = tuple(sorted(order))
            chances[key] = chances.get(key, 0.0) + chance
    sampler = CohortSampler(ByActivity(), registry(), settings(available=0.5))
    seen = dict.fromkeys(chances, 0)
    for k in range(2000):
        seen[tuple(sampler.draw(2, k, SEEDS).clients.tolist())] += 1
    assert chisquare(list(seen.values()), [2000 * p for p in chances.values()]).pvalue > 1e-4


def test_who_took_part_rests() -> None:
    counts = np.ones(40, dtype=np.uint32)
    known = registry(counts)
    assert known.next_allowed is not None
    sampler = CohortSampler(Uniform(), known, settings(minimum_separation=3, drop_out=0.5))
    asked: list[set[int]] = []
    for k in range(30):
        cohort = sampler.draw(9, k, SEEDS)
        known.next_allowed[cohort.asked_clients] = k + 1 + 3
        asked.append(set(cohort.asked_clients.tolist()))
    for k, now in enumerate(asked):
        assert len(now) == 9
        assert not now & set().union(*asked[max(0, k - 3) : k])
    assert any(a & b for a, b in itertools.combinations(asked, 2))  # they do come back


def test_a_round_in_which_too_many_rest_is_small_or_empty_and_goes_on() -> None:
    resting = Activity(COUNTS, None, np.array([9, 9, 0, 2, 9, 3], dtype=np.uint16))
    sampler = CohortSampler(ByActivity(), resting, settings(minimum_separation=1))
    for round_index, clients in ((0, []), (2, [3]), (3, [3, 5]), (9, [0, 1, 3, 4, 5])):
        cohort = sampler.draw(5, round_index, SEEDS)
        assert cohort.clients.tolist() == clients == cohort.asked_clients.tolist()
        assert cohort.weights.tolist() == pytest.approx([1 / len(clients)] * len(clients) if clients else [])


@pytest.mark.parametrize("rule", [Uniform(), *INVERSE, ByActivity(), TopActive(top=5)])
def test_a_round_from_which_everybody_drops_out_is_empty(rule: Selection) -> None:
    sampler = CohortSampler(rule, registry(), settings(drop_out=0.9999999))
    cohort = sampler.draw(3, 0, SEEDS)
    assert len(cohort.clients) == len(cohort.weights) == 0
    assert (cohort.asked, cohort.dropped, cohort.surplus) == (3, 3, 0)


@pytest.mark.parametrize(("over", "asked"), [(1.0, 10), (1.1, 11), (1.11, 12), (1.3, 13), (9.0, 50)])
def test_over_selection_asks_more_and_counts_the_first(over: float, asked: int) -> None:
    sampler = CohortSampler(
        Uniform(), registry(np.ones(50, dtype=np.uint32)), settings(over_selection=over, drop_out=0.2)
    )
    for k in range(20):
        cohort = sampler.draw(10, k, SEEDS)
        assert cohort.asked == asked == len(set(cohort.asked_clients.tolist()))
        assert len(cohort.clients) == min(10, asked - cohort.dropped)
        assert len(cohort.clients) + cohort.dropped + cohort.surplus == asked
        assert np.isin(cohort.clients, cohort.asked_clients).all() and (np.diff(cohort.clients) > 0).all()
        assert cohort.weights == pytest.approx(np.full(len(cohort.clients), 1 / len(cohort.clients)))


def test_every_client_that_is_asked_is_as_likely_to_drop_out_and_to_be_early() -> None:
    """All 8 clients are asked in 1,000 rounds, drop-out 0.25, the first 3 count: chi-square, fails with chance 1e-4."""
    counts = np.array([1, 1, 1, 1, 1, 1, 1000, 1], dtype=np.uint32)
    sampler = CohortSampler(ByActivity(), registry(counts), settings(over_selection=8 / 3, drop_out=0.25))
    cohorts = [sampler.draw(3, k, SEEDS) for k in range(1000)]
    assert all(c.asked == 8 for c in cohorts)
    assert binomtest(sum(c.dropped for c in cohorts), 8_000, 0.25).pvalue > 1e-4
    assert chisquare(np.bincount(np.concatenate([c.clients for c in cohorts]), minlength=8)).pvalue > 1e-4


def test_power_of_choice_asks_the_candidates_with_the_highest_losses() -> None:
    counts = np.random.default_rng(1).integers(0, 30, 500).astype(np.uint32)
    losses = np.random.default_rng(2).random(500)
    sampler = CohortSampler(PowerOfChoice(candidates=40), registry(counts))
    met: list[NDArray[np.int64]] = []

    def asked_for(clients: NDArray[np.int64]) -> NDArray[np.float64]:
        met.append(clients)
        return losses[clients]

    cohort = sampler.draw(8, 0, SEEDS, asked_for)
    assert len(met) == 1 and len(set(met[0].tolist())) == 40 and (counts[met[0]] > 0).all()
    assert set(cohort.clients.tolist()) == set(met[0][np.argsort(-losses[met[0]])[:8]].tolist())
    assert cohort.asked == 8 and cohort.weights == pytest.approx(np.full(8, 1 / 8))
    same = CohortSampler(ByActivity(), registry(counts)).draw(40, 0, SEEDS)
    assert np.array_equal(np.sort(met[0]), same.clients)  # candidates are a draw in proportion to rows


def test_power_of_choice_with_equal_or_missing_losses() -> None:
    sampler = CohortSampler(PowerOfChoice(candidates=5), registry())
    assert sampler.draw(2, 0, SEEDS, lambda c: np.ones(len(c))).clients.tolist() == [0, 1]
    broken = np.array([np.nan, 1.0, 0.0, np.nan, -5.0, np.inf])
    assert sampler.draw(3, 0, SEEDS, lambda c: broken[c]).clients.tolist() == [1, 4, 5]
    with pytest.raises(ConfigError, match="wants the losses of its candidates"):
        sampler.draw(2, 0, SEEDS)
    with pytest.raises(DataError, match="losses of 5 candidates: 4 values came back"):
        sampler.draw(2, 0, SEEDS, lambda c: np.ones(len(c) - 1))


@pytest.mark.parametrize(
    ("candidates", "cohort", "over", "bounds"),
    [(2, 3, 1.0, "from 3"), (3, 3, 1.3, "from 4"), (6, 3, 1.0, "to 5")],
)
def test_candidates_that_do_not_fit_are_refused(candidates: int, cohort: int, over: float, bounds: str) -> None:
    sampler = CohortSampler(PowerOfChoice(candidates), registry(), settings(over_selection=over))
    with pytest.raises(ConfigError, match=rf"selection\.candidates = {candidates}: must be .*{bounds}"):
        sampler.draw(cohort, 0, SEEDS, lambda c: np.ones(len(c)))


@pytest.mark.parametrize(
    "rule", [Uniform("inverse_probability"), ByActivity(0.5), Mixture(), TopActive(top_fraction=0.5), Recency()]
)
def test_a_refreshed_sampler_draws_as_a_new_one(rule: Selection) -> None:
    counts = np.random.default_rng(3).integers(1, 9, 300).astype(np.uint32)
    known = registry(counts)
    sampler = CohortSampler(rule, known)
    counts[[0, 5, 299]] = 0
    counts[17] = 4000
    sampler.refresh(np.array([0, 5, 17, 299]))
    fresh = CohortSampler(rule, known)
    for k in range(30):
        one, two = sampler.draw(25, k, SEEDS), fresh.draw(25, k, SEEDS)
        assert np.array_equal(one.clients, two.clients) and one.weights == pytest.approx(two.weights, rel=1e-12)
        assert not np.isin([0, 5, 299], one.clients).any()


def test_rest_wants_its_column() -> None:
    with pytest.raises(DataError, match="minimum_separation: the registry has no next_allowed"):
        CohortSampler(Uniform(), Activity(COUNTS), settings(minimum_separation=1))


@pytest.mark.parametrize("seed", range(5))
def test_gini_equals_the_mean_difference_of_all_pairs(seed: int) -> None:
    times = np.random.default_rng(seed).geometric(0.4, 60) - 1
    naive = np.abs(times[:, None] - times).mean() / (2 * times.mean())
    assert gini(times, 60) == pytest.approx(naive, abs=1e-12)
    some = times[times > 0]  # who never took part need not be listed
    assert gini(some, 60) == pytest.approx(naive, abs=1e-12)


def test_gini_at_its_ends() -> None:
    assert gini(np.array([5]), 8) == pytest.approx(1 - 1 / 8)
    assert gini(np.full(8, 3, dtype=np.uint16), 8) == pytest.approx(0, abs=1e-12)
    assert gini(np.zeros(8, dtype=np.int64), 8) == gini(np.array([], dtype=np.int64), 8) == 0.0


def test_the_doctest_of_gini() -> None:
    import doctest

    assert doctest.testmod(participation).failed == 0
