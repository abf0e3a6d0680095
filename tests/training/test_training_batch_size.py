"""The physical batch: measured, bounded, the same on the same machine."""

from __future__ import annotations

from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st
from training_world import BATCH, config, inputs, table, train, weights

from troth.training.batch_size import activation_bytes, physical_batch_size
from troth.training.device import autocast

CPU = torch.device("cpu")


def measured(folder: Path, rows: int = 40, **model: int) -> int:
    run = config()
    run = run.model_copy(update={"model": run.model.model_copy(update=model)})
    world = inputs(folder, run, table(rows))
    return activation_bytes(world.model, world.task, world.train, CPU, autocast(CPU, "float32"))


def test_wider_and_deeper_models_keep_more(tmp_path: Path) -> None:
    small = measured(tmp_path)
    assert 1_000 < small < 1_000_000
    assert measured(tmp_path, width=32) > 1.5 * small
    assert measured(tmp_path, layers=2) > 1.5 * small
    assert measured(tmp_path) == small


def test_measuring_changes_nothing(tmp_path: Path) -> None:
    world = inputs(tmp_path, config())
    world.model.train()
    before, state = weights(world), torch.get_rng_state()
    activation_bytes(world.model, world.task, world.train, CPU, autocast(CPU, "float32"))
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(world).items())
    assert all(p.grad is None for p in world.model.parameters())
    assert world.model.training
    assert torch.equal(torch.get_rng_state(), state)


@given(each=st.integers(1, 2**40), logical=st.integers(1, 10_000), private=st.booleans())
def test_at_least_one_at_most_all(each: int, logical: int, private: bool) -> None:
    size = physical_batch_size(each, max(1, each // 3), logical, CPU, private=private)
    assert 1 <= size <= logical
    assert size == 1 or size * each <= 2 * 2**30


def test_small_models_go_through_whole_and_large_ones_in_parts() -> None:
    assert physical_batch_size(100_000, 50_000, 64, CPU, private=False) == 64
    assert physical_batch_size(200 * 2**20, 2**20, 64, CPU, private=False) == 10
    assert physical_batch_size(200 * 2**20, 2**20, 64, CPU, private=True) == 5
    assert physical_batch_size(2**20, 2**18, 512, CPU, private=True) == 48
    assert physical_batch_size(2**23, 2**22, 512, CPU, private=True) == 32


def test_auto_is_the_whole_batch_of_the_small_world(tmp_path: Path) -> None:
    auto, fixed = inputs(tmp_path / "a", config()), inputs(tmp_path / "b", config(physical_batch_size=BATCH))
    for world in (auto, fixed):
        train(world)
    assert all(torch.equal(a, b) for a, b in zip(weights(auto).values(), weights(fixed).values(), strict=True))
