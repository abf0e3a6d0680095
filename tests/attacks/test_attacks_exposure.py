"""Ranks and exposure: naive loops, closed forms, what a sample can show, uniform decoys, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from troth.attacks.exposure import exposure, null_exposure, ranks, skew_normal_exposure, uniformity_p_value
from troth.errors import DataError


@settings(deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=8), st.lists(st.integers(0, 6), min_size=1, max_size=30))
def test_ranks_equal_a_naive_count_with_ties_half(own: list[int], others: list[int]) -> None:
    naive = [1 + sum(o < x for o in others) + sum(o == x for o in others) / 2 for x in own]
    assert ranks(np.array(own, float), np.array(others, float)).tolist() == pytest.approx(naive)


def test_the_first_of_all_codes_has_log2_of_them_as_exposure() -> None:
    losses = np.random.default_rng(0).random(9_999)
    best, worst = ranks(np.array([-1.0, 2.0]), losses)
    assert (best, worst) == (1, 10_000)
    assert exposure(np.array([best, worst]), 10_000).tolist() == [pytest.approx(math.log2(10_000)), 0.0]


def test_a_sample_shows_nothing_rarer_than_itself_and_is_right_on_average() -> None:
    rng = np.random.default_rng(1)
    every = rng.random(100_000)
    target = np.array([0.02])
    truth = ranks(target, every)[0]
    found = [ranks(target, rng.choice(every, 500, replace=False), 100_001)[0] for _ in range(400)]
    assert np.mean(found) == pytest.approx(truth, rel=0.15)  # the 1 in the numerator adds |R| / 501, a tenth here
    assert ranks(np.array([-1.0]), every[:500], 100_001)[0] == pytest.approx(100_001 / 501)
    assert ranks(target, every, 100_001)[0] == pytest.approx(truth)


@pytest.mark.parametrize("codes", [2, 12, 10_000])
def test_the_null_mean_is_that_of_all_ranks(codes: int) -> None:
    assert null_exposure(codes) == pytest.approx(exposure(np.arange(1, codes + 1), codes).mean())


def test_the_null_mean_tends_to_one_over_ln_2() -> None:
    assert null_exposure(10**6) == pytest.approx(null_exposure(10**6 + 1), abs=1e-4)


@pytest.mark.parametrize("shape", [-3.0, 0.0, 4.0])
def test_extrapolation_equals_the_laws_own_distribution_function(shape: float) -> None:
    law = stats.skewnorm(shape, 5.0, 2.0)
    sample = law.ppf((np.arange(20_000) + 0.5) / 20_000)
    places = law.ppf([0.5, 0.1, 0.001])
    wanted = -np.log2([0.5, 0.1, 0.001])
    assert skew_normal_exposure(places, sample) == pytest.approx(wanted, rel=0.02)


def test_extrapolation_stays_finite_far_in_the_tail() -> None:
    sample = np.random.default_rng(2).standard_normal(1_000)
    far, farther = skew_normal_exposure(np.array([-20.0, -30.0]), sample)
    assert 200 < far < farther < 2_000


def test_uniform_ranks_pass_and_low_ranks_fail() -> None:
    rng = np.random.default_rng(3)
    alarms = sum(uniformity_p_value(rng.integers(1, 10_001, 20).astype(float), 10_000) < 0.05 for _ in range(400))
    assert alarms <= stats.binom.isf(1e-3, 400, 0.05)
    assert uniformity_p_value(np.arange(1.0, 21), 10_000) < 1e-9


@pytest.mark.parametrize(
    ("own", "others", "population", "message"),
    [
        ([np.nan], [1.0], None, "losses: number 0 is not finite"),
        ([1.0], [1.0, np.inf], None, "reference losses: number 1 is not finite"),
        ([1.0], [], None, "reference losses: empty"),
        ([1.0], [1.0, 2.0], 2, "population = 2: holds fewer than the 3 codes"),
    ],
)
def test_bad_input_is_one_line(own: list[float], others: list[float], population: int | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ranks(np.array(own), np.array(others), population)


def test_what_cannot_be_extrapolated_or_tested_is_refused() -> None:
    with pytest.raises(DataError, match="extrapolation wants 30 that differ"):
        skew_normal_exposure(np.array([1.0]), np.ones(100))
    with pytest.raises(DataError, match="ranks: empty"):
        uniformity_p_value(np.zeros(0), 10)
