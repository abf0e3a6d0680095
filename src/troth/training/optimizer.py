"""The optimizer, and the learning rate as a pure function of the step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from troth.config import TrainConfig
from troth.errors import ModelError, ResumeError

__all__ = ["learning_rate", "make_optimizer", "optimizer_tensors", "restore_optimizer", "set_learning_rate"]


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """Return the learning rate of a step (from 0): constant, or falling linearly to 0 just after the last one.

    >>> config = TrainConfig(learning_rate=0.1, schedule="linear")
    >>> [round(learning_rate(config, s, 4), 3) for s in range(4)]
    [0.1, 0.075, 0.05, 0.025]
    """
    if config.schedule == "constant":
        return config.learning_rate
    return config.learning_rate * (1 - step / total)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the fused optimizer over the model's trainable parameters.

    Raises:
        ModelError: the model has no trainable parameter.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ModelError("the model has no trainable parameter: change model.trainable")
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, weight_decay=decay, momentum=config.momentum, fused=True)
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)


def _named(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the optimizer's state as tensors named ``<parameter>|<quantity>``; there is nothing in it but tensors."""
    out: dict[str, torch.Tensor] = {}
    for name, parameter in _named(model).items():
        for quantity, value in optimizer.state.get(parameter, {}).items():
            if value is not None:  # SGD without momentum keeps a None
                out[f"{name}|{quantity}"] = torch.as_tensor(value)
    return out


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put the state that `optimizer_tensors` returned into a new optimizer of the same kind.

    Raises:
        ResumeError: the state is not of this model's parameters.
    """
    parameters = _named(model)
    for key, tensor in tensors.items():
        name, _, quantity = key.rpartition("|")
        if name not in parameters:
            raise ResumeError(f"checkpoint: holds optimizer state of {name}, which this model does not train")
        parameter = parameters[name]
        optimizer.state[parameter][quantity] = tensor.to(parameter.device)
