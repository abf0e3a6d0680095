"""Membership scores as pure functions of arrays: what a model, its base model or its shadows say about examples.

A higher score always means 'more likely a member'. Scores of different attacks are not on one scale;
`measure_membership` turns any of them into rates and areas. *Confidence* below is the logit of the true label's
probability, which is nearly normal (Carlini et al., arXiv 2112.03570, section 4.2); natural logarithms throughout.

With shadow models each example is in the training data of some (IN) and not of the others (OUT), as the Boolean array
`inside` [shadows, examples] says.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import special, stats

from troth.errors import DataError

__all__ = [
    "calibrated_scores",
    "confidence",
    "lira_scores",
    "modified_entropy_scores",
    "rmia_scores",
    "student_t_scores",
]

_SMALLEST = 1e-12  # a variance of equal numbers, and a probability that was rounded to 0 or 1
_LEAST_PER_EXAMPLE = 32  # shadows below which a variance for each example does more harm than good
_PRIOR_SHAPE, _PRIOR_WEIGHT = 2.0, 1.0

Variance = Literal["auto", "global", "per_example"]


def confidence(log_probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return log p_y - log(1 - p_y) [examples], the sum over the other labels taken without cancellation.

    Args:
        log_probabilities: [examples, labels], each row's exponentials summing to 1.
        labels: the true ones [examples], int.

    Raises:
        DataError: NaN, or shapes that do not fit.
    """
    chosen = _chosen(log_probabilities, labels)
    others = np.where(chosen, -np.inf, log_probabilities)
    return np.asarray(log_probabilities[chosen] - special.logsumexp(others, axis=1))


