"""A world small enough to train in: forty rows, one narrow layer, a plan of a few dozen steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from troth.accounting import Ledger, PrivacyPlan, Reservation, SpendRequest, make_plan
from troth.config import RunConfig, parse
from troth.data import Table, from_rows
from troth.dp import Observer, PrivateEngine
from troth.seeds import PublicSeeds
from troth.tasks import Batch, make_model, make_task
from troth.tasks.classification import Classification
from troth.training import Progress, SilentProgress, TrainInputs, TrainOutcome, fit

ROWS = 40
BATCH = 8
_WORDS = [
    "lamp",
    "door",
    "tea",
    "song",
    "window",
    "stove",
    "alarm",
    "radio",
    "kitchen",
    "garden",
    "morning",
    "quiet",
    "loud",
    "warm",
    "cold",
    "bright",
]


def table(rows: int = ROWS, seed: int = 0) -> Table:
    """Rows of two to nine words; the label is whether the first comes early in the list."""
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(rows):
        words = [_WORDS[i] for i in generator.integers(len(_WORDS), size=generator.integers(2, 10))]
        made.append({"text": " ".join(words), "label": "early" if _WORDS.index(words[0]) < 8 else "late"})
    return from_rows(made, "the training world")


def config(*, private: bool = False, insecure: bool = False, **train: Any) -> RunConfig:
    """A run file of the world; `train` overrides its section."""
    run: dict[str, Any] = {"name": "world", "seed": 3}
    if insecure:
        run |= {"insecure_seed": 5, "guarantee": "none"}
    data: dict[str, Any] = {
        "run": run,
        "model": {
            "preset": "tiny-bert",
            "layers": 1,
            "width": 16,
            "heads": 2,
            "vocabulary_size": 64,
            "max_length": 16,
        },
        "data": {"train": "train.jsonl"},
        "task": {"kind": "classification"},
        "train": {"epochs": 3, "expected_batch_size": BATCH, "learning_rate": 0.01, "checkpoint_every": 4} | train,
    }
    if private:
        data["privacy"] = {"noise_multiplier": 4.0, "target_delta": 1e-3, "clipping_norm": 1.0}
    return parse(data)


def inputs(folder: Path, run: RunConfig, rows: Table | None = None, device: str = "cpu") -> TrainInputs:
    """A fresh model and everything beside it."""
    train = table() if rows is None else rows
    seeds = PublicSeeds(run.run.seed)
    task = make_task(run, train, folder)
    model = make_model(run, task, seeds, folder)
    return TrainInputs(task, model, task.encode(train), run, seeds, folder, torch.device(device))


def hooked(given: TrainInputs, hook: Callable[[PreTrainedModel, torch.Tensor], torch.Tensor]) -> TrainInputs:
    """The same inputs with losses that go through `hook`."""

    class Hooked(Classification):
        def per_example_loss(self, model: PreTrainedModel, batch: Batch) -> torch.Tensor:
            return hook(model, super().per_example_loss(model, batch))

    task = given.task
    return replace(given, task=Hooked(task.tokenizer, task.labels, task.max_length))


def plan_of(run: RunConfig, rows: int = ROWS) -> PrivacyPlan | None:
    """The plan of a private run file."""
    return None if run.privacy is None else make_plan(run.privacy, run.train, rows)


def reserve(run: RunConfig, plan: PrivacyPlan | None, ledger: Ledger | None = None) -> Reservation:
    """A new ledger entry."""
    guarantee = "none" if run.run.guarantee == "none" else "differential_privacy"
    return (ledger or Ledger()).reserve(
        SpendRequest(
            dataset_id="world", run_name=run.run.name, plan=plan, guarantee=guarantee, row_hashes=None, config_hash="0"
        )
    )


def train(
    given: TrainInputs,
    *,
    resume: bool = False,
    reservation: Reservation | None = None,
    progress: Progress | None = None,
) -> TrainOutcome:
    """Train by the inputs' own run file."""
    plan = plan_of(given.config, len(given.train))
    if plan is not None and reservation is None:
        reservation = reserve(given.config, plan)
    return fit(given, plan=plan, reservation=reservation, resume=resume, progress=progress or SilentProgress())


def weights(given: TrainInputs) -> dict[str, torch.Tensor]:
    """The model's weights, copied."""
    return {name: tensor.detach().clone() for name, tensor in given.model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of weights agree in every bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Killed(BaseException):
    """Stands for a kill: nothing in the library catches it, nothing is written after it."""


class KillAt(SilentProgress):
    """A progress that kills the run when a step is done, before its checkpoint is written."""

    def __init__(self, step: int, error: type[BaseException] = Killed) -> None:
        self._step, self._error = step, error

    def update(self, step: int, **values: float | None) -> None:
        """Kill."""
        if step == self._step:
            raise self._error


@dataclass
class Draws:
    """What the private engine drew at each executed step: (step, rows, first noise values)."""

    steps: list[tuple[int, tuple[int, ...], tuple[float, ...]]] = field(default_factory=list)

    def engine(self) -> Callable[..., PrivateEngine]:
        """Return what stands in for `PrivateEngine` and writes its draws down."""
        return partial(RecordingEngine, draws=self)


class RecordingEngine(PrivateEngine):
    """A private engine that writes down what it draws; nothing else differs."""

    def __init__(self, *args: Any, draws: Draws, **kwargs: Any) -> None:
        super().__init__(*args, observer=Observer(noise=self._record), **kwargs)
        self._draws, self._rows = draws, ()

    def sample(self) -> np.ndarray:
        """Sample, and remember the rows."""
        rows = super().sample()
        self._rows = tuple(int(row) for row in rows)
        return rows

    def _record(self, flat: torch.Tensor) -> None:
        self._draws.steps.append((self.step_index, self._rows, tuple(flat[:8].tolist())))
