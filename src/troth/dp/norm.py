"""Layer norms and root-mean-square norms: per-example gradients of scale and shift are written out, [batch, width].

For one example the gradient of the scale is Σ_t g_t ∘ x̂_t with x̂ the normalised input, and of the shift Σ_t g_t.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from troth.dp.spread import spread
from troth.dp.tape import Rule, Site, Tape, VectorUse, call
from troth.errors import UnsupportedModuleError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from troth.dp.workspace import Workspace

__all__ = ["LAYER_NORM", "OWN_LAYER_NORM", "OWN_RMS_NORM", "RMS_NORM", "VectorBlock"]


class _Context(FunctionCtx):
    site: Site
    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]


def _write(ctx: _Context, attribute: str, grads: Tensor) -> None:
    parameter = ctx.site.parameter(attribute)
    if parameter is not None:
        ctx.site.tape.write(VectorUse(ctx.site.name, parameter, grads))


class _LayerNorm(torch.autograd.Function):
    """`F.layer_norm`, whose backward pass writes the per-example gradients of weight and bias."""

    @staticmethod
    def forward(ctx: _Context, x: Tensor, weight: Tensor, bias: Tensor | None, site: Site) -> Tensor:
        ctx.site = site
        out, mean, rstd = torch.native_layer_norm(x, weight.shape, weight, bias, cast("nn.LayerNorm", site.module).eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, g: Tensor) -> tuple[Tensor | None, None, None, None]:
        x, weight, mean, rstd = ctx.saved_tensors
        dims = weight.dim()
        rows = ctx.site.tape.rows(ctx.site, g, dims)
        if ctx.site.parameter("weight") is not None:
            normal = ctx.site.tape.rows(ctx.site, (x - mean).mul_(rstd), dims)
            _write(ctx, "weight", normal.mul_(rows).sum(1))
        if ctx.site.parameter("bias") is not None:
            _write(ctx, "bias", rows.sum(1))
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        dx = torch.ops.aten.native_layer_norm_backward(
            g, x, weight.shape, mean, rstd, weight, None, [True, False, False]
        )[0]
        return dx, None, None, None


class _Scale(torch.autograd.Function):
    """y = w ∘ x̂, whose backward pass writes the per-example gradient of w."""

    @staticmethod
    def forward(ctx: _Context, normal: Tensor, weight: Tensor, site: Site) -> Tensor:
        ctx.site = site
        ctx.save_for_backward(normal, weight)
        return weight * normal

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, g: Tensor) -> tuple[Tensor | None, None, None]:
        normal, weight = ctx.saved_tensors
        dims = weight.dim()
        _write(
            ctx, "weight", (ctx.site.tape.rows(ctx.site, g, dims) * ctx.site.tape.rows(ctx.site, normal, dims)).sum(1)
        )
        return ((g * weight).to(normal.dtype) if ctx.needs_input_grad[0] else None), None, None


def _layer_norm_forward(tape: Tape) -> Callable[..., Tensor]:
    def forward(module: nn.LayerNorm, input: Tensor) -> Tensor:
        site = tape.site(module)
        if site is None:
            return type(module).forward(module, input)
        weight = module.weight
        # The kernel's plain form keeps a low-precision input's type on the CPU and widens it under autocast on CUDA.
        widened = input.to(weight.dtype)
        out = call(_LayerNorm, widened, weight, module.bias, site)
        return out if input.is_cuda else out.to(input.dtype)

    return forward


def _rms_forward(tape: Tape) -> Callable[..., Tensor]:
    def forward(module: nn.RMSNorm, x: Tensor) -> Tensor:
        site = tape.site(module)
        if site is None:
            return type(module).forward(module, x)
        return call(_Scale, F.rms_norm(x, module.normalized_shape, None, module.eps), site.trained["weight"], site)

    return forward


def _own_forward(tape: Tape) -> Callable[..., Tensor]:
    """Run the `forward` of a class as it is, with each parameter spread over the examples of its input.

    It must use its parameters by broadcasting over leading dimensions only, as `weight * x` or `x * (1 + weight)` do:
    then row i of the spread parameter is in example i's output alone, whatever else the class computes.
    """

    def forward(module: nn.Module, x: Tensor) -> Tensor:
        original = type(module).forward
        site = tape.site(module)
        if site is None:
            return cast("Tensor", original(module, x))
        with spread(site, lambda parameter: _leading(parameter, x, site)):
            return cast("Tensor", original(module, x))

    return forward


def _leading(parameter: nn.Parameter, x: Tensor, site: Site) -> tuple[int, ...]:
    middle = x.dim() - 1 - parameter.dim()
    if middle < 0:
        raise UnsupportedModuleError(
            f"{site.name} ({type(site.module).__name__}) works on a tensor of shape {list(x.shape)}, which has no "
            "dimension for the examples of a batch: keep the batch first, or freeze the module"
        )
    return (x.shape[0], *[1] * middle)


LAYER_NORM = Rule("layer_norm", ("weight", "bias"), _layer_norm_forward)
RMS_NORM = Rule("rms_norm", ("weight",), _rms_forward)
OWN_LAYER_NORM = Rule("layer_norm", ("weight", "bias"), _own_forward)
"""For layer norms with a `forward` of their own, which use their parameters by broadcasting."""
OWN_RMS_NORM = Rule("rms_norm", ("weight",), _own_forward)
"""For root-mean-square norms with a `forward` of their own, which use their weight by broadcasting."""


class VectorBlock:
    """All uses of one small parameter, whose per-example gradients are written out."""

    def __init__(self, uses: Sequence[VectorUse]) -> None:
        self.parameters: tuple[nn.Parameter, ...] = (uses[0].parameter,)
        self.name = uses[0].name
        self._grads = [u.grads for u in uses]

    def _total(self, work: Workspace) -> Tensor:
        if len(self._grads) > 1:
            self._grads = [torch.stack([work.cast(g) for g in self._grads]).sum(0)]
        return work.cast(self._grads[0])

    def norms_squared(self, work: Workspace) -> Tensor:
        """Return the squared norm of each example's gradient [batch]."""
        return work.squares(self._total(work))

    def silence(self, keep: Tensor) -> None:
        """Set the rows of examples that are not kept to zero; `keep` [batch] is boolean."""
        self._grads = [g.where(keep[:, None], 0) for g in self._grads]

    def add_clipped(self, views: Mapping[nn.Parameter, Tensor], work: Workspace) -> None:
        """Add the examples' gradients, each times its factor, to the parameter's view."""
        views[self.parameters[0]].view(-1).addmv_(self._total(work).t(), work.factors)
