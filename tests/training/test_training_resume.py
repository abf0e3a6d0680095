"""Resume: the same bits as without the interruption, and only for the run the checkpoint belongs to."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from training_world import KillAt, Killed, config, hooked, inputs, plan_of, reserve, same, table, train, weights
from transformers import PreTrainedModel

from troth.config import RunConfig, parse
from troth.errors import ResumeError, RunError
from troth.training import SilentProgress, TrainOutcome, checkpoints, fit
from troth.training.checkpoints import checkpoint_steps


def changed(run: RunConfig, section: str, **values: Any) -> RunConfig:
    data = run.to_dict()
    data.setdefault(section, {}).update(values)
    return parse(data)


def timeless(outcome: TrainOutcome) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "examples_per_second"} for row in outcome.series]


RUNS = {
    "plain": config(),
    "plain sgd": config(optimizer="sgd", momentum=0.9, schedule="constant"),
    "private": config(private=True, insecure=True),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("at", [1, 4, 7, 15])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, name: str, at: int) -> None:
    run = RUNS[name]
    whole = inputs(tmp_path / "whole", run)
    expected = train(whole)
    killed = inputs(tmp_path / "killed", run)
    reservation = None if run.privacy is None else reserve(run, plan_of(run))
    with pytest.raises(Killed):
        train(killed, progress=KillAt(at), reservation=reservation)
    resumed = inputs(tmp_path / "killed", run)
    torch.manual_seed(99)
    outcome = train(resumed, resume=True, reservation=reservation)
    assert same(weights(resumed), weights(whole))
    assert timeless(outcome) == timeless(expected)
    assert outcome.steps == expected.steps


def test_killed_again_and_again(tmp_path: Path) -> None:
    run = config(checkpoint_every=2)
    whole = inputs(tmp_path / "whole", run)
    train(whole)
    for at in (3, 4, 9, 9, 13):
        with pytest.raises(Killed):
            train(inputs(tmp_path / "killed", run), resume=True, progress=KillAt(at))
    resumed = inputs(tmp_path / "killed", run)
    train(resumed, resume=True)
    assert same(weights(resumed), weights(whole))


def test_resume_without_a_checkpoint_starts_at_the_beginning(tmp_path: Path) -> None:
    whole, resumed = inputs(tmp_path / "a", config()), inputs(tmp_path / "b", config())
    train(whole)
    train(resumed, resume=True)
    assert same(weights(resumed), weights(whole))


def test_resuming_a_finished_run_trains_nothing(tmp_path: Path) -> None:
    first = inputs(tmp_path, config())
    expected = train(first)
    again = inputs(tmp_path, config())
    outcome = train(again, resume=True)
    assert same(weights(again), weights(first))
    assert outcome.series == expected.series
    assert outcome.work_seconds == pytest.approx(expected.work_seconds, abs=0.5)


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    whole, broken = inputs(tmp_path / "a", config()), inputs(tmp_path / "b", config())
    train(whole)
    with pytest.raises(Killed):
        train(broken, progress=KillAt(11))
    assert checkpoint_steps(tmp_path / "b" / "checkpoints") == [4, 8]
    (tmp_path / "b" / "checkpoints" / "checkpoint-8" / "model.safetensors").write_bytes(b"half")
    resumed = inputs(tmp_path / "b", config())
    train(resumed, resume=True)
    assert same(weights(resumed), weights(whole))


def half(folder: Path, run: RunConfig) -> None:
    with pytest.raises(Killed):
        train(inputs(folder, run), progress=KillAt(6))


@pytest.mark.parametrize(
    ("section", "values", "named"),
    [
        ("train", {"learning_rate": 0.02}, r"train\.learning_rate was 0\.01, is 0\.02"),
        ("train", {"epochs": 4}, r"train\.epochs was 3, is 4"),
        ("run", {"seed": 4}, r"run\.seed was 3, is 4"),
        ("data", {"text": "utterance"}, r"data\.text was not set, is \"utterance\""),
    ],
)
def test_a_changed_configuration_is_refused_by_name(
    tmp_path: Path, section: str, values: dict[str, Any], named: str
) -> None:
    half(tmp_path, config())
    with pytest.raises(ResumeError, match=named) as error:
        train(inputs(tmp_path, changed(config(), section, **values)), resume=True)
    assert "\n" not in str(error.value)


def test_names_places_and_performance_may_change(tmp_path: Path) -> None:
    half(tmp_path, config())
    other = changed(config(), "train", physical_batch_size=8, checkpoint_every=3, keep_checkpoints=1)
    other = changed(changed(other, "run", name="renamed", out="elsewhere", device="cpu"), "report", path="r.html")
    whole, resumed = inputs(tmp_path / "whole", config()), inputs(tmp_path, other)
    train(whole)
    train(resumed, resume=True)
    assert same(weights(resumed), weights(whole))


def test_other_rows_are_refused(tmp_path: Path) -> None:
    half(tmp_path, config())
    with pytest.raises(ResumeError, match=r"data\.train: the training rows have changed"):
        train(inputs(tmp_path, config(), table(seed=1)), resume=True)


def test_other_frozen_weights_are_refused(tmp_path: Path) -> None:
    given = inputs(tmp_path, config())
    name = next(iter(dict(given.model.named_parameters())))
    given.model.get_parameter(name).requires_grad_(False)
    with pytest.raises(Killed):
        train(given, progress=KillAt(6))
    again = inputs(tmp_path, config())
    again.model.get_parameter(name).requires_grad_(False).data.add_(1)
    with pytest.raises(ResumeError, match="weights that are not trained have changed"):
        train(again, resume=True)


def test_another_model_is_refused(tmp_path: Path) -> None:
    half(tmp_path, config())
    given = inputs(tmp_path, config())
    given.model.register_buffer("novelty", torch.ones(2))
    with pytest.raises(ResumeError, match="has no tensor novelty"):
        train(given, resume=True)


def test_ctrl_c_leaves_a_checkpoint_of_the_last_finished_step(tmp_path: Path) -> None:
    """A real signal, delivered in the middle of a step; the step in which it came is finished."""
    run, calls = config(checkpoint_every=100), []
    whole = inputs(tmp_path / "whole", run)
    train(whole)

    def press_once(model: PreTrainedModel, losses: torch.Tensor) -> torch.Tensor:
        calls.append(model.training)
        if sum(calls) == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return losses

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(hooked(inputs(tmp_path / "stopped", run), press_once))
    assert signal.getsignal(signal.SIGINT) is before
    assert checkpoint_steps(tmp_path / "stopped" / "checkpoints") == [0, 7]
    resumed = inputs(tmp_path / "stopped", run)
    train(resumed, resume=True)
    assert same(weights(resumed), weights(whole))


@pytest.mark.parametrize("private", [False, True])
def test_ctrl_c_between_physical_batches_gives_the_step_up(tmp_path: Path, private: bool) -> None:
    run, calls = config(checkpoint_every=100, physical_batch_size=2, private=private, insecure=private), []
    whole = inputs(tmp_path / "whole", run)
    train(whole)

    def press_once(model: PreTrainedModel, losses: torch.Tensor) -> torch.Tensor:
        calls.append(model.training)
        if sum(calls) == 9:
            os.kill(os.getpid(), signal.SIGINT)
        return losses

    given = hooked(inputs(tmp_path / "stopped", run), press_once)
    with pytest.raises(KeyboardInterrupt):
        fit(given, plan=plan_of(run), reservation=None, resume=False, progress=SilentProgress())
    assert sum(calls) == 9
    kept = checkpoint_steps(tmp_path / "stopped" / "checkpoints")
    assert len(kept) == 2
    resumed = inputs(tmp_path / "stopped", run)
    fit(resumed, plan=plan_of(run), reservation=None, resume=True, progress=SilentProgress())
    assert same(weights(resumed), weights(whole))


def test_ctrl_c_twice_stops_at_once(tmp_path: Path) -> None:
    def press_twice(model: PreTrainedModel, losses: torch.Tensor) -> torch.Tensor:
        if model.training:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return losses

    with pytest.raises(KeyboardInterrupt):
        train(hooked(inputs(tmp_path, config(checkpoint_every=100)), press_twice))
    assert checkpoint_steps(tmp_path / "checkpoints") == [0]


def test_an_interrupt_from_the_callers_progress_is_the_same(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(inputs(tmp_path, config(checkpoint_every=100)), progress=KillAt(6, KeyboardInterrupt))
    assert checkpoint_steps(tmp_path / "checkpoints") == [0, 6]


def test_an_interrupt_in_the_last_step_is_not_lost(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(inputs(tmp_path, config()), progress=KillAt(15, KeyboardInterrupt))
    assert checkpoint_steps(tmp_path / "checkpoints")[-1] == 15


def test_it_trains_outside_of_the_main_thread(tmp_path: Path) -> None:
    whole, given, done = inputs(tmp_path / "a", config()), inputs(tmp_path / "b", config()), []
    train(whole)
    thread = threading.Thread(target=lambda: done.append(train(given)))
    thread.start()
    thread.join()
    assert len(done) == 1
    assert same(weights(given), weights(whole))


def test_a_full_disk_stops_with_one_line_and_the_run_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = inputs(tmp_path / "whole", config())
    train(whole)
    real, calls = checkpoints.save_file, []

    def save_file(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
        calls.append(path)
        if len(calls) > 5:  # the third checkpoint, half-way
            path.write_bytes(b"\0" * 10)
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(dict(tensors), path)

    monkeypatch.setattr(checkpoints, "save_file", save_file)
    with pytest.raises(RunError, match="no space left on the disk") as error:
        train(inputs(tmp_path / "full", config()))
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    assert sorted(p.name for p in (tmp_path / "full" / "checkpoints").iterdir()) == ["checkpoint-0", "checkpoint-4"]
    resumed = inputs(tmp_path / "full", config())
    train(resumed, resume=True)
    assert same(weights(resumed), weights(whole))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_says_what_to_lower(tmp_path: Path, error: Exception) -> None:
    def full(model: PreTrainedModel, losses: torch.Tensor) -> torch.Tensor:
        if model.training:
            raise error
        return losses

    with pytest.raises(RunError, match=r"step 1 of 15: out of memory with 8 .*lower train\.physical_batch_size"):
        train(hooked(inputs(tmp_path, config()), full))


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    def broken(model: PreTrainedModel, losses: torch.Tensor) -> torch.Tensor:
        if model.training:
            raise RuntimeError("a bug")
        return losses

    with pytest.raises(RuntimeError, match=r"^a bug$"):
        train(hooked(inputs(tmp_path, config()), broken))


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    class Second(SilentProgress):
        def update(self, step: int, **values: float | None) -> None:
            if step == 2:
                train(inputs(tmp_path, config()), resume=True)

    with pytest.raises(RunError, match="another process is training here"):
        train(inputs(tmp_path, config()), progress=Second())
