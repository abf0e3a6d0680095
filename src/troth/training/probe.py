"""What a run's steps cost, measured by making a few of them on a model that is thrown away."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from troth.accounting import PrivacyPlan
from troth.seeds import PrivateRandomness
from troth.training.checkpoints import Checkpoint, save_checkpoint
from troth.training.fit import as_found, setting_of
from troth.training.loop import model_tensors
from troth.training.optimizer import optimizer_tensors
from troth.training.outcome import TrainInputs
from troth.training.plain import PlainSteps
from troth.training.private import Promise, private_steps
from troth.training.progress import Progress
from troth.training.steps import Setting, Steps

__all__ = ["Probe", "probe"]

_WARM_UP = 2  # steps: the first allocates, and the private engine checks itself on it
_LEAST, _ENOUGH = 3, 9  # timed steps: below the one there is no figure; from the other on, time decides
_SECONDS = 6.0
_PATIENCE = 5.0  # times `_SECONDS`, after which `_LEAST` steps have to do
_MOST = 2000


@dataclass(frozen=True)
class Probe:
    """What a few steps of a run cost.

    Attributes:
        seconds: wall seconds of each timed step, in order.
        extra_seconds: by how much the first step took longer; a run pays it once.
        steps: how many steps the whole run has.
        physical_batch_size: how many examples went through the model at once.
        checkpoint_seconds: wall seconds of writing one checkpoint to the disk.
        checkpoints: how many the whole run writes while its clock goes.
    """

    seconds: tuple[float, ...]
    extra_seconds: float
    steps: int
    physical_batch_size: int
    checkpoint_seconds: float
    checkpoints: int

    def work_seconds(self, step_seconds: float) -> float:
        """Return what the whole run would take in the loop (`TrainOutcome.work_seconds`) at a pace."""
        return self.steps * step_seconds + self.extra_seconds + self.checkpoints * self.checkpoint_seconds


def probe(inputs: TrainInputs, *, plan: PrivacyPlan | None, progress: Progress) -> Probe:
    """Make a few steps as `fit` would and return what they cost; the model is spoilt, so give one to throw away.

    The steps are the run's own: its physical batches, its optimizer, and for a plan its sampling, clipping and noise.
    Steps are timed until an epoch is over or a few seconds are.

    Guarantees:
    - no ledger, no key and no run folder is read or written;
    - nothing of the data leaves the process but the seconds: the checkpoint that is timed holds zeros.

    Args:
        inputs: as for `fit`; its folder is not touched.
        plan: the privacy plan, or None for a run without privacy.
        progress: where to say how far it is.

    Raises:
        PrivacyError: the model cannot be trained privately.
        RunError: the loss is not finite: the run would fail as well.
    """
    nn.Module.to(inputs.model, inputs.device)
    with as_found(inputs):
        setting = setting_of(_without_guarantee(inputs), private=plan is not None)
        with _steps(setting, plan) as steps:
            total = plan.steps if plan is not None else steps.total
            first, seconds = _timed(setting, steps, total, progress)
            every = inputs.config.train.checkpoint_every or steps.per_epoch
            written = _checkpoint_seconds(setting)
    extra = max(0.0, first - sum(seconds) / len(seconds))
    return Probe(seconds, extra, total, setting.physical, written, -(-total // every))


def _without_guarantee(inputs: TrainInputs) -> TrainInputs:
    """Return the inputs of a run that promises nothing, since nothing of it is kept."""
    run = inputs.config.run.model_copy(update={"guarantee": "none"})
    return replace(inputs, config=inputs.config.model_copy(update={"run": run}))


@contextmanager
def _steps(setting: Setting, plan: PrivacyPlan | None) -> Iterator[Steps]:
    if plan is None:
        yield PlainSteps(setting)
        return
    longer = replace(plan, steps=plan.steps + _WARM_UP + _MOST)  # a short run has fewer steps than are timed
    randomness = PrivateRandomness.create(setting.inputs.config.run.insecure_seed)
    with private_steps(setting, Promise(longer, None, None), 0, randomness, {}) as steps:
        yield steps


def _timed(setting: Setting, steps: Steps, total: int, progress: Progress) -> tuple[float, tuple[float, ...]]:
    """Return the seconds of the very first step, and of each step after the warm-up."""
    warm: list[float] = []
    seconds: list[float] = []
    most = min(_MOST, max(_ENOUGH, steps.per_epoch))
    progress.start(_WARM_UP + most, "timing steps")
    for number in range(_WARM_UP + most):
        begun = time.perf_counter()
        steps.run(number % total, lambda: None)
        if setting.inputs.device.type == "cuda":
            torch.cuda.synchronize(setting.inputs.device)
        took = time.perf_counter() - begun
        cold = number < _WARM_UP and (number == 0 or warm[0] < _SECONDS)  # one slow step is warm-up enough
        (warm if cold else seconds).append(took)
        progress.update(number + 1)
        spent = sum(seconds)
        if (len(seconds) >= _ENOUGH and spent >= _SECONDS) or (
            len(seconds) >= _LEAST and spent >= _PATIENCE * _SECONDS
        ):
            break
    progress.stop()
    return warm[0], tuple(seconds)


def _checkpoint_seconds(setting: Setting) -> float:
    """Return the seconds of writing a checkpoint of the run's size to the temporary folder; it holds zeros."""
    model = setting.inputs.model
    tensors = {"model": model_tensors(model), "optimizer": optimizer_tensors(model, setting.optimizer)}
    zeros = {group: {name: torch.zeros_like(t) for name, t in named.items()} for group, named in tensors.items()}
    with tempfile.TemporaryDirectory(prefix="troth-plan-") as folder:
        begun = time.perf_counter()
        save_checkpoint(Path(folder), Checkpoint(1, zeros))
        return time.perf_counter() - begun
