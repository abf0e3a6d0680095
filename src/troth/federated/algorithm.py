"""What a federation does on its clients and on its server, as three steps that know no engine.

An algorithm works on named tensors with a leading client dimension, through element-wise operations only. An engine
decides how many clients stand in one problem: one, or many stacked; the same algorithm object serves both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import Tensor

__all__ = [
    "Aggregate",
    "Algorithm",
    "ClientReply",
    "DeviceMemory",
    "LocalProblem",
    "Parameters",
    "ServerState",
    "Traits",
]

Parameters = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class ServerState:
    """All that the server keeps from round to round; hence all that a checkpoint holds of it.

    Attributes:
        parameters: the global model's trainable parameters by name.
        round_index: rounds done.
        slots: other trees of the server, slot -> parameter name -> tensor: an optimizer's moments, a control variate.
    """

    parameters: Parameters
    round_index: int = 0
    slots: Mapping[str, Parameters] = field(default_factory=dict)


@dataclass(frozen=True)
class DeviceMemory:
    """A tree that each device keeps from one turn to its next.

    Attributes:
        name: what it is called.
        initial: what a device starts from that takes part for the first time: zeros, or the global parameters.
        parameters: names of the parameters it has a tensor for; None for all.
    """

    name: str
    initial: Literal["zeros", "global"]
    parameters: frozenset[str] | None = None


class LocalProblem(Protocol):
    """The data of some clients, to work on; clients stand in descending order of their number of steps.

    Attributes:
        start: the global parameters in this problem's layout, [1, ...] or [clients, ...].
        parameters: the local ones [clients, ...], equal to `start` at first; changed in place.
        memory: what the devices keep, tree -> parameter name -> [clients, ...].
        steps: [clients] int64, how many gradient steps each client makes.
    """

    @property
    def start(self) -> Parameters:
        """The global parameters."""

    @property
    def parameters(self) -> Parameters:
        """The live local parameters."""

    @property
    def memory(self) -> Mapping[str, Parameters]:
        """What the devices keep."""

    @property
    def steps(self) -> Tensor:
        """How many steps each client makes."""

    def active(self, step: int) -> int:
        """Return how many clients, counted from the first, have a batch at `step`."""

    def gradients(self, step: int) -> Parameters:
        """Return [active, ...] the gradient of each active client's mean loss at its present local parameters.

        A parameter that plays no part in the loss has no entry.
        """


@dataclass(frozen=True, eq=False)
class ClientReply:
    """What clients send back and keep, all in the layout of their problem.

    Attributes:
        update: [clients, ...] **local minus global**; this sign is fixed throughout troth. Summed by weight.
        numbers: [clients] each, such as steps made; summed by weight.
        summed: trees [clients, ...]; summed plainly.
        memory: trees [clients, ...] that the devices keep.
    """

    update: Parameters
    numbers: Mapping[str, Tensor] = field(default_factory=dict)
    summed: Mapping[str, Parameters] = field(default_factory=dict)
    memory: Mapping[str, Parameters] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Aggregate:
    """The replies of a round as one.

    Attributes:
        update: sum of weight x update, or what robust aggregation makes of the updates.
        numbers: sums of weight x number.
        summed: plain sums of trees.
        clients: how many replies were taken.
    """

    update: Parameters
    numbers: Mapping[str, float] = field(default_factory=dict)
    summed: Mapping[str, Parameters] = field(default_factory=dict)
    clients: int = 0


@dataclass(frozen=True)
class Traits:
    """What an engine has to know of an algorithm.

    Attributes:
        memory: what each device keeps; empty for most.
        moves_all: whether a parameter without gradient can move on a client, so that embedding rows which a client
            never looks up must be in its problem.
        one_step_factor: what one step multiplies a gradient by, where the weighted sum of the updates of clients that
            make one step each is that multiple of one gradient of the weighted loss: then no client needs parameters
            of its own. None where it is not so.
    """

    memory: tuple[DeviceMemory, ...] = ()
    moves_all: bool = False
    one_step_factor: float | None = None


class Algorithm(Protocol):
    """What a federation does."""

    @property
    def traits(self) -> Traits:
        """What an engine has to know."""

    def init(self, parameters: Parameters) -> ServerState:
        """Return the state before the first round; the parameters are copied."""

    def client_update(self, state: ServerState, problem: LocalProblem) -> ClientReply:
        """Train locally."""

    def server_update(self, state: ServerState, aggregate: Aggregate) -> ServerState:
        """Return the state after a round."""
