"""The probe makes the run's own steps on a model to throw away: its seconds are the run's, and nothing is left."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_world import ROWS, Draws, config, hooked, inputs, plan_of, train
from transformers import PreTrainedModel

from troth.accounting import troth_home
from troth.training import SilentProgress, TrainInputs, probe
from troth.training import private as private_module


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[TrainInputs], TrainInputs]:
    """A clock on which each row that goes through the model takes a second, and nothing else takes any."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def count(model: PreTrainedModel, losses: torch.Tensor) -> torch.Tensor:
        now[0] += len(losses)
        return losses

    return lambda given: hooked(given, count)


def probed(given: TrainInputs) -> Any:
    return probe(given, plan=plan_of(given.config, len(given.train)), progress=SilentProgress())


@pytest.mark.parametrize("physical", [3, 8])
def test_plain_seconds_are_those_of_the_run(clock: Callable, tmp_path: Path, physical: int) -> None:
    run = config(physical_batch_size=physical)
    found = probed(clock(inputs(tmp_path, run)))
    assert (found.steps, found.physical_batch_size, found.checkpoints) == (15, physical, 4)
    assert set(found.seconds) == {8.0} and found.extra_seconds == 0
    outcome = train(clock(inputs(tmp_path, run)))
    assert found.work_seconds(8.0) == outcome.work_seconds == 3 * ROWS


def test_private_seconds_are_those_of_the_run(clock: Callable, tmp_path: Path) -> None:
    run = config(private=True, insecure=True, epochs=20)
    found = probed(clock(inputs(tmp_path, run)))
    outcome = train(clock(inputs(tmp_path, run)))
    assert found.steps == outcome.steps == 100
    assert found.extra_seconds > 0  # the engine's check of itself, once
    estimate = found.work_seconds(sum(found.seconds) / len(found.seconds))
    assert estimate == pytest.approx(outcome.work_seconds, rel=0.3)
    assert len(set(found.seconds)) > 1  # batches are sampled


def test_a_private_probe_runs_the_private_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = Draws()
    monkeypatch.setattr(private_module, "PrivateEngine", draws.engine())
    found = probed(inputs(tmp_path, config(private=True)))
    assert len(draws.steps) == 2 + len(found.seconds) >= 5
    assert len({rows for _, rows, _ in draws.steps}) > 1
    assert len({noise for _, _, noise in draws.steps}) == len(draws.steps)
    assert all(max(map(abs, noise)) > 0 for _, _, noise in draws.steps)


@pytest.mark.parametrize("private", [False, True])
def test_nothing_is_left_behind(tmp_path: Path, private: bool) -> None:
    given = inputs(tmp_path / "run", config(private=private))
    before, state = sorted(troth_home().iterdir()), torch.random.get_rng_state()
    given.model.eval()
    probed(given)
    assert sorted(troth_home().iterdir()) == before
    assert not (troth_home() / "ledger.sqlite3").exists() and not (troth_home() / "private").exists()
    assert not (tmp_path / "run").exists()
    assert torch.equal(torch.random.get_rng_state(), state) and not given.model.training
    assert all(p.grad is None for p in given.model.parameters())
    assert not any("forward" in vars(m) for m in given.model.modules())


def test_a_run_of_one_step_can_be_timed(clock: Callable, tmp_path: Path) -> None:
    for private in (False, True):
        run = config(private=private, insecure=private, epochs=1, expected_batch_size=ROWS)
        found = probed(clock(inputs(tmp_path, run)))
        assert found.steps == 1 and found.checkpoints == 1
        assert set(found.seconds) == {float(ROWS)} and len(found.seconds) >= 3
