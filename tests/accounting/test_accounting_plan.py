"""Plans: what they refuse, what they yield, and epsilon against other accountants."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import warnings
from dataclasses import replace

import dp_accounting
import pytest
from dp_accounting import pld, rdp
from hypothesis import given, settings
from hypothesis import strategies as st

from troth.accounting import PrivacyPlan, make_plan
from troth.accounting.pld import composed_epsilon, epsilon_at_width
from troth.config import PrivacyConfig, TrainConfig
from troth.errors import ConfigError, PrivacyError

SNIPS = PrivacyPlan(13_084, 512, 512 / 13_084, 312, 0.9, 0.1, 1e-5)  # 12 epochs


def test_event_is_self_composed_poisson_sampled_gaussian() -> None:
    gaussian = dp_accounting.GaussianDpEvent(0.9)
    sampled = dp_accounting.PoissonSampledDpEvent(512 / 13_084, gaussian)
    assert SNIPS.event() == dp_accounting.SelfComposedDpEvent(sampled, 312)
    assert SNIPS.event(7) == dp_accounting.SelfComposedDpEvent(sampled, 7)


def test_sum_noise_is_multiplier_times_norm() -> None:
    assert SNIPS.sum_noise_std == pytest.approx(0.09)


def test_epsilon_equals_dp_accounting_on_the_same_event() -> None:
    accountant = pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, 1e-4)
    accountant.compose(SNIPS.event())
    assert SNIPS.epsilon() == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-9)
    assert SNIPS.epsilon(delta=1e-6) == pytest.approx(accountant.get_epsilon(1e-6), rel=1e-4)


def test_golden_values() -> None:
    """13,084 examples, batch 256, 20 epochs (1,022 steps of 51.1 a pass), sigma 0.8, delta 1/n: reference table."""
    mechanism = PrivacyPlan(13_084, 256, 256 / 13_084, 1022, 0.8, 0.1, 1e-5).mechanism
    ours = composed_epsilon([(mechanism, 1022)], 1 / 13_084)
    renyi = rdp.RdpAccountant([1 + i / 10 for i in range(20, 100)]).compose(mechanism.event(1022))
    assert ours == pytest.approx(5.488, abs=2e-3)
    assert renyi.get_epsilon(1 / 13_084) == pytest.approx(6.26, abs=0.01)


def test_epsilon_agrees_with_opacus_prv_within_its_error() -> None:
    low, high = _prv_interval(SNIPS, eps_error=0.01)
    assert high - low < 0.03
    assert low <= SNIPS.epsilon() <= high + 1e-3  # ours is rounded up by its discretisation


def _prv_interval(plan: PrivacyPlan, eps_error: float) -> tuple[float, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch and opacus warn about at import is theirs
        from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(plan.noise_multiplier, plan.sampling_rate, plan.steps)]
    distribution = accountant._get_dprv(eps_error=eps_error, delta_error=plan.delta / 1000)
    low, _, high = distribution.compute_epsilon(plan.delta, plan.delta / 1000, eps_error)
    return float(low), float(high)


@given(
    steps=st.integers(1, 400),
    more=st.integers(1, 400),
    sigma=st.floats(0.7, 4),
    batch=st.integers(50, 2000),
)
@settings(max_examples=15, deadline=None, derandomize=True)
def test_epsilon_grows_with_steps_and_rate_and_falls_with_noise(
    steps: int, more: int, sigma: float, batch: int
) -> None:
    plan = PrivacyPlan(100_000, batch, batch / 100_000, steps, sigma, 1.0, 1e-6)
    epsilon = epsilon_at_width([(plan.mechanism, steps)], 1e-6, 2e-3)
    longer = epsilon_at_width([(plan.mechanism, steps + more)], 1e-6, 2e-3)
    noisier = epsilon_at_width([(replace(plan.mechanism, noise_multiplier=sigma * 1.1), steps)], 1e-6, 2e-3)
    denser = epsilon_at_width([(replace(plan.mechanism, sampling_rate=1.2 * batch / 100_000), steps)], 1e-6, 2e-3)
    assert 0 <= noisier <= epsilon <= longer
    assert epsilon <= denser


def test_epsilon_of_no_step_is_zero_and_without_noise_infinite(small: PrivacyPlan) -> None:
    assert small.epsilon(steps=0) == 0.0
    assert replace(small, noise_multiplier=0.0).epsilon() == math.inf


def test_steps_beyond_the_plan_cost_more(small: PrivacyPlan) -> None:
    assert small.epsilon() < small.epsilon(small.steps + 20)


def test_json_round_trip_is_exact_and_the_digest_follows_the_content() -> None:
    again = PrivacyPlan.from_dict(json.loads(json.dumps(SNIPS.to_dict())))
    assert again == SNIPS
    assert again.digest() == SNIPS.digest()
    assert replace(SNIPS, steps=313).digest() != SNIPS.digest()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"delta": 1e-4}, "delta"),
        ({"delta": 1.1e-4}, "1/n"),
        ({"delta": 0.0}, "delta"),
        ({"delta": math.nan}, "delta"),
        ({"sampling_rate": 0.02}, "sampling_rate"),
        ({"expected_batch_size": 10_001, "sampling_rate": 1.0001}, "expected_batch_size"),
        ({"examples": 0}, "examples"),
        ({"steps": 0}, "steps"),
        ({"noise_multiplier": -1.0}, "noise_multiplier"),
        ({"noise_multiplier": math.inf}, "noise_multiplier"),
        ({"clipping_norm": 0.0}, "clipping_norm"),
        ({"unit": "user"}, "unit"),
        ({"sampler": "shuffle"}, "sampler"),
    ],
)
def test_a_plan_that_would_void_the_guarantee_is_refused(
    small: PrivacyPlan, change: dict[str, object], named: str
) -> None:
    with pytest.raises(PrivacyError, match=named) as caught:
        replace(small, **change)
    assert "\n" not in str(caught.value)


def test_from_dict_refuses_unknown_keys(small: PrivacyPlan) -> None:
    with pytest.raises(PrivacyError, match="not a privacy plan"):
        PrivacyPlan.from_dict({**small.to_dict(), "epsilon": 1.0})


@pytest.mark.parametrize("steps", [-1, -5])
def test_negative_steps_are_refused(small: PrivacyPlan, steps: int) -> None:
    with pytest.raises(PrivacyError, match="steps"):
        small.epsilon(steps)


def test_make_plan_counts_a_last_partial_batch() -> None:
    privacy = PrivacyConfig(noise_multiplier=1.5, target_delta=1e-5, clipping_norm=0.2)
    plan = make_plan(privacy, TrainConfig(epochs=12, expected_batch_size=512), 13_084)
    assert plan == PrivacyPlan(13_084, 512, 512 / 13_084, 12 * 26, 1.5, 0.2, 1e-5)


def test_make_plan_calibrates_to_the_target() -> None:
    privacy = PrivacyConfig(target_epsilon=3.0, target_delta=1e-5)
    plan = make_plan(privacy, TrainConfig(epochs=2, expected_batch_size=50), 1_000)
    assert plan.steps == 40
    assert 2.99 < plan.epsilon() <= 3.0


def test_make_plan_takes_the_whole_data_set_as_a_batch() -> None:
    privacy = PrivacyConfig(noise_multiplier=5.0, target_delta=1e-3)
    plan = make_plan(privacy, TrainConfig(epochs=3, expected_batch_size=100), 100)
    assert (plan.sampling_rate, plan.steps) == (1.0, 3)
    gaussian = dp_accounting.get_epsilon_gaussian(5.0 / math.sqrt(3), 1e-3)
    assert plan.epsilon() == pytest.approx(gaussian, rel=1e-3)


def test_make_plan_refuses_a_batch_above_n_and_delta_from_one_over_n() -> None:
    privacy = PrivacyConfig(noise_multiplier=1.0, target_delta=1e-5)
    with pytest.raises(ConfigError, match="expected_batch_size = 101: exceeds the 100"):
        make_plan(privacy, TrainConfig(expected_batch_size=101), 100)
    with pytest.raises(PrivacyError, match="target_delta = 1e-05"):
        make_plan(privacy, TrainConfig(expected_batch_size=100), 100_000)
    with pytest.raises(PrivacyError, match="examples = 0"):
        make_plan(privacy, TrainConfig(expected_batch_size=1), 0)


def test_importing_accounting_loads_neither_torch_nor_dp_accounting() -> None:
    code = "import sys, troth.accounting; print(sorted({'torch', 'dp_accounting', 'pandas'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
