"""Linear maps (`nn.Linear`, transformers' `Conv1D`): ghost norms, or per-example gradients where these are cheaper.

For one example with input X [time, in] and output gradient G [time, out] the weight's gradient is GᵀX, and its squared
norm is Σ_{s,t} (XXᵀ)_{st} (GGᵀ)_{st} (Lee and Kifer, arXiv 2009.03106; Li et al., arXiv 2110.05679). The bias adds
Σ_{s,t} (GGᵀ)_{st}, hence is free as a +1 on the input's Gram matrix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from troth.dp.tape import LinearUse, Rule, Site, Tape, call
from troth.dp.timing import written_out_over_ghost

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from troth.dp.workspace import Workspace

__all__ = ["CONV1D", "LINEAR", "LinearBlock", "instantiates"]


class _Context(FunctionCtx):
    site: Site
    transposed: bool
    saved_tensors: tuple[Tensor, Tensor]
    needs_input_grad: tuple[bool, ...]


class _Linear(torch.autograd.Function):
    """y = x Wᵀ + b, whose backward pass writes (x, dy) on the tape and never computes the weight's gradient."""

    @staticmethod
    def forward(ctx: _Context, x: Tensor, weight: Tensor, bias: Tensor | None, site: Site) -> Tensor:
        ctx.site = site
        ctx.transposed = site.rule is CONV1D
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight.t() if ctx.transposed else weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, g: Tensor) -> tuple[Tensor | None, None, None, None]:
        x, weight = ctx.saved_tensors
        site, tape = ctx.site, ctx.site.tape
        use = LinearUse(
            name=site.name,
            weight=site.parameter("weight"),
            bias=site.parameter("bias"),
            x=tape.rows(site, x),
            g=tape.rows(site, g),
            transposed=ctx.transposed,
        )
        tape.write(use)
        if tape.work is not None and use.weight is not None and not _writes_out([use], tape.work):
            use.squares = _ghost_norms(use.x, use.g, tape.work, with_bias=use.bias is not None)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        matrix = weight.t() if ctx.transposed else weight
        if g.dtype == matrix.dtype == x.dtype:
            return g @ matrix, None, None, None
        return (g @ matrix.to(g.dtype)).to(x.dtype), None, None, None  # under autocast


def _linear_forward(tape: Tape) -> Callable[..., Tensor]:
    def forward(module: nn.Linear, input: Tensor) -> Tensor:
        site = tape.site(module)
        if site is None:
            return type(module).forward(module, input)
        return call(_Linear, input, module.weight, module.bias, site)

    return forward


def _conv1d_forward(tape: Tape) -> Callable[..., Tensor]:
    def forward(module: nn.Linear, x: Tensor) -> Tensor:
        site = tape.site(module)
        if site is None:
            return type(module).forward(module, x)
        return call(_Linear, x, module.weight, module.bias, site)

    return forward


LINEAR = Rule("linear", ("weight", "bias"), _linear_forward)
CONV1D = Rule("conv1d", ("weight", "bias"), _conv1d_forward)


_CLEAR = 5.0  # where the estimate differs by more than this factor, nothing needs measuring
_WORTH = 1e8  # operations in a layer's products below which a choice is not worth a timing
_MEMORY = 1.5  # written-out gradients may take this share of what the inputs and output gradients take


def instantiates(tokens: int, width_in: int, width_out: int, batch: int, work: Workspace) -> bool:
    """Return whether per-example gradients are to be written out rather than their norm taken from Gram matrices.

    Per example, a ghost norm costs 2 T² (d + p) operations beside the 2 T d p of the clipped sum; written-out gradients
    give norm and clipped sum for the same 2 T d p and three passes over d p numbers: estimated equal where
    3 T (d + p) = 2 d p. Within a factor of five of that a micro-timing decides (`troth.dp.timing`), unless the layer is
    small or the run is to be reproducible on other machines. Never where the gradients would take much more memory than
    the inputs and output gradients they replace.
    """
    if width_in * width_out > _MEMORY * tokens * (width_in + width_out):
        return False
    estimate = 3 * tokens * (width_in + width_out) / (2 * width_in * width_out)
    small = 2 * batch * tokens * width_in * width_out < _WORTH
    if small or not work.measures or not 1 / _CLEAR < estimate < _CLEAR:
        return estimate >= 1
    ratio = written_out_over_ghost(batch, tokens, width_in, width_out, dtype=work.dtype, device=work.device)
    return ratio < 1


