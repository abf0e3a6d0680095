"""Intervals against closed forms, naive loops and a known library."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from troth.intervals import bootstrap, bootstrap_counts, bootstrap_mean, bootstrap_ratio, clopper_pearson

SKEWED = np.random.default_rng(5).exponential(size=400)


@given(st.integers(1, 500), st.data(), st.sampled_from([0.9, 0.95, 0.99]))
def test_clopper_pearson_is_scipys_exact_interval(trials: int, data: st.DataObject, confidence: float) -> None:
    successes = data.draw(st.integers(0, trials))
    expected = binomtest(successes, trials).proportion_ci(confidence, method="exact")
    interval = clopper_pearson(successes, trials, confidence)
    assert interval.low == pytest.approx(expected.low, abs=1e-10)
    assert interval.high == pytest.approx(expected.high, abs=1e-10)


@pytest.mark.parametrize("proportion", [0.01, 0.2, 0.5, 0.97])
def test_clopper_pearson_covers_at_least_its_confidence(proportion: float) -> None:
    trials = 60
    covered = [
        binom.pmf(k, trials, proportion)
        for k in range(trials + 1)
        if clopper_pearson(k, trials).low <= proportion <= clopper_pearson(k, trials).high
    ]
    assert sum(covered) >= 0.95


def test_clopper_pearson_ends_at_zero_and_one() -> None:
    assert clopper_pearson(0, 7).low == 0
    assert clopper_pearson(7, 7).high == 1


@pytest.mark.parametrize(
    ("successes", "trials", "confidence"), [(0, 0, 0.95), (3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0)]
)
def test_impossible_counts_and_confidences_are_refused(successes: int, trials: int, confidence: float) -> None:
    with pytest.raises(ValueError, match=r"successes|confidence"):
        clopper_pearson(successes, trials, confidence)


def naive(values: np.ndarray, seed: int) -> tuple[float, float]:
    """Percentiles of the means of resamples drawn one by one."""
    rng = np.random.default_rng(seed)
    means = [rng.choice(values, size=len(values)).mean() for _ in range(4000)]
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def test_bootstrap_mean_is_the_naive_bootstrap() -> None:
    interval = bootstrap_mean(SKEWED, np.random.default_rng(0), replicates=4000)
    spread = SKEWED.std() / np.sqrt(len(SKEWED))
    assert interval.method == "bootstrap-percentile"
    assert (interval.low, interval.high) == pytest.approx(naive(SKEWED, 1), abs=0.15 * spread)


def test_merging_equal_rows_gives_the_same_distribution() -> None:
    # Few distinct values take the multinomial way, a jitter far below the spread the gathering one.
    values = np.random.default_rng(2).integers(0, 3, size=600).astype(float)
    jittered = values + np.random.default_rng(3).normal(scale=1e-9, size=600)
    merged = bootstrap_mean(values, np.random.default_rng(4), replicates=6000)
    gathered = bootstrap_mean(jittered, np.random.default_rng(4), replicates=6000)
    spread = values.std() / np.sqrt(600)
    assert (merged.low, merged.high) == pytest.approx((gathered.low, gathered.high), abs=0.12 * spread)


def test_a_ratio_resamples_numerator_and_denominator_together() -> None:
    sizes = np.random.default_rng(6).integers(1, 50, size=300)
    interval = bootstrap_ratio(3.0 * sizes, sizes, np.random.default_rng(0))
    assert (interval.low, interval.high) == pytest.approx((3.0, 3.0))


def test_counts_are_resampled_as_rows_are() -> None:
    rows = np.repeat([0, 1, 2], [30, 60, 10])
    counted = bootstrap_counts(
        [30, 60, 10], lambda c: c[:, 1] / c.sum(axis=1), np.random.default_rng(1), replicates=6000
    )
    direct = bootstrap_mean(rows == 1, np.random.default_rng(2), replicates=6000)
    assert (counted.low, counted.high) == pytest.approx((direct.low, direct.high), abs=0.011)


def test_empty_categories_stay_empty() -> None:
    seen: list[np.ndarray] = []

    def keep(counts: np.ndarray) -> np.ndarray:
        seen.append(counts)
        return counts[:, 0]

    bootstrap_counts([4, 0, 6], keep, np.random.default_rng(0), replicates=50)
    assert (seen[0][:, 1] == 0).all()
    assert (seen[0].sum(axis=1) == 10).all()


def test_resamples_without_a_value_are_left_out_and_none_at_all_has_no_interval() -> None:
    none = bootstrap_ratio([1.0, 1.0], [0.0, 0.0], np.random.default_rng(0))
    assert (none.low, none.high) == (None, None)
    some = bootstrap_ratio([1.0, 1.0], [0.0, 1.0], np.random.default_rng(0))
    assert some.low is not None
    assert some.high is not None
    assert some.low >= 1


def test_the_same_generator_state_gives_the_same_interval() -> None:
    assert bootstrap_mean(SKEWED, np.random.default_rng(9)) == bootstrap_mean(SKEWED, np.random.default_rng(9))


@pytest.mark.parametrize("values", [[], [1.0, np.nan], [np.inf]])
def test_nothing_and_what_is_not_finite_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="bootstrap wants"):
        bootstrap(np.array(values), lambda sums: sums[:, 0], np.random.default_rng(0))


@pytest.mark.parametrize("counts", [[0, 0], [3, -1]])
def test_counts_of_no_row_are_refused(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="counts of at least one row"):
        bootstrap_counts(counts, lambda c: c[:, 0], np.random.default_rng(0))
