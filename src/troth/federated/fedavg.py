"""Federated averaging, as three steps that know no engine: init, client_update, server_update.

An algorithm works on named tensors through element-wise operations only. An engine decides how clients are run: one
after the other in place, or stacked with a leading client dimension; the same algorithm object serves both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

__all__ = ["Algorithm", "FedAvg", "LocalProblem", "Parameters", "ServerState"]

Parameters = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class ServerState:
    """All that outlives a round; hence all that a checkpoint of a federation holds.

    Attributes:
        parameters: the global model's trainable parameters by name.
        round_index: rounds done.
        slots: the server optimizer's tensors, slot -> parameter name -> tensor; none for plain averaging.
    """

    parameters: Parameters
    round_index: int = 0
    slots: Mapping[str, Parameters] = field(default_factory=dict)


class LocalProblem(Protocol):
    """What an engine gives an algorithm to work on: the data of a client, or of several stacked ones.

    Attributes:
        parameters: the local parameters by name, equal to the global ones at the start; changed in place.
        steps: how many gradient steps the local epochs make.
    """

    @property
    def parameters(self) -> Parameters:
        """The live local parameters."""

    @property
    def steps(self) -> int:
        """How many batches there are."""

    def gradients(self, step: int) -> Parameters:
        """Return the gradient of the mean loss of batch `step` at the present local parameters.

        A parameter that plays no part in the loss has no entry.
        """


class Algorithm(Protocol):
    """What a federation does on its clients and on its server."""

    def init(self, parameters: Parameters) -> ServerState:
        """Return the state before the first round; the parameters are copied."""

    def client_update(self, state: ServerState, problem: LocalProblem) -> dict[str, Tensor]:
        """Train locally and return **local minus global**; this sign is fixed throughout troth."""

    def server_update(self, state: ServerState, update: Parameters) -> ServerState:
        """Return the state after a round whose weighted sum of client updates is `update`."""


@dataclass(frozen=True)
class FedAvg:
    """Federated averaging (McMahan et al., AISTATS 2017, algorithm 1): local training, then the weighted mean.

    The paper averages models; averaging updates and adding them with server learning rate 1 is the same. The paper's
    clients run SGD; with ``adamw`` they run AdamW without weight decay instead, from fresh moments each turn, as
    FedNLP's 'FedOPT' does. A comparison of algorithms must hold the client optimizer fixed.

    Guarantees:
    - one local SGD step, full participation, equal sizes and server learning rate 1 make a step of centralised SGD;
    - nothing is shared between clients of a round, and no optimizer state outlives a client's turn.

    Attributes:
        local_learning_rate: of the clients' optimizer.
        server_learning_rate: of the server's SGD on the mean update.
        local_optimizer: of the clients.
    """

    local_learning_rate: float
    server_learning_rate: float = 1.0
    local_optimizer: Literal["sgd", "adamw"] = "sgd"

    def init(self, parameters: Parameters) -> ServerState:
        """Return the state before the first round."""
        return ServerState({name: p.detach().clone() for name, p in parameters.items()})

    @torch.no_grad()
    def client_update(self, state: ServerState, problem: LocalProblem) -> dict[str, Tensor]:
        """Return local minus global after descending the client's batches."""
        local = problem.parameters
        optimizer = self._optimizer(list(local.values()))
        for step in range(problem.steps):
            gradients = problem.gradients(step)
            for name, parameter in local.items():
                parameter.grad = gradients.get(name)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {name: local[name] - start for name, start in state.parameters.items()}

    def _optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        if self.local_optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=self.local_learning_rate, fused=True)
        return torch.optim.AdamW(parameters, lr=self.local_learning_rate, weight_decay=0.0, fused=True)

    @torch.no_grad()
    def server_update(self, state: ServerState, update: Parameters) -> ServerState:
        """Return the global parameters moved along the mean update."""
        moved = {n: p.add(update[n], alpha=self.server_learning_rate) for n, p in state.parameters.items()}
        return replace(state, parameters=moved, round_index=state.round_index + 1)
