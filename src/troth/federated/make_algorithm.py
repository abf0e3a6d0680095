"""The algorithm that a run file's [federated] names, with its clients' and its server's optimizer."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from troth.config_federated import FederatedConfig, ServerConfig
from troth.errors import ConfigError
from troth.federated.algorithm import Algorithm
from troth.federated.fedavg import FedAvg, FedNova
from troth.federated.local_optimizers import LocalTraining
from troth.federated.personal import Ditto, LocalHead
from troth.federated.scaffold import Scaffold
from troth.federated.server_optimizers import AdaptiveServer, ServerOptimizer, ServerSGD

__all__ = ["describe_clients", "make_algorithm", "make_server"]

_PROXIMAL, _STRENGTH, _MOMENTUM = 0.01, 0.1, 0.9
_OWN: dict[str, Literal["adagrad", "adam", "yogi"]] = {"fedadagrad": "adagrad", "fedadam": "adam", "fedyogi": "yogi"}


def make_algorithm(config: FederatedConfig, population: int, head: Collection[str] = ()) -> Algorithm:
    """Return the algorithm of a federation.

    Args:
        config: the section [federated].
        population: clients in all.
        head: names of the parameters that are the model's head, for ``local_head``.

    Raises:
        ConfigError: ``local_head`` with a model that has no head apart from its body.
    """
    local = config.local
    training = LocalTraining(local.learning_rate, local.optimizer, local.momentum)
    server = make_server(config)
    proximal = local.proximal if local.proximal is not None else _PROXIMAL
    match config.algorithm:
        case "fedprox":
            return FedAvg(training, server, proximal)
        case "scaffold":
            return Scaffold(training, population, server)
        case "fednova":
            return FedNova(training, server)
        case "ditto":
            return Ditto(FedAvg(training, server), local.proximal if local.proximal is not None else _STRENGTH)
        case "local_head":
            if not head:
                raise ConfigError(
                    "federated.algorithm = 'local_head': this model has no trained head apart from its body; "
                    "use 'ditto', which needs none"
                )
            return LocalHead(FedAvg(training, server), frozenset(head))
        case _:
            return FedAvg(training, server)


def make_server(config: FederatedConfig) -> ServerOptimizer:
    """Return the server's optimizer: what [federated.server] says, else the algorithm's own."""
    server = config.server
    kind = server.optimizer or _OWN.get(config.algorithm)
    if kind is None or kind == "sgd":
        default = _MOMENTUM if config.algorithm == "fedavgm" else 0.0
        return ServerSGD(server.learning_rate, server.momentum if server.momentum is not None else default)
    return AdaptiveServer(kind, server.learning_rate, _beta1(server, kind), server.beta2, server.adaptivity)


def _beta1(server: ServerConfig, kind: str) -> float:
    if server.beta1 is not None:
        return server.beta1
    return 0.0 if kind == "adagrad" else 0.9


def describe_clients(config: FederatedConfig) -> str:
    """Return the clients' optimizer in a few words, for tables."""
    local = config.local
    momentum = f", momentum {local.momentum:g}" if local.momentum else ""
    return f"{local.optimizer}, learning rate {local.learning_rate:g}{momentum}"
