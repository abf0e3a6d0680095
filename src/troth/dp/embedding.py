"""Look-ups (`nn.Embedding`): gathers and scatters only, never a dense one-hot product.

For one example with ids i_t and output gradients g_t, the gradient of row v is Σ_{t: i_t = v} g_t, and the squared norm
of the whole is Σ_{s,t} [i_s = i_t] g_s·g_t.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from troth.dp.tape import EmbeddingUse, Rule, Site, Tape, call
from troth.errors import UnsupportedModuleError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from troth.dp.workspace import Workspace

__all__ = ["EMBEDDING", "OWN_EMBEDDING", "OWN_POSITIONS", "RELATIVE_BIAS", "EmbeddingBlock"]

_GRAM_TOKENS = 96
"""Up to so many tokens a masked Gram matrix is cheaper than sorting the ids."""
_FEW_ROWS = 64
"""Up to so many rows of a small table (token types, relative positions) a product with 0 and 1 beats a scatter."""


class _Context(FunctionCtx):
    site: Site
    saved_tensors: tuple[Tensor, ...]


class _Embedding(torch.autograd.Function):
    """The look-up; its backward pass writes (ids, dy) on the tape.

    Ids of shape [1, ...] that a model adds to every example of a batch (position ids) are looked up once for each
    example, since the gradient of one shared row would come back summed over the batch.
    """

    @staticmethod
    def forward(ctx: _Context, ids: Tensor, weight: Tensor, batch: int, site: Site) -> Tensor:
        ctx.site = site
        ctx.save_for_backward(ids)
        out = F.embedding(ids, weight)
        return out.expand(batch, *out.shape[1:]) if ids.shape[0] != batch else out

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, g: Tensor) -> tuple[None, None, None, None]:
        (ids,) = ctx.saved_tensors
        rows = ctx.site.tape.rows(ctx.site, g)
        if ids.dim() > 1 and ids.stride(0) == 0:  # one row of ids, expanded over the batch by the model
            ids = ids[:1]
        module = cast("nn.Embedding", ctx.site.module)
        ctx.site.tape.write(
            EmbeddingUse(
                name=ctx.site.name,
                weight=ctx.site.trained["weight"],
                ids=ctx.site.tape.ids(ids),
                g=rows,
                padding_idx=module.padding_idx,
            )
        )
        return None, None, None, None


def _batch_of(site: Site, ids: Tensor) -> int:
    """Return how many examples the looked-up rows belong to."""
    if ids.dim() == 0:
        raise UnsupportedModuleError(
            f"{site.name}: a single id without a batch dimension cannot be clipped per example"
        )
    if ids.dim() == 1 or ids.shape[0] != 1:
        return ids.shape[0]
    batch = site.tape.forward_batch
    if batch is None:
        raise UnsupportedModuleError(
            f"{site.name} looks up ids of shape {list(ids.shape)} for a batch whose size is not known: call the model "
            "itself, with its batch of inputs first or as input_ids, not a part of it"
        )
    return batch


def _embedding_forward(tape: Tape) -> Callable[..., Tensor]:
    def forward(module: nn.Embedding, input: Tensor) -> Tensor:
        site = tape.site(module)
        if site is None:
            return type(module).forward(module, input)
        batch = _batch_of(site, input)
        return call(_Embedding, input, module.weight, batch, site)

    return forward


def _embedding_refuses(module: nn.Module) -> str | None:
    if not isinstance(module, nn.Embedding):
        return "is no nn.Embedding"
    if module.sparse:
        return "has sparse gradients: make it with sparse=False"
    if module.scale_grad_by_freq:
        return "scales gradients by frequency in the batch, which mixes examples: make it with scale_grad_by_freq=False"
    if module.max_norm is not None:
        return "renormalises its rows by what a batch looks up (max_norm), outside of the guarantee: make it without"
    return None


EMBEDDING = Rule("embedding", ("weight",), _embedding_forward, _embedding_refuses)


class _Intercepted(TorchFunctionMode):
    """Inside it, the look-up of one site's table is the tape's; every other operation is what it was."""

    def __init__(self, site: Site, ids: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._site, self._ids = site, ids

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401  what any function of torch returns
        if func is not F.embedding or args[1] is not self._site.trained["weight"]:
            return func(*args, **(kwargs or {}))
        ids = self._ids(args[0])
        return call(_Embedding, ids, args[1], _batch_of(self._site, ids), self._site)


def _own_forward(ids: Callable[[Tensor], Tensor], tape: Tape) -> Callable[..., Tensor]:
    """Run the `forward` of a subclass as it is, its one look-up aside: what it makes of ids and rows stays exact."""

    def forward(module: nn.Embedding, *args: object, **kwargs: object) -> Tensor:
        original = cast("Callable[..., Tensor]", type(module).forward)
        site = tape.site(module)
        if site is None:
            return original(module, *args, **kwargs)
        with _Intercepted(site, ids):
            return original(module, *args, **kwargs)

    return forward


def _one_row(ids: Tensor) -> Tensor:
    """Return positions [time] that a module made for all examples as [1, time]."""
    return ids[None] if ids.dim() == 1 else ids


OWN_EMBEDDING = Rule("embedding", ("weight",), lambda tape: _own_forward(lambda ids: ids, tape), _embedding_refuses)
"""For subclasses that scale what they look up: the factor is in the gradient that reaches the look-up."""
OWN_POSITIONS = Rule("embedding", ("weight",), lambda tape: _own_forward(_one_row, tape), _embedding_refuses)
"""For subclasses that make the ids themselves, for each example or once for all."""


class _RelativeBias(torch.autograd.Function):
    """The relative position bias of T5, [1, heads, query, key], written out for each example of the batch."""

    @staticmethod
    def forward(ctx: _Context, values: Tensor, weight: Tensor, ids: Tensor, batch: int, site: Site) -> Tensor:
        ctx.site = site
        ctx.save_for_backward(ids)
        return values.expand(batch, *values.shape[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, g: Tensor) -> tuple[None, None, None, None, None]:
        (ids,) = ctx.saved_tensors
        rows = ctx.site.tape.rows(ctx.site, g.permute(0, 2, 3, 1))
        ctx.site.tape.write(
            EmbeddingUse(ctx.site.name, ctx.site.trained["weight"], ctx.site.tape.ids(ids.reshape(1, -1)), rows)
        )
        return None, None, None, None, None


def _relative_bias_forward(tape: Tape) -> Callable[..., Tensor]:
    def compute_bias(module: nn.Module, *args: object, **kwargs: object) -> Tensor:
        table = cast("nn.Embedding", module.get_submodule("relative_attention_bias"))
        original = cast("Callable[..., Tensor]", cast("Any", type(module)).compute_bias)
        site = tape.site(table)
        if site is None:
            return original(module, *args, **kwargs)
        if tape.forward_batch is None:
            raise UnsupportedModuleError(
                f"{site.name} is shared by a batch whose size is not known: call the model itself, with its batch of "
                "inputs first or as input_ids, not a part of it"
            )
        ids: list[Tensor] = []
        handle = table.register_forward_pre_hook(lambda _, inputs: ids.append(inputs[0]))
        try:
            with torch.no_grad():
                values = original(module, *args, **kwargs)
        finally:
            handle.remove()
        return call(_RelativeBias, values, table.weight, ids[0], tape.forward_batch, site)

    return compute_bias


RELATIVE_BIAS = Rule(
    "relative_bias",
    ("weight",),
    _relative_bias_forward,
    _embedding_refuses,
    method="compute_bias",
    child="relative_attention_bias",
)


def _sum_equal(values: Tensor, inverse: Tensor, rows: int) -> Tensor:
    """Return Σ_{t: inverse_t = r} values_{bt} [batch, rows, width] of values [batch, time, width]."""
    if rows > _FEW_ROWS:
        return values.new_zeros(len(values), rows, values.shape[2]).index_add_(1, inverse, values)
    members = inverse == torch.arange(rows, device=inverse.device)[:, None]
    return members.to(values.dtype) @ values


class EmbeddingBlock:
    """All look-ups of one table [rows, width] in one backward pass."""

    def __init__(self, uses: Sequence[EmbeddingUse]) -> None:
        self.uses = list(uses)
        self.weight = uses[0].weight
        self.parameters: tuple[nn.Parameter, ...] = (self.weight,)
        self._rows: Tensor | None = None  # rows of the table touched...
        self._sums: Tensor | None = None  # ...and the gradient of each [touched, width] or [batch, touched, width]
        self._owner: Tensor | None = None  # the example of each touched row; None where all examples share the ids

    def merged(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return ids [batch, time], g [batch, time, width] and which of them count [batch, time] (None: all)."""
        batch = self.uses[0].g.shape[0]
        ids = torch.cat([u.ids.expand(batch, -1) for u in self.uses], 1)
        g = self.uses[0].g if len(self.uses) == 1 else torch.cat([u.g for u in self.uses], 1)
        if all(u.padding_idx is None for u in self.uses):
            return ids, g, None
        counted = torch.cat(
            [
                torch.ones_like(i, dtype=torch.bool) if u.padding_idx is None else i != u.padding_idx
                for u in self.uses
                for i in [u.ids.expand(batch, -1)]
            ],
            1,
        )
        return ids, g, counted

    def norms_squared(self, work: Workspace) -> Tensor:
        """Return the squared norm of each example's gradient of the table [batch]."""
        if len(self.uses) == 1 and self.uses[0].shared:
            return self._shared_norms(self.uses[0], work)
        ids, g, counted = self.merged()
        if ids.shape[1] > _GRAM_TOKENS:
            return self._sorted_norms(ids, g, counted, work)
        if ids.shape[1] == 1:
            squares = work.squares(g)
            return squares if counted is None else squares * counted[:, 0]
        same = ids[:, :, None] == ids[:, None, :]
        if counted is not None:
            same &= counted[:, :, None]
        return work.frobenius(work.gram(g, plus_one=False), same.to(work.dtype))

    def _shared_norms(self, use: EmbeddingUse, work: Workspace) -> Tensor:
        """The same ids in every example: sum the gradients of equal ids once, [batch, touched, width]."""
        rows, inverse = torch.unique(use.ids[0], return_inverse=True)
        sums = work.cast(use.g)
        if len(rows) < len(inverse) or use.padding_idx is not None:
            sums = _sum_equal(sums, inverse, len(rows))
            if use.padding_idx is not None:
                sums[:, rows == use.padding_idx] = 0
            self._rows = rows
        else:
            self._rows = use.ids[0]
        self._sums, self.uses = sums, []
        return work.squares(sums)

    def _sorted_norms(self, ids: Tensor, g: Tensor, counted: Tensor | None, work: Workspace) -> Tensor:
        """Many tokens: sum the gradients of equal ids of one example, found by sorting (example, id)."""
        batch, height = len(ids), len(self.weight)
        keys = ids + height * torch.arange(batch, device=ids.device)[:, None]
        touched, inverse = torch.unique(keys, return_inverse=True)
        values = work.cast(g) if counted is None else work.cast(g) * counted[:, :, None]
        sums = values.new_zeros(len(touched), values.shape[2]).index_add_(0, inverse.flatten(), values.flatten(0, 1))
        self._rows, self._owner, self._sums, self.uses = touched % height, touched // height, sums, []
        return sums.new_zeros(batch).index_add_(0, self._owner, work.squares(sums))

    def silence(self, keep: Tensor) -> None:
        """Set the rows of examples that are not kept to zero; `keep` [batch] is boolean."""
        for use in self.uses:
            use.g = use.g.where(keep[:, None, None], 0)
        if self._sums is not None:
            kept = keep[:, None, None] if self._owner is None else keep[self._owner][:, None]
            self._sums = self._sums.where(kept, 0)

    def add_clipped(self, views: Mapping[nn.Parameter, Tensor], work: Workspace) -> None:
        """Add the examples' gradients, each times its factor, to the table's view."""
        view = views[self.weight]
        if self._sums is not None and self._rows is not None:
            if self._owner is None:
                total = (work.factors @ self._sums.flatten(1)).view(self._sums.shape[1:])
            else:
                total = self._sums * work.factors[self._owner][:, None]
            view.index_add_(0, self._rows, total)
            self._sums = self._rows = self._owner = None
        for use in self.uses:
            weights = work.factors[:, None].expand(-1, use.g.shape[1])
            if use.padding_idx is not None:
                weights = weights * (use.ids != use.padding_idx)
            rows = use.ids.expand(len(use.g), -1).flatten()
            view.index_add_(0, rows, (use.g * weights[:, :, None]).flatten(0, 1))
