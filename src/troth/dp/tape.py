"""The tape: what one backward pass leaves behind for clipping, and the sites it is written from.

A supported module's `forward` calls a custom autograd Function. In the backward pass that Function returns a gradient
for its input only and writes a *use* on the tape: the input and the output gradient of one call. Norms and clipped
sums are taken from the uses afterwards, grouped by parameter, so that a weight used several times is exact.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from troth.errors import EngineStateError, UnsupportedModuleError

if TYPE_CHECKING:
    from troth.dp.workspace import Workspace

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
    parameters: Container[str]
    forward: Callable[[Tape], Callable[..., object]]
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

    `transposed` says that the weight is stored as [in, out]. `squares` [batch] are the squared norms of this call's
    gradients of weight and (trained) bias, where they were taken while `g` was still in the caches.
    """

    name: str
    weight: nn.Parameter | None
    bias: nn.Parameter | None
    x: Tensor
    g: Tensor
    transposed: bool = False
    squares: Tensor | None = None


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
        self.is_paused = False
        self.work: Workspace | None = None
        self._batch: int | None = None
        self._size = 1
        self._uses: list[Use] = []
        self._extents: set[int] = set()
        self._folds: set[tuple[Site, int]] = set()

    def site(self, module: nn.Module) -> Site | None:
        """Return the site of a module; None where nothing is recorded (no gradients wanted, or a copied module)."""
        if self.is_paused or not torch.is_grad_enabled():
            return None
        site = self.sites.get(module)
        if site is not None:
            site.verify()
        return site

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let the modules be what they were without the engine while the block runs."""
        self.is_paused = True
        try:
            yield
        finally:
            self.is_paused = False

    @contextmanager
    def running(self, batch: int, size: int = 1, work: Workspace | None = None) -> Iterator[list[Use]]:
        """Record one backward pass of `batch` clipped gradients; yields the list that its uses are written to.

        Args:
            batch: how many gradients are told apart.
            size: how many neighbouring rows of the physical batch make up each of them. The rows of one gradient are
                laid out along time, since a gradient sums over both.
            work: the caches of this physical batch; with them norms are taken within the backward pass where that pays.
        """
        self._batch, self._size, self._uses, self.work = batch, size, [], work
        self._extents, self._folds = set(), set()
        try:
            yield self._uses
            self._verify_folds()
        finally:
            self._batch, self._size, self._uses, self.work = None, 1, [], None

    def write(self, use: Use) -> None:
        """Add a use to the running record."""
        if isinstance(use, VectorUse) and self._size > 1 and len(use.grads) != self._batch:
            use.grads = use.grads.view(-1, self._size, use.grads.shape[1]).sum(1)
        self._uses.append(use)

    def ids(self, ids: Tensor) -> Tensor:
        """Return looked-up ids as [batch, time], or [1, time] where all rows share them."""
        if ids.shape[0] == 1:
            return ids.reshape(1, -1).repeat(1, self._size)
        return ids.reshape(ids.shape[0] // self._size, -1)

    def rows(self, site: Site, tensor: Tensor, trailing: int = 1, *, folds: bool = False) -> Tensor:
        """Return `tensor` as [batch, time, width]; the width is made of its last `trailing` dimensions.

        Modules that know a single leading dimension see the words of a text as rows of their own, [batch * words, ...].
        With `folds` such a first dimension is taken apart again, the words becoming part of time, if the same backward
        pass shows that there are as many words in each example: see `_verify_folds`.

        Raises:
            EngineStateError: no private backward pass is running.
            UnsupportedModuleError: the first dimension is not the batch.
        """
        if self._batch is None:
            raise EngineStateError(
                f"a gradient reached {site.name} outside of the private engine: call engine.backward(losses) instead "
                "of loss.backward(), or engine.detach() first"
            )
        rows = self._batch * self._size
        leading = tensor.shape[0] if tensor.dim() > trailing else 0
        fold = leading // rows if folds else 1
        if leading == 0 or leading != fold * rows:
            raise UnsupportedModuleError(
                f"{site.name} ({type(site.module).__name__}) works on a tensor of shape {list(tensor.shape)}, whose "
                f"first dimension is not the batch of {rows} examples, so that rows cannot be told apart: "
                "keep the batch first, or freeze the module"
            )
        middle = tensor.shape[1 : tensor.dim() - trailing]
        if fold > 1:
            self._folds.add((site, fold))
        else:
            self._extents.update(itertools.accumulate(middle, operator.mul))
        if trailing == 1 and tensor.dim() == 3 and self._size == fold == 1:
            return tensor
        time = self._size * fold * math.prod(middle)
        return tensor.reshape(self._batch, time, math.prod(tensor.shape[tensor.dim() - trailing :]))

    def _verify_folds(self) -> None:
        """Check that rows which were folded into the first dimension are as many in each example.

        That they divide evenly proves nothing: examples of 3 and 5 words make 8 rows, as two of 4 do. But where another
        module of the same pass works on [batch, words, ...], batch * words rows are all words of all examples.

        Raises:
            UnsupportedModuleError: no module with the batch first has so many rows per example.
        """
        for site, fold in self._folds:
            if fold not in self._extents:
                raise UnsupportedModuleError(
                    f"{site.name} ({type(site.module).__name__}) works on {fold} rows for each example of the batch, "
                    f"in one first dimension, and no trainable layer on [batch, {fold}, ...] confirms that each "
                    "example has so many: keep words as a dimension of their own before and after it, or freeze it"
                )
