"""Epsilon by privacy loss distributions: the tight, pessimistic figure that plans, ledger and report print."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from troth.accounting.cache import remembered
from troth.accounting.mechanism import Mechanism, best_renyi_epsilon
from troth.results import Json

if TYPE_CHECKING:
    from dp_accounting.pld import privacy_loss_distribution

__all__ = ["composed_epsilon", "discretization", "privacy_profile", "remembered_epsilon", "steps_curve"]

Parts = tuple[tuple[Mechanism, int], ...]
_INTERVAL = 1e-4  # the width, in nats of privacy loss, at which dp-accounting rounds losses up


def merged(parts: Iterable[tuple[Mechanism, int]]) -> Parts:
    """Return the parts with equal mechanisms added up, without empty ones, in a fixed order."""
    steps: dict[Mechanism, int] = {}
    for mechanism, count in parts:
        steps[mechanism] = steps.get(mechanism, 0) + count
    kept = [(m, n) for m, n in steps.items() if n > 0]
    return tuple(sorted(kept, key=lambda part: _sizes(part[0])))


def _sizes(mechanism: Mechanism) -> list[float]:
    capped = [] if mechanism.max_batch_size is None else [mechanism.max_batch_size, mechanism.units or 0]
    return [mechanism.sampling_rate, mechanism.noise_multiplier, *capped]


def discretization(parts: Sequence[tuple[Mechanism, int]], delta: float) -> float:
    """Return the width at which privacy losses are rounded up, in nats.

    1e-4 where epsilon lies between 1 and 20 (by the Rényi bound, without truncation); in proportion to epsilon
    outside, so that small epsilons stay sharp and large ones stay cheap. Losses are only ever rounded towards a larger
    epsilon, hence the width moves the figure's tightness, never its validity.
    """
    rough = best_renyi_epsilon([(m.untruncated, n) for m, n in parts], delta)
    return _INTERVAL * max(rough / 20.0, min(1.0, max(rough, 0.01)))


def _compose(
    parts: Sequence[tuple[Mechanism, int]], width: float
) -> privacy_loss_distribution.PrivacyLossDistribution | None:
    composed = None
    for mechanism, steps in parts:
        part = _one_step(mechanism, width).self_compose(steps)
        composed = part if composed is None else composed.compose(part)
    return composed


def epsilon_at_width(parts: Sequence[tuple[Mechanism, int]], delta: float, width: float) -> float:
    """Return the pessimistic epsilon at `delta` of parts composed, with losses rounded up to multiples of `width`."""
    composed = _compose(parts, width)
    return 0.0 if composed is None else float(composed.get_epsilon_for_delta(delta))


def privacy_profile(parts: Sequence[tuple[Mechanism, int]], epsilons: np.ndarray, delta: float = 1e-5) -> np.ndarray:
    """Return delta at each epsilon [epsilons] of parts composed: the whole trade-off curve, pessimistic like epsilon.

    Args:
        parts: (mechanism, steps), each mechanism with noise.
        epsilons: in nats.
        delta: at which losses are to be sharp, see `discretization`.
    """
    same = merged(parts)
    composed = _compose(same, discretization(same, delta))
    if composed is None:
        return np.zeros(len(epsilons))
    return np.asarray(composed.get_delta_for_epsilon(list(epsilons)), dtype=np.float64)


@lru_cache(maxsize=4)
def _one_step(mechanism: Mechanism, width: float) -> privacy_loss_distribution.PrivacyLossDistribution:
    """Return dp-accounting's distribution of one step: the slow part, the same for every number of steps."""
    import dp_accounting
    from dp_accounting.pld import privacy_loss_distribution

    if mechanism.max_batch_size is not None and mechanism.units is not None:
        return privacy_loss_distribution.from_truncated_subsampled_gaussian_mechanism(
            mechanism.units,
            mechanism.sampling_rate,
            mechanism.max_batch_size,
            mechanism.noise_multiplier,
            value_discretization_interval=width,
        )
    return privacy_loss_distribution.from_gaussian_mechanism(
        mechanism.noise_multiplier,
        pessimistic_estimate=True,
        value_discretization_interval=width,
        sampling_prob=mechanism.sampling_rate,
        neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
    )


@lru_cache(maxsize=4096)
def _composed(parts: Parts, delta: float) -> float:
    if not parts:
        return 0.0
    if any(m.noise_multiplier == 0 for m, _ in parts):
        return math.inf
    return epsilon_at_width(parts, delta, discretization(parts, delta))


def composed_epsilon(parts: Iterable[tuple[Mechanism, int]], delta: float) -> float:
    """Return epsilon at `delta` of (mechanism, steps) parts composed, in nats; infinity where a part has no noise.

    Guarantees:
        - an upper bound: privacy losses and truncated tails are rounded towards a larger epsilon;
        - parts that run one after the other, on the same data, in any order or interleaved, are covered as long as
          how many steps run, and with which noise, does not depend on what earlier steps showed (else: filter.py).
    """
    return _composed(merged(parts), delta)


def _key(parts: Parts, delta: float) -> dict[str, Json]:
    return {"parts": [[*_sizes(m), n] for m, n in parts], "delta": delta}


def remembered_epsilon(parts: Iterable[tuple[Mechanism, int]], delta: float) -> float:
    """Return `composed_epsilon`, kept on disk: for whole plans and data sets, which are asked for again and again."""
    same = merged(parts)
    if not same:
        return 0.0
    return remembered("epsilon", _key(same, delta), lambda: composed_epsilon(same, delta))


def steps_curve(mechanism: Mechanism, steps: Sequence[int], delta: float) -> list[float]:
    """Return epsilon after each of the increasing step counts, never below the truth and never decreasing.

    The last entry is `remembered_epsilon` exactly. Those before it come from a coarser discretisation (it stays an
    upper bound), fine enough to be within 1 % of the exact figure at the last count, and capped by that figure:
    epsilon grows with steps.
    """
    last = remembered_epsilon([(mechanism, steps[-1])], delta)
    if not math.isfinite(last):
        return [math.inf if n > 0 else 0.0 for n in steps]
    key: dict[str, Json] = {**_key(((mechanism, steps[-1]),), delta), "steps": list(steps)}
    return remembered("curve", key, lambda: _curve(mechanism, steps, delta, last))


def _curve(mechanism: Mechanism, steps: Sequence[int], delta: float, last: float) -> list[float]:
    finest = discretization([(mechanism, steps[-1])], delta)
    for coarseness in (10, 5, 2, 1):
        width = finest * coarseness
        if coarseness == 1 or epsilon_at_width([(mechanism, steps[-1])], delta, width) <= 1.01 * last:
            break
    curve: list[float] = []
    for n in steps[:-1]:
        found = epsilon_at_width([(mechanism, n)], delta, width) if n > 0 else 0.0
        curve.append(min(max(found, curve[-1] if curve else 0.0), last))
    return [*curve, last]
