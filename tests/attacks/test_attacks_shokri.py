"""The shadow-classifier attack on linear heads that learnt random labels by heart, and on heads that learnt nothing."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from scipy.special import log_softmax

from troth.attacks import shokri
from troth.attacks.roc import auc
from troth.attacks.shokri import shokri_scores
from troth.errors import DataError
from troth.seeds import PublicSeeds

EXAMPLES, CLASSES, SHADOWS = 240, 4, 4


def world(strength: float, seed: int = 0, examples: int = EXAMPLES) -> tuple[np.ndarray, ...]:
    """Log-probabilities of target and shadows whose true logit is raised by `strength` where an example is inside."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(CLASSES, size=examples)
    inside = generator.permuted(np.arange(SHADOWS + 1)[:, None] < np.full(examples, (SHADOWS + 1) // 2), axis=0)
    logits = generator.normal(size=(SHADOWS + 1, examples, CLASSES))
    logits[:, np.arange(examples), labels] += strength * inside + 1.0
    logs = log_softmax(logits, axis=2)
    return logs[0], labels, logs[1:], inside[1:], inside[0]


@cache
def scores_of(strength: float) -> tuple[np.ndarray, np.ndarray]:
    target, labels, shadows, inside, member = world(strength)
    return shokri_scores(target, labels, shadows, inside, seeds=PublicSeeds(1)), member


def test_heads_that_learnt_by_heart_are_found_out() -> None:
    scores, member = scores_of(9.0)
    assert scores.shape == (EXAMPLES,)
    assert auc(scores[member], scores[~member]).value >= 0.99


def test_heads_that_learnt_nothing_tell_nothing() -> None:
    scores, member = scores_of(0.0)
    interval = auc(scores[member], scores[~member], confidence=0.9999).interval
    assert interval.low <= 0.5 <= interval.high


def test_the_public_seed_decides() -> None:
    target, labels, shadows, inside, _ = world(1.0)
    first, again, other = (shokri_scores(target, labels, shadows, inside, seeds=PublicSeeds(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_each_class_has_its_own_classifier_and_small_classes_share_one(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[int] = []
    real = shokri._classifier

    def counted(features: np.ndarray, sides: np.ndarray, seed: int) -> object:
        fitted.append(len(sides))
        return real(features, sides, seed)

    monkeypatch.setattr(shokri, "_classifier", counted)
    target, labels, shadows, inside, _ = world(9.0)
    labels[labels == 3] = 2
    labels[:5] = 3  # of these the shadows have 20 rows
    scores = shokri_scores(target, labels, shadows, inside, seeds=PublicSeeds(1))
    assert fitted == [SHADOWS * int((labels == label).sum()) for label in range(3)] + [SHADOWS * EXAMPLES]
    assert np.isfinite(scores).all()


def test_certain_outputs_are_no_infinite_scores() -> None:
    target, labels, shadows, inside, _ = world(9.0)
    target = np.full_like(target, -np.inf)
    target[np.arange(EXAMPLES), labels] = 0.0
    assert np.isfinite(shokri_scores(target, labels, shadows, inside, seeds=PublicSeeds(1))).all()


def test_bad_input_is_refused() -> None:
    target, labels, shadows, inside, _ = world(1.0)
    seeds = PublicSeeds(1)

    def refused(message: str, *arrays: np.ndarray) -> None:
        with pytest.raises(DataError, match=message):
            shokri_scores(*arrays, seeds=seeds)

    refused("target_log_probabilities: NaN", np.where(target < -2, np.nan, target), labels, shadows, inside)
    refused("natural logarithms", np.exp(target), labels, shadows, inside)
    refused(r"give \[shadows, examples, classes\]", target, labels, shadows[:, :, :3], inside)
    refused(r"labels: must lie in 0\.\.3", target, labels + 1, shadows, inside)
    refused("240 examples: ints", target, labels[:-1], shadows, inside)
    refused("one bool for each", target, labels, shadows, inside[:, :-1])
    refused("one bool for each", target, labels, shadows, inside.astype(int))
    refused("960 outputs of shadows IN and 0 OUT", target, labels, shadows, np.ones_like(inside))
