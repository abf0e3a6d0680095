"""The clip factors: each gradient's weight in the sum, by the plan's rule; and the norm that an adaptive rule moves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from troth.seeds import PrivateRandomness

if TYPE_CHECKING:
    from torch import Tensor, nn

    from troth.accounting.plan import PrivacyPlan
    from troth.dp.blocks import Block

__all__ = ["Clipper", "automatic_factors", "clip_factors"]

_STABILITY = 1e-6
_AUTOMATIC_STABILITY = 0.01


def clip_factors(norms_squared: Tensor, clipping_norm: float, divisor: int) -> Tensor:
    """Return each gradient's weight in the clipped sum over the divisor [batch]: min(1, C / (norm + 1e-6)) / E.

    Flat clipping (Abadi et al., arXiv 1607.00133).

    Guarantees:
    - weight times norm is at most C / E;
    - a gradient whose norm is not finite has weight exactly 0;
    - a squared norm that rounding brought below 0 counts as 0.

    Args:
        norms_squared: squared gradient norms [batch].
        clipping_norm: C, above 0.
        divisor: E, at least 1: an expected size, never the realised one, which is private.
    """
    norms = norms_squared.clamp(min=0).sqrt()
    factors = (clipping_norm / (norms + _STABILITY)).clamp(max=1) / divisor
    return torch.where(norms_squared.isfinite(), factors, 0)


def automatic_factors(norms_squared: Tensor, clipping_norm: float, divisor: int) -> Tensor:
    """Return each gradient's weight by automatic clipping [batch]: C / (norm + 0.01) / E.

    AUTO-S (Bu et al., arXiv 2206.07136): every gradient is brought to a norm just below C, so that no threshold needs
    tuning; with an optimizer that does not care about scale, C drops out. Same guarantees and arguments as
    `clip_factors`.
    """
    norms = norms_squared.clamp(min=0).sqrt()
    factors = clipping_norm / (norms + _AUTOMATIC_STABILITY) / divisor
    return torch.where(norms_squared.isfinite(), factors, 0)


class Clipper:
    """Turns squared norms by block into factors by block, and moves the norm of adaptive clipping.

    Guarantees:
    - the squared norms of all blocks of a gradient, each after its factor, sum to at most (C / E)²;
    - a gradient with a norm that is not finite anywhere has factor 0 everywhere.

    Attributes:
        norm: C as it stands: the plan's, or what the noisy counts made of it.
    """

    def __init__(self, plan: PrivacyPlan, layers: Mapping[nn.Parameter, str]) -> None:
        """Take the plan and the module that each trainable parameter belongs to (a shared one: its first)."""
        self._plan, self._layers = plan, layers
        self._share = plan.clipping_norm / math.sqrt(max(1, len(set(layers.values()))))
        self.norm = plan.clipping_norm
        self._excess = 0.0

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise on each coordinate of the sum over the divisor, at the norm as it stands."""
        plan = self._plan
        return plan.gradient_noise_multiplier * plan.sensitivity / plan.clipping_norm * self.norm / plan.divisor

    def factors(self, blocks: Sequence[Block], squares: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return each block's factors [batch] and which gradients are finite [batch].

        Args:
            blocks: of one backward pass.
            squares: squared norms [batch] of each block.
        """
        total = torch.stack(list(squares)).sum(0, dtype=torch.float64)
        finite = total.isfinite()
        if self._plan.clipping == "per_layer":
            return self._per_layer(blocks, squares, finite), finite
        rule = automatic_factors if self._plan.clipping == "automatic" else clip_factors
        factors = rule(total, self.norm, self._plan.divisor)
        if self._plan.clipping == "adaptive":
            unclipped = (total.clamp(min=0).sqrt() <= self.norm) & finite
            self._excess += float(unclipped.sum()) - len(unclipped) / 2
        return [factors] * len(blocks), finite

    def _per_layer(self, blocks: Sequence[Block], squares: Sequence[Tensor], finite: Tensor) -> list[Tensor]:
        """Clip every module's gradient to C / sqrt(modules), so that the whole has a norm of at most C."""
        names = [self._layers[block.parameters[0]] for block in blocks]
        sums: dict[str, Tensor] = {}
        for name, squared in zip(names, squares, strict=True):
            sums[name] = sums[name] + squared.double() if name in sums else squared.double()
        factors = {
            name: torch.where(finite, clip_factors(total, self._share, self._plan.divisor), 0)
            for name, total in sums.items()
        }
        return [factors[name] for name in names]

    def open_step(self) -> None:
        """Begin a step: nothing is counted yet."""
        self._excess = 0.0

    def close_step(self, randomness: PrivateRandomness) -> None:
        """Move an adaptive norm by the step's noisy count; a count of units minus one half each, over B.

        The realised batch size is private and does not enter. (Andrew et al., arXiv 1905.03871, divide by it.)
        """
        plan = self._plan
        if plan.quantile is None or plan.quantile_noise is None:
            return
        noise = 0.0
        if plan.noise_multiplier > 0:
            noise = float(randomness.generator("quantile").normal(0.0, plan.quantile_noise))
        share = (self._excess + noise) / plan.divisor + 0.5
        self.norm *= math.exp(-plan.quantile_step * (share - plan.quantile))
