"""All five tasks go through both loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_world import KillAt, Killed, same, weights

from troth.accounting import make_plan
from troth.config import RunConfig, parse
from troth.data import home
from troth.seeds import PublicSeeds
from troth.tasks import make_model, make_task
from troth.training import SilentProgress, TrainInputs, fit

ROWS = 64
KINDS = {
    "classification": ("tiny-bert", {}),
    "tagging": ("tiny-bert", {}),
    "question_answering": ("tiny-bert", {}),
    "seq2seq": ("tiny-t5", {}),
    "language_modeling": ("tiny-gpt2", {"objective": "causal"}),
    "masked": ("tiny-bert", {"objective": "masked"}),
}


def world(folder: Path, name: str, *, private: bool, precision: str = "float32") -> TrainInputs:
    preset, options = KINDS[name]
    kind = "language_modeling" if name == "masked" else name
    data: dict[str, Any] = {
        "run": {"name": "tasks", "seed": 1, "insecure_seed": 2, "guarantee": "none"},
        "model": {"preset": preset, "layers": 1, "width": 32, "heads": 2, "max_length": 48},
        "data": {"builtin": {"name": "home", "rows": 200}},
        "task": {"kind": kind, **options},
        "train": {"epochs": 4, "expected_batch_size": 16, "learning_rate": 0.01, "precision": precision},
    }
    if private:
        data["privacy"] = {"noise_multiplier": 0.01, "target_delta": 1e-3, "clipping_norm": 1.0}
    run: RunConfig = parse(data)
    table = home(run.data.builtin, kind).train.take(range(ROWS))  # type: ignore[arg-type]
    seeds = PublicSeeds(1)
    task = make_task(run, table, folder)
    return TrainInputs(
        task, make_model(run, task, seeds, folder), task.encode(table), run, seeds, folder, torch.device("cpu")
    )


def plan(given: TrainInputs) -> Any:
    return None if given.config.privacy is None else make_plan(given.config.privacy, given.config.train, ROWS)


@pytest.mark.parametrize("private", [False, True], ids=["plain", "private"])
@pytest.mark.parametrize("name", KINDS)
def test_the_loss_falls(tmp_path: Path, name: str, private: bool) -> None:
    given = world(tmp_path, name, private=private)
    outcome = fit(given, plan=plan(given), reservation=None, resume=False, progress=SilentProgress())
    losses = [row["loss"] for row in outcome.series]
    assert outcome.steps == 16
    assert losses[-1] < 0.98 * losses[0]  # type: ignore[operator]


@pytest.mark.parametrize("private", [False, True], ids=["plain", "private"])
@pytest.mark.parametrize("name", ["language_modeling", "masked"])
def test_tied_weights_and_random_masks_resume_to_the_same_bits(tmp_path: Path, name: str, private: bool) -> None:
    whole, killed = (world(tmp_path / place, name, private=private) for place in ("a", "b"))
    how: dict[str, Any] = {"plan": plan(whole), "reservation": None}
    fit(whole, resume=False, progress=SilentProgress(), **how)
    with pytest.raises(Killed):
        fit(killed, resume=False, progress=KillAt(6), **how)
    resumed = world(tmp_path / "b", name, private=private)
    fit(resumed, resume=True, progress=SilentProgress(), **how)
    assert same(weights(resumed), weights(whole))


@pytest.mark.parametrize("private", [False, True], ids=["plain", "private"])
def test_bfloat16_keeps_weights_and_noise_in_float32(tmp_path: Path, private: bool) -> None:
    given = world(tmp_path / "a", "classification", private=private, precision="bfloat16")
    exact = world(tmp_path / "b", "classification", private=private)
    outcomes = [
        fit(each, plan=plan(each), reservation=None, resume=False, progress=SilentProgress()) for each in (given, exact)
    ]
    assert all(tensor.dtype == torch.float32 for tensor in weights(given).values() if tensor.is_floating_point())
    first, second = (float(outcome.series[0]["loss"]) for outcome in outcomes)  # type: ignore[arg-type]
    assert first != second
    assert first == pytest.approx(second, rel=0.02)
