"""A table that is both looked up and used as output head (tied weights): norms with the cross term.

For one example with head inputs h_s, head output gradients d_s [vocabulary], ids i_t and look-up gradients e_t, the
gradient of the shared table is Σ_s d_s h_sᵀ + Σ_t onehot(i_t) e_tᵀ. Its squared norm is the sum of both squared norms
and 2 Σ_{s,t} d_s[i_t] (h_s·e_t) (Ding et al., ICML 2024, call it phantom clipping).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from troth.dp.embedding import EmbeddingBlock
from troth.dp.linear import LinearBlock

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from troth.dp.tape import EmbeddingUse, LinearUse
    from troth.dp.workspace import Workspace

__all__ = ["TiedBlock"]


class TiedBlock:
    """All uses of one table [rows, width] as look-up and as linear map in one backward pass."""

    def __init__(self, lookups: Sequence[EmbeddingUse], heads: Sequence[LinearUse]) -> None:
        weight = lookups[0].weight
        self.parameters: tuple[nn.Parameter, ...] = (weight,)
        self._lookups = EmbeddingBlock(lookups)
        self._heads = LinearBlock(heads, weight, None)

    def norms_squared(self, work: Workspace) -> Tensor:
        """Return the squared norm of each example's gradient of the table [batch]; rounding may bring it below 0."""
        cross = self._cross(work)
        return self._lookups.norms_squared(work) + self._heads.norms_squared(work) + 2 * cross

    def _cross(self, work: Workspace) -> Tensor:
        """Return Σ_{s,t} d_s[i_t] (h_s·e_t) of each example [batch]."""
        ids, e, counted = self._lookups.merged()
        e = work.cast(e) if counted is None else work.cast(e) * counted[:, :, None]
        total = e.new_zeros(len(e))
        for head in self._heads.uses:
            picked = head.g.gather(2, ids[:, None, :].expand(-1, head.g.shape[1], -1))
            total = total + work.frobenius(work.cast(picked), torch.bmm(work.cast(head.x), e.mT))
        return total

    def silence(self, keep: Tensor) -> None:
        """Set the rows of examples that are not kept to zero; `keep` [batch] is boolean."""
        self._lookups.silence(keep)
        self._heads.silence(keep)

    def add_clipped(self, views: Mapping[nn.Parameter, Tensor], work: Workspace) -> None:
        """Add the examples' gradients, each times its factor, to the table's view."""
        self._lookups.add_clipped(views, work)
        self._heads.add_clipped(views, work)
