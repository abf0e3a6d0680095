"""Quantile regression: gains where scores depend on the text, nothing without leakage, who learns from whom."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binom

from troth.attacks import quantile
from troth.attacks.quantile import quantile_scores
from troth.attacks.roc import auc
from troth.errors import DataError
from troth.seeds import PublicSeeds

TOPICS = ("play some music by", "what is the weather in", "book a table at", "find the film called")


def world(rows: int, seed: int, gain: float) -> tuple[list[str], list[str], np.ndarray, np.ndarray]:
    """Texts of four topics, each with a difficulty of its own; a member's score is higher by `gain`."""
    generator = np.random.default_rng(seed)
    topic = generator.integers(4, size=rows)
    texts = [f"{TOPICS[t]} place{generator.integers(50)}" for t in topic]
    member = np.arange(rows) < rows // 2
    scores = -3.0 * topic + generator.normal(size=rows) + gain * member
    return texts, [f"topic{t}" for t in topic], scores, member


def area(scores: np.ndarray, member: np.ndarray) -> float:
    return auc(scores[member], scores[~member]).value


def test_differences_among_texts_are_taken_out_by_words_or_by_labels() -> None:
    texts, labels, scores, member = world(600, 0, 1.5)
    assert area(scores, member) < 0.68
    assert area(quantile_scores(texts, scores, member, seeds=PublicSeeds(1)), member) > 0.78
    alike = ["text"] * len(texts)
    assert area(quantile_scores(alike, scores, member, labels=labels, seeds=PublicSeeds(1)), member) > 0.78
    topic = np.array([float(label[-1]) for label in labels])[:, None]
    assert area(quantile_scores(alike, scores, member, features=topic, seeds=PublicSeeds(1)), member) > 0.78


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_the_share_of_non_members_above_zero_is_the_one_asked_for(level: float) -> None:
    """500 non-members of 1,000; the bound is wide, since the regressors are only as good as 400 rows make them."""
    texts, labels, scores, member = world(1000, 3, 0.0)
    found = quantile_scores(texts, scores, member, labels=labels, level=level, seeds=PublicSeeds(1))
    assert abs((found[~member] > 0).mean() - (1 - level)) < 0.06
    assert abs((found[member] > 0).mean() - (1 - level)) < 0.06


def test_without_leakage_the_interval_covers_one_half() -> None:
    """30 draws at nominal 5 %: more than the 99.9 % binomial bound (6) fails."""
    misses = 0
    for seed in range(30):
        texts, _, scores, member = world(240, seed, 0.0)
        found = quantile_scores(texts, scores, member, seeds=PublicSeeds(seed))
        interval = auc(found[member], found[~member]).interval
        misses += not interval.low <= 0.5 <= interval.high
    assert misses <= binom.isf(1e-3, 30, 0.05)


def test_members_are_never_learnt_from_and_no_one_is_judged_by_what_learnt_from_him(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Regressors that only remember: their rows in fit and in predict are told apart by a number of each row."""
    learnt: list[set[float]] = []
    asked: list[list[set[float]]] = []

    class Remembers:
        def __init__(self, _: float) -> None:
            asked.append([])

        def fit(self, features: np.ndarray, _: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
            learnt.append(set(features[:, -1]))
            return self.predict

        def predict(self, features: np.ndarray) -> np.ndarray:
            asked[-1].append(set(features[:, -1]))
            return np.zeros(len(features))

    monkeypatch.setattr(quantile, "_LinearQuantile", Remembers)
    texts, _, scores, member = world(250, 0, 1.0)
    numbers = np.arange(250.0)[:, None]
    found = quantile_scores(texts, scores, member, features=numbers, seeds=PublicSeeds(1))
    np.testing.assert_array_equal(found, scores)
    inside, outside = set(range(125)), set(range(125, 250))
    assert len(learnt) == 5
    assert all(rows < outside and len(rows) == 100 for rows in learnt)
    for rows, (own, members) in zip(learnt, asked, strict=True):
        assert own == outside - rows
        assert members == inside
    assert set.union(*(own for own, _ in asked)) == outside


def test_members_are_judged_by_the_mean_of_the_five(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = iter([1.0, 2.0, 3.0, 4.0, 10.0])

    class Constant:
        def __init__(self, _: float) -> None:
            self.value = next(counter)

        def fit(self, *_: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
            return lambda features: np.full(len(features), self.value)

    monkeypatch.setattr(quantile, "_LinearQuantile", Constant)
    texts, _, _, member = world(250, 0, 1.0)
    found = quantile_scores(texts, np.zeros(250), member, seeds=PublicSeeds(1))
    np.testing.assert_allclose(found[member], -4.0)
    assert sorted(set(found[~member])) == [-10.0, -4.0, -3.0, -2.0, -1.0]


def test_the_public_seed_decides_and_odd_texts_do_no_harm() -> None:
    texts, _, scores, member = world(220, 0, 1.0)
    first, again, other = (quantile_scores(texts, scores, member, seeds=PublicSeeds(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    for odd in ("", "same words"):
        assert np.isfinite(quantile_scores([odd] * 220, scores, member, seeds=PublicSeeds(1))).all()


def test_bad_input_is_refused() -> None:
    texts, labels, scores, member = world(220, 0, 1.0)
    seeds = PublicSeeds(1)
    with pytest.raises(DataError, match="99 non-members: the quantile attack learns from 100 or more"):
        quantile_scores(texts, scores, np.arange(220) < 121, seeds=seeds)
    with pytest.raises(DataError, match="scores: row 3 is nan"):
        quantile_scores(texts, np.where(np.arange(220) == 3, np.nan, scores), member, seeds=seeds)
    with pytest.raises(DataError, match="one bool for each"):
        quantile_scores(texts, scores, member.astype(int), seeds=seeds)
    with pytest.raises(DataError, match="219 texts, 220 scores"):
        quantile_scores(texts[:-1], scores, member, seeds=seeds)
    with pytest.raises(DataError, match="219 labels for 220 texts"):
        quantile_scores(texts, scores, member, labels=labels[:-1], seeds=seeds)
    with pytest.raises(DataError, match="finite"):
        quantile_scores(texts, scores, member, features=np.full((220, 1), np.nan), seeds=seeds)
    with pytest.raises(DataError, match="level = 1"):
        quantile_scores(texts, scores, member, level=1.0, seeds=seeds)
