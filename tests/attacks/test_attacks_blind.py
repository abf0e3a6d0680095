"""The blind baseline: no false alarm where membership is drawn at random, an alarm where the texts differ."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from troth.attacks.blind import _folds, blind_scores, shift_warning
from troth.attacks.membership import measure_membership
from troth.attacks.roc import Auc, auc
from troth.errors import DataError
from troth.results import Measurement
from troth.seeds import PublicSeeds

WORDS = [f"word{number}" for number in range(80)]
RUNS = 200


def texts_of(rows: int, seed: int = 0, first: int = 0) -> list[str]:
    """Texts of 3 to 11 words, some words far more frequent than others."""
    generator = np.random.default_rng(seed)
    chances = 1 / np.arange(1, len(WORDS) + 1)
    names = np.roll(WORDS, first)
    sizes = generator.integers(3, 12, rows)
    return [" ".join(generator.choice(names, size, p=chances / chances.sum())) for size in sizes]


def area_of(texts: list[str], member: np.ndarray, seed: int) -> Auc:
    scores = blind_scores(texts, member, seeds=PublicSeeds(seed))
    return auc(scores[member], scores[~member])


def test_random_splits_of_fixed_texts_cover_one_half_at_the_stated_rate() -> None:
    """200 draws of membership, nominal: 5 % miss, 2.5 % alarm; more than the 99.9 % binomial bounds (21, 13) fails.

    The means' bound is five standard errors of an area of 60 against 60.
    """
    texts = texts_of(120)
    found = []
    for seed in range(RUNS):
        member = np.zeros(120, dtype=bool)
        member[np.random.default_rng(seed).permutation(120)[:60]] = True
        found.append(area_of(texts, member, seed))
    assert sum(not a.interval.low <= 0.5 <= a.interval.high for a in found) <= binom.isf(1e-3, RUNS, 0.05)
    assert sum(a.interval.low > 0.5 for a in found) <= binom.isf(1e-3, RUNS, 0.025)
    assert abs(np.mean([a.value for a in found]) - 0.5) < 5 * 0.053 / np.sqrt(RUNS)


def test_texts_of_another_distribution_are_told_apart_and_warned_of() -> None:
    texts, member = [*texts_of(100), *texts_of(100, 1, first=20)], np.repeat([True, False], 100)
    scores = blind_scores(texts, member, seeds=PublicSeeds(1))
    assert auc(scores[member], scores[~member]).value > 0.9
    found = measure_membership(scores[member], scores[~member], seeds=PublicSeeds(1), prefix="attack.membership.blind")
    warning = shift_warning(found.measurements[0])
    assert warning is not None
    assert warning.startswith("members and non-members differ by text alone")
    assert f"{found.measurements[0].low:.3f}" in warning


def test_length_alone_is_seen() -> None:
    texts = ["word " * size for size in np.random.default_rng(0).integers(1, 6, 100)]
    texts += ["word " * size for size in np.random.default_rng(1).integers(6, 12, 100)]
    assert area_of(texts, np.repeat([True, False], 100), 1).value > 0.99


def test_scores_are_midranks_within_five_even_folds_and_come_from_the_public_seed() -> None:
    texts, member = texts_of(103), np.arange(103) < 41
    scores = blind_scores(texts, member, seeds=PublicSeeds(1))
    assert ((scores > 0) & (scores < 1)).all()
    folds = _folds(member, PublicSeeds(1))
    for fold in range(5):
        assert scores[folds == fold].mean() == pytest.approx(0.5)
        assert {int(member[folds == fold].sum()), int((~member)[folds == fold].sum())} <= {8, 9, 12, 13}
    np.testing.assert_array_equal(blind_scores(texts, member, seeds=PublicSeeds(1)), scores)
    assert (blind_scores(texts, member, seeds=PublicSeeds(2)) != scores).any()


def test_of_two_folds_one_learns_from_the_other_never_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """The labels of a fold that nobody else learnt from may change without a change of the others' scores."""
    texts, member = texts_of(100), np.arange(100) % 2 == 0
    folds = _folds(member, PublicSeeds(1))
    monkeypatch.setattr("troth.attacks.blind._folds", lambda *_: folds)
    scores = blind_scores(texts, member, seeds=PublicSeeds(1))
    moved = np.zeros((5, 5), dtype=bool)
    for fold in range(5):
        other = member.copy()
        other[folds == fold] = ~member[folds == fold]
        again = blind_scores(texts, other, seeds=PublicSeeds(1))
        moved[fold] = [bool((again != scores)[folds == own].any()) for own in range(5)]
    assert not moved.diagonal().any()
    assert (moved ^ moved.T)[~np.eye(5, dtype=bool)].all()


def test_texts_without_words_are_all_alike() -> None:
    scores = blind_scores(["", "..."] * 20, np.arange(40) < 20, seeds=PublicSeeds(1))
    assert (scores == 0.5).all()


def test_bad_input_is_refused() -> None:
    with pytest.raises(DataError, match="9 members and 31 non-members: the blind baseline wants 10 of each"):
        blind_scores(texts_of(40), np.arange(40) < 9, seeds=PublicSeeds(1))
    with pytest.raises(DataError, match="one bool each"):
        blind_scores(texts_of(40), np.arange(40) % 2, seeds=PublicSeeds(1))
    with pytest.raises(DataError, match="for 40 texts"):
        blind_scores(texts_of(40), np.arange(39) < 20, seeds=PublicSeeds(1))


@pytest.mark.parametrize(("value", "low"), [(0.55, 0.5), (0.4, 0.3), (None, None)])
def test_no_warning_where_the_interval_does_not_say_so(value: float | None, low: float | None) -> None:
    high = None if value is None else 0.6
    area = Measurement("attack.membership.blind.auc", value, low, high, 0.95, "delong", 200, "fraction")
    assert shift_warning(area) is None
