"""Small parameters handed out once for each example, so that autograd itself keeps their gradients apart.

While a module runs, each of its parameters stands there as a tensor [batch, ..., *shape] that is the same for all
examples; whatever the module computes from it, row i of its gradient is example i's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from troth.dp.tape import Site, VectorUse, call

__all__ = ["spread"]


class _Context(FunctionCtx):
    site: Site
    attribute: str
    dims: int


class _Spread(torch.autograd.Function):
    """A parameter with dimensions before its own, the batch first; its gradient is written out by example."""

    @staticmethod
    def forward(ctx: _Context, parameter: Tensor, leading: tuple[int, ...], attribute: str, site: Site) -> Tensor:
        ctx.site, ctx.attribute, ctx.dims = site, attribute, parameter.dim()
        return parameter.expand(*leading, *parameter.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, g: Tensor) -> tuple[None, None, None, None]:
        site = ctx.site
        rows = site.tape.rows(site, g, ctx.dims)
        site.tape.write(VectorUse(site.name, site.trained[ctx.attribute], rows.sum(1)))
        return None, None, None, None


@contextmanager
def spread(site: Site, leading: Callable[[nn.Parameter], tuple[int, ...]]) -> Iterator[None]:
    """Let the site's trained parameters stand in its module once for each example while the block runs.

    Args:
        site: whose parameters are handed out.
        leading: the dimensions that a parameter gets before its own, the batch first.
    """
    handed = {
        name: call(_Spread, parameter, leading(parameter), name, site) for name, parameter in site.trained.items()
    }
    vars(site.module).update(handed)  # an attribute of the instance comes before its parameter of that name
    try:
        yield
    finally:
        for name in handed:
            del vars(site.module)[name]