def modified_entropy_scores(log_probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return minus the modified entropy [examples] (Song and Mittal, arXiv 2003.10595, equation 7).

    The entropy -(1 - p_y) log p_y - Σ_{i≠y} p_i log(1 - p_i) is 0 for a sure right answer and infinite for a sure wrong
    one; probabilities are kept 1e-12 away from 0 and 1.

    Args:
        log_probabilities: [examples, labels].
        labels: the true ones [examples], int.

    Raises:
        DataError: NaN, or shapes that do not fit.
    """
    chosen = _chosen(log_probabilities, labels)
    p = np.clip(np.exp(log_probabilities), _SMALLEST, 1 - _SMALLEST)
    terms = np.where(chosen, (1 - p) * np.log(p), p * np.log1p(-p))
    return np.asarray(terms.sum(1))


def calibrated_scores(target: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Return the target's score minus the mean of models that never saw the example [examples].

    Difficulty calibration (Watson et al., arXiv 2111.08440). The base model of a fine-tuned one is one such reference.

    Args:
        target: any score [examples], higher = member.
        references: the same score by other models [references, examples].

    Raises:
        DataError: NaN or infinite scores, or shapes that do not fit.
    """
    scores, others = _finite(target, "target"), _finite(references, "references")
    if others.ndim != 2 or others.shape[1:] != scores.shape or not len(others):
        raise DataError(
            f"references of shape {list(others.shape)} for {len(scores)} examples: give [references, examples]"
        )
    return np.asarray(scores - others.mean(0))


def rmia_scores(
    target: np.ndarray,
    shadows: np.ndarray,
    inside: np.ndarray | None,
    population: np.ndarray,
    shadows_on_population: np.ndarray,
    *,
    gamma: float = 1.0,
    offline_scale: float = 0.3,
    population_inside: np.ndarray | None = None,
) -> np.ndarray:
    """Return the share of population examples that are beaten by a factor gamma [examples], in [0, 1].

    RMIA (Zarifzadeh, Liu and Shokri, arXiv 2312.03262): Pr_z[(p(x) / p̄(x)) / (p(z) / p̄(z)) > gamma]. With IN shadows
    p̄ is the mean of the IN mean and the OUT mean; without (`inside` None) it is ((1 + a) OUT mean + 1 - a) / 2. The
    population's p̄ is the mean over all shadows, which never saw it, unless `population_inside` says which did.
    Sorting makes it O((examples + population) log population), with the same result as all pairs.

    Args:
        target: the target's log-probability of each example's true label [examples].
        shadows: the same by each shadow [shadows, examples].
        inside: whether each shadow was trained on each example; None where none of them was on any.
        population: the target's log-probabilities of other examples that it was not trained on [population].
        shadows_on_population: [shadows, population].
        gamma: above 0.
        offline_scale: a, in [0, 1]; 0.3 is the authors' value.
        population_inside: whether each shadow was trained on each population example [shadows, population], where some
            were; its p̄ is then made like the examples'. None where none of them was on any.

    Raises:
        DataError: NaN, shapes that do not fit, or an example without an OUT (or IN) shadow.
    """
    own, others = _finite(target, "target"), _finite(population, "population")
    by_shadows = _shaped(shadows, own, "shadows")
    elsewhere = _shaped(shadows_on_population, others, "shadows_on_population")
    if inside is None:
        if population_inside is not None:
            raise DataError("population_inside: without `inside` no shadow saw the examples, nor may it the population")
        usual, usual_elsewhere = (
            ((1 + offline_scale) * _probabilities(logs).mean(0) + 1 - offline_scale) / 2
            for logs in (by_shadows, elsewhere)
        )
    else:
        usual = _mean_of_sides(by_shadows, inside, "example")
        if population_inside is None:
            usual_elsewhere = _probabilities(elsewhere).mean(0)
        else:
            usual_elsewhere = _mean_of_sides(elsewhere, population_inside, "population example")
    ratios = own - np.log(np.maximum(usual, _SMALLEST))
    ranked = np.sort(others - np.log(np.maximum(usual_elsewhere, _SMALLEST)))
    # Looked up in ascending order the population stays in the cache: half the time, sorting included.
    beaten, order = np.empty(len(ratios)), np.argsort(ratios)
    beaten[order] = np.searchsorted(ranked, ratios[order] - np.log(gamma), side="left")
    return beaten / len(ranked)


def _probabilities(logs: np.ndarray) -> np.ndarray:
    """Return the exponentials, by torch: NumPy has no vector instructions for those of float64 on many machines."""
    import torch

    return np.asarray(torch.from_numpy(logs.copy()).exp_().numpy())


def _mean_of_sides(log_probabilities: np.ndarray, inside: np.ndarray, what: str) -> np.ndarray:
    """Return the mean of the IN mean and the OUT mean of the shadows' probabilities [examples]."""
    mask, _ = _sides(inside, log_probabilities)
    p = _probabilities(log_probabilities)
    seen = np.add.reduce(mask, axis=0, dtype=np.float64)
    fewest = np.minimum(seen, len(mask) - seen)
    if not fewest.all():
        row = int(np.argmin(fewest))
        raise DataError(f"{what} {row} has no shadow on one side: train complementary pairs, or leave it out")
    every, inner = p.sum(0), np.einsum("ke,ke->e", p, mask)
    # The difference rounds the OUT sum by at most an ulp of the whole, of which the result is no small part.
    return np.asarray((inner / seen + (every - inner) / (len(mask) - seen)) / 2)


def lira_scores(
    target: np.ndarray, shadows: np.ndarray, inside: np.ndarray | None, *, variance: Variance = "auto"
) -> np.ndarray:
    """Return the likelihood ratio of the target's confidence under IN and OUT shadows [examples], in nats.

    LiRA (Carlini et al., arXiv 2112.03570). Online: log N(φ; μ_in, s_in) - log N(φ; μ_out, s_out). Offline (`inside`
    None): log Φ((φ - μ_out) / s_out).

    Args:
        target: the target's `confidence` [examples].
        shadows: the same by each shadow [shadows, examples].
        inside: whether each shadow was trained on each example [shadows, examples]; None where none was on any.
        variance: ``global``: one for IN and one for OUT, pooled over the examples about their own means;
            ``per_example``; ``auto``: per example from 32 shadows on.

    Raises:
        DataError: NaN, shapes that do not fit, or an example with fewer than two shadows on a side.
    """
    own = _finite(target, "target")
    by_shadows = _shaped(shadows, own, "shadows")
    each = variance == "per_example" or (variance == "auto" and len(by_shadows) >= _LEAST_PER_EXAMPLE)
    if inside is None:
        mean, spread = _moments(by_shadows, np.ones(by_shadows.shape, dtype=bool), each=each)
        return np.asarray(special.log_ndtr((own - mean) / spread))
    laws = [_moments(by_shadows, mask, each=each) for mask in _sides(inside, by_shadows)]
    inner, outer = (-0.5 * ((own - mean) / spread) ** 2 - np.log(spread) for mean, spread in laws)
    return np.asarray(inner - outer)


def student_t_scores(target: np.ndarray, shadows: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return the log ratio of Student-t predictive densities of the target's confidence, IN over OUT [examples].

    Each side's confidences are normal with unknown mean and variance under a normal-inverse-gamma prior: its variance
    is centred on the side's global variance (shape 2), its mean on the side's global mean (weight 1). In the style of
    BaVarIA (arXiv 2603.11799); the prior is ours.

    Args:
        target: the target's `confidence` [examples].
        shadows: the same by each shadow [shadows, examples].
        inside: whether each shadow was trained on each example [shadows, examples].

    Raises:
        DataError: NaN, shapes that do not fit, or an example with fewer than two shadows on a side.
    """
    own = _finite(target, "target")
    by_shadows = _shaped(shadows, own, "shadows")
    inner, outer = (_predictive(own, by_shadows, mask) for mask in _sides(inside, by_shadows))
    return np.asarray(inner - outer)


def _predictive(own: np.ndarray, shadows: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the log predictive density of `own` given each example's masked shadows [examples]."""
    mean, spread = _moments(shadows, mask, each=False)
    counts = mask.sum(0)
    centre = float(shadows[mask].mean())
    squares = np.where(mask, (shadows - mean) ** 2, 0.0).sum(0)
    weight, shape = _PRIOR_WEIGHT + counts, _PRIOR_SHAPE + counts / 2
    place = (_PRIOR_WEIGHT * centre + counts * mean) / weight
    scale = (_PRIOR_SHAPE - 1) * spread**2 + squares / 2
    scale = scale + _PRIOR_WEIGHT * counts * (mean - centre) ** 2 / (2 * weight)
    width = np.sqrt(scale * (weight + 1) / (shape * weight))
    return np.asarray(stats.t.logpdf(own, 2 * shape, place, width))


def _moments(shadows: np.ndarray, mask: np.ndarray, *, each: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return mean [examples] and standard deviation ([examples], or one for all) of the masked shadows."""
    counts = mask.sum(0)
    if counts.min(initial=2) < 2:
        row = int(np.argmin(counts))
        raise DataError(f"example {row} has {counts[row]} shadows on one side: two or more are needed for a variance")
    mean = _mean(shadows, mask)
    squares = np.where(mask, (shadows - mean) ** 2, 0.0).sum(0)
    found = squares / (counts - 1) if each else squares.sum() / (counts - 1).sum()
    return mean, np.sqrt(np.maximum(found, _SMALLEST))


def _mean(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    counts = mask.sum(0)
    if not counts.all():
        row = int(np.argmin(counts))
        raise DataError(f"example {row} has no shadow on one side: train complementary pairs, or leave it out")
    return np.asarray(np.where(mask, values, 0.0).sum(0) / counts)


def _sides(inside: np.ndarray, shadows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mask = np.asarray(inside)
    if mask.dtype != np.bool_ or mask.shape != shadows.shape:
        raise DataError(f"inside: {mask.dtype} of shape {list(mask.shape)}: give one bool for each shadow and example")
    return mask, ~mask


def _finite(values: np.ndarray, name: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise DataError(f"{name}: empty")
    if not np.isfinite(array).all():
        place = [int(i) for i in np.argwhere(~np.isfinite(array))[0]]
        raise DataError(f"{name}: the number at {place} is not finite; leave the example out or score it again")
    return array


def _shaped(values: np.ndarray, own: np.ndarray, name: str) -> np.ndarray:
    array = _finite(values, name)
    if own.ndim != 1 or array.ndim != 2 or array.shape[1:] != own.shape:
        raise DataError(f"{name} of shape {list(array.shape)} for {list(own.shape)} examples: give [shadows, examples]")
    return array


def _chosen(log_probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return where each row's true label is [examples, labels]."""
    if log_probabilities.ndim != 2 or np.shape(labels) != log_probabilities.shape[:1]:
        raise DataError(
            f"log-probabilities of shape {list(log_probabilities.shape)} for labels of shape {list(np.shape(labels))}: "
            "give [examples, labels] and [examples]"
        )
    if np.isnan(log_probabilities).any():
        raise DataError("log-probabilities: NaN; score these examples again")
    if len(labels) and not (np.min(labels) >= 0 and np.max(labels) < log_probabilities.shape[1]):
        raise DataError(f"labels: must lie in 0..{log_probabilities.shape[1] - 1}")
    return np.asarray(np.arange(log_probabilities.shape[1]) == np.asarray(labels)[:, None])
