"""Products that several blocks of one backward pass share: Gram matrices and scaled inputs (Q, K, V read one input)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Workspace"]

_Key = tuple[int, torch.Size, tuple[int, ...], torch.dtype]


def _key(tensor: Tensor) -> _Key:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


class Workspace:
    """Caches of one physical batch, and the clip factors once they are known.

    All arithmetic is done in `dtype` (float32 or float64), whatever the activations' type. Entries hold the tensor
    they were made from, so that its memory cannot be given to another one while the entry lives. `measures` says that
    the faster of two exact ways may be found by timing them on this machine.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device | None = None, *, measures: bool = False) -> None:
        self.dtype, self.device, self.measures = dtype, device or torch.device("cpu"), measures
        self._taken: Tensor | None = None
        self._factors: Tensor | None = None
        self._row_factors: dict[int, Tensor] = {}
        self._grams: dict[tuple[_Key, bool], tuple[Tensor, Tensor]] = {}
        self._scaled: tuple[_Key, Tensor, Tensor] | None = None

    def cast(self, tensor: Tensor) -> Tensor:
        """Return the tensor in the working type; itself where it has it."""
        return tensor if tensor.dtype == self.dtype else tensor.to(self.dtype)

    def squares(self, tensor: Tensor) -> Tensor:
        """Return the sum of squares of each example's numbers [batch]."""
        norms: Tensor = torch.linalg.vector_norm(self.cast(tensor).flatten(1), dim=1)
        return norms.square()

    def product(self, tensor: Tensor) -> Tensor:
        """Return XXᵀ of each example: [batch, time, time] from [batch, time, width]."""
        values = self.cast(tensor)
        return torch.bmm(values, values.mT)

    def gram(self, tensor: Tensor, *, plus_one: bool) -> Tensor:
        """Return XXᵀ of each example, plus 1 where asked for, made once for all blocks that read this input."""
        key = (_key(tensor), plus_one)
        if key not in self._grams:
            gram = self.product(tensor)
            self._grams[key] = (tensor, gram.add_(1) if plus_one else gram)
        return self._grams[key][1]

    @staticmethod
    def frobenius(left: Tensor, right: Tensor) -> Tensor:
        """Return Σ_{s,t} left_{st} right_{st} of each example [batch]."""
        out: Tensor = torch.linalg.vecdot(left.flatten(1), right.flatten(1))
        return out

    @property
    def factors(self) -> Tensor:
        """The examples' weights in the clipped sum [batch], in the working type."""
        if self._factors is None:
            raise RuntimeError("clip factors are known only after all norms")
        return self._factors

    def set_factors(self, factors: Tensor) -> None:
        """Take the clip factors [batch] of the blocks that come next, and drop what only the norms needed."""
        self._grams.clear()
        if self._taken is factors:
            return
        self._taken, self._factors = factors, factors.to(self.dtype)
        self._row_factors.clear()
        self._scaled = None

    def row_factors(self, tokens: int) -> Tensor:
        """Return each example's factor repeated over its tokens [batch * tokens]."""
        if tokens not in self._row_factors:
            self._row_factors[tokens] = self.factors.repeat_interleave(tokens)
        return self._row_factors[tokens]

    def scaled(self, tensor: Tensor) -> Tensor:
        """Return each example's rows times its factor, in the working type; the last one is kept for a next reader."""
        key = _key(tensor)
        if self._scaled is None or self._scaled[0] != key:
            self._scaled = (key, tensor, tensor * self.factors.view(-1, *[1] * (tensor.dim() - 1)))
        return self._scaled[2]
