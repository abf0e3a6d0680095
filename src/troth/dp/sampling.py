"""Poisson sampling in O(batch): how many rows first, then which."""

from __future__ import annotations

import numpy as np

__all__ = ["poisson_sample"]


def poisson_sample(examples: int, sampling_rate: float, generator: np.random.Generator) -> np.ndarray:
    """Return the sorted row indices of one Poisson batch, int64; it may be empty.

    Guarantees:
    - every row is in the batch with probability `sampling_rate`, independently of all others: a Binomial(n, q) size
      and a uniform subset of that size have the same distribution as n coin tosses (arXiv 2406.17298, lemma 1);
    - time and memory are those of the batch, not of the data set (Floyd's algorithm).

    Args:
        examples: number of rows n, at least 1.
        sampling_rate: q, in [0, 1].
        generator: where the randomness comes from.
    """
    size = int(generator.binomial(examples, sampling_rate))
    rows = generator.choice(examples, size=size, replace=False, shuffle=False)
    return np.sort(rows.astype(np.int64, copy=False))
