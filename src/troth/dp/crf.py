"""A conditional random field's transitions: small parameters that a module hands out once for each example.

The module names them in one method, given the number of examples, as tensors [batch, *shape] that are the same for
all; whatever is then computed from them, row i of their gradient is example i's, [batch, elements] in all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from troth.dp.tape import Rule, Site, Tape, VectorUse, call

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CRF"]


class _Context(FunctionCtx):
    site: Site
    attribute: str
    dims: int


class _HandedOut(torch.autograd.Function):
    """A parameter, once for each example: [batch, *shape]; its gradient is written out by example."""

    @staticmethod
    def forward(ctx: _Context, parameter: Tensor, batch: int, attribute: str, site: Site) -> Tensor:
        ctx.site, ctx.attribute, ctx.dims = site, attribute, parameter.dim()
        return parameter.expand(batch, *parameter.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, g: Tensor) -> tuple[None, None, None, None]:
        site = ctx.site
        rows = site.tape.rows(site, g, ctx.dims)
        site.tape.write(VectorUse(site.name, site.trained[ctx.attribute], rows.sum(1)))
        return None, None, None, None


def _potentials(tape: Tape) -> Callable[..., object]:
    def potentials(module: nn.Module, batch: int) -> object:
        original = cast("Callable[..., object]", cast("Any", type(module)).potentials)
        site = tape.site(module)
        if site is None:
            return original(module, batch)
        handed = {name: call(_HandedOut, parameter, batch, name, site) for name, parameter in site.trained.items()}
        vars(module).update(handed)  # an attribute of the instance comes before its parameter of that name
        try:
            return original(module, batch)
        finally:
            for name in handed:
                del vars(module)[name]

    return potentials


CRF = Rule("crf", ("start", "transitions", "end"), _potentials, method="potentials")
