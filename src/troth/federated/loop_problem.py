"""Clients one after the other, in place, over one model: the plain way, which every model and task can go."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from troth.federated.algorithm import Parameters
from troth.federated.client_batches import collate_clients
from troth.federated.round_plan import Chunk
from troth.tasks import Encoded, Task

__all__ = ["LoopProblem"]


class LoopProblem:
    """The problem of one client on the live parameters of a model; a `LocalProblem` with one client.

    Attributes:
        loss_sums: [1] sum of the losses of the examples processed so far, nats.
    """

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        encoded: Encoded,
        chunk: Chunk,
        start: Parameters,
        memory: Mapping[str, Parameters],
    ) -> None:
        self._task, self._model, self._encoded, self._chunk = task, model, encoded, chunk
        self._live = {name: p for name, p in model.named_parameters() if name in start}
        with torch.no_grad():
            for name, place in self._live.items():
                place.copy_(start[name])
        self.start = {name: p.unsqueeze(0) for name, p in start.items()}
        self.parameters = {name: p.detach().unsqueeze(0) for name, p in self._live.items()}
        self.memory = memory
        self.steps = torch.from_numpy(chunk.steps)
        self.loss_sums = torch.zeros(1, dtype=torch.float64)

    def active(self, step: int) -> int:
        """Return 1."""
        return 1

    @torch.enable_grad()
    def gradients(self, step: int) -> Parameters:
        """Return [1, ...] the gradient of the mean loss of a batch."""
        rows = self._chunk.rows[:, step]
        rows = rows[:, : int((rows >= 0).sum())]
        batch = collate_clients(self._task, self._encoded, rows, self._chunk.draws[:, step])
        device = next(iter(self._live.values())).device
        single = {name: values[0].to(device) for name, values in batch.items()}
        losses = self._task.per_example_loss(self._model, single)  # type: ignore[arg-type]
        found = torch.autograd.grad(losses.mean(), list(self._live.values()), allow_unused=True)
        self.loss_sums += losses.detach().sum().double().cpu()
        return {name: g.unsqueeze(0) for name, g in zip(self._live, found, strict=True) if g is not None}

    def reply_sum(self, tree: Parameters, weights: Tensor) -> dict[str, Tensor]:
        """Return the weighted sum [...] of a tree [1, ...] in the model's own layout."""
        return {name: t[0] * weights[0].to(t.dtype) for name, t in tree.items()}
