"""Rényi divergence of a step against dp-accounting, and the curve of a run."""

from __future__ import annotations

import math

import pytest
from dp_accounting import rdp
from hypothesis import given, settings
from hypothesis import strategies as st

from troth.accounting import Mechanism, PrivacyPlan, epsilon_after, epsilon_curve
from troth.accounting.mechanism import best_renyi_epsilon, renyi_epsilon
from troth.accounting.pld import epsilon_at_width
from troth.errors import ConfigError


@given(
    rate=st.floats(1e-4, 1.0),
    sigma=st.floats(0.3, 20.0),
    order=st.integers(2, 200),
    delta=st.floats(1e-12, 0.01),
    steps=st.integers(1, 5000),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_divergence_and_conversion_equal_dp_accounting(
    rate: float, sigma: float, order: int, delta: float, steps: int
) -> None:
    mechanism = Mechanism(rate, sigma)
    theirs = rdp.RdpAccountant([order]).compose(mechanism.event(steps)).get_epsilon(delta)
    ours = renyi_epsilon(order, steps * mechanism.renyi(order), delta)
    assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-8)


def test_divergence_keeps_its_digits_at_tiny_rates() -> None:
    """To second order in q, the divergence at order a is a q^2 (exp(1/sigma^2) - 1) / 2."""
    for order in (2, 7, 30):
        expected = order / 2 * 1e-18 * math.expm1(1 / 9)
        assert Mechanism(1e-9, 3.0).renyi(order) == pytest.approx(expected, rel=1e-6)


@given(
    rate=st.floats(0.005, 0.3),
    sigma=st.floats(0.7, 3.0),
    narrower=st.floats(0.3, 1.0),
    noisier=st.floats(1.0, 2.0),
    steps=st.integers(1, 100),
)
@settings(max_examples=8, deadline=None, derandomize=True)
def test_a_covered_mechanism_never_costs_more(
    rate: float, sigma: float, narrower: float, noisier: float, steps: int
) -> None:
    wide, narrow = Mechanism(rate, sigma), Mechanism(rate * narrower, sigma * noisier)
    assert wide.covers(narrow)
    assert narrow.covers(wide) == (wide == narrow)
    for delta in (1e-3, 1e-6):
        cheap = epsilon_at_width([(narrow, steps)], delta, 5e-3)
        assert cheap <= epsilon_at_width([(wide, steps)], delta, 5e-3) + 1e-9
    assert narrow.renyi(8) <= wide.renyi(8)


def test_no_noise_diverges() -> None:
    assert Mechanism(0.1, 0.0).renyi(2) == math.inf


def test_the_renyi_bound_lies_above_the_tight_figure(small: PrivacyPlan) -> None:
    assert small.epsilon() < best_renyi_epsilon([(small.mechanism, small.steps)], small.delta) < 1.5 * small.epsilon()


def test_curve_rises_from_zero_to_the_plans_epsilon_and_stays_above_the_truth(small: PrivacyPlan) -> None:
    curve = epsilon_curve(small, 5)
    assert [row["step"] for row in curve] == [0, 40, 80, 120, 160, 200]
    assert [row["epoch"] for row in curve] == pytest.approx([0, 0.4, 0.8, 1.2, 1.6, 2.0])
    epsilons = [row["epsilon"] for row in curve]
    assert epsilons[0] == 0.0
    assert epsilons[-1] == small.epsilon()
    assert epsilons == sorted(epsilons)
    truth = small.epsilon(80)
    assert truth <= epsilons[2] <= 1.05 * truth


def test_a_curve_of_more_points_than_steps_has_one_per_step() -> None:
    plan = PrivacyPlan(1000, 10, 0.01, 3, 2.0, 1.0, 1e-5)
    assert [row["step"] for row in epsilon_curve(plan, 100)] == [0, 1, 2, 3]


def test_epsilon_after_is_the_next_point(small: PrivacyPlan) -> None:
    curve = epsilon_curve(small, 5)
    assert epsilon_after(curve, 0) == 0.0
    assert epsilon_after(curve, 1) == epsilon_after(curve, 40) == curve[1]["epsilon"]
    assert epsilon_after(curve, 200) == small.epsilon()
    assert epsilon_after(curve, 201) == math.inf


def test_a_curve_without_noise_is_infinite_after_the_first_step() -> None:
    curve = epsilon_curve(PrivacyPlan(1000, 10, 0.01, 4, 0.0, 1.0, 1e-5), 2)
    assert [row["epsilon"] for row in curve] == [0.0, None, None]
    assert epsilon_after(curve, 1) == math.inf


def test_a_curve_without_points_is_refused(small: PrivacyPlan) -> None:
    with pytest.raises(ConfigError, match="points = 0"):
        epsilon_curve(small, 0)
