"""The plain loop: the mean of the per-example losses of shuffled batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from troth.errors import RunError
from troth.results import Json, Privacy
from troth.tasks import length_buckets
from troth.training.batch_size import to_device
from troth.training.optimizer import learning_rate, set_learning_rate
from troth.training.steps import Setting, StepResult

__all__ = ["PlainSteps"]


class PlainSteps:
    """Steps of plain training.

    The batches of an epoch come from ``seeds.generator("epoch", epoch)`` alone, hence a resumed run finds the same.
    """

    outside_guarantee = False

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._epoch, self._batches = 0, self._shuffled(0)
        self.per_epoch = len(self._batches)
        self.total = setting.inputs.config.train.epochs * self.per_epoch

    def run(self, step: int, check: Callable[[], None]) -> StepResult:
        """Take the gradient of the batch's mean loss, in physical batches, and update.

        Raises:
            RunError: the loss is not finite; names the step.
        """
        setting, train = self._setting, self._setting.inputs.config.train
        set_learning_rate(setting.optimizer, learning_rate(train, step, self.total))
        rows = self._rows(step)
        loss_sum = 0.0
        for start in range(0, len(rows), setting.physical):
            check()
            loss_sum += self._backward(rows[start : start + setting.physical], len(rows), step)
        setting.optimizer.step()
        setting.optimizer.zero_grad(set_to_none=True)
        return StepResult(loss_sum, len(rows))

    def _backward(self, rows: np.ndarray, whole: int, step: int) -> float:
        """Add the gradient of these rows' share of the mean over `whole` rows; return the sum of their losses."""
        inputs = self._setting.inputs
        batch = to_device(inputs.task.collate(inputs.train, rows, draw=step), inputs.device)
        with self._setting.autocast():
            losses = inputs.task.per_example_loss(inputs.model, batch)
        share = losses.sum() / whole
        value = float(share.detach()) * whole
        if not math.isfinite(value):
            raise RunError(
                f"step {step + 1} of {self.total}: the training loss is {value}; lower train.learning_rate "
                f"(now {inputs.config.train.learning_rate:g}) and start a new run"
            )
        share.backward()  # type: ignore[no-untyped-call]
        return value

    def _rows(self, step: int) -> np.ndarray:
        epoch, index = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffled(epoch)
        return self._batches[index]

    def _shuffled(self, epoch: int) -> list[np.ndarray]:
        inputs = self._setting.inputs
        size = inputs.config.train.expected_batch_size
        return list(length_buckets(inputs.train.lengths, size, inputs.seeds.generator("epoch", epoch)))

    def throughput(self, examples: int, steps: int, seconds: float) -> float:
        """Return examples per second."""
        return examples / max(seconds, 1e-9)

    def epsilon(self, steps: int) -> float | None:
        """Return None: there is no guarantee."""
        return None

    def state(self) -> dict[str, Json]:
        """Return nothing: the order of the batches follows from the seed and the step."""
        return {}

    def before_checkpoint(self, step: int) -> None:
        """Do nothing: the step alone tells how to go on."""

    def after_checkpoint(self, kept: Sequence[int]) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""

    def privacy(self) -> Privacy | None:
        """Return None: there is no guarantee."""
        return None

    def warnings(self) -> tuple[str, ...]:
        """Return nothing."""
        return ()
