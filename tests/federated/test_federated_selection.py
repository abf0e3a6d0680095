"""Selection and weight: frequencies against enumeration, unbiased inverse-probability weights, no double count."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import chisquare

from troth.config import SelectionConfig, parse
from troth.errors import ConfigError
from troth.federated import ByActivity, Selection, Uniform, make_selection
from troth.federated.selection import _limit_chances, _race_chances
from troth.seeds import PublicSeeds

COUNTS = np.array([1, 2, 3, 10, 4])


def enumerated(rates: np.ndarray, cohort: int) -> tuple[dict[tuple[int, ...], float], np.ndarray]:
    """Chances of each set and of each client under successive draws without replacement."""
    sets: dict[tuple[int, ...], float] = {}
    for order in itertools.permutations(range(len(rates)), cohort):
        chance, left = 1.0, rates.sum()
        for i in order:
            chance, left = chance * rates[i] / left, left - rates[i]
        key = tuple(sorted(order))
        sets[key] = sets.get(key, 0.0) + chance
    single = np.array([sum(p for s, p in sets.items() if i in s) for i in range(len(rates))])
    return sets, single


@pytest.mark.parametrize(
    ("selection", "power"), [(Uniform(), 0.0), (ByActivity(1.0), 1.0), (ByActivity(0.5), 0.5), (ByActivity(0.0), 0.0)]
)
@pytest.mark.parametrize("cohort", [1, 2, 3])
def test_sets_are_drawn_as_often_as_enumeration_says(selection: Selection, power: float, cohort: int) -> None:
    """4,000 draws, chi-square over all sets; a right rule fails each case with chance 1e-4."""
    sets, _ = enumerated(COUNTS**power, cohort)
    generator = np.random.default_rng(7)
    seen = dict.fromkeys(sets, 0)
    for _ in range(4_000):
        seen[tuple(selection.draw(COUNTS, cohort, generator).clients.tolist())] += 1
    assert chisquare(list(seen.values()), [4_000 * p for p in sets.values()]).pvalue > 1e-4


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("counts", [COUNTS, np.array([1, 1, 1000, 5, 7, 1])])
def test_inclusion_probabilities_equal_enumeration(counts: np.ndarray, power: float) -> None:
    for cohort in range(1, len(counts) + 1):
        _, single = enumerated((counts / counts.max()) ** power, cohort)
        found = ByActivity(power).inclusion_probability(counts, cohort)
        assert found == pytest.approx(single, rel=1e-8)
    assert Uniform().inclusion_probability(COUNTS, 2) == pytest.approx(np.full(5, 0.4))


def test_the_large_population_limit_is_close() -> None:
    counts = np.minimum(np.random.default_rng(0).zipf(1.6, 500), 500)
    exact, limit = (f(counts / counts.sum(), 20) for f in (_race_chances, _limit_chances))
    assert exact.sum() == pytest.approx(20, abs=1e-7) and limit.sum() == pytest.approx(20, abs=1e-7)
    assert np.abs(limit / exact - 1).max() < 0.01
    many = np.repeat(counts, 10)
    assert ByActivity().inclusion_probability(many, 20).sum() == pytest.approx(20, abs=1e-7)  # beyond the exact sizes


@pytest.mark.parametrize("rule", [Uniform, ByActivity])
@pytest.mark.parametrize("cohort", [1, 3, 5])
def test_inverse_probability_weights_are_unbiased(rule: type, cohort: int) -> None:
    """The mean of sum(weights * values) over 4,000 draws lies within 4 standard errors of the row-weighted mean."""
    values = np.array([5.0, -3.0, 2.0, 1.0, 7.0])
    generator = np.random.default_rng(3)
    selection = rule(weight="inverse_probability")
    found = []
    for _ in range(4_000):
        drawn = selection.draw(COUNTS, cohort, generator)
        found.append(drawn.weights @ values[drawn.clients])
    expected = COUNTS @ values / COUNTS.sum()
    assert abs(np.mean(found) - expected) <= 4 * np.std(found) / np.sqrt(4_000) + 1e-12
    assert not drawn.sums_to_one


def test_activity_with_equal_weights_follows_the_row_weighted_mean_for_cohorts_of_one() -> None:
    chances = ByActivity(1.0).inclusion_probability(COUNTS, 1)
    assert chances == pytest.approx(COUNTS / COUNTS.sum())


def test_weights() -> None:
    generator = np.random.default_rng(0)
    equal = ByActivity().draw(COUNTS, 4, generator)
    assert equal.weights == pytest.approx(np.full(4, 0.25)) and equal.sums_to_one
    samples = Uniform().draw(COUNTS, 3, generator)
    assert samples.weights == pytest.approx(COUNTS[samples.clients] / COUNTS[samples.clients].sum())
    everyone = ByActivity(weight="inverse_probability").draw(COUNTS, 5, generator)
    assert everyone.clients.tolist() == [0, 1, 2, 3, 4]
    assert everyone.weights == pytest.approx(COUNTS / COUNTS.sum())


def test_cohorts_differ_between_rounds_and_between_seeds_and_repeat_with_both() -> None:
    counts = np.ones(1000, dtype=np.int64)

    def cohort(seed: int, round_index: int) -> tuple[int, ...]:
        drawn = Uniform().draw(counts, 20, PublicSeeds(seed).generator("cohort", round_index))
        assert len(set(drawn.clients.tolist())) == 20
        return tuple(drawn.clients.tolist())

    drawn = [cohort(seed, r) for seed in range(5) for r in range(5)]
    assert len(set(drawn)) == 25
    assert drawn[0] == cohort(0, 0)


def test_defaults_belong_together() -> None:
    assert make_selection(SelectionConfig()) == Uniform("samples")
    assert make_selection(SelectionConfig(by="activity")) == ByActivity(1.0, "equal")
    assert make_selection(SelectionConfig(by="activity", power=0.5, weight="inverse_probability")).power == 0.5


def test_rows_counted_twice_are_refused_unless_asked_for() -> None:
    with pytest.raises(ConfigError, match="counts each client's rows twice"):
        ByActivity(1.0, "samples")
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
    assert ByActivity(0.0, "samples").weight == "samples"  # power 0 is uniform: nothing is counted twice
    double = SelectionConfig(by="activity", weight="samples", allow_double_count=True)
    assert make_selection(double).weight == "samples"


@pytest.mark.parametrize("rule", [Uniform(), ByActivity()])
@pytest.mark.parametrize("cohort", [0, 6])
def test_impossible_cohorts_are_refused(rule: Selection, cohort: int) -> None:
    with pytest.raises(ConfigError, match=rf"cohort_size = {cohort}: the population has 5 clients"):
        rule.draw(COUNTS, cohort, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="cohort_size"):
        rule.inclusion_probability(COUNTS, cohort)


@pytest.mark.parametrize("power", [-1.0, float("nan"), float("inf")])
def test_impossible_powers_are_refused(power: float) -> None:
    with pytest.raises(ConfigError, match="power"):
        ByActivity(power)
