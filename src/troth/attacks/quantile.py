"""Quantile regression: how far a score lies above what examples like this one reach without being members."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from troth.attacks.roc import scores_of
from troth.errors import DataError
from troth.seeds import PublicSeeds

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

__all__ = ["LEAST_NONMEMBERS", "quantile_scores"]

_FOLDS = 5
LEAST_NONMEMBERS = 100
_MOST_LEARNT = 5000  # non-members for each regressor: a linear program of more takes minutes
_PENALTY = 0.12  # over the root of the rows, for standardised features and scores
_COLUMNS = 2**18  # of the hashed word n-grams
_COMPONENTS = 32  # of their singular value decomposition
_WORD = r"(?u)\b\w+\b"  # single letters and digits too


def quantile_scores(
    texts: Sequence[str],
    scores: np.ndarray,
    member: np.ndarray,
    *,
    labels: Sequence[Hashable] | None = None,
    features: np.ndarray | None = None,
    level: float = 0.9,
    seeds: PublicSeeds,
) -> np.ndarray:
    """Return each score minus the quantile expected of a non-member like it [rows], higher = more likely a member.

    Bertran et al. (NeurIPS 2023, arXiv 2307.03694): score - q_α(x), with q_α learnt from non-members by the pinball
    loss. Here x is the text's words and pairs of words, hashed and reduced to 32 numbers by a singular value
    decomposition, its length in words and characters, its label, and `features`. Non-members are cut into five folds,
    each judged by a regressor that learnt from the others (at most 5,000 of them, drawn by the public seed); members by
    the average of all five.

    The regressor is linear with an L1 penalty. Measured on SNIPS with an overfitted bag-of-words model, level 0.9, for
    200 / 1,000 / 5,000 non-members (2, 2 and 1 seeds): 18 / 12 / 11 % of them lie above the quantile learnt without
    them, where 10 % should; with scikit-learn's histogram boosting 28 / 28 / 16 %. The pinball loss of boosting is
    higher by 19 and 21 % at 200 and 1,000, and lower by 8 % at 5,000.

    Guarantees:
    - members are never learnt from, neither by a regressor nor by a decomposition;
    - no non-member is judged by what learnt from it.

    Args:
        texts: of members and non-members.
        scores: any score [rows], higher = member.
        member: [rows] bool.
        labels: each row's class, where the task has one: a score is compared with those of its class.
        features: further numbers of each example [rows, columns], such as the mean token statistics of a task without
            labels. What the attacked model says of an example may tell its membership, and takes from the attack what
            it explains.
        level: α, in (0, 1); one minus the false-positive rate that matters.
        seeds: public seed of the folds, the decompositions and the regressors.

    Raises:
        DataError: NaN or infinite values, shapes that do not fit, a level outside of (0, 1), or fewer than 100
            non-members.
    """
    found, sides = _checked(texts, scores, member, level)
    plain = _plain_features(texts, labels, features)
    words = _words(texts)
    outside, inside = np.flatnonzero(~sides), np.flatnonzero(sides)
    order = seeds.generator("attack", "quantile", "folds").permutation(outside)
    expected = np.zeros(len(found))
    for fold, own in enumerate(np.array_split(order, _FOLDS)):
        learnt = order[~np.isin(order, own)][:_MOST_LEARNT]
        seed = seeds.integer("attack", "quantile", fold) % 2**32
        components = _components(words[learnt], seed)
        every = np.column_stack([np.asarray(words @ components.T), plain])
        quantile = _LinearQuantile(level).fit(every[learnt], found[learnt])
        expected[own] = quantile(every[own])
        if len(inside):
            expected[inside] += quantile(every[inside]) / _FOLDS
    return found - expected


def _checked(
    texts: Sequence[str], scores: np.ndarray, member: np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray]:
    if not 0 < level < 1:
        raise DataError(f"level = {level}: must lie between 0 and 1")
    found, sides = scores_of(scores, "scores"), np.asarray(member)
    if len(texts) != len(found) or sides.dtype != np.bool_ or sides.shape != found.shape:
        raise DataError(
            f"{len(texts)} texts, {len(found)} scores and member ({sides.dtype}) of shape {list(sides.shape)}: "
            "give one text, one score and one bool for each example"
        )
    outside = int((~sides).sum())
    if outside < LEAST_NONMEMBERS:
        raise DataError(f"{outside} non-members: the quantile attack learns from {LEAST_NONMEMBERS} or more")
    return found, sides


def _plain_features(texts: Sequence[str], labels: Sequence[Hashable] | None, features: np.ndarray | None) -> np.ndarray:
    """Return lengths, labels as one column each, and the caller's features [rows, columns]."""
    sizes = np.array([(len(text.split()), len(text)) for text in texts], dtype=np.float64)
    columns = [np.log1p(sizes)]
    if labels is not None:
        if len(labels) != len(texts):
            raise DataError(f"{len(labels)} labels for {len(texts)} texts: give one for each")
        codes = {label: code for code, label in enumerate(dict.fromkeys(labels))}
        columns.append(np.eye(len(codes))[[codes[label] for label in labels]])
    if features is not None:
        more = np.asarray(features, dtype=np.float64)
        if more.ndim != 2 or len(more) != len(texts) or not np.isfinite(more).all():
            raise DataError(f"features of shape {list(more.shape)} for {len(texts)} texts: finite, [rows, columns]")
        columns.append(more)
    return np.column_stack(columns)


def _words(texts: Sequence[str]) -> csr_matrix:
    """Return hashed words and pairs of words [rows, columns in use], sparse, each row of length one."""
    from sklearn.feature_extraction.text import HashingVectorizer

    hashing = HashingVectorizer(n_features=_COLUMNS, ngram_range=(1, 2), token_pattern=_WORD, alternate_sign=False)
    found = hashing.transform(texts)
    return cast("csr_matrix", found[:, np.unique(found.indices)] if found.nnz else found[:, :1])


def _components(words: csr_matrix, seed: int) -> np.ndarray:
    """Return the leading right singular vectors [components, columns] of the texts that are learnt from."""
    from sklearn.utils.extmath import randomized_svd

    if not words.nnz:
        return np.zeros((1, words.shape[1]))
    return np.asarray(randomized_svd(words, min(_COMPONENTS, words.shape[0] - 1), random_state=seed)[2])


@dataclass(frozen=True, eq=False)
class _LinearQuantile:
    """A linear quantile of standardised scores over standardised features, with an L1 penalty."""

    level: float

    def fit(self, features: np.ndarray, scores: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """Return what predicts the quantile of rows like `features` [rows, columns]."""
        from sklearn.linear_model import QuantileRegressor

        centre, spread = features.mean(0), features.std(0)
        spread = np.where(spread > 0, spread, 1.0)
        place, scale = float(scores.mean()), float(scores.std()) or 1.0
        penalty = _PENALTY / math.sqrt(len(scores))
        model = QuantileRegressor(quantile=self.level, alpha=penalty, solver="highs")
        model.fit((features - centre) / spread, (scores - place) / scale)
        return lambda wanted: np.asarray(model.predict((wanted - centre) / spread) * scale + place)
