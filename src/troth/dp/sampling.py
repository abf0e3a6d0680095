"""Private sampling: Poisson batches in O(batch), and their truncation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from troth.accounting.plan import PrivacyPlan
    from troth.seeds import PrivateRandomness

__all__ = ["poisson_sample", "sample_units", "truncated"]


def poisson_sample(examples: int, sampling_rate: float, generator: np.random.Generator) -> np.ndarray:
    """Return the sorted indices of one Poisson batch, int64; it may be empty.

    Guarantees:
    - every index is in the batch with probability `sampling_rate`, independently of all others: a Binomial(n, q) size
      and a uniform subset of that size have the same distribution as n coin tosses (arXiv 2406.17298, lemma 1);
    - time and memory are those of the batch, not of the data set (Floyd's algorithm).

    Args:
        examples: number of units n, at least 1.
        sampling_rate: q, in [0, 1].
        generator: where the randomness comes from.
    """
    size = int(generator.binomial(examples, sampling_rate))
    rows = generator.choice(examples, size=size, replace=False, shuffle=False)
    return np.sort(rows.astype(np.int64, copy=False))


def truncated(batch: np.ndarray, max_batch_size: int | None, generator: np.random.Generator) -> np.ndarray:
    """Return the batch, or a uniform subset of `max_batch_size` of it where it is larger, sorted."""
    if max_batch_size is None or len(batch) <= max_batch_size:
        return batch
    return np.sort(generator.choice(batch, size=max_batch_size, replace=False, shuffle=False))


def sample_units(plan: PrivacyPlan, randomness: PrivateRandomness) -> np.ndarray:
    """Return the units of a step, sorted int64: a Poisson sample, truncated where the plan says so."""
    generator = randomness.generator("sample")
    return truncated(poisson_sample(plan.examples, plan.sampling_rate, generator), plan.max_batch_size, generator)