def _writes_out(uses: Sequence[LinearUse], work: Workspace) -> bool:
    first, tokens = uses[0], sum(u.x.shape[1] for u in uses)
    return tokens > 1 and instantiates(tokens, first.x.shape[2], first.g.shape[2], len(first.x), work)


def _ghost_norms(x: Tensor, g: Tensor, work: Workspace, *, with_bias: bool) -> Tensor:
    """Return the squared norms [batch] of GᵀX, and of the sum of G where there is a bias."""
    if x.shape[1] == 1:
        inputs = work.squares(x)
        return (inputs + 1 if with_bias else inputs) * work.squares(g)
    return work.frobenius(work.gram(x, plus_one=with_bias), work.product(g))


class LinearBlock:
    """All uses of one weight [out, in] in one backward pass, with the bias that goes with it alone, if any."""

    def __init__(self, uses: Sequence[LinearUse], weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        self.uses = list(uses)
        self.weight = weight
        self.bias = bias
        self.parameters: tuple[nn.Parameter, ...] = (weight,) if bias is None else (weight, bias)
        self._grads: Tensor | None = None
        self._bias_grads: Tensor | None = None

    def norms_squared(self, work: Workspace) -> Tensor:
        """Return the squared norm of each example's gradient of weight and bias [batch]."""
        first = self.uses[0]
        if len(self.uses) == 1 and first.squares is not None and (first.bias is None) == (self.bias is None):
            return first.squares
        if _writes_out(self.uses, work):
            return self._instantiate(work)
        x = first.x if len(self.uses) == 1 else torch.cat([u.x for u in self.uses], 1)
        g = first.g if len(self.uses) == 1 else torch.cat([u.g for u in self.uses], 1)
        return _ghost_norms(x, g, work, with_bias=self.bias is not None)

    def _instantiate(self, work: Workspace) -> Tensor:
        """Write the per-example gradients out, in the weight's own layout, and return their squared norms [batch]."""
        pairs = [(u.x, u.g) if self.uses[0].transposed else (u.g, u.x) for u in self.uses]
        rows, columns = (torch.cat(side, 1) if len(side) > 1 else side[0] for side in zip(*pairs, strict=True))
        self._grads = torch.bmm(work.cast(rows).mT, work.cast(columns)).flatten(1)
        norms = work.squares(self._grads)
        if self.bias is not None:
            bias_grads = torch.stack([u.g.sum(1, dtype=work.dtype) for u in self.uses]).sum(0)
            norms = norms + work.squares(bias_grads)
            self._bias_grads = bias_grads
        self.uses = []
        return norms

    def silence(self, keep: Tensor) -> None:
        """Set the rows of examples that are not kept to zero; `keep` [batch] is boolean."""
        for use in self.uses:
            use.x = use.x.where(keep[:, None, None], 0)
            use.g = use.g.where(keep[:, None, None], 0)
        if self._grads is not None:
            self._grads = self._grads.where(keep[:, None], 0)
        if self._bias_grads is not None:
            self._bias_grads = self._bias_grads.where(keep[:, None], 0)

    def add_clipped(self, views: Mapping[nn.Parameter, Tensor], work: Workspace) -> None:
        """Add the examples' gradients, each times its factor, to the parameters' views."""
        if self._grads is not None:
            views[self.weight].view(-1).addmv_(self._grads.t(), work.factors)
            if self.bias is not None and self._bias_grads is not None:
                views[self.bias].addmv_(self._bias_grads.t(), work.factors)
            self._grads = self._bias_grads = None
        for use in self.uses:
            self._add_use(use, views, work)

    def _add_use(self, use: LinearUse, views: Mapping[nn.Parameter, Tensor], work: Workspace) -> None:
        target = views[self.weight].t() if use.transposed else views[self.weight]
        if use.x.shape[2] <= use.g.shape[2]:  # scale the narrower of the two; inputs are often shared (Q, K, V)
            x, g = work.scaled(use.x), work.cast(use.g)
            bias_sum = None
        else:
            x, g = work.cast(use.x), work.scaled(use.g)
            bias_sum = g.sum((0, 1)) if self.bias is not None else None
        target.addmm_(g.flatten(0, 1).t(), x.flatten(0, 1))
        if self.bias is None:
            return
        if bias_sum is None:
            views[self.bias].addmv_(g.flatten(0, 1).t(), work.row_factors(g.shape[1]))
        else:
            views[self.bias].add_(bias_sum)
