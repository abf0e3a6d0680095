"""The clip factors: each example's weight in the sum."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["clip_factors"]

_STABILITY = 1e-6


def clip_factors(norms_squared: Tensor, clipping_norm: float, expected_batch_size: int) -> Tensor:
    """Return each example's weight in the clipped sum over the expected batch size [batch].

    The weight is min(1, C / (norm + 1e-6)) / E (flat clipping, Abadi et al., arXiv 1607.00133).

    Guarantees:
    - weight times norm is at most C / E;
    - an example whose norm is not finite has weight exactly 0;
    - a squared norm that rounding brought below 0 counts as 0.

    Args:
        norms_squared: squared gradient norms [batch].
        clipping_norm: C, above 0.
        expected_batch_size: E, at least 1: never the realised size, which is private.
    """
    norms = norms_squared.clamp(min=0).sqrt()
    factors = (clipping_norm / (norms + _STABILITY)).clamp(max=1) / expected_batch_size
    return torch.where(norms_squared.isfinite(), factors, 0)
