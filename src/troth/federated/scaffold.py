"""SCAFFOLD: control variates that correct what clients' data make them drift to."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

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
from troth.federated.fedavg import local_minus_global
from troth.federated.local_optimizers import LocalTraining, descend
from troth.federated.server_optimizers import ServerOptimizer, ServerSGD

__all__ = ["Scaffold"]

CONTROL = "control"


@dataclass(frozen=True)
class Scaffold:
    """Stochastic controlled averaging (Karimireddy et al., ICML 2020, arXiv 1910.06378, algorithm 1, option II).

    A client descends g - c_k + c; afterwards c_k becomes c_k - c + (global - local) / (steps * learning rate), and the
    server's c moves by the mean change over the *whole population*. Every device keeps a tree of the model's size, and
    a round sends twice the bytes; devices that take part once or never, as in cross-device federations, have no use
    for it. Needs plain SGD on clients.

    Attributes:
        local: the clients' optimizer, SGD without momentum.
        population: clients in all.
        server: the server's.
    """

    local: LocalTraining
    population: int
    server: ServerOptimizer = field(default_factory=ServerSGD)

    @property
    def traits(self) -> Traits:
        """Each device keeps its control variate, zero at first; the variates move every parameter."""
        return Traits((DeviceMemory(CONTROL, "zeros"),), moves_all=True)

    def init(self, parameters: Parameters) -> ServerState:
        """Return the state before the first round: the control variate of the server is zero."""
        copied = {name: p.detach().clone() for name, p in parameters.items()}
        return ServerState(copied, slots={CONTROL: {n: torch.zeros_like(p) for n, p in copied.items()}})

    @torch.no_grad()
    def client_update(self, state: ServerState, problem: LocalProblem) -> ClientReply:
        """Return the update, the change of the control variates (summed plainly) and the new ones (kept)."""
        own, common = problem.memory[CONTROL], state.slots[CONTROL]
        correction = {name: common[name].unsqueeze(0) - c for name, c in own.items()}
        descend(self.local, problem, correction=correction)
        update = local_minus_global(problem)
        change = {}
        for name, u in update.items():
            taken = problem.steps.to(u.dtype).clamp(min=1).view(-1, *[1] * (u.dim() - 1))
            change[name] = -common[name] - u / (taken * self.local.learning_rate)
        kept = {name: own[name] + c for name, c in change.items()}
        return ClientReply(update, summed={CONTROL: change}, memory={CONTROL: kept})

    @torch.no_grad()
    def server_update(self, state: ServerState, aggregate: Aggregate) -> ServerState:
        """Return the moved parameters and the control variate moved by the sum of changes over the population."""
        after = self.server.step(state, aggregate.update)
        change = aggregate.summed[CONTROL]
        control = {n: c.add(change[n], alpha=1 / self.population) for n, c in state.slots[CONTROL].items()}
        return replace(after, slots={**after.slots, CONTROL: control}, round_index=state.round_index + 1)
