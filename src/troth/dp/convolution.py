"""Convolutions over time (`nn.Conv1d`): a linear map on patches of the input, clipped as such.

With stride s, dilation d and K taps, the output at place l is the filters, as a matrix W [out, K * channels], times the
patch x[:, ls + kd] of the padded input. So one example's gradient is GᵀP with patches P [places, K * channels] and
output gradients G [places, out]; `troth.dp.linear` takes norms and clipped sums from (P, G). Patches are made in the
backward pass only; the forward pass is torch's own. They run tap by tap, since a place's channels then lie together in
memory, where the filters [out, channels, K] run channel by channel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from troth.dp.linear import LinearBlock
from troth.dp.tape import LinearUse, Rule, Site, Tape, call
from troth.errors import UnsupportedModuleError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from troth.dp.workspace import Workspace

__all__ = ["CONVOLUTION", "FilterBlock", "patches"]


def patches(x: Tensor, taps: int, stride: int, dilation: int) -> Tensor:
    """Return the patches [batch, places, taps * channels] of a padded input [batch, channels, time].

    >>> patches(torch.tensor([[[1, 2, 3, 4]]]), taps=2, stride=1, dilation=2)
    tensor([[[1, 3],
             [2, 4]]])
    """
    windows = x.mT.contiguous().unfold(1, dilation * (taps - 1) + 1, stride)[..., ::dilation]
    return windows.mT.flatten(2)


class _Context(FunctionCtx):
    site: Site
    saved_tensors: tuple[Tensor, Tensor]
    needs_input_grad: tuple[bool, ...]


class _Convolution(torch.autograd.Function):
    """`F.conv1d` of a padded input; its backward pass writes (patches, dy) and never makes the filters' gradient."""

    @staticmethod
    def forward(ctx: _Context, x: Tensor, weight: Tensor, bias: Tensor | None, site: Site) -> Tensor:
        ctx.site = site
        ctx.save_for_backward(x, weight)
        module = cast("nn.Conv1d", site.module)
        return F.conv1d(x, weight, bias, module.stride, 0, module.dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, g: Tensor) -> tuple[Tensor | None, None, None, None]:
        x, weight = ctx.saved_tensors
        site, tape = ctx.site, ctx.site.tape
        module = cast("nn.Conv1d", site.module)
        (stride,), (dilation,) = module.stride, module.dilation
        read = patches(x, weight.shape[2], stride, dilation)
        tape.write(
            LinearUse(
                name=site.name,
                weight=site.parameter("weight"),
                bias=site.parameter("bias"),
                x=tape.rows(site, read, folds=True),
                g=tape.rows(site, g.transpose(1, 2), folds=True),
            )
        )
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        dx: Tensor = torch.ops.aten.convolution_backward(
            g, x.to(g.dtype), weight.to(g.dtype), None, [stride], [0], [dilation], False, [0], 1, [True, False, False]
        )[0]
        return dx.to(x.dtype), None, None, None


def _convolution_forward(tape: Tape) -> Callable[..., Tensor]:
    def forward(module: nn.Conv1d, input: Tensor) -> Tensor:
        site = tape.site(module)
        if site is None:
            return type(module).forward(module, input)
        if input.dim() != 3:
            raise UnsupportedModuleError(
                f"{site.name} ({type(module).__name__}) works on a tensor of shape {list(input.shape)}, which has no "
                "dimension for the examples of a batch: give it [batch, channels, time], or freeze the module"
            )
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        # Before, first and last: the padding on the left and right, also where it was written as "same".
        padded = F.pad(input, module._reversed_padding_repeated_twice, mode=mode)
        return call(_Convolution, padded, module.weight, module.bias, site)

    return forward


def _refuses(module: nn.Module) -> str | None:
    groups = cast("nn.Conv1d", module).groups
    if groups != 1:
        return f"convolves {groups} groups of channels apart: make it with groups=1, or one module for each group"
    return None


CONVOLUTION = Rule("convolution", ("weight", "bias"), _convolution_forward, _refuses)


class FilterBlock:
    """All uses of the filters [out, channels, taps] of a convolution, with the bias that goes with them alone, if any.

    A `LinearBlock` that sees the filters as the matrix [out, taps * channels].
    """

    def __init__(self, uses: Sequence[LinearUse], weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        self._linear = LinearBlock(uses, weight, bias)
        self._weight = weight
        self.parameters = self._linear.parameters

    def norms_squared(self, work: Workspace) -> Tensor:
        """Return the squared norm of each example's gradient of weight and bias [batch]."""
        return self._linear.norms_squared(work)

    def silence(self, keep: Tensor) -> None:
        """Set the rows of examples that are not kept to zero; `keep` [batch] is boolean."""
        self._linear.silence(keep)

    def add_clipped(self, views: Mapping[nn.Parameter, Tensor], work: Workspace) -> None:
        """Add the examples' gradients, each times its factor, to the parameters' views."""
        by_channel = views[self._weight]
        by_tap = torch.zeros_like(by_channel.mT, memory_format=torch.contiguous_format)
        own = {p: views[p] for p in self.parameters if p is not self._weight}
        self._linear.add_clipped({**own, self._weight: by_tap.flatten(1)}, work)
        by_channel.add_(by_tap.mT)
