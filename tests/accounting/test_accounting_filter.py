"""Budgets: what the Rényi filter and the one-mechanism rule admit, and what they refuse."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from dp_accounting import rdp
from hypothesis import given, settings
from hypothesis import strategies as st

from troth.accounting import Mechanism, PrivacyPlan
from troth.accounting.filter import (
    Budget,
    Charge,
    OneMechanism,
    RenyiFilter,
    admit,
    allowance,
    choose_order,
    fitting_runs,
    keeps,
    remaining_share,
    spent_epsilon,
)
from troth.accounting.mechanism import renyi_epsilon
from troth.accounting.pld import composed_epsilon
from troth.errors import BudgetError

BUDGET = Budget(2.0, 1e-5, "example")


def charge(plan: PrivacyPlan, steps: int | None = None) -> Charge:
    return Charge("run", plan.mechanism, plan.steps if steps is None else steps)


def simulated_epsilon_exceedance(losses: np.ndarray, epsilon: float) -> float:
    """Hockey-stick divergence estimated from privacy losses drawn under P: E[(1 - exp(epsilon - loss))+]."""
    return float(np.clip(-np.expm1(np.minimum(epsilon - losses, 0)), 0, None).mean())


@given(order=st.integers(2, 500), epsilon=st.floats(0.01, 50), delta=st.floats(1e-12, 0.01))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_the_allowance_is_what_converts_to_the_budget(order: int, epsilon: float, delta: float) -> None:
    allowed = allowance(order, epsilon, delta)
    if allowed > 1e-3:
        assert renyi_epsilon(order, allowed, delta) == pytest.approx(epsilon)
        assert rdp.compute_epsilon([order], [allowed], delta)[0] == pytest.approx(epsilon)


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 8.0])
def test_the_order_for_a_plain_gaussian_is_near_the_closed_form(epsilon: float) -> None:
    log = math.log(1e5)
    rho = (math.sqrt(log + epsilon) - math.sqrt(log)) ** 2
    found = choose_order(epsilon, 1e-5, Mechanism(1.0, 5.0))
    assert 0.5 * (1 + math.sqrt(log / rho)) <= found <= 1.2 * (1 + math.sqrt(log / rho))


def test_the_order_is_the_cheapest_for_the_first_plan(small: PrivacyPlan) -> None:
    order = choose_order(2.0, 1e-5, small.mechanism)
    share = small.mechanism.renyi(order) / allowance(order, 2.0, 1e-5)
    assert all(
        share <= small.mechanism.renyi(a) / allowance(a, 2.0, 1e-5) for a in range(2, 60) if allowance(a, 2.0, 1e-5) > 0
    )


def test_runs_are_admitted_until_the_allowance_is_used_up(small: PrivacyPlan) -> None:
    way, charges = None, []
    fits = fitting_runs(BUDGET, None, [], charge(small))
    for done in range(fits):
        assert fitting_runs(BUDGET, way, charges, charge(small)) == fits - done
        way = admit("letters", BUDGET, way, charges, charge(small))
        charges.append(charge(small))
    assert isinstance(way, RenyiFilter)
    assert fits >= 10
    assert spent_epsilon(BUDGET, way, charges) <= 2.0
    assert fitting_runs(BUDGET, way, charges, charge(small)) == 0
    with pytest.raises(
        BudgetError, match=r"data set letters: its budget of epsilon 2 at delta 1e-05 has epsilon 1\.\d+"
    ):
        admit("letters", BUDGET, way, charges, charge(small))


def test_the_order_stays_whatever_runs_come_later(small: PrivacyPlan) -> None:
    way = admit("letters", BUDGET, None, [], charge(small))
    noisier = replace(small, noise_multiplier=6.0)
    assert choose_order(2.0, 1e-5, noisier.mechanism) >= way.order
    assert admit("letters", BUDGET, way, [charge(small)], charge(noisier)) == way


def test_a_first_plan_beyond_the_filter_is_admitted_by_its_own_epsilon_and_then_nothing_else(
    small: PrivacyPlan, large: PrivacyPlan
) -> None:
    order = choose_order(2.0, 1e-5, large.mechanism)
    assert large.steps * large.mechanism.renyi(order) > allowance(order, 2.0, 1e-5)
    assert large.epsilon() <= 2.0
    way = admit("letters", BUDGET, None, [], charge(large))
    assert way == OneMechanism(large.mechanism)
    less_noise = replace(large, noise_multiplier=0.79, steps=1)
    for other in (large, replace(small, steps=100), less_noise):
        with pytest.raises(BudgetError):
            admit("letters", BUDGET, way, [charge(large)], charge(other))


def test_one_mechanism_admits_its_own_and_covered_steps_up_to_the_budget(large: PrivacyPlan) -> None:
    way = OneMechanism(large.mechanism)
    held = [charge(large, 100)]
    noisier = replace(large, noise_multiplier=1.0)
    for plan in (large, noisier):
        assert admit("letters", BUDGET, way, held, charge(plan, 100)) == way
        fits = fitting_runs(BUDGET, way, held, charge(plan, 20))
        steps = 100 + 20 * fits
        assert composed_epsilon([(large.mechanism, steps)], 1e-5) <= 2.0
        assert composed_epsilon([(large.mechanism, steps + 20)], 1e-5) > 2.0


def test_a_first_plan_beyond_the_budget_is_refused_with_its_figure(large: PrivacyPlan) -> None:
    with pytest.raises(BudgetError, match=r"epsilon 0 spent \(by no run\); with run run it would be 1\.80") as caught:
        admit("letters", replace(BUDGET, epsilon=1.0), None, [], charge(large))
    assert "\n" not in str(caught.value)


def test_a_run_without_guarantee_closes_the_budget(small: PrivacyPlan) -> None:
    open_run = Charge("shadow", None, 1)
    assert spent_epsilon(BUDGET, None, [open_run]) == math.inf
    assert remaining_share(BUDGET, None, [open_run]) == 0.0
    assert fitting_runs(BUDGET, None, [open_run], charge(small)) == 0
    with pytest.raises(BudgetError, match="stands at infinity since run shadow"):
        admit("letters", BUDGET, None, [open_run], charge(small))


def test_no_noise_is_infinite() -> None:
    bare = Charge("bare", Mechanism(0.1, 0.0), 3)
    assert bare.infinite
    assert keeps(BUDGET, None, [bare]) is None


def test_runs_before_the_budget_are_bound_to_the_oldest_runs_mechanism(large: PrivacyPlan) -> None:
    noisier = charge(replace(large, noise_multiplier=1.2), 10)
    assert keeps(BUDGET, None, [charge(large, 190), noisier]) == OneMechanism(large.mechanism)
    louder_first = keeps(BUDGET, None, [noisier, charge(large, 190)])
    assert louder_first is None  # the second run's lower noise may have been chosen from the first one's result


def test_an_adaptive_user_stays_within_the_filters_budget() -> None:
    """A user who looks at every result and spends on while it pays off never leaks more than the filter says.

    Gaussian mechanism, sensitivity 1, outputs drawn under P (mean 1 / sigma); the user runs a large step after a
    small privacy loss and a small step after a large one, as long as the filter lets them. 20,000 users; the
    hockey-stick divergence at the budget's epsilon is estimated from their losses (standard error below 6e-5).
    """
    budget = Budget(1.0, 1e-3, "example")
    rng = np.random.default_rng(5)
    loud, quiet = Mechanism(1.0, 6.0), Mechanism(1.0, 12.0)
    order = choose_order(budget.epsilon, budget.delta, loud)
    left = np.full(20_000, allowance(order, budget.epsilon, budget.delta))
    losses = np.zeros(20_000)
    while True:
        sigma = np.where(losses > 0, 6.0, 12.0)
        cost = np.where(losses > 0, loud.renyi(order), quiet.renyi(order))
        runs = cost <= left
        if not runs.any():
            break
        outputs = rng.normal(1 / sigma, 1.0)
        losses += np.where(runs, outputs / sigma - 0.5 / sigma**2, 0.0)
        left -= np.where(runs, cost, 0.0)
    assert simulated_epsilon_exceedance(losses, budget.epsilon) <= budget.delta
    assert simulated_epsilon_exceedance(losses, 0.5 * budget.epsilon) > budget.delta  # the bound is not idle
