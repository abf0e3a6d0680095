"""The in-process engine: the clients of a round one after the other, in place, over one model.

Memory does not grow with the cohort: there is one model, one client update and one running weighted sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from troth.config import LocalConfig
from troth.errors import ModelError
from troth.federated.fedavg import Algorithm, Parameters, ServerState
from troth.federated.population import FederatedData
from troth.federated.selection import Cohort
from troth.seeds import PublicSeeds

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from troth.tasks import Encoded, Task

__all__ = ["Engine", "RoundOutcome", "SequentialEngine"]


@dataclass(frozen=True, eq=False)
class RoundOutcome:
    """What the clients of a round sent back, summed.

    Attributes:
        update: the weighted sum of the client updates that were taken; None where none was.
        clients: clients that trained.
        rejected: clients whose update was not finite and was left out.
        samples: examples processed, each local epoch counted.
        steps: local gradient steps.
        losses: how many of those examples belong to updates that were taken.
        loss_sum: sum of these examples' losses, nats, each at the parameters of its step.
        bytes_down: bytes sent to clients: the trainable parameters, dense, once a client.
        bytes_up: bytes sent back: as many.
    """

    update: Parameters | None
    clients: int
    rejected: int
    samples: int
    steps: int
    losses: int
    loss_sum: float
    bytes_down: int
    bytes_up: int


class Engine(Protocol):
    """Runs the clients of a round, however it likes; the result is the weighted sum of their updates."""

    def parameters(self) -> Parameters:
        """Return the model's trainable parameters by name, live."""

    def load(self, parameters: Parameters) -> None:
        """Put parameters into the model."""

    def run_round(self, algorithm: Algorithm, state: ServerState, cohort: Cohort) -> RoundOutcome:
        """Return what the cohort makes of round ``state.round_index``."""


class SequentialEngine:
    """A plain loop over the cohort.

    A client's batches come from ``seeds.generator("local batches", round, client)`` and its dropout from
    ``seeds.integer("dropout", round, client)`` alone, hence neither the order of clients nor a resume changes them.
    The caller gives the global random state of torch back (`simulate` does).

    Raises:
        ModelError: nothing to train, or a BatchNorm layer, whose running statistics no average of parameters covers.
    """

    def __init__(
        self,
        task: Task,
        model: PreTrainedModel,
        encoded: Encoded,
        clients: FederatedData,
        local: LocalConfig,
        seeds: PublicSeeds,
    ) -> None:
        self._task, self._model, self._encoded = task, model, encoded
        self._clients, self._local, self._seeds = clients, local, seeds
        self._trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self._trainable:
            raise ModelError("model.trainable: no parameter is trained; a federation needs at least one")
        for name, module in model.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                raise ModelError(f"{name} is a BatchNorm layer: averaging parameters leaves out its running statistics")
        self._device = next(iter(self._trainable.values())).device
        self._bytes = sum(p.nbytes for p in self._trainable.values())

    def parameters(self) -> Parameters:
        """Return the model's trainable parameters by name, live."""
        return self._trainable

    @torch.no_grad()
    def load(self, parameters: Parameters) -> None:
        """Put parameters into the model."""
        for name, place in self._trainable.items():
            place.copy_(parameters[name])

    def run_round(self, algorithm: Algorithm, state: ServerState, cohort: Cohort) -> RoundOutcome:
        """Return the weighted sum of the cohort's updates, each added as soon as it is there."""
        self._model.train()
        total: dict[str, Tensor] | None = None
        taken, rejected, samples, steps, losses, loss_sum = 0.0, 0, 0, 0, 0, 0.0
        for client, weight in zip(cohort.clients.tolist(), cohort.weights.tolist(), strict=True):
            self.load(state.parameters)
            work = self._work(client, state.round_index)
            update = algorithm.client_update(state, work)
            samples, steps = samples + work.samples, steps + work.steps
            if not _finite(update):
                rejected += 1
                continue
            losses, loss_sum = losses + work.samples, loss_sum + work.loss_sum
            taken += weight
            total = _added(total, update, weight)
        if total is not None and rejected and cohort.sums_to_one:
            total = {name: summed / taken for name, summed in total.items()}
        clients = len(cohort.clients)
        sent = clients * self._bytes
        return RoundOutcome(total, clients, rejected, samples, steps, losses, loss_sum, sent, sent)

    def _work(self, client: int, round_index: int) -> _ClientWork:
        """Return a client's problem, with the dropout of its turn seeded."""
        seed = self._seeds.integer("dropout", round_index, client)
        torch.default_generator.manual_seed(seed)
        if self._device.type == "cuda":
            torch.cuda.manual_seed(seed)
        rng = self._seeds.generator("local batches", round_index, client)
        rows, size, draws = self._clients.rows_of(client), self._local.batch_size, []
        for epoch in range(self._local.epochs):
            order = rng.permutation(rows)
            draws += [
                (order[i : i + size], round_index * self._local.epochs + epoch) for i in range(0, len(rows), size)
            ]
        return _ClientWork(self._task, self._model, self._encoded, self._trainable, draws)


class _ClientWork:
    """One client's turn on the one model: a `LocalProblem`, and what was seen in it.

    Attributes:
        samples: examples processed so far.
        loss_sum: sum of their losses, nats.
    """

    def __init__(
        self,
        task: Task,
        model: PreTrainedModel,
        encoded: Encoded,
        trainable: Mapping[str, nn.Parameter],
        batches: list[tuple[NDArray[np.int64], int]],
    ) -> None:
        self._task, self._model, self._encoded, self._batches = task, model, encoded, batches
        self._trainable = trainable
        self.samples = 0
        self.loss_sum = 0.0

    @property
    def parameters(self) -> Parameters:
        """The live parameters of the model."""
        return self._trainable

    @property
    def steps(self) -> int:
        """How many batches there are."""
        return len(self._batches)

    @torch.enable_grad()
    def gradients(self, step: int) -> Parameters:
        """Return the gradient of the mean loss of a batch."""
        rows, draw = self._batches[step]
        device = next(iter(self._trainable.values())).device
        batch = {k: v.to(device) for k, v in self._task.collate(self._encoded, rows, draw=draw).items()}
        loss = self._task.per_example_loss(self._model, batch).mean()
        found = torch.autograd.grad(loss, list(self._trainable.values()), allow_unused=True)
        self.samples += len(rows)
        self.loss_sum += float(loss.detach()) * len(rows)
        return {name: g for name, g in zip(self._trainable, found, strict=True) if g is not None}


def _finite(update: Parameters) -> bool:
    """Return whether every number is finite; a sum is NaN or infinite as soon as one is not (or as it overflows)."""
    return all(bool(torch.isfinite(u.sum())) for u in update.values())


@torch.no_grad()
def _added(total: dict[str, Tensor] | None, update: dict[str, Tensor], weight: float) -> dict[str, Tensor]:
    """Return the running sum with one more update, in place; the first update becomes the sum."""
    if total is None:
        return {name: u.mul_(weight) for name, u in update.items()}
    for name, u in update.items():
        total[name].add_(u, alpha=weight)
    return total
