"""What the loop drives: one optimizer step after the other, plain or private."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from troth.results import Json, Privacy
from troth.training.device import Autocast
from troth.training.outcome import TrainInputs

__all__ = ["Setting", "StepResult", "Steps"]


@dataclass(frozen=True)
class Setting:
    """How a run computes: what plain and private steps share.

    Attributes:
        inputs: what training was given.
        optimizer: over the model's trainable parameters.
        physical: how many examples go through the model at once.
        autocast: makes the context of each forward pass.
    """

    inputs: TrainInputs
    optimizer: torch.optim.Optimizer
    physical: int
    autocast: Autocast


@dataclass(frozen=True)
class StepResult:
    """What one step saw: the sum of its examples' losses in nats, and how many they were."""

    loss_sum: float
    examples: int


class Steps(Protocol):
    """Optimizer steps 0 to `total` - 1, in order.

    Attributes:
        total: how many steps the whole run has.
        per_epoch: how many of them make an epoch.
        outside_guarantee: whether the losses lie outside of what an epsilon covers.
    """

    total: int
    per_epoch: int
    outside_guarantee: bool

    def run(self, step: int, check: Callable[[], None]) -> StepResult:
        """Make a step. `check` is called where the step can still be given up without a trace; it may raise."""

    def throughput(self, examples: int, steps: int, seconds: float) -> float:
        """Return examples per second of a stretch of the run."""

    def epsilon(self, steps: int) -> float | None:
        """Return the epsilon to show after `steps` steps, never below the truth; None without privacy."""

    def state(self) -> dict[str, Json]:
        """Return what a checkpoint must hold of the steps themselves, as JSON values; none of it is secret."""

    def before_checkpoint(self, step: int) -> None:
        """Make durable what a checkpoint after `step` steps cannot hold; called before it becomes visible."""

    def after_checkpoint(self, kept: Sequence[int]) -> None:
        """Let go of what belonged to checkpoints that are no longer kept."""

    def finish(self) -> None:
        """End the run: every step is done and the last checkpoint is on the disk."""

    def privacy(self) -> Privacy | None:
        """Return what epsilon the weights carry, once the run has finished."""

    def warnings(self) -> tuple[str, ...]:
        """Return what the user should know, one line each."""
