"""Membership scores: the vectorised forms equal loops written from the formulas, and find members."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from troth.attacks import auc
from troth.attacks.scores import (
    calibrated_scores,
    confidence,
    lira_scores,
    modified_entropy_scores,
    rmia_scores,
    student_t_scores,
)
from troth.errors import DataError


def _log_probabilities(examples: int, labels: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    logits = 3 * rng.standard_normal((examples, labels))
    return logits - np.log(np.exp(logits).sum(1, keepdims=True)), rng.integers(labels, size=examples)


World = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _world(examples: int, shadows: int, effect: float = 1.0, seed: int = 3) -> World:
    """Return membership, the target's confidence, the shadows' and who was inside: complementary pairs."""
    rng = np.random.default_rng(seed)
    half = rng.random((shadows // 2, examples)) < 0.5
    inside = np.concatenate([half, ~half])
    hardness = 3 * rng.standard_normal(examples)
    member = rng.random(examples) < 0.5
    own = hardness + effect * member + rng.standard_normal(examples)
    seen = hardness + effect * inside + rng.standard_normal((shadows, examples))
    return member, own, seen, inside


def test_confidence_and_modified_entropy_equal_their_formulas() -> None:
    log_p, labels = _log_probabilities(50, 5)
    for row, label, sure, entropy in zip(
        np.exp(log_p), labels, confidence(log_p, labels), modified_entropy_scores(log_p, labels), strict=True
    ):
        others = [p for i, p in enumerate(row) if i != label]
        assert sure == pytest.approx(math.log(row[label]) - math.log(sum(others)), rel=1e-9)
        expected = (1 - row[label]) * math.log(row[label]) + sum(p * math.log(1 - p) for p in others)
        assert entropy == pytest.approx(expected, rel=1e-9)


def test_modified_entropy_of_sure_answers_is_finite_and_in_order() -> None:
    with np.errstate(divide="ignore"):
        log_p = np.log(np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]))
    right, half, wrong = modified_entropy_scores(log_p, np.zeros(3, dtype=int))
    assert np.isfinite([right, half, wrong]).all()
    assert right > half > wrong


def test_rmia_equals_all_pairs() -> None:
    _, own, seen, inside = _world(40, 8)
    log_own, log_seen = -np.logaddexp(0, -own), -np.logaddexp(0, -seen)
    _, others, elsewhere, _ = _world(60, 8, seed=4)
    log_others, log_elsewhere = -np.logaddexp(0, -others), -np.logaddexp(0, -elsewhere)
    for gamma in (1.0, 2.0):
        for mask in (inside, None):
            found = rmia_scores(log_own, log_seen, mask, log_others, log_elsewhere, gamma=gamma)
            for x in range(40):
                p = np.exp(log_seen[:, x])
                usual = (1.3 * p.mean() + 0.7) / 2
                if mask is not None:
                    usual = (p[mask[:, x]].mean() + p[~mask[:, x]].mean()) / 2
                beaten = 0
                for z in range(60):
                    q = np.exp(log_elsewhere[:, z]).mean()
                    q = (1.3 * q + 0.7) / 2 if mask is None else q
                    beaten += (np.exp(log_own[x]) / usual) / (np.exp(log_others[z]) / q) > gamma
                assert found[x] == pytest.approx(beaten / 60, abs=1e-9)


def test_rmia_with_shadows_that_saw_the_population_equals_all_pairs() -> None:
    _, own, seen, inside = _world(40, 6)
    _, others, elsewhere, population_inside = _world(50, 6, seed=4)
    inside, population_inside = inside.copy(), population_inside.copy()
    inside[:, :9] = np.arange(6)[:, None] < 5  # sides of unequal numbers
    population_inside[:, :9] = np.arange(6)[:, None] < 1
    logs = [-np.logaddexp(0, -phi) for phi in (own, seen, others, elsewhere)]
    found = rmia_scores(logs[0], logs[1], inside, logs[2], logs[3], gamma=1.5, population_inside=population_inside)
    usual, usual_elsewhere = (
        [(p[m].mean() + p[~m].mean()) / 2 for p, m in zip(np.exp(shadows).T, masks.T, strict=True)]
        for shadows, masks in ((logs[1], inside), (logs[3], population_inside))
    )
    for x in range(40):
        beaten = [
            (math.exp(logs[0][x]) / usual[x]) / (math.exp(logs[2][z]) / usual_elsewhere[z]) > 1.5 for z in range(50)
        ]
        assert found[x] == pytest.approx(np.mean(beaten), abs=1e-9)
    default = rmia_scores(logs[0], logs[1], inside, logs[2], logs[3], gamma=1.5)
    assert not np.allclose(found, default)


def test_rmia_keeps_the_precision_of_small_out_means() -> None:
    # IN probabilities near 1, OUT ones near 1e-9: their mean decides, and must not drown in the IN sum's rounding.
    rng = np.random.default_rng(6)
    inside = np.repeat(np.array([[True], [True], [False], [False]]), 30, axis=1)
    seen = np.where(inside, 0.0, -20 - rng.random((4, 30)))
    population, elsewhere = -rng.random(2000), -rng.random((4, 2000))
    own = -rng.random(30)
    found = rmia_scores(own, seen, inside, population, elsewhere)
    usual = (np.exp(seen[:2]).mean(0) + np.exp(seen[2:]).mean(0)) / 2
    pairs = (own - np.log(usual))[:, None] > population - np.log(np.exp(elsewhere).mean(0))
    np.testing.assert_allclose(found, pairs.mean(1), atol=1e-9)


@pytest.mark.parametrize("variance", ["global", "per_example"])
def test_lira_equals_the_loop_over_examples(variance: str) -> None:
    _, own, seen, inside = _world(30, 12)
    sides = [inside, ~inside]
    spreads = []
    for mask in sides:
        residuals = [seen[mask[:, x], x] - seen[mask[:, x], x].mean() for x in range(30)]
        pooled = sum((r**2).sum() for r in residuals) / sum(len(r) - 1 for r in residuals)
        spreads.append([math.sqrt(pooled if variance == "global" else (r**2).sum() / (len(r) - 1)) for r in residuals])
    found = lira_scores(own, seen, inside, variance=variance)  # type: ignore[arg-type]
    for x in range(30):
        laws = [stats.norm(seen[m[:, x], x].mean(), s[x]) for m, s in zip(sides, spreads, strict=True)]
        assert found[x] == pytest.approx(laws[0].logpdf(own[x]) - laws[1].logpdf(own[x]), abs=1e-9)


def test_offline_lira_is_a_normal_tail() -> None:
    _, own, seen, _ = _world(30, 40)
    found = lira_scores(own, seen, None)
    expected = stats.norm.logcdf(own, seen.mean(0), seen.std(0, ddof=1))
    assert found == pytest.approx(expected, abs=1e-9)


def test_student_t_tends_to_the_likelihood_ratio_of_many_shadows() -> None:
    member, own, seen, inside = _world(400, 2000)
    many = student_t_scores(own, seen, inside)
    assert many == pytest.approx(lira_scores(own, seen, inside), abs=0.5)
    member, own, seen, inside = _world(2000, 8)
    few, plain = student_t_scores(own, seen, inside), lira_scores(own, seen, inside, variance="per_example")
    assert auc(few[member], few[~member]).value > auc(plain[member], plain[~member]).value


def test_shadows_and_references_see_members_that_the_loss_alone_does_not() -> None:
    member, own, seen, inside = _world(4000, 8, effect=1.5)
    loss = auc(own[member], own[~member]).value
    shadowed = lira_scores(own, seen, inside)
    calibrated = calibrated_scores(own, seen)
    assert loss < 0.68
    assert auc(shadowed[member], shadowed[~member]).value > loss + 0.08
    assert auc(calibrated[member], calibrated[~member]).value > loss + 0.08


def test_what_cannot_be_scored_is_refused_by_name() -> None:
    _, own, seen, inside = _world(20, 8)
    lonely = inside.copy()
    lonely[:, 3] = True
    with pytest.raises(DataError, match="example 3 has 0 shadows on one side"):
        lira_scores(own, seen, lonely)
    with pytest.raises(DataError, match="example 3 has no shadow on one side"):
        rmia_scores(own, seen, lonely, own, seen)
    with pytest.raises(DataError, match="population example 3 has no shadow on one side"):
        rmia_scores(own, seen, inside, own, seen, population_inside=lonely)
    with pytest.raises(DataError, match="population_inside: without `inside`"):
        rmia_scores(own, seen, None, own, seen, population_inside=inside)
    with pytest.raises(DataError, match=r"shadows: the number at \[0, 0\] is not finite"):
        lira_scores(own, np.where(seen == seen[0, 0], np.nan, seen), inside)
    with pytest.raises(DataError, match=r"shadows of shape \[20\]"):
        lira_scores(own, own, inside)
    with pytest.raises(DataError, match="inside: int64"):
        student_t_scores(own, seen, inside.astype(np.int64))
    with pytest.raises(DataError, match=r"references of shape \[20\]"):
        calibrated_scores(own, own)
    with pytest.raises(DataError, match=r"labels: must lie in 0\.\.4"):
        confidence(_log_probabilities(2, 5)[0], np.array([0, 5]))
    with pytest.raises(DataError, match="give \\[examples, labels\\]"):
        modified_entropy_scores(own, np.zeros(20, dtype=int))
