"""What the server does with the mean update of a round: SGD with momentum, Adagrad, Adam, Yogi.

Reddi et al., 'Adaptive Federated Optimization' (ICLR 2021, arXiv 2003.00295), algorithm 2. The mean update plays the
part of a negative gradient. As in the paper nothing is corrected for bias, and the second moment starts at
adaptivity^2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from troth.federated.algorithm import Parameters, ServerState

__all__ = ["AdaptiveServer", "ServerOptimizer", "ServerSGD"]

FIRST, SECOND = "momentum", "second_moment"


@dataclass(frozen=True)
class ServerSGD:
    """parameters += learning_rate * m with m = momentum * m + update (FedAvg for momentum 0, else FedAvgM).

    A parameter without an update stays where it is.
    FedAvgM after Hsu et al. 2019, arXiv 1909.06335, section 3.

    Attributes:
        learning_rate: 1 adds the mean update itself.
        momentum: in [0, 1).
    """

    learning_rate: float = 1.0
    momentum: float = 0.0

    @torch.no_grad()
    def step(self, state: ServerState, update: Parameters) -> ServerState:
        """Return the state with the parameters moved; the round is counted by the caller."""
        slots, along = dict(state.slots), update
        if self.momentum:
            before = state.slots.get(FIRST, {})
            along = {n: u + self.momentum * before[n] if n in before else u.clone() for n, u in update.items()}
            slots[FIRST] = along
        moved = {n: p.add(along[n], alpha=self.learning_rate) for n, p in state.parameters.items() if n in along}
        return replace(state, parameters={**state.parameters, **moved}, slots=slots)

    def describe(self) -> str:
        """Return the settings in a few words, for tables."""
        momentum = f", momentum {self.momentum:g}" if self.momentum else ""
        return f"sgd, learning rate {self.learning_rate:g}{momentum}"


@dataclass(frozen=True)
class AdaptiveServer:
    """parameters += learning_rate * m / (sqrt(v) + adaptivity), with m = beta1 * m + (1 - beta1) * update.

    v is the sum of squared updates (adagrad), their moving average (adam), or yogi's additive form of it.

    Attributes:
        kind: how v is made.
        learning_rate: above 0.
        beta1: in [0, 1).
        beta2: in [0, 1); of adam and yogi.
        adaptivity: tau of the paper, above 0.
    """

    kind: Literal["adagrad", "adam", "yogi"]
    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.99
    adaptivity: float = 1e-3

    @torch.no_grad()
    def step(self, state: ServerState, update: Parameters) -> ServerState:
        """Return the state with the parameters moved; the round is counted by the caller."""
        first: dict[str, Tensor] = {}
        second: dict[str, Tensor] = {}
        moved: dict[str, Tensor] = {}
        old_first: Mapping[str, Tensor] = state.slots.get(FIRST, {})
        old_second: Mapping[str, Tensor] = state.slots.get(SECOND, {})
        for name, u in update.items():
            m = old_first[name] * self.beta1 if name in old_first else torch.zeros_like(u)
            first[name] = m.add_(u, alpha=1 - self.beta1)
            v = old_second[name] if name in old_second else torch.full_like(u, self.adaptivity**2)
            second[name] = self._second(v, u.square())
            size = second[name].sqrt().add_(self.adaptivity)
            moved[name] = state.parameters[name] + self.learning_rate * first[name] / size
        slots = {**state.slots, FIRST: first, SECOND: second}
        return replace(state, parameters={**state.parameters, **moved}, slots=slots)

    def _second(self, v: Tensor, squared: Tensor) -> Tensor:
        if self.kind == "adagrad":
            return v + squared
        if self.kind == "adam":
            return self.beta2 * v + (1 - self.beta2) * squared
        return v - (1 - self.beta2) * squared * torch.sign(v - squared)

    def describe(self) -> str:
        """Return the settings in a few words, for tables."""
        betas = f"beta1 {self.beta1:g}" + ("" if self.kind == "adagrad" else f", beta2 {self.beta2:g}")
        return f"{self.kind}, learning rate {self.learning_rate:g}, {betas}, adaptivity {self.adaptivity:g}"


ServerOptimizer = ServerSGD | AdaptiveServer
