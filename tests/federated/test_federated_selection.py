"""Rules of selection with their weights: inclusion against enumeration, no double count, defaults, bad input."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chisquare

from troth.config import parse
from troth.config_federated import SelectionConfig
from troth.errors import ConfigError, DataError
from troth.federated.inclusion import inclusion, limit_inclusion, race_inclusion
from troth.federated.participation import CohortSampler
from troth.federated.selection import (
    ByActivity,
    Cohort,
    Mixture,
    PowerOfChoice,
    Recency,
    Selection,
    TopActive,
    Uniform,
    make_selection,
)
from troth.federated.selection_activity import Activity, most_active
from troth.seeds import PublicSeeds

COUNTS = np.array([1, 2, 0, 3, 10, 4], dtype=np.uint32)
HELD = COUNTS > 0
LAST_SEEN = np.array([3, 4, 5, 0, 5, 1], dtype=np.uint16)
ACTIVITY = Activity(COUNTS, LAST_SEEN, None, now=5)
RATES: list[tuple[Selection, NDArray[np.float64]]] = [
    (Uniform(), HELD * 1.0),
    (ByActivity(1.0), COUNTS * 1.0),
    (ByActivity(0.5), np.sqrt(COUNTS)),
    (ByActivity(0.0), HELD * 1.0),
    (Mixture(1.0, 0.25), 0.25 * HELD / 5 + 0.75 * COUNTS / 20),
    (Mixture(2.0, 0.5), 0.5 * HELD / 5 + 0.5 * COUNTS**2.0 / 130),
    (Mixture(1.0, 0.0), COUNTS * 1.0),
    (Mixture(1.0, 1.0), HELD * 1.0),
    (TopActive(top=4), np.array([0.0, 1, 0, 1, 1, 1])),
    (TopActive(top_fraction=0.75), np.array([0.0, 1, 0, 1, 1, 1])),
    (Recency(2.0), HELD * np.exp2(-(5.0 - LAST_SEEN) / 2)),
]


IDS = [f"{type(rule).__name__}-{k}" for k, (rule, _) in enumerate(RATES)]


def enumerated(rates: NDArray[np.float64], cohort: int) -> tuple[dict[tuple[int, ...], float], NDArray[np.float64]]:
    """Chances of each set and of each client under successive draws without replacement."""
    sets: dict[tuple[int, ...], float] = {}
    for order in itertools.permutations(np.flatnonzero(rates).tolist(), cohort):
        chance, left = 1.0, rates.sum()
        for i in order:
            chance, left = chance * rates[i] / left, left - rates[i]
        key = tuple(sorted(order))
        sets[key] = sets.get(key, 0.0) + chance
    single = np.array([sum(p for s, p in sets.items() if i in s) for i in range(len(rates))])
    return sets, single


@pytest.mark.parametrize(("rule", "rates"), RATES, ids=IDS)
@pytest.mark.parametrize("cohort", [1, 3])
def test_sets_are_drawn_as_often_as_enumeration_says(rule: Selection, rates: NDArray[np.float64], cohort: int) -> None:
    """1,000 rounds, chi-square over all sets, rare ones together; a right rule fails each case with chance 1e-4."""
    sets, _ = enumerated(rates, cohort)
    sampler, seeds = CohortSampler(rule, ACTIVITY), PublicSeeds(7)
    seen = dict.fromkeys(sets, 0)
    for round_index in range(1000):
        seen[tuple(sampler.draw(cohort, round_index, seeds).clients.tolist())] += 1
    pooled = [(seen[s], 1000 * p) for s, p in sets.items() if 1000 * p >= 5]
    rare = [(seen[s], 1000 * p) for s, p in sets.items() if 1000 * p < 5]
    pooled += [tuple(map(sum, zip(*rare, strict=True)))] if rare else []
    assert len(pooled) > 2 and chisquare(*zip(*pooled, strict=True)).pvalue > 1e-4


@pytest.mark.parametrize(("rule", "rates"), RATES, ids=IDS)
def test_inclusion_probabilities_equal_enumeration(rule: Selection, rates: NDArray[np.float64]) -> None:
    for cohort in range(1, np.count_nonzero(rates) + 1):
        _, single = enumerated(rates, cohort)
        found = rule.inclusion_probability(ACTIVITY, cohort)
        assert found == pytest.approx(single, rel=1e-8)
        assert found[2] == 0  # holds no row


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_inclusion_probabilities_of_a_skewed_population_equal_enumeration(power: float) -> None:
    counts = np.array([1, 1, 1000, 5, 7, 1], dtype=np.uint32)
    for cohort in range(1, 7):
        _, single = enumerated((counts / 1000) ** power, cohort)
        found = ByActivity(power).inclusion_probability(Activity(counts), cohort)
        assert found == pytest.approx(single, rel=1e-8)


def test_the_large_population_limit_is_close() -> None:
    counts = np.minimum(np.random.default_rng(0).zipf(1.6, 500), 500)
    exact, limit = (f(counts / counts.sum(), 20) for f in (race_inclusion, limit_inclusion))
    assert exact.sum() == pytest.approx(20, abs=1e-7) and limit.sum() == pytest.approx(20, abs=1e-7)
    assert np.abs(limit / exact - 1).max() < 0.01
    many = np.append(np.repeat(counts, 10), 0)
    found = inclusion(many / 1.0, 20)  # beyond the exact sizes
    assert found.sum() == pytest.approx(20, abs=1e-7) and found[-1] == 0


def test_power_of_choice_has_no_inclusion_probabilities() -> None:
    with pytest.raises(ConfigError, match="no inclusion probabilities: they depend on the clients' losses"):
        PowerOfChoice(3).inclusion_probability(ACTIVITY, 2)


@pytest.mark.parametrize("seed", range(6))
def test_the_most_active_are_the_first_of_a_stable_sort(seed: int) -> None:
    generator = np.random.default_rng(seed)
    counts = generator.zipf(1.3, 150_000).clip(0, 20_000).astype(np.uint32) - 1
    naive = np.argsort(-counts.astype(np.int64), kind="stable")
    with_rows = np.count_nonzero(counts)
    for top in (1, 2, 100, 5000, with_rows // 2, with_rows):
        assert np.array_equal(most_active(counts, top, None), np.sort(naive[:top]))
    assert np.array_equal(most_active(counts, None, 0.1), np.sort(naive[: int(np.ceil(0.1 * with_rows))]))


def test_a_share_of_the_population_is_rounded_up() -> None:
    ten = np.ones(10, dtype=np.uint32)
    assert [len(most_active(ten, None, f)) for f in (0.01, 0.1, 0.11, 0.3, 0.7, 1.0)] == [1, 1, 2, 3, 7, 10]
    assert most_active(ten, 3, None).tolist() == [0, 1, 2]  # equal: the lower numbers


def test_weights() -> None:
    seeds = PublicSeeds(0)
    equal = CohortSampler(ByActivity(), ACTIVITY).draw(4, 0, seeds)
    assert equal.weights == pytest.approx(np.full(4, 0.25)) and equal.sums_to_one
    for rule in (Uniform(), TopActive(top=4), Recency(), ByActivity(1.0, "samples", allow_double_count=True)):
        samples = CohortSampler(rule, ACTIVITY).draw(3, 0, seeds)
        assert samples.weights == pytest.approx(COUNTS[samples.clients] / COUNTS[samples.clients].sum())
        assert samples.sums_to_one
    everyone = CohortSampler(ByActivity(weight="inverse_probability"), ACTIVITY).draw(5, 0, seeds)
    assert everyone.clients.tolist() == [0, 1, 3, 4, 5] and not everyone.sums_to_one
    assert everyone.weights == pytest.approx(COUNTS[HELD] / 20)


def test_a_cohort_made_by_hand_asked_its_clients() -> None:
    cohort = Cohort(np.array([3, 5]), np.array([0.5, 0.5]), True)
    assert cohort.asked_clients.tolist() == [3, 5]
    assert (cohort.asked, cohort.dropped, cohort.surplus) == (2, 0, 0)


def test_defaults_belong_together() -> None:
    made = [
        (SelectionConfig(), Uniform("samples")),
        (SelectionConfig(by="activity"), ByActivity(1.0, "equal")),
        (SelectionConfig(by="mixture", power=0.5, uniform_share=0.1), Mixture(0.5, 0.1, "equal")),
        (SelectionConfig(by="top_active", top=7), TopActive(7, None, "samples")),
        (SelectionConfig(by="top_active", top_fraction=0.1), TopActive(None, 0.1, "samples")),
        (SelectionConfig(by="recency", half_life=3.0), Recency(3.0, "samples")),
        (SelectionConfig(by="power_of_choice", candidates=9), PowerOfChoice(9, "equal")),
        (
            SelectionConfig(by="activity", power=0.5, weight="inverse_probability"),
            ByActivity(0.5, "inverse_probability"),
        ),
        (SelectionConfig(by="recency", weight="equal"), Recency(1.0, "equal")),
    ]
    for config, rule in made:
        assert make_selection(config) == rule


def test_power_of_choice_wants_its_candidates() -> None:
    with pytest.raises(ConfigError, match="wants candidates = NUMBER"):
        make_selection(SelectionConfig.model_construct(by="power_of_choice", weight=None, candidates=None))


def test_rows_counted_twice_are_refused_unless_asked_for() -> None:
    twice = "counts each client's rows twice"
    for refused in (
        lambda: ByActivity(1.0, "samples"),
        lambda: ByActivity(0.1, "samples"),
        lambda: Mixture(1.0, 0.9, "samples"),
        lambda: PowerOfChoice(4, "samples"),
    ):
        with pytest.raises(ConfigError, match=twice):
            refused()
    with pytest.raises(ConfigError, match="selection: by = 'activity' with weight = 'samples' counts"):
        parse(
            {
                "run": {"name": "x"},
                "model": {"preset": "tiny-bert"},
                "data": {"builtin": {}},
                "task": {"kind": "classification"},
                "federated": {"selection": {"by": "activity", "weight": "samples"}},
            }
        )
    assert ByActivity(1.0, "samples", allow_double_count=True).weight == "samples"
    assert Mixture(1.0, 0.5, "samples", allow_double_count=True).weight == "samples"
    assert PowerOfChoice(4, "samples", allow_double_count=True).weight == "samples"
    assert ByActivity(0.0, "samples").weight == "samples"  # power 0 is uniform: nothing is counted twice
    assert Mixture(0.0, 0.5, "samples").weight == Mixture(1.0, 1.0, "samples").weight == "samples"
    double = SelectionConfig(by="activity", weight="samples", allow_double_count=True)
    assert make_selection(double).weight == "samples"


@pytest.mark.parametrize("rule", [TopActive, lambda **k: PowerOfChoice(k.pop("top"), **k)])
def test_rules_without_chances_have_no_inverse_probability_weights(rule: type) -> None:
    with pytest.raises(ConfigError, match=r"selection: by = '(top_active|power_of_choice)'.*use weight = "):
        rule(top=3, weight="inverse_probability")


@pytest.mark.parametrize("rule", [r for r, _ in RATES if not isinstance(r, TopActive)])
@pytest.mark.parametrize("cohort", [0, 6])
def test_impossible_cohorts_are_refused(rule: Selection, cohort: int) -> None:
    with pytest.raises(ConfigError, match=rf"cohort_size = {cohort}: the population has 5 clients"):
        CohortSampler(rule, ACTIVITY).draw(cohort, 0, PublicSeeds(0))
    with pytest.raises(ConfigError, match="cohort_size"):
        rule.inclusion_probability(ACTIVITY, cohort)


def test_a_top_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"selection\.top = 6: the population has 5 clients with data"):
        CohortSampler(TopActive(top=6), ACTIVITY)
    for rule, key in ((TopActive(top=2), "top"), (TopActive(top_fraction=0.4), "top_fraction")):
        with pytest.raises(ConfigError, match=rf"selection\.{key}: 2 clients, fewer than federated\.cohort_size = 3"):
            CohortSampler(rule, ACTIVITY).draw(3, 0, PublicSeeds(0))
        with pytest.raises(ConfigError, match="cohort_size = 3"):
            rule.inclusion_probability(ACTIVITY, 3)


@pytest.mark.parametrize("rule", [*(r for r, _ in RATES), PowerOfChoice(3)])
def test_a_population_without_rows_is_refused(rule: Selection) -> None:
    nothing = Activity(np.zeros(6, dtype=np.uint32), LAST_SEEN, None, now=5)
    with pytest.raises(DataError, match="no client holds a row"):
        CohortSampler(rule, nothing)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: ByActivity(-1.0), "power = -1"),
        (lambda: ByActivity(float("nan")), "power = nan"),
        (lambda: ByActivity(float("inf")), "power = inf"),
        (lambda: Mixture(5.0), "power = 5"),
        (lambda: Mixture(1.0, 1.5), r"uniform_share = 1\.5"),
        (TopActive, "exactly one of top and top_fraction"),
        (lambda: TopActive(3, 0.5), "exactly one of top and top_fraction"),
        (lambda: TopActive(top=0), "top = 0"),
        (lambda: TopActive(top_fraction=0.0), "top_fraction = 0"),
        (lambda: Recency(0.0), "half_life = 0"),
        (lambda: Recency(float("inf")), "half_life = inf"),
        (lambda: PowerOfChoice(0), "candidates = 0"),
    ],
)
def test_impossible_settings_are_refused(made: type, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made()


def test_recency_wants_times_up_to_now() -> None:
    with pytest.raises(ConfigError, match="'recency' wants times"):
        Recency().rates(Activity(COUNTS))
    with pytest.raises(DataError, match="now = 4, and a client was last seen in period 5"):
        Recency().rates(Activity(COUNTS, LAST_SEEN, None, now=4))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"counts": np.array([], dtype=np.uint32)}, "no clients"),
        ({"counts": np.array([1.0, 2.0])}, r"counts of a registry: .* not float64 \[2\]"),
        ({"counts": np.array([[1, 2]])}, r"counts of a registry: .* not int64 \[1, 2\]"),
        ({"counts": np.array([1], dtype=np.uint64)}, "counts of a registry: .* not uint64"),
        ({"counts": np.array([1, -2])}, "-2 rows at client 1"),
        ({"counts": COUNTS, "last_seen": LAST_SEEN[:3]}, "last_seen of a registry: 3 values for 6 clients"),
        ({"counts": COUNTS, "next_allowed": LAST_SEEN * 1.0}, "next_allowed of a registry: .* not float64"),
        ({"counts": COUNTS, "now": -1}, "now = -1"),
        ({"counts": COUNTS, "now": 70_000}, "now = 70000"),
    ],
)
def test_impossible_registries_are_refused(columns: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Activity(**columns)  # type: ignore[arg-type]
