"""The tape: what one backward pass leaves behind for clipping, and the sites it is written from.

A supported module's `forward` calls a custom autograd Function. In the backward pass that Function returns a gradient
for its input only and writes a *use* on the tape: the input and the output gradient of one call. Norms and clipped
sums are taken from the uses afterwards, grouped by parameter, so that a weight used several times is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from troth.errors import EngineStateError, UnsupportedModuleError

__all__ = ["EmbeddingUse", "LinearUse", "Rule", "Site", "Tape", "Use", "VectorUse", "call"]


@dataclass(frozen=True)
class Rule:
    """How the parameters of one kind of module are clipped.

    Attributes:
        kind: the rule's name, as `troth doctor` shows it.
        parameters: attribute names of the module that the rule clips.
        forward: makes the function that stands in for the module's method while the engine is attached.
        refuses: the reason why this module cannot be clipped after all, or None.
        method: the method that is replaced.
        child: name of the child that holds the parameters, where the method is a parent's.
    """

    kind: str
    parameters: tuple[str, ...]
    forward: Callable[[Tape], Callable[..., Tensor]]
    refuses: Callable[[nn.Module], str | None] = lambda module: None
    method: str = "forward"
    child: str | None = None


@dataclass(frozen=True, eq=False)
class Site:
    """A module whose parameters are clipped: its name in the model, its rule, its trainable parameters.

    `host` is the module whose method is replaced: the module itself, or its parent; `tape` is where its uses go.
    """

    tape: Tape
    name: str
    module: nn.Module
    rule: Rule
    trained: Mapping[str, nn.Parameter]
    host: nn.Module

    def parameter(self, attribute: str) -> nn.Parameter | None:
        """Return the trainable parameter of that attribute name; None where it is absent or frozen."""
        return self.trained.get(attribute)

    def verify(self) -> None:
        """Check that the module still holds the parameters that the engine was attached to.

        Raises:
            EngineStateError: a parameter was replaced.
        """
        for attribute, parameter in self.trained.items():
            if self.module._parameters.get(attribute) is not parameter:
                raise EngineStateError(
                    f"parameter {self.name}.{attribute} was replaced after the private engine was attached: "
                    "attach a new engine (and make a new optimizer) after changing the model"
                )


@dataclass(eq=False)
class LinearUse:
    """One call of a linear map: `x` [batch, time, in], `g` [batch, time, out]; frozen parameters are None.

    `transposed` says that the weight is stored as [in, out].
    """

    name: str
    weight: nn.Parameter | None
    bias: nn.Parameter | None
    x: Tensor
    g: Tensor
    transposed: bool = False


@dataclass(eq=False)
class EmbeddingUse:
    """One look-up: `ids` [batch, time], or [1, time] where all examples share them, and `g` [batch, time, width].

    Rows whose id is `padding_idx` have no gradient.
    """

    name: str
    weight: nn.Parameter
    ids: Tensor
    g: Tensor
    padding_idx: int | None = None

    @property
    def shared(self) -> bool:
        """Whether all examples look up the same ids."""
        return self.ids.shape[0] == 1 and self.g.shape[0] > 1


@dataclass(eq=False)
class VectorUse:
    """One call's per-example gradient of a small parameter, written out: `grads` [batch, elements]."""

    name: str
    parameter: nn.Parameter
    grads: Tensor


def call(function: type[torch.autograd.Function], *args: object) -> Tensor:
    """Return the output of a custom autograd Function."""
    return cast("Tensor", function.apply(*args))  # type: ignore[no-untyped-call]


Use = LinearUse | EmbeddingUse | VectorUse


class Tape:
    """What the running backward pass has written, and which modules write."""

    def __init__(self) -> None:
        self.sites: dict[nn.Module, Site] = {}
        self.forward_batch: int | None = None
        self._batch: int | None = None
        self._uses: list[Use] = []

    def site(self, module: nn.Module) -> Site | None:
        """Return the site of a module; None where nothing is recorded (no gradients wanted, or a copied module)."""
        if not torch.is_grad_enabled():
            return None
        site = self.sites.get(module)
        if site is not None:
            site.verify()
        return site

    @contextmanager
    def running(self, batch: int) -> Iterator[list[Use]]:
        """Record one backward pass of `batch` examples; yields the list that its uses are written to."""
        self._batch, self._uses = batch, []
        try:
            yield self._uses
        finally:
            self._batch, self._uses = None, []

    def write(self, use: Use) -> None:
        """Add a use to the running record."""
        self._uses.append(use)

    def rows(self, site: Site, tensor: Tensor, trailing: int = 1) -> Tensor:
        """Return `tensor` as [batch, time, width]; the width is made of its last `trailing` dimensions.

        Raises:
            EngineStateError: no private backward pass is running.
            UnsupportedModuleError: the first dimension is not the batch.
        """
        if self._batch is None:
            raise EngineStateError(
                f"a gradient reached {site.name} outside of the private engine: call engine.backward(losses) instead "
                "of loss.backward(), or engine.detach() first"
            )
        if tensor.dim() <= trailing or tensor.shape[0] != self._batch:
            raise UnsupportedModuleError(
                f"{site.name} ({type(site.module).__name__}) works on a tensor of shape {list(tensor.shape)}, whose "
                f"first dimension is not the batch of {self._batch} examples, so that rows cannot be told apart: "
                "keep the batch first, or freeze the module"
            )
        if trailing == 1 and tensor.dim() == 3:
            return tensor
        middle = tensor.shape[1 : tensor.dim() - trailing]
        return tensor.reshape(self._batch, math.prod(middle), math.prod(tensor.shape[tensor.dim() - trailing :]))
