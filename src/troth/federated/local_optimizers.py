"""Optimizers of clients, over parameters with a leading client dimension: clients share operations and nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from troth.federated.algorithm import LocalProblem, Parameters

__all__ = ["LocalOptimizer", "LocalTraining", "descend"]

_BETAS, _EPSILON = (0.9, 0.999), 1e-8  # torch's defaults for AdamW


class LocalOptimizer(Protocol):
    """An optimizer under way; the state of a turn."""

    def step(self, gradients: Parameters, active: int) -> None:
        """Move the first `active` clients along their gradients [active, ...], in place."""


class _Descent:
    """SGD, with momentum as torch has it: v = momentum * v + g; p -= learning_rate * v."""

    def __init__(self, parameters: Parameters, learning_rate: float, momentum: float) -> None:
        self._parameters, self._learning_rate, self._momentum = parameters, learning_rate, momentum
        self._velocity: dict[str, Tensor] = {}

    def step(self, gradients: Parameters, active: int) -> None:
        names = list(gradients)
        moved = [self._parameters[n][:active] for n in names]
        along = [gradients[n] for n in names]
        if self._momentum:
            for name, g in gradients.items():
                if name not in self._velocity:
                    self._velocity[name] = g.clone()
                else:
                    self._velocity[name][:active].mul_(self._momentum).add_(g)
            along = [self._velocity[n][:active] for n in names]
        torch._foreach_add_(moved, along, alpha=-self._learning_rate)


class _AdamW:
    """AdamW without weight decay (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2), from fresh moments."""

    def __init__(self, parameters: Parameters, learning_rate: float) -> None:
        self._parameters, self._learning_rate = parameters, learning_rate
        self._first = {n: torch.zeros_like(p) for n, p in parameters.items()}
        self._second = {n: torch.zeros_like(p) for n, p in parameters.items()}
        self._done = 0

    def step(self, gradients: Parameters, active: int) -> None:
        self._done += 1
        names, along = list(gradients), list(gradients.values())
        first = [self._first[n][:active] for n in names]
        second = [self._second[n][:active] for n in names]
        torch._foreach_lerp_(first, along, 1 - _BETAS[0])
        torch._foreach_mul_(second, _BETAS[1])
        torch._foreach_addcmul_(second, along, along, 1 - _BETAS[1])
        root = torch._foreach_sqrt(second)
        torch._foreach_div_(root, math.sqrt(1 - _BETAS[1] ** self._done))
        torch._foreach_add_(root, _EPSILON)
        size = self._learning_rate / (1 - _BETAS[0] ** self._done)
        torch._foreach_addcdiv_([self._parameters[n][:active] for n in names], first, root, -size)


@dataclass(frozen=True)
class LocalTraining:
    """How a client trains; its optimizer starts afresh in each turn.

    Attributes:
        learning_rate: constant over the turn.
        optimizer: sgd, or adamw without weight decay.
        momentum: of sgd.
    """

    learning_rate: float
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.0

    def begin(self, parameters: Parameters) -> LocalOptimizer:
        """Return a fresh optimizer of these parameters [clients, ...]."""
        if self.optimizer == "sgd":
            return _Descent(parameters, self.learning_rate, self.momentum)
        return _AdamW(parameters, self.learning_rate)


def descend(
    training: LocalTraining, problem: LocalProblem, *, proximal: float = 0.0, correction: Parameters | None = None
) -> None:
    """Take all of the problem's steps, in place.

    Args:
        training: the clients' optimizer.
        problem: the clients' data; `problem.parameters` move.
        proximal: mu >= 0: adds mu / 2 * |local - global|^2 to each client's loss.
        correction: [clients, ...] added to every gradient; None for nothing.
    """
    optimizer, local, start = training.begin(problem.parameters), problem.parameters, problem.start
    for step in range(int(problem.steps.max()) if len(problem.steps) else 0):
        active, gradients = problem.active(step), dict(problem.gradients(step))
        if proximal:
            for name, p in local.items():
                pull = (p[:active] - start[name][:active]).mul_(proximal)
                gradients[name] = pull.add_(gradients[name]) if name in gradients else pull
        for name, c in (correction or {}).items():
            gradients[name] = gradients[name] + c[:active] if name in gradients else c[:active]
        optimizer.step(gradients, active)
