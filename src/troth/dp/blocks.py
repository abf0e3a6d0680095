"""From the tape's uses to blocks: one block per parameter (a linear map's weight goes with its bias)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from troth.dp.convolution import FilterBlock
from troth.dp.embedding import EmbeddingBlock
from troth.dp.linear import LinearBlock
from troth.dp.norm import VectorBlock
from troth.dp.tape import EmbeddingUse, LinearUse, Use, VectorUse
from troth.dp.tied import TiedBlock

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from troth.dp.workspace import Workspace

__all__ = ["Block", "make_blocks"]


class Block(Protocol):
    """Everything one backward pass says about one parameter, or about a weight and its bias."""

    parameters: tuple[nn.Parameter, ...]

    def norms_squared(self, work: Workspace) -> Tensor:
        """Return the squared norm of each example's gradient [batch]."""

    def silence(self, keep: Tensor) -> None:
        """Set what comes from examples that are not kept to zero; `keep` [batch] is boolean."""

    def add_clipped(self, views: Mapping[nn.Parameter, Tensor], work: Workspace) -> None:
        """Add the examples' gradients, each times its factor, to the parameters' views."""


def make_blocks(uses: Sequence[Use]) -> list[Block]:
    """Return the blocks of one backward pass; each trainable parameter that was used stands in exactly one."""
    lookups: dict[nn.Parameter, list[EmbeddingUse]] = {}
    maps: dict[nn.Parameter, list[LinearUse]] = {}
    biases: dict[nn.Parameter, list[LinearUse]] = {}
    vectors: dict[nn.Parameter, list[VectorUse]] = {}
    for use in uses:
        if isinstance(use, EmbeddingUse):
            lookups.setdefault(use.weight, []).append(use)
        elif isinstance(use, VectorUse):
            vectors.setdefault(use.parameter, []).append(use)
        else:
            if use.weight is not None:
                maps.setdefault(use.weight, []).append(use)
            if use.bias is not None:
                biases.setdefault(use.bias, []).append(use)
    blocks: list[Block] = []
    for weight, group in maps.items():
        if weight in lookups:
            blocks.append(TiedBlock(lookups.pop(weight), group))
            continue
        bias = group[0].bias
        # The bias rides on the weight's Gram matrices only where both have exactly the same uses.
        paired = bias is not None and biases[bias] == group
        kind = FilterBlock if weight.dim() > 2 else LinearBlock
        blocks.append(kind(group, weight, bias if paired else None))
        if paired and bias is not None:
            del biases[bias]
    for bias, group in biases.items():
        vectors.setdefault(bias, []).extend(VectorUse(u.name, bias, u.g.sum(1)) for u in group)
    blocks.extend(EmbeddingBlock(group) for group in lookups.values())
    blocks.extend(VectorBlock(group) for group in vectors.values())
    return blocks
