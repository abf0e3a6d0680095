"""Many clients in one program: parameters with a leading client dimension, gradients through ``torch.func.vmap``.

Frozen parameters are shared and not stacked. What every client may do differently is data: rows, labels, dropout.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from troth.federated.algorithm import Parameters
from troth.federated.client_batches import collate_clients, row_weights
from troth.federated.local_vocabulary import LocalRows, LocalTable, token_table
from troth.federated.round_plan import Chunk
from troth.tasks import Encoded, Task

__all__ = ["Masks", "StackedModel", "StackedProblem"]

Masks = Literal["as it is", "additive", "additive and causal"]
"""How a model gets its attention mask: a four-dimensional additive one is what no model has to look into."""


class _Losses(nn.Module):
    """A model with its task's loss, so that parameters can be handed to both as one call."""

    def __init__(self, task: Task, model: nn.Module, table: LocalTable | None) -> None:
        super().__init__()
        self.model = model
        self._task, self._table = task, table

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Return [batch] losses."""
        if self._table is not None:
            self._table.local_ids = batch.get("local_ids")
        rest = {name: values for name, values in batch.items() if name != "local_ids"}
        return self._task.per_example_loss(self.model, rest)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class _Sum:
    """Loss of one client: sum of weight x loss over its rows."""

    losses: _Losses

    def __call__(self, parameters: Parameters, batch: dict[str, Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss that is descended, and it again as a value."""
        named = {f"model.{name}": p for name, p in parameters.items()}
        found = cast("Tensor", functional_call(self.losses, named, (batch,)))
        loss = (found * weights).sum()
        return loss, loss.detach()


