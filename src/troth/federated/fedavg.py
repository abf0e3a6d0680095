"""Federated averaging and what differs from it on one side only: FedProx on clients; server optimizers; FedNova."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from troth.federated.algorithm import Aggregate, ClientReply, LocalProblem, Parameters, ServerState, Traits
from troth.federated.local_optimizers import LocalTraining, descend
from troth.federated.server_optimizers import ServerOptimizer, ServerSGD

__all__ = ["FedAvg", "FedNova", "local_minus_global"]


@dataclass(frozen=True)
class FedAvg:
    """Federated averaging (McMahan et al., AISTATS 2017, algorithm 1): local training, then the weighted mean.

    The paper averages models; averaging updates and adding them with server learning rate 1 is the same. The paper's
    clients run SGD. With `proximal` above 0 this is FedProx (Li et al., MLSys 2020, arXiv 1812.06127, equation 2), with
    another server optimizer FedAvgM, FedAdagrad, FedAdam or FedYogi. A comparison of algorithms must hold the clients'
    optimizer fixed: FedNLP's 'FedOPT' changes it as well.

    Guarantees:
    - one local SGD step, full participation, equal sizes and server learning rate 1 make a step of centralised SGD;
    - nothing is shared between clients of a round, and no optimizer state outlives a client's turn.

    Attributes:
        local: the clients' optimizer.
        server: the server's.
        proximal: mu of FedProx; 0 for FedAvg.
    """

    local: LocalTraining
    server: ServerOptimizer = field(default_factory=ServerSGD)
    proximal: float = 0.0

    @property
    def traits(self) -> Traits:
        """One step is linear with SGD; the proximal term is zero in the first step and where nothing has moved."""
        return Traits(one_step_factor=-self.local.learning_rate if self.local.optimizer == "sgd" else None)

    def init(self, parameters: Parameters) -> ServerState:
        """Return the state before the first round."""
        return ServerState({name: p.detach().clone() for name, p in parameters.items()})

    def client_update(self, state: ServerState, problem: LocalProblem) -> ClientReply:
        """Return local minus global after descending the clients' batches."""
        descend(self.local, problem, proximal=self.proximal)
        return ClientReply(local_minus_global(problem))

    def server_update(self, state: ServerState, aggregate: Aggregate) -> ServerState:
        """Return the global parameters moved along the mean update."""
        return replace(self.server.step(state, aggregate.update), round_index=state.round_index + 1)


@dataclass(frozen=True)
class FedNova:
    """Normalised averaging (Wang et al., NeurIPS 2020, arXiv 2007.07481, equations 5 and 6).

    Each update is divided by its client's effective number of steps a_k, and the weighted mean is multiplied
    by the weighted mean of a_k: clients with more steps do not pull the objective towards their data. With SGD without
    momentum a_k is the number of steps; with momentum m it is (s - m (1 - m^s) / (1 - m)) / (1 - m).

    Attributes:
        local: the clients' optimizer, SGD.
        server: the server's.
    """

    local: LocalTraining
    server: ServerOptimizer = field(default_factory=ServerSGD)

    @property
    def traits(self) -> Traits:
        """Clients of one step are not merged: the server needs the weighted sum of steps as well."""
        return Traits()

    def init(self, parameters: Parameters) -> ServerState:
        """Return the state before the first round."""
        return ServerState({name: p.detach().clone() for name, p in parameters.items()})

    def client_update(self, state: ServerState, problem: LocalProblem) -> ClientReply:
        """Return the normalised updates, and the effective steps as a number."""
        descend(self.local, problem)
        update = local_minus_global(problem)
        effective = self._effective_steps(problem.steps, next(iter(update.values())).dtype)
        normalised = {n: u / effective.view(-1, *[1] * (u.dim() - 1)).clamp(min=1) for n, u in update.items()}
        return ClientReply(normalised, {"effective_steps": effective})

    def server_update(self, state: ServerState, aggregate: Aggregate) -> ServerState:
        """Return the global parameters moved along the mean normalised update, scaled by the mean effective steps."""
        scale = aggregate.numbers["effective_steps"]
        scaled = {name: u * scale for name, u in aggregate.update.items()}
        return replace(self.server.step(state, scaled), round_index=state.round_index + 1)

    def _effective_steps(self, steps: Tensor, dtype: torch.dtype) -> Tensor:
        taken, momentum = steps.to(dtype), self.local.momentum
        if not momentum:
            return taken
        return (taken - momentum * (1 - momentum**taken) / (1 - momentum)) / (1 - momentum)


@torch.no_grad()
def local_minus_global(problem: LocalProblem) -> dict[str, Tensor]:
    """Return [clients, ...] how far each client's parameters have moved."""
    return {name: p - problem.start[name] for name, p in problem.parameters.items()}
