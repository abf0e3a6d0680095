"""Accuracy by group against fairlearn, naive resampling and naive permutation, and simulation of what is promised."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from fairlearn.metrics import MetricFrame
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, kstest
from sklearn.metrics import accuracy_score

from troth import fairness
from troth.errors import DataError
from troth.fairness import accuracy_by_group
from troth.fairness.groups import _chance_gaps, _grouped, _replicates
from troth.results import Measurement, Record
from troth.seeds import PublicSeeds

SEEDS = PublicSeeds(3)


def draw(accuracies: list[float], sizes: list[int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    correct = np.concatenate([generator.random(n) < p for p, n in zip(accuracies, sizes, strict=True)])
    return correct, np.repeat(np.arange(len(sizes)), sizes)


def gap(*args: object, **kwargs: object) -> Measurement:
    return accuracy_by_group(*args, seeds=SEEDS, **kwargs)[0]


def test_values_equal_fairlearn() -> None:
    generator = np.random.default_rng(0)
    truth, predicted = generator.integers(5, size=(2, 700))
    groups = generator.choice(["a", "b", "c"], p=[0.6, 0.3, 0.1], size=700)
    frame = MetricFrame(metrics=accuracy_score, y_true=truth, y_pred=predicted, sensitive_features=groups)
    measured = gap(truth == predicted, groups)
    assert measured.value == pytest.approx(frame.difference(), abs=1e-12)
    assert {k: g.value for k, g in measured.groups.items()} == pytest.approx(dict(frame.by_group), abs=1e-12)
    assert {k: g.n for k, g in measured.groups.items()} == pd.Series(groups).value_counts().to_dict()
    assert (measured.n, measured.unit, measured.direction, measured.neutral) == (700, "fraction", "lower", 0.0)


def test_group_intervals_are_exact_for_right_or_wrong() -> None:
    measured = gap([True] * 9 + [False] + [True] * 40, ["x"] * 10 + ["y"] * 40)
    x, y = measured.groups["x"], measured.groups["y"]
    assert (x.low, x.high) == pytest.approx((0.5550, 0.9975), abs=1e-4)  # Clopper-Pearson 9 of 10
    assert (y.low, y.high) == pytest.approx((0.025 ** (1 / 40), 1.0))
    assert measured.low == 0 and measured.high > 0.1


def test_replicates_have_the_distribution_of_naive_resampling() -> None:
    correct = np.r_[np.ones(35), np.zeros(15), np.full(20, 0.25), np.full(60, 0.75)]
    groups = np.r_[np.zeros(50), np.ones(80)]
    replicates = _replicates(_grouped(correct, groups), np.random.default_rng(1))
    generator = np.random.default_rng(2)
    for g in (0, 1):
        rows = np.r_[correct[groups == g], 0.0, 1.0]
        size = len(rows) - 2
        naive = [generator.choice(rows, size).mean() - rows.mean() for _ in range(2000)]
        assert replicates.deviations[:, g].std() == pytest.approx(np.std(naive), rel=0.08)  # se of each 1.6 %
        assert kstest(replicates.deviations[:, g], naive).pvalue > 1e-3
        assert replicates.own[g] == pytest.approx(np.var(rows) / size)
        assert replicates.variances[:, g].mean() == pytest.approx(replicates.own[g], rel=0.1)


@pytest.mark.parametrize("fractions", [False, True])
def test_permutations_have_the_distribution_of_naive_shuffling(fractions: bool) -> None:
    generator = np.random.default_rng(4)
    correct = generator.choice([0, 0.5, 1] if fractions else [0, 1], size=120)
    groups = np.repeat([0, 1, 2], [70, 30, 20])
    chance = _chance_gaps(_grouped(correct, groups), np.random.default_rng(5))
    naive = []
    for _ in range(2000):
        shuffled = generator.permutation(correct)
        naive.append(np.ptp([shuffled[groups == g].mean() for g in range(3)]))
    assert chance.mean() == pytest.approx(np.mean(naive), rel=0.06)
    assert np.quantile(chance, 0.9) == pytest.approx(np.quantile(naive, 0.9), rel=0.1)


@pytest.mark.parametrize(
    ("accuracies", "sizes"),
    [([0.9, 0.9], [150, 150]), ([0.8] * 4, [100, 60, 40, 200]), ([0.95, 0.8, 0.9], [200, 100, 60])],
)
def test_gap_interval_covers_at_its_rate(accuracies: list[float], sizes: list[int]) -> None:
    """200 draws, nominal miss rate 5 %, 7 % allowed for the bootstrap: above its 99.9 % binomial bound (26) fails.

    At a true gap of zero a percentile bootstrap of the gap misses always: its lower end is above zero.
    """
    true, misses = max(accuracies) - min(accuracies), 0
    for seed in range(200):
        measured = accuracy_by_group(*draw(accuracies, sizes, seed), seeds=PublicSeeds(seed))[0]
        misses += not measured.low - 1e-12 <= true <= measured.high
    assert misses <= binom.isf(1e-3, 200, 0.07)


def test_p_value_is_uniform_when_groups_are_alike_and_small_when_not() -> None:
    """200 draws under the null; p <= 0.05 in more than the 99.9 % binomial bound (21) fails."""
    small = sum(
        accuracy_by_group(*draw([0.7] * 3, [80, 60, 40], seed), seeds=PublicSeeds(seed))[1].value <= 0.05
        for seed in range(200)
    )
    assert small <= binom.isf(1e-3, 200, 0.05)
    measured, p_value = accuracy_by_group(*draw([0.9, 0.6], [300, 300], 0), seeds=SEEDS)
    assert p_value.name == "fairness.accuracy_gap.p_value"
    assert p_value.value == pytest.approx(1 / 2001)
    assert p_value.low <= p_value.value <= p_value.high
    assert measured.low > 0.15


def test_upward_bias_is_told() -> None:
    """Ten groups of 40 alike at 0.8: the gap is about 0.2 by chance alone, and the record says so."""
    measured = gap(*draw([0.8] * 10, [40] * 10, 1))
    assert measured.value > 0.1
    assert measured.low == 0
    assert measured.protocol["gap_expected_from_equal_groups"] == pytest.approx(0.2, abs=0.05)


def test_small_groups_are_kept_and_the_gap_is_not_supported() -> None:
    correct, groups = draw([0.9, 0.8, 0.5], [100, 100, 29], 0)
    measured, p_value = accuracy_by_group(correct, groups, seeds=SEEDS)
    assert measured.groups["2"].n == 29
    assert measured.protocol["small_groups"] == ["2"]
    assert not measured.supported and not p_value.supported
    assert "fewer than 30 rows (2)" in measured.protocol["warnings"][0]
    enough = gap(correct, groups, minimum_group_size=29)
    assert enough.supported and enough.protocol["small_groups"] == [] and enough.protocol["warnings"] == []


def test_missing_labels_are_counted_and_left_out() -> None:
    labels = ["a"] * 50 + ["b"] * 50 + [None, "", float("nan"), pd.NA]
    measured = gap([1.0] * 40 + [0.0] * 10 + [1.0] * 50 + [0.0] * 4, labels)
    assert measured.n == 100 and set(measured.groups) == {"a", "b"}
    assert measured.value == pytest.approx(0.2)
    assert measured.protocol["missing_group_labels"] == 4
    assert "4 rows have no group label" in measured.protocol["warnings"][0]


def test_fractions_get_bootstrap_intervals() -> None:
    generator = np.random.default_rng(0)
    correct = np.r_[generator.beta(8, 2, 200), generator.beta(2, 8, 200)]
    measured = gap(correct, np.repeat(["a", "b"], 200))
    assert measured.protocol["group_interval_method"] == "bayesian-bootstrap"
    a = measured.groups["a"]
    error = correct[:200].std() / np.sqrt(200)
    assert (a.low, a.high) == pytest.approx((a.value - 1.96 * error, a.value + 1.96 * error), abs=0.008)
    assert measured.low < 0.6 < measured.high


def test_fractions_all_right_are_not_certainly_so() -> None:
    correct = np.r_[np.ones(400), np.tile([0.5, 1.0], 50)]
    measured = gap(correct, np.repeat(["a", "b"], [400, 100]))
    assert measured.protocol["group_interval_method"] == "bayesian-bootstrap, zero-event-bound"
    a = measured.groups["a"]
    assert (a.low, a.value, a.high) == (pytest.approx(0.025 ** (1 / 400)), 1, 1)


@pytest.mark.parametrize("accuracy", [0.97, 0.995])
def test_intervals_of_groups_cover_near_the_end(accuracy: float) -> None:
    """200 draws of two groups of sentences, nominal miss rate 5 %, 7 % allowed: above the 99.9 % bound (45) fails."""
    generator, misses = np.random.default_rng(8), 0
    for seed in range(200):
        words = generator.integers(1, 12, 160)
        right = generator.binomial(words, generator.beta(2 * accuracy, 2 - 2 * accuracy, 160)) / words
        measured = accuracy_by_group(right, np.repeat([0, 1], [60, 100]), seeds=PublicSeeds(seed))[0]
        misses += sum(not g.low <= accuracy <= g.high for g in measured.groups.values())
    assert misses <= binom.isf(1e-3, 400, 0.07)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from("abc")), min_size=4, max_size=60))
@settings(max_examples=40, deadline=None)
def test_value_lies_in_its_interval_and_order_of_rows_does_not_matter(rows: list[tuple[float, str]]) -> None:
    rows += [(1.0, "a"), (0.0, "b")]
    measured = gap([r[0] for r in rows], [r[1] for r in rows])
    assert 0 <= measured.low <= measured.value <= measured.high <= 1
    assert measured.low < measured.high
    for group in measured.groups.values():
        assert 0 <= group.low <= group.value <= group.high <= 1
        assert group.low < group.high
    again = gap([r[0] for r in rows[::-1]], [r[1] for r in rows[::-1]])
    assert again == measured


def test_record_round_trip() -> None:
    measured = accuracy_by_group(*draw([0.9, 0.8], [50, 50], 0), seeds=SEEDS, outside_guarantee=True)
    assert all(m.outside_guarantee for m in measured)
    record = Record("fairness", "x", "now", "0", measurements=measured)
    assert Record.from_json(record.to_json()) == record


@pytest.mark.parametrize(
    ("correct", "groups", "message"),
    [
        ([1.0, 0.0], ["a", "a"], "only group 'a'"),
        ([1.0, 0.0], [None, ""], "no group label at all"),
        ([], [], "no group label at all"),
        ([1.0], ["a", "b"], "one of each per row"),
        ([1.0, float("nan")], ["a", "b"], "row 1 is nan"),
        ([1.0, 1.5], ["a", "b"], "row 1 is 1.5"),
    ],
)
def test_bad_input_is_one_line(correct: list[float], groups: list[object], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        gap(correct, groups)
    assert "\n" not in str(caught.value)


def test_public_names_are_there() -> None:
    assert all(name in vars(fairness) for name in fairness.__all__)
