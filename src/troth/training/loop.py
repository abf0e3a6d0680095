"""The loop around the steps: dropout seeds, notes, progress, checkpoints and the way out on Ctrl-C."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from troth.errors import RunError
from troth.results import Json
from troth.training.checkpoints import Checkpoint, checkpoint_steps, keep_latest, save_checkpoint
from troth.training.identity import Identity
from troth.training.interrupts import Interrupts, StopRequested
from troth.training.journal import Journal
from troth.training.optimizer import optimizer_tensors
from troth.training.progress import Progress
from troth.training.steps import Setting, Steps

__all__ = ["Loop", "model_tensors"]


def model_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the trainable parameters and the buffers by name; frozen weights come back from where they came."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return {**trainable, **dict(model.named_buffers())}


@dataclass
class Loop:
    """Drives steps from `step` to the last one.

    Attributes:
        setting: how to compute.
        steps: what makes a step.
        folder: where checkpoints go.
        identity: what the run belongs to; stands in every checkpoint.
        progress: where to say how far it is.
        journal: notes so far.
        step: how many steps are done.
        new: whether there is no checkpoint of `step` yet.
    """

    setting: Setting
    steps: Steps
    folder: Path
    identity: Identity
    progress: Progress
    journal: Journal
    step: int
    new: bool
    _saved: int | None = field(default=None, init=False)
    _clock: float = field(default=0.0, init=False)

    def run(self) -> None:
        """Make the remaining steps, then let the steps finish.

        Raises:
            KeyboardInterrupt: Ctrl-C; the last finished step is in a checkpoint, unless it was pressed twice.
            RunError: a step or a checkpoint failed; earlier checkpoints are as they were.
        """
        if self.new:
            self.save()  # the state that the first replay starts from
        else:
            self._saved = self.step
            self.steps.before_checkpoint(self.step)  # a fresh key, where the old one was lost, must outlive a kill
            self.steps.after_checkpoint(checkpoint_steps(self.folder))
        self.progress.start(self.steps.total, "training privately" if self.steps.outside_guarantee else "training")
        try:
            with Interrupts() as interrupts:
                self._clock = time.perf_counter()
                try:
                    while self.step < self.steps.total:
                        interrupts.check()
                        self._one(interrupts)
                    self.steps.finish()
                    self.journal.work_seconds += self._seconds()
                    interrupts.check()
                except StopRequested:
                    if self._saved != self.step:
                        self.save()
                    raise KeyboardInterrupt from None
                except (MemoryError, RuntimeError) as error:
                    raise self._explained(error) from None
        finally:
            self.progress.stop()

    def _explained(self, error: Exception) -> Exception:
        """Return an error of the machine's memory as a line with a way out, any other as it is."""
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(error):
            return error
        return RunError(
            f"step {self.step + 1} of {self.steps.total}: out of memory with {self.setting.physical} examples at once; "
            "lower train.physical_batch_size or model.max_length and go on with --resume"
        )

    def save(self) -> None:
        """Write a checkpoint of the last finished step and let go of the oldest."""
        inputs = self.setting.inputs
        self.steps.before_checkpoint(self.step)
        tensors = {
            "model": model_tensors(inputs.model),
            "optimizer": optimizer_tensors(inputs.model, self.setting.optimizer),
        }
        save_checkpoint(self.folder, Checkpoint(self.step, tensors, self._state()))
        self.steps.after_checkpoint(keep_latest(self.folder, inputs.config.train.keep_checkpoints))
        self._saved = self.step

    def _state(self) -> dict[str, Json]:
        epoch, index = divmod(self.step, self.steps.per_epoch)
        return {
            "identity": self.identity.to_dict(),
            "position": {"epoch": epoch, "step_in_epoch": index, "steps": self.steps.total},
            "journal": self.journal.to_dict(),
            "steps": self.steps.state(),
            "outside_guarantee": ["journal"] if self.steps.outside_guarantee else [],
        }

    def _one(self, interrupts: Interrupts) -> None:
        inputs = self.setting.inputs
        seed = inputs.seeds.integer("dropout", self.step)
        torch.default_generator.manual_seed(seed)
        if inputs.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        result = self.steps.run(self.step, interrupts.check)
        self.step += 1
        self.journal.add(result, self._seconds())
        try:
            self._show()
        except KeyboardInterrupt:  # from a progress of the caller's own, between two steps
            interrupts.requested = True
        if self.step % self.steps.per_epoch == 0 or self.step == self.steps.total:
            self._close_epoch()
        every = inputs.config.train.checkpoint_every or self.steps.per_epoch
        if self.step % every == 0 or self.step == self.steps.total:
            self.save()

    def _seconds(self) -> float:
        """Return the seconds since the last call."""
        before, self._clock = self._clock, time.perf_counter()
        return self._clock - before

    def _rate(self) -> float:
        journal = self.journal
        return self.steps.throughput(journal.examples, journal.steps, journal.epoch_seconds)

    def _show(self) -> None:
        epsilon = self.steps.epsilon(self.step)
        self.progress.update(self.step, loss=self.journal.loss, epsilon=epsilon, examples_per_second=self._rate())

    def _close_epoch(self) -> None:
        epsilon = self.steps.epsilon(self.step)
        self.journal.close_epoch(
            epoch=-(-self.step // self.steps.per_epoch),
            step=self.step,
            examples_per_second=self._rate(),
            epsilon=epsilon if epsilon is not None and math.isfinite(epsilon) else None,
            outside_guarantee=self.steps.outside_guarantee,
        )
