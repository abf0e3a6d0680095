"""Optimizer and schedule: pure functions of the step, state without pickles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from troth.config import TrainConfig
from troth.errors import ModelError, ResumeError
from troth.training.optimizer import (
    learning_rate,
    make_optimizer,
    optimizer_tensors,
    restore_optimizer,
    set_learning_rate,
)


def net(seed: int = 0) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return model


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        model(x).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_linear_falls_to_zero_just_after_the_last_step() -> None:
    config = TrainConfig(learning_rate=0.2)
    rates = [learning_rate(config, step, 10) for step in range(10)]
    assert rates[0] == 0.2
    assert rates[-1] == pytest.approx(0.02)
    assert learning_rate(config, 10, 10) == 0
    assert rates == sorted(rates, reverse=True)


@given(step=st.integers(0, 999))
def test_constant_is_constant_and_linear_stays_above_zero(step: int) -> None:
    assert learning_rate(TrainConfig(learning_rate=0.3, schedule="constant"), step, 1000) == 0.3
    assert 0 < learning_rate(TrainConfig(learning_rate=0.3), step, 1000) <= 0.3


def test_the_rate_is_set_in_every_group() -> None:
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([{"params": [a]}, {"params": [b]}], lr=1.0)
    set_learning_rate(optimizer, 0.5)
    assert [g["lr"] for g in optimizer.param_groups] == [0.5, 0.5]


def test_frozen_parameters_are_left_out_and_none_at_all_is_an_error() -> None:
    model = net()
    model[0].requires_grad_(False)
    optimizer = make_optimizer(model, TrainConfig())
    assert [p.shape for g in optimizer.param_groups for p in g["params"]] == [(2, 4), (2,)]
    model.requires_grad_(False)
    with pytest.raises(ModelError, match=r"model\.trainable"):
        make_optimizer(model, TrainConfig())


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adamw", "weight_decay": 0.1},
        {"optimizer": "sgd", "momentum": 0.9},
        {"optimizer": "sgd"},
    ],
)
def test_a_restored_optimizer_goes_on_bit_for_bit(options: dict[str, Any]) -> None:
    config = TrainConfig(learning_rate=0.1, **options)
    whole, first, second = net(), net(), net(1)
    train(whole, make_optimizer(whole, config), range(6))
    half = make_optimizer(first, config)
    train(first, half, range(3))
    state = {name: tensor.clone() for name, tensor in optimizer_tensors(first, half).items()}
    second.load_state_dict(first.state_dict())
    rest = make_optimizer(second, config)
    restore_optimizer(second, rest, state)
    train(second, rest, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


def test_the_state_is_all_tensors_by_name() -> None:
    model, config = net(), TrainConfig()
    optimizer = make_optimizer(model, config)
    assert optimizer_tensors(model, optimizer) == {}
    train(model, optimizer, range(1))
    state = optimizer_tensors(model, optimizer)
    assert {name.rpartition("|")[2] for name in state} == {"step", "exp_avg", "exp_avg_sq"}
    assert len(state) == 12
    assert state["0.weight|exp_avg"].shape == (4, 3)


def test_state_of_an_unknown_parameter_is_refused() -> None:
    model = net()
    with pytest.raises(ResumeError, match=r"9\.weight"):
        restore_optimizer(model, make_optimizer(model, TrainConfig()), {"9.weight|step": torch.tensor(1.0)})
