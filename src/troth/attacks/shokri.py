"""The shadow-classifier attack, as the historical baseline: a classifier learns what 'seen in training' looks like."""

from __future__ import annotations

from typing import Protocol, cast

import numpy as np
from scipy import special

from troth.errors import DataError
from troth.seeds import PublicSeeds

__all__ = ["shokri_scores"]

_LEAST_PER_SIDE = 50  # rows of shadows IN, and OUT, for an attack classifier of a class of its own
_EPOCHS = 50
_FLOOR = -30.0  # nats; below it one probability is as small as another


class _Classifier(Protocol):
    def fit(self, features: np.ndarray, sides: np.ndarray) -> _Classifier: ...

    def predict_proba(self, features: np.ndarray) -> np.ndarray: ...


def shokri_scores(
    target_log_probabilities: np.ndarray,
    labels: np.ndarray,
    shadow_log_probabilities: np.ndarray,
    inside: np.ndarray,
    *,
    seeds: PublicSeeds,
) -> np.ndarray:
    """Return the attack classifiers' log-odds that the target was trained on each example [examples].

    The attack of Shokri et al. (S&P 2017, arXiv 1610.05820): shadow models label their own outputs as IN or OUT, and
    for each true class a classifier learns to tell these apart; it is then asked about the target's outputs. It sees
    the output's log-probabilities from high to low and that of the true label. As in the paper it is a network with
    one hidden layer of 64, here trained for 50 epochs; we depart from it in the log scale of the inputs. A class with
    fewer than 50 rows of the shadows on a side is judged by one classifier of all classes.

    Args:
        target_log_probabilities: the target's [examples, classes].
        labels: the true classes [examples], int.
        shadow_log_probabilities: the same by each shadow [shadows, examples, classes].
        inside: whether each shadow was trained on each example [shadows, examples].
        seeds: public seed of the classifiers.

    Raises:
        DataError: NaN, shapes that do not fit, or shadows' rows on one side only.
    """
    target = _floored(target_log_probabilities, "target_log_probabilities")
    shadows = _floored(shadow_log_probabilities, "shadow_log_probabilities")
    classes, mask = _checked(target, np.asarray(labels), shadows, np.asarray(inside))
    wanted = _features(target, classes)
    known = np.concatenate([_features(shadow, classes) for shadow in shadows])
    sides, groups = mask.reshape(-1), np.tile(classes, len(shadows))
    centre, spread = known.mean(0), np.maximum(known.std(0), 1e-6)
    known, wanted = (known - centre) / spread, (wanted - centre) / spread
    alone = [
        int(label)
        for label in np.unique(classes)
        if min(sides[groups == label].sum(), (~sides[groups == label]).sum()) >= _LEAST_PER_SIDE
    ]
    scores = np.empty(len(classes))
    for label in alone:
        rows = groups == label
        model = _classifier(known[rows], sides[rows], seeds.integer("attack", "shokri", label))
        scores[classes == label] = _log_odds(model, wanted[classes == label])
    pooled = ~np.isin(classes, alone)
    if pooled.any():
        model = _classifier(known, sides, seeds.integer("attack", "shokri", "all classes"))
        scores[pooled] = _log_odds(model, wanted[pooled])
    return scores


def _features(log_probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return [examples, classes + 1]: log-probabilities from high to low, then the true label's."""
    own = log_probabilities[np.arange(len(labels)), labels]
    return np.column_stack([-np.sort(-log_probabilities, axis=1), own])


def _classifier(features: np.ndarray, sides: np.ndarray, seed: int) -> _Classifier:
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    model = MLPClassifier((64,), alpha=1e-2, learning_rate_init=1e-2, max_iter=_EPOCHS, random_state=seed % 2**32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a fixed number of epochs is what is wanted
        return cast("_Classifier", model.fit(features, sides))


def _log_odds(model: _Classifier, features: np.ndarray) -> np.ndarray:
    chance = np.clip(model.predict_proba(features)[:, 1], 1e-15, 1 - 1e-15)
    return np.asarray(special.logit(chance))


def _floored(values: np.ndarray, name: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if np.isnan(array).any():
        raise DataError(f"{name}: NaN; score these examples again")
    if not array.size or (array > 1e-6).any():
        raise DataError(f"{name}: give natural logarithms of probabilities, at most 0, of at least one example")
    return np.maximum(array, _FLOOR)


def _checked(
    target: np.ndarray, labels: np.ndarray, shadows: np.ndarray, inside: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels and the mask, known to fit the log-probabilities."""
    if target.ndim != 2 or shadows.ndim != 3 or shadows.shape[1:] != target.shape:
        raise DataError(
            f"shadow_log_probabilities of shape {list(shadows.shape)} for a target of shape {list(target.shape)}: "
            "give [shadows, examples, classes] and [examples, classes]"
        )
    if labels.shape != target.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"labels: {labels.dtype} of shape {list(labels.shape)} for {len(target)} examples: ints")
    if labels.min() < 0 or labels.max() >= target.shape[1]:
        raise DataError(f"labels: must lie in 0..{target.shape[1] - 1}")
    if inside.dtype != np.bool_ or inside.shape != shadows.shape[:2]:
        raise DataError(f"inside: {inside.dtype} of shape {list(inside.shape)}: one bool for each shadow and example")
    if min(inside.sum(), (~inside).sum()) < _LEAST_PER_SIDE:
        raise DataError(
            f"{inside.sum()} outputs of shadows IN and {(~inside).sum()} OUT: "
            f"the attack wants {_LEAST_PER_SIDE} of each"
        )
    return labels.astype(np.int64), inside
