"""Models that devices keep for themselves beside the global one: Ditto, and local heads."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from troth.federated.algorithm import (
    Aggregate,
    ClientReply,
    DeviceMemory,
    LocalProblem,
    Parameters,
    ServerState,
    Traits,
)
from troth.federated.fedavg import FedAvg, local_minus_global
from troth.federated.local_optimizers import descend

__all__ = ["PERSONAL", "Ditto", "LocalHead"]

PERSONAL = "personal"


@dataclass(frozen=True)
class Ditto:
    """A personal model per device, held near the global one (Li et al., ICML 2021, arXiv 2012.04221, algorithm 1).

    The global model is FedAvg's. In the same turn the device descends its own loss plus strength / 2 times the squared
    distance of its personal model to the global one, over the same batches.

    Attributes:
        shared: what makes the global model.
        strength: lambda of the paper, at least 0; 0 is training alone.
    """

    shared: FedAvg
    strength: float

    @property
    def traits(self) -> Traits:
        """Each device keeps its personal model, at first the global one; the pull towards it moves every parameter."""
        return Traits((DeviceMemory(PERSONAL, "global"),), moves_all=True)

    def init(self, parameters: Parameters) -> ServerState:
        """Return the state before the first round."""
        return self.shared.init(parameters)

    @torch.no_grad()
    def client_update(self, state: ServerState, problem: LocalProblem) -> ClientReply:
        """Return the update of the global model; keep the personal one."""
        reply = self.shared.client_update(state, problem)
        for name, p in problem.parameters.items():
            p.copy_(problem.memory[PERSONAL][name])
        descend(self.shared.local, problem, proximal=self.strength)
        return ClientReply(reply.update, memory={PERSONAL: {n: p.clone() for n, p in problem.parameters.items()}})

    def server_update(self, state: ServerState, aggregate: Aggregate) -> ServerState:
        """Return the state after a round of the global model."""
        return self.shared.server_update(state, aggregate)


@dataclass(frozen=True)
class LocalHead:
    """The body is shared, the head stays on the device (FedPer; Arivazhagan et al. 2019, arXiv 1912.00818).

    Body and head are trained together. The head's update is not sent: the global head stays what it was.

    Attributes:
        shared: what makes the shared body.
        head: names of the head's parameters.
    """

    shared: FedAvg
    head: frozenset[str]

    @property
    def traits(self) -> Traits:
        """Each device keeps its head, at first the global one."""
        return Traits((DeviceMemory(PERSONAL, "global", self.head),))

    def init(self, parameters: Parameters) -> ServerState:
        """Return the state before the first round."""
        return self.shared.init(parameters)

    @torch.no_grad()
    def client_update(self, state: ServerState, problem: LocalProblem) -> ClientReply:
        """Return the body's update; keep the head."""
        for name, p in problem.memory[PERSONAL].items():
            problem.parameters[name].copy_(p)
        descend(self.shared.local, problem, proximal=self.shared.proximal)
        update = local_minus_global(problem)
        kept = {name: problem.parameters[name].clone() for name in self.head}
        return ClientReply({n: u for n, u in update.items() if n not in self.head}, memory={PERSONAL: kept})

    def server_update(self, state: ServerState, aggregate: Aggregate) -> ServerState:
        """Return the state after a round of the body; the global head has not moved."""
        return self.shared.server_update(state, aggregate)
