"""ROC analysis against scikit-learn, the definition, a slow bootstrap, and simulation of the promised coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm
from sklearn.metrics import roc_auc_score

from troth.attacks import auc, roc_points, tpr_at_fpr
from troth.attacks.roc import held_out_threshold, scores_of
from troth.errors import DataError

coarse = st.lists(st.integers(-5, 5), min_size=2, max_size=40).map(lambda x: np.array(x, dtype=float))


def labels_and_scores(members: np.ndarray, nonmembers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.r_[np.ones(len(members)), np.zeros(len(nonmembers))], np.r_[members, nonmembers]


@given(coarse, coarse)
@settings(max_examples=100, deadline=None)
def test_area_equals_scikit_learn_with_ties(members: np.ndarray, nonmembers: np.ndarray) -> None:
    area = auc(members, nonmembers)
    assert area.value == pytest.approx(roc_auc_score(*labels_and_scores(members, nonmembers)), abs=1e-12)
    assert 0 <= area.interval.low <= area.value <= area.interval.high <= 1


@given(coarse, coarse)
@settings(max_examples=50, deadline=None)
def test_swapped_sides_and_negated_scores_mirror_the_area(members: np.ndarray, nonmembers: np.ndarray) -> None:
    area, swapped = auc(members, nonmembers), auc(nonmembers, members)
    assert swapped.value == pytest.approx(1 - area.value, abs=1e-12)
    assert swapped.interval.low == pytest.approx(1 - area.interval.high, abs=1e-9)
    assert auc(-members, -nonmembers).value == pytest.approx(1 - area.value, abs=1e-12)


def test_delong_by_hand() -> None:
    """Members 1, 2, 4 against 0, 1, 3: shares below 1/2, 2/3, 1; members above 1, 5/6, 1/3."""
    area = auc(np.array([1.0, 2.0, 4.0]), np.array([0.0, 1.0, 3.0]))
    value = 6.5 / 9
    variance = np.var([1 / 2, 2 / 3, 1], ddof=1) / 3 + np.var([1, 5 / 6, 1 / 3], ddof=1) / 3
    half = 1.959963984540054 * math.sqrt(variance) / (value * (1 - value))
    centre = math.log(value / (1 - value))
    assert area.value == pytest.approx(value)
    assert area.interval.low == pytest.approx(1 / (1 + math.exp(half - centre)))
    assert area.interval.high == pytest.approx(1 / (1 + math.exp(-half - centre)))


def test_delong_agrees_with_a_slow_bootstrap() -> None:
    generator = np.random.default_rng(5)
    members, nonmembers = generator.normal(0.7, 1, 400), generator.normal(0, 1.5, 300)
    areas = []
    for _ in range(1500):
        m = members[generator.integers(400, size=400)]
        n = nonmembers[generator.integers(300, size=300)]
        areas.append(np.searchsorted(np.sort(n), m).mean() / 300)
    low, high = np.quantile(areas, [0.025, 0.975])
    interval = auc(members, nonmembers).interval
    assert interval.low == pytest.approx(low, abs=0.006)
    assert interval.high == pytest.approx(high, abs=0.006)


@pytest.mark.parametrize(("size", "true"), [(40, 0.5), (60, 0.9), (500, 0.6)])
def test_area_interval_covers_at_its_rate(size: int, true: float) -> None:
    """2,000 seeded draws: a true miss rate of 6.5 % would fail this bound (6.6 %) half of the time, 5 % in 0.1 %."""
    shift, runs, misses = norm.ppf(true) * math.sqrt(2), 2000, 0
    generator = np.random.default_rng(size)
    for _ in range(runs):
        interval = auc(generator.normal(shift, 1, size), generator.normal(0, 1, size)).interval
        misses += not interval.low <= true <= interval.high
    assert misses <= binom.isf(1e-3, runs, 0.05)
    assert misses >= binom.ppf(1e-3, runs, 0.03)


@pytest.mark.parametrize(
    ("members", "nonmembers", "value"), [([3, 4, 5], [0, 1], 1.0), ([0, 0], [1, 2, 3], 0.0), ([7] * 9, [7] * 9, 0.5)]
)
def test_a_degenerate_area_keeps_an_honest_interval(members: list[int], nonmembers: list[int], value: float) -> None:
    area = auc(np.array(members), np.array(nonmembers))
    pairs = min(len(members), len(nonmembers))
    other = 1 - 0.025 ** (1 / pairs)
    assert area.value == value
    assert area.interval.method == "clopper-pearson-pairs"
    assert area.interval.high - area.interval.low == pytest.approx(other)
    assert area.interval.low <= value <= area.interval.high


def test_threshold_keeps_the_expected_rate_exactly() -> None:
    """A fresh score passes the k-th largest of n with chance k/(n+1): 20,000 draws, within 4 standard errors."""
    generator = np.random.default_rng(2)
    alarms = np.array(
        [generator.random() > held_out_threshold(generator.random(199), 0.05) for _ in range(20_000)], dtype=float
    )
    assert abs(alarms.mean() - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 20_000)
    assert held_out_threshold(np.arange(199.0), 0.05) == 189  # 10 of 200 positions lie above
    assert math.isinf(held_out_threshold(np.arange(98.0), 0.01))
    assert held_out_threshold(np.arange(99.0), 0.01) == 98


def test_ties_never_count_for_the_attack() -> None:
    point = tpr_at_fpr(np.ones(50), np.ones(2000), np.ones(2000), 0.01)
    assert point.threshold == 1
    assert (point.true_positive_rate, point.false_positive_rate) == (0, 0)
    half_tied = tpr_at_fpr(np.r_[np.ones(50), np.full(50, 2.0)], np.ones(2000), np.ones(2000), 0.01)
    assert half_tied.true_positive_rate == 0.5


def test_rates_are_counts_with_exact_intervals() -> None:
    point = tpr_at_fpr(np.arange(100.0), np.arange(1999.0) / 20, np.arange(1000.0) / 10, 0.01)
    assert point.threshold == pytest.approx(1979 / 20)  # 20 of 2,000 positions
    assert point.true_positive_rate == pytest.approx(1 / 100)  # 99 lies above 98.95
    assert point.false_positive_rate == pytest.approx(10 / 1000)  # 99.0 ... 99.9
    assert point.false_positive_interval.low == pytest.approx(0.00481, abs=1e-5)
    assert point.false_positive_interval.high == pytest.approx(0.01831, abs=1e-5)


@pytest.mark.parametrize(("evaluated", "supported"), [(999, False), (1000, True)])
def test_a_low_rate_wants_ten_expected_false_positives(evaluated: int, supported: bool) -> None:
    scores = np.random.default_rng(0).normal(size=3000)
    assert tpr_at_fpr(scores, scores[:1000], scores[1000 : 1000 + evaluated], 0.01).supported is supported


def test_achieved_rate_interval_covers_the_true_rate() -> None:
    """2,000 draws; Clopper-Pearson misses at most 5 %: more than 6.6 % has chance below 0.1 % for an exact interval."""
    generator, misses = np.random.default_rng(9), 0
    for _ in range(2000):
        held_out, evaluation = generator.random(500), generator.random(400)
        point = tpr_at_fpr(evaluation, held_out, evaluation, 0.1)
        interval = point.false_positive_interval
        misses += not interval.low <= 1 - point.threshold <= interval.high
    assert misses <= binom.isf(1e-3, 2000, 0.05)


@given(coarse, coarse)
@settings(max_examples=50, deadline=None)
def test_curve_runs_from_corner_to_corner_and_never_falls(members: np.ndarray, nonmembers: np.ndarray) -> None:
    rows = roc_points(members, nonmembers)
    false = [r["fpr"] for r in rows]
    true = [r["tpr"] for r in rows]
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert false == sorted(false) and true == sorted(true)
    assert np.trapezoid(true, false) == pytest.approx(auc(members, nonmembers).value, abs=1e-12)
    assert all(r["low"] <= r["tpr"] <= r["high"] for r in rows)


def test_thinning_keeps_the_shape_on_both_scales() -> None:
    generator = np.random.default_rng(1)
    members, nonmembers = generator.normal(1, 1, 50_000), generator.normal(0, 1, 50_000)
    rows = roc_points(members, nonmembers, maximum=200)
    false = np.array([r["fpr"] for r in rows])
    true = np.array([r["tpr"] for r in rows])
    assert 100 <= len(rows) <= 200
    assert np.trapezoid(true, false) == pytest.approx(auc(members, nonmembers).value, abs=2e-3)
    assert np.diff(np.log10(false[false > 1e-4])).max() < 0.2
    assert np.diff(false).max() < 0.03


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.5, float("nan")], "row 1 is nan"),
        ([float("inf"), 1.0], "row 0 is inf"),
        ([], "empty"),
        ([[1.0], [2.0]], "shape"),
        (["a", "b"], "not numbers"),
        (None, "shape"),
    ],
)
def test_bad_scores_are_one_line(values: object, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        scores_of(values, "member losses")
    assert "member losses" in str(caught.value) and "\n" not in str(caught.value)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(DataError, match="two of each"):
        auc(np.array([1.0]), np.array([0.0, 2.0]))
    with pytest.raises(DataError, match="false_positive_rate = 1"):
        held_out_threshold(np.arange(10.0), 1.0)
    with pytest.raises(DataError, match="maximum"):
        roc_points(np.arange(10.0), np.arange(10.0), maximum=2)