class StackedModel:
    """A copy of a model whose trained parameters come from outside, for all clients of a chunk at once.

    Attributes:
        table: name of the token table that is cut to the clients' own rows; None where it stays whole.
    """

    def __init__(
        self, task: Task, model: nn.Module, encoded: Encoded, trained: list[str], masks: Masks, *, cut: bool
    ) -> None:
        own = copy.deepcopy(model)
        self.task, self.encoded, self._masks = task, encoded, masks
        self.table = token_table(own, trained) if cut else None
        local: LocalTable | None = None
        if self.table is not None:
            module = cast("nn.Embedding", own.get_submodule(self.table.rpartition(".")[0]))
            if _reads_ids_once(task, own, module, encoded):
                local = LocalTable(module)
                module.forward = local.__call__  # type: ignore[method-assign,assignment]
            else:
                self.table = None
        for p in own.parameters():
            p.requires_grad_(False)
        self._model = own.train()
        self._gradient = vmap(grad(_Sum(_Losses(task, own, local)), has_aux=True), randomness="different")

    def train(self, mode: bool) -> None:
        """Switch dropout on or off."""
        self._model.train(mode)

    def gradients(
        self, parameters: Parameters, batch: dict[str, Tensor], weights: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return [clients, ...] gradients of each client's mean loss, and [clients] the losses."""
        if self._masks != "as it is":
            causal = self._masks == "additive and causal"
            batch = {**batch, "attention_mask": _additive(batch["attention_mask"], weights.dtype, causal)}
        # The other kernels of attention have no rule for a client dimension: they would run client by client.
        with sdpa_kernel(SDPBackend.MATH):
            found, losses = self._gradient(dict(parameters), batch, weights)
        return found, losses


class StackedProblem:
    """A `LocalProblem` of many clients.

    Attributes:
        loss_sums: [clients] sum of the losses of the examples processed so far, nats.
        rows: the rows of the token table that the clients hold; None where each holds the whole table.
    """

    def __init__(
        self, stacked: StackedModel, chunk: Chunk, start: Parameters, memory: Mapping[str, Parameters]
    ) -> None:
        self._stacked, self._chunk = stacked, chunk
        clients = len(chunk)
        self.rows: LocalRows | None = None
        self.start = {name: p.unsqueeze(0) for name, p in start.items()}
        self._whole = dict(start)
        self._batches = [self._batch(step) for step in range(int(chunk.steps.max()))]
        if stacked.table is not None:
            self._cut(stacked.table, clients)
        self.parameters = {name: p.expand(clients, *p.shape[1:]).clone() for name, p in self.start.items()}
        self.memory = memory
        self.steps = torch.from_numpy(chunk.steps)
        self.loss_sums = torch.zeros(clients, dtype=torch.float64)

    def _batch(self, step: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        active = self.active(step)
        rows = self._chunk.rows[:active, step]
        rows = rows[:, : int((rows >= 0).sum(axis=1).max())]
        batch = collate_clients(self._stacked.task, self._stacked.encoded, rows, self._chunk.draws[:active, step])
        dtype = next(iter(self.start.values())).dtype
        return batch, row_weights(rows, dtype), torch.from_numpy((rows >= 0).sum(axis=1))

    def _cut(self, table: str, clients: int) -> None:
        """Give every client its own rows of the token table, and its batches the places of those rows."""
        flat = [batch["input_ids"].flatten(1) for batch, _, _ in self._batches]
        widths = [f.shape[1] for f in flat]
        whole = flat[0].new_full((clients, sum(widths)), -1)
        begin = 0
        for ids, width in zip(flat, widths, strict=True):
            whole[: len(ids), begin : begin + width] = ids
            whole[len(ids) :, begin : begin + width] = flat[0][len(ids) :, :1]  # no steps left: any id it has anyway
            begin += width
        self.rows = LocalRows.of(whole.numpy(), self._whole[table].shape[0])
        begin = 0
        for (batch, _, _), width in zip(self._batches, widths, strict=True):
            ids = batch["input_ids"]
            batch["local_ids"] = self.rows.local_ids[: len(ids), begin : begin + width].reshape(ids.shape)
            begin += width
        self.start[table] = self.rows.gather(self._whole[table], clients)

    def active(self, step: int) -> int:
        """Return how many clients have a batch at `step`; they stand first."""
        return int((self._chunk.steps > step).sum())

    def gradients(self, step: int) -> Parameters:
        """Return [active, ...] the gradients of the mean losses of the clients' batches."""
        batch, weights, counts = self._batches[step]
        active = len(weights)
        held = {name: p[:active] for name, p in self.parameters.items()}
        found, losses = self._stacked.gradients(held, batch, weights)
        self.loss_sums[:active] += losses.double() * counts
        return found

    @torch.no_grad()
    def reply_sum(self, tree: Parameters, weights: Tensor) -> dict[str, Tensor]:
        """Return the weighted sum [...] of a tree [clients, ...] in the model's own layout."""
        out = {}
        for name, t in tree.items():
            if self.rows is not None and name == self._stacked.table:
                out[name] = self.rows.scatter_sum(t, weights, self._whole[name].shape[0])
            else:
                out[name] = torch.mv(t.flatten(1).T, weights.to(t.dtype)).view(t.shape[1:])
        return out


def _additive(mask: Tensor, dtype: torch.dtype, causal: bool) -> Tensor:
    """Return [clients, batch, 1, 1 or time, time]: 0 where a token may be looked at, the lowest number elsewhere."""
    seen = mask[:, :, None, None, :].bool()
    if causal:
        time = mask.shape[-1]
        seen = seen & torch.ones((time, time), dtype=torch.bool, device=mask.device).tril()
    lowest = torch.finfo(dtype).min
    return torch.zeros(seen.shape, dtype=dtype, device=mask.device).masked_fill(~seen, lowest)


def _reads_ids_once(task: Task, model: nn.Module, table: nn.Embedding, encoded: Encoded) -> bool:
    """Return whether a loss calls the model's token table once, with the batch's token ids as they are."""
    batch = task.collate(encoded, np.arange(min(2, len(encoded))))
    called: list[Tensor] = []
    hook = table.register_forward_hook(lambda _module, inputs, _output: called.append(inputs[0]))
    try:
        with torch.no_grad():
            task.per_example_loss(model, batch)  # type: ignore[arg-type]
    finally:
        hook.remove()
    return len(called) == 1 and torch.equal(called[0], batch["input_ids"])
