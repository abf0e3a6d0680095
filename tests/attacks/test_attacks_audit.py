"""Lower bounds on epsilon: equal to other implementations, valid on mechanisms of known epsilon, and powerful."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from troth.attacks import (
    Claim,
    audit_one_run,
    audit_rates,
    dp_sgd_curve,
    gaussian_curve,
    joint_beta_interval,
    trade_off_curves,
)
from troth.attacks.audit import guess_counts
from troth.attacks.epsilon_bounds import (
    clopper_pearson_bounds,
    f_dp_best_bound,
    f_dp_one_run_bound,
    f_dp_rejects,
    one_run_bound,
    one_run_p_value,
)
from troth.attacks.trade_off_curves import Curve, DpSgdCurves, _largest_line
from troth.errors import DataError
from troth.seeds import PublicSeeds

# canaries, guesses, correct, significance, delta, one-run and f-DP bound: values printed by jax-privacy 2.0.0.
JAX_PRIVACY = [
    (1000, 1000, 560, 0.05, 0.0, 0.13449899057460799, None),
    (1000, 1000, 700, 0.05, 1e-5, 0.7317406384658977, 1.371980050043179),
    (1000, 200, 160, 0.05, 1e-5, 1.0850342683386973, 1.7292280933652133),
    (500, 50, 50, 0.05, 1e-5, 2.770507062387001, 4.44246226398465),
    (5000, 5000, 3200, 0.01, 1e-6, 0.506488711970811, 0.8248466066248566),
    (100, 10, 9, 0.05, 0.0, 0.4298453174854368, None),
]


def _response(rng: np.random.Generator, canaries: int, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    included = rng.random(canaries) < 0.5
    true = rng.random(canaries) < 1 / (1 + math.exp(-epsilon))
    return (included == true) + 1e-3 * rng.random(canaries), included


def _gaussian(rng: np.random.Generator, canaries: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    included = rng.random(canaries) < 0.5
    return included + noise * rng.standard_normal(canaries), included


@pytest.mark.parametrize(("canaries", "guesses", "correct", "significance", "delta", "plain", "f_dp"), JAX_PRIVACY)
def test_bounds_of_one_run_equal_jax_privacy(
    canaries: int, guesses: int, correct: int, significance: float, delta: float, plain: float, f_dp: float | None
) -> None:
    limits = {"delta": delta, "significance": significance}
    assert one_run_bound(correct, guesses, canaries, **limits) == pytest.approx(plain, abs=2e-6)
    if f_dp is not None:
        found = f_dp_one_run_bound(correct, guesses, canaries, family=gaussian_curve, tolerance=1e-6, **limits)
        assert found == pytest.approx(f_dp, abs=5e-6)
        assert found <= f_dp + 1e-6


def test_joint_beta_interval_is_the_published_one() -> None:
    low, high = joint_beta_interval(512, 513, 487, 487, delta=1e-5, confidence=0.9)
    assert (round(low, 3), round(high, 3)) == (0.144, 6.416)


@settings(deadline=None)
@given(st.integers(1, 60), st.data())
def test_p_value_equals_the_sum_written_out(guesses: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, guesses))
    epsilon, delta = data.draw(st.floats(0, 5)), data.draw(st.sampled_from([0.0, 1e-5, 1e-3]))
    law = stats.binom(guesses, math.exp(epsilon) / (1 + math.exp(epsilon)))
    chance = law.pmf(np.arange(guesses + 1)).tolist()
    above = sum(chance[correct:])
    extra = max((sum(chance[correct - i : correct]) / i for i in range(1, correct + 1)), default=0)
    expected = min(1.0, above + 2 * 80 * delta * extra)
    assert one_run_p_value(correct, guesses, 80, epsilon, delta) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@settings(deadline=None)
@given(st.integers(2, 200), st.data())
def test_more_right_guesses_never_prove_less(guesses: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(1, guesses))
    limits = {"delta": 1e-5, "significance": 0.05}
    fewer, more = (one_run_bound(c, guesses, 200, **limits) for c in (correct - 1, correct))
    assert fewer <= more + 1e-9
    fewer, more = (f_dp_one_run_bound(c, guesses, 200, family=gaussian_curve, **limits) for c in (correct - 1, correct))
    assert fewer <= more + 1e-9


def test_perfect_guesses_prove_what_their_number_allows() -> None:
    assert one_run_bound(1000, 1000, 1000, delta=0.0, significance=0.05) == pytest.approx(
        math.log(0.05 ** (1 / 1000) / (1 - 0.05 ** (1 / 1000))), abs=1e-6
    )


def test_clopper_pearson_uses_both_directions() -> None:
    low, high = stats.beta.ppf(0.025, 90, 11), stats.beta.ppf(0.975, 11, 90)
    limits = {"delta": 1e-3, "significance": 0.05}
    hits, alarms = np.array([90, 100, 0, 100]), np.array([10, 50, 100, 100])
    found = clopper_pearson_bounds(hits, 100, alarms, 100, **limits)
    assert found[0] == pytest.approx(math.log((low - 1e-3) / high))
    # All members are called members, and half of the others too: only the event 'not called a member' tells much.
    missed, noise = 0.025 ** (1 / 100), stats.beta.ppf(0.975, 51, 50)
    assert found[1] == pytest.approx(math.log((1 - noise - 1e-3) / (1 - missed)))
    assert found[2:].tolist() == [0.0, 0.0]


def test_accountants_curve_of_one_full_step_is_the_gaussian_one() -> None:
    limits = {"delta": 1e-5, "significance": 0.05, "tolerance": 1e-3}
    exact = f_dp_one_run_bound(160, 200, 1000, family=gaussian_curve, **limits)
    found = f_dp_one_run_bound(160, 200, 1000, family=dp_sgd_curve(1.0, 1), **limits)
    assert found == pytest.approx(exact, rel=0.01)


def _by_bisection(
    correct: int, guesses: int, canaries: int, family: Callable[[float], Curve], delta: float, tolerance: float
) -> float:
    """Return the bound by halving the octave in which curves begin to be refuted."""
    octave = next(k for k in range(-7, 15) if f_dp_rejects(correct, guesses, canaries, family(2.0**k), 0.05))
    refuted, kept = 2.0**octave, 2.0 ** (octave - 1)
    while refuted / kept > 1 + tolerance:
        middle = math.sqrt(refuted * kept)
        if f_dp_rejects(correct, guesses, canaries, family(middle), 0.05):
            refuted = middle
        else:
            kept = middle
    return family(refuted).epsilon(delta)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 300), st.floats(0.5, 1.0), st.sampled_from([1e-2, 1e-3, 1e-5]))
def test_the_search_for_the_largest_refuted_curve_equals_bisection(
    guesses: int, share: float, tolerance: float
) -> None:
    correct = math.ceil(share * guesses)
    limits = {"delta": 1e-5, "significance": 0.05, "tolerance": tolerance}
    found = f_dp_one_run_bound(correct, guesses, 300, family=gaussian_curve, **limits)
    if f_dp_rejects(correct, guesses, 300, gaussian_curve(1e4), 0.05):
        expected = _by_bisection(correct, guesses, 300, gaussian_curve, 1e-5, tolerance)
        assert found == pytest.approx(expected, rel=1e-9)
    else:
        assert found == 0


def test_search_among_the_accountants_curves_makes_few_and_ends_between_neighbours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: dict[float, Curve] = {}

    def noted(family: DpSgdCurves, noise: float) -> Curve:
        made[noise] = kept(family, noise)
        return made[noise]

    kept = trade_off_curves._dp_sgd_curve
    monkeypatch.setattr(trade_off_curves, "_dp_sgd_curve", noted)
    found = f_dp_one_run_bound(120, 160, 900, family=dp_sgd_curve(0.5, 2), delta=1e-5, significance=0.05)
    refuted = {noise: f_dp_rejects(120, 160, 900, curve, 0.05) for noise, curve in made.items()}
    low = max(noise for noise, refutes in refuted.items() if not refutes)
    high = min(noise for noise, refutes in refuted.items() if refutes)
    assert high / low == pytest.approx(2 ** (1 / 1024))
    assert found == made[high].epsilon(1e-5)
    assert len(made) <= 4  # bisection alone makes 13


@pytest.mark.parametrize(("rate", "noise", "steps"), [(0.5, 4.0, 2), (0.05, 2.0, 100), (1.0, 4.0, 1)])
def test_rough_curves_are_near_the_exact_ones(rate: float, noise: float, steps: int) -> None:
    family = DpSgdCurves(rate, steps)
    exact, rough = family(noise), family.rough(noise)
    for right in (0.02, 0.1, 0.5, 0.9):
        assert rough.least_wrong(right) == pytest.approx(exact.least_wrong(right), rel=0.01)


def test_the_best_of_several_counts_is_the_best_of_their_bounds() -> None:
    limits = {"family": gaussian_curve, "delta": 1e-5, "significance": 0.05 / 3}
    for counts in (((40, 50), (160, 250), (560, 1000)), ((25, 50), (125, 250), (490, 1000)), ((50, 50), (9, 250))):
        bounds = [f_dp_one_run_bound(c, g, 1000, **limits) for c, g in counts]  # type: ignore[arg-type]
        found = f_dp_best_bound(counts, 1000, **limits)
        assert found == (int(np.argmax(bounds)), max(bounds))


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=40), st.floats(0, 1))
def test_largest_of_the_profiles_lines_is_found_by_bisection(deltas: list[float], right: float) -> None:
    profile, epsilons = np.sort(np.array(deltas))[::-1], np.linspace(0, 5, len(deltas))
    expected = max(0.0, float(np.max((right - profile) * np.exp(-epsilons))))
    assert _largest_line(profile, epsilons)(right) == pytest.approx(expected, abs=1e-12)


def test_subsampling_makes_the_same_guesses_prove_another_epsilon() -> None:
    limits = {"delta": 1e-5, "significance": 0.05, "tolerance": 1e-2}
    sampled = f_dp_one_run_bound(160, 200, 1000, family=dp_sgd_curve(0.25, 4), **limits)
    full = f_dp_one_run_bound(160, 200, 1000, family=gaussian_curve, **limits)
    assert sampled > full > 1


@pytest.mark.parametrize("selection", ["bonferroni", "split"])
def test_one_run_bound_exceeds_the_truth_in_at_most_its_share_of_audits(selection: str) -> None:
    rng = np.random.default_rng(5)
    above = 0
    for seed in range(400):
        found = audit_one_run(*_response(rng, 200, 1.0), Claim(0.0), selection=selection, seeds=PublicSeeds(seed))  # type: ignore[arg-type]
        above += found.epsilon_lower_bound > 1.0
    assert above <= stats.binom.ppf(0.9999, 400, 0.05)


def test_gaussian_bound_holds_and_proves_half_of_epsilon() -> None:
    rng = np.random.default_rng(6)
    noise = 1.0
    truth = gaussian_curve(noise).epsilon(1e-5)
    bounds = [
        audit_one_run(*_gaussian(rng, 1000, noise), Claim(1e-5), family=gaussian_curve).epsilon_lower_bound
        for _ in range(100)
    ]
    assert sum(b > truth for b in bounds) <= stats.binom.ppf(0.9999, 100, 0.05)
    assert np.mean(bounds) >= 0.45 * truth


def test_rates_of_independent_trials_hold_at_preset_and_at_split_thresholds() -> None:
    rng = np.random.default_rng(7)
    for thresholds in ([0.5], [0.25, 0.5, 0.75], None):
        above = 0
        for seed in range(200):
            scores, included = _response(rng, 400, 1.0)
            found = audit_rates(
                scores[included], scores[~included], Claim(0.0), thresholds=thresholds, seeds=PublicSeeds(seed)
            )
            above += found.epsilon_lower_bound > 1.0
        assert above <= stats.binom.ppf(0.9999, 200, 0.05)


def test_rates_with_the_mechanisms_curve_hold_and_prove_more() -> None:
    rng = np.random.default_rng(10)
    truth = gaussian_curve(1.0).epsilon(1e-5)
    plain, curved = [], []
    for _ in range(200):
        scores, included = _gaussian(rng, 1000, 1.0)
        for family, into in ((None, plain), (gaussian_curve, curved)):
            found = audit_rates(scores[included], scores[~included], Claim(1e-5), family=family, thresholds=[0.5])
            into.append(found.epsilon_lower_bound)
    assert sum(b > truth for b in curved) <= stats.binom.ppf(0.9999, 200, 0.05)
    assert np.mean(curved) > 2 * np.mean(plain) > 1


def test_verdicts() -> None:
    rng = np.random.default_rng(8)
    included = rng.random(1000) < 0.5
    leaks = included + 0.01 * rng.standard_normal(1000)
    assert audit_one_run(leaks, included, Claim(1e-5, epsilon=2.0)).verdict == "violation"
    assert audit_one_run(*_response(rng, 1000, 1.0), Claim(1e-5, epsilon=2.0)).verdict == "consistent"
    assert audit_one_run(leaks[:20], included[:20], Claim(1e-5, epsilon=8.0)).verdict == "underpowered"
    assert audit_one_run(leaks, included, Claim(1e-5)).verdict is None


def test_bound_as_a_measurement_says_what_it_rests_on() -> None:
    rng = np.random.default_rng(9)
    found = audit_one_run(*_response(rng, 1000, 2.0), Claim(1e-5, epsilon=2.0))
    row = found.measurement()
    assert (row.name, row.low, row.high, row.unit) == (
        "attack.audit.epsilon_lower_bound",
        found.epsilon_lower_bound,
        None,
        "nats",
    )
    assert row.protocol["largest_provable_epsilon"] == found.largest_provable_epsilon > found.epsilon_lower_bound
    assert row.protocol["selection"] == "bonferroni"
    assert row.outside_guarantee


def test_guesses_are_the_highest_and_the_lowest() -> None:
    scores, included = np.array([5.0, 4.0, 3.0, 2.0, 1.0]), np.array([True, False, True, False, False])
    assert guess_counts(scores, included, 1) == 1
    assert guess_counts(scores, included, 2) == 2
    assert guess_counts(scores, included, 3) == 2
    assert guess_counts(scores, included, 5) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": np.array([1.0, math.nan] * 10)}, "canary scores: row 1 is nan"),
        ({"included": np.ones(20, dtype=int)}, "included: int64"),
        ({"included": np.ones(20, dtype=bool)}, "all canaries are on one side"),
        ({"scores": np.zeros(4), "included": np.array([True, False] * 2)}, "4 canaries"),
        ({"guess_shares": (0.0,)}, "guess_shares"),
        ({"selection": "split"}, "public seed"),
    ],
)
def test_canaries_that_cannot_be_audited_are_refused(change: dict[str, object], message: str) -> None:
    given_ = {"scores": np.arange(20.0), "included": np.arange(20) % 2 == 0, **change}
    with pytest.raises(DataError, match=message):
        audit_one_run(claim=Claim(1e-5), **given_)  # type: ignore[arg-type]


def test_claims_out_of_range_are_refused() -> None:
    for wrong in ({"delta": 1.0}, {"delta": 1e-5, "confidence": 0.0}, {"delta": 1e-5, "epsilon": math.nan}):
        with pytest.raises(DataError, match="must"):
            Claim(**wrong)


def test_a_curve_without_a_delta_is_refused() -> None:
    scores, included = np.arange(20.0), np.arange(20) % 2 == 0
    with pytest.raises(DataError, match="delta = 0"):
        audit_one_run(scores, included, Claim(0.0), family=gaussian_curve)
    with pytest.raises(DataError, match="delta = 0"):
        audit_rates(scores, scores, Claim(0.0), family=gaussian_curve, thresholds=[0.5])


def test_rates_refuse_too_few_trials_and_a_split_without_a_seed() -> None:
    with pytest.raises(DataError, match="9 members"):
        audit_rates(np.zeros(9), np.zeros(20), Claim(0.0), thresholds=[0.5])
    with pytest.raises(DataError, match="public seed"):
        audit_rates(np.zeros(20), np.zeros(20), Claim(0.0))
