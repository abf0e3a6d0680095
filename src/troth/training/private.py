"""The private loop: Poisson samples, clipped per-example gradients and noise, one plan from first to last step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from troth.accounting import PrivacyPlan, Reservation, epsilon_after, epsilon_curve
from troth.dp import PrivateEngine
from troth.errors import EngineStateError, RunError
from troth.results import Json, Privacy
from troth.seeds import PrivateRandomness
from troth.training.batch_size import to_device
from troth.training.optimizer import learning_rate, set_learning_rate
from troth.training.private_state import PrivateState
from troth.training.steps import Setting, StepResult

__all__ = ["PrivateSteps", "Promise", "private_steps"]


_CURVE_POINTS = 20


@dataclass(frozen=True)
class Promise:
    """What a private run has promised and where it is kept.

    Attributes:
        plan: the whole run's plan.
        reservation: its entry in the ledger; None only where nothing is promised: with an insecure seed, or in a probe.
        state: where the keys of kept checkpoints lie; None where there is no reservation.
    """

    plan: PrivacyPlan
    reservation: Reservation | None
    state: PrivateState | None


def randomness_at(step: int, insecure_seed: int) -> PrivateRandomness:
    """Return the randomness of a step of a reproducible run."""
    randomness = PrivateRandomness.create(insecure_seed)
    for _ in range(step):
        randomness = randomness.advance()
    return randomness


def recovered(promise: Promise, step: int, *, from_checkpoint: bool) -> PrivateRandomness:
    """Return the randomness of the step about to run.

    With the key of this very step at hand, the steps after it are repeated exactly: same samples, same noise, nothing
    new is shown. Without it they draw fresh noise, and what may have run after the checkpoint is counted again,
    durably, before anything runs and before the fresh key is kept.

    Args:
        promise: of the run.
        step: how many steps are done.
        from_checkpoint: whether weights of a checkpoint of `step` were restored; a key without one proves nothing.

    Raises:
        BudgetError: the data set's budget does not cover the replay.
        EngineStateError: there is no place for the key or no ledger entry.
    """
    if promise.state is None or promise.reservation is None:
        raise EngineStateError("private training without an insecure seed needs a ledger entry and a place for keys")
    kept = promise.state.load(step) if from_checkpoint else None
    if kept is not None:
        return kept
    promise.reservation.replay_from(step)
    return PrivateRandomness.create()


class PrivateSteps:
    """Steps of private training.

    Guarantees:
    - what a step spends is in the ledger before its update is visible (`Reservation.spend` runs before the optimizer);
    - the key of a kept checkpoint is durable before the checkpoint, and erased with it;
    - the first batch is used to check the engine on this model, and the first update to see that every trainable tensor
      moves, or the run fails.
    """

    outside_guarantee = True

    def __init__(self, setting: Setting, promise: Promise, engine: PrivateEngine) -> None:
        self._setting, self._promise, self._engine = setting, promise, engine
        plan, reservation = promise.plan, promise.reservation
        self._replayed = 0 if reservation is None else reservation.steps_spent - reservation.position
        self.total = plan.steps
        self.per_epoch = math.ceil(plan.examples / plan.expected_batch_size)
        self._void = "none" in (setting.inputs.config.run.guarantee, reservation and reservation.guarantee)
        self._void = self._void or engine.randomness.insecure
        counted = replace(plan, steps=plan.steps + self._replayed)
        self._curve = [] if self._void else epsilon_curve(counted, _CURVE_POINTS)
        self._checked = False

    def run(self, step: int, check: Callable[[], None]) -> StepResult:
        """Sample, clip and sum in physical batches of similar length, add noise once, update.

        Raises:
            EngineStateError: a trainable tensor did not move in the first step of this process.
            SelfCheckError: the engine is not exact on this model.
            RunError: no example of the batch had a finite loss.
        """
        setting, inputs = self._setting, self._setting.inputs
        rate = learning_rate(inputs.config.train, step, self.total)
        set_learning_rate(setting.optimizer, rate)

        def losses_of(rows: np.ndarray) -> torch.Tensor:
            batch = to_device(inputs.task.collate(inputs.train, rows, draw=step), inputs.device)
            with setting.autocast():
                return inputs.task.per_example_loss(inputs.model, batch)

        losses = []
        for rows in self._engine.batch(setting.physical, inputs.train.lengths):
            check()
            if not self._checked:
                self._engine.check_losses(losses_of, rows)
                self._checked = True
            part = losses_of(rows)
            self._engine.backward(part)
            _, first = np.unique(rows, return_index=True)  # a row that pads its unit comes up more than once
            losses.append(part.detach()[torch.from_numpy(first).to(part.device)])
        check()
        self._engine.step()
        return self._result(losses, step)

    def _result(self, losses: list[torch.Tensor], step: int) -> StepResult:
        if not losses:
            return StepResult(0.0, 0)
        values = torch.cat(losses).double()
        finite = values[values.isfinite()]
        if not len(finite):
            raise RunError(
                f"step {step + 1} of {self.total}: no example has a finite training loss; lower train.learning_rate "
                f"(now {self._setting.inputs.config.train.learning_rate:g}) and start a new run"
            )
        return StepResult(float(finite.sum()), len(finite))

    def throughput(self, examples: int, steps: int, seconds: float) -> float:
        """Return *expected* examples per second: how many were really drawn is private."""
        return steps * self._promise.plan.expected_batch_size / max(seconds, 1e-9)

    def epsilon(self, steps: int) -> float:
        """Return an upper bound on epsilon after `steps` steps, replayed ones counted; infinity without guarantee."""
        return epsilon_after(self._curve, steps + self._replayed)

    def state(self) -> dict[str, Json]:
        """Return what the next step needs beside weights and keys: the norm that adaptive clipping has come to."""
        return {"clipping_norm": self._engine.clipping_norm}

    def before_checkpoint(self, step: int) -> None:
        """Make the key of the next step durable."""
        if self._promise.state is not None and step < self.total:
            self._promise.state.save(step, self._engine.randomness)

    def after_checkpoint(self, kept: Sequence[int]) -> None:
        """Erase the keys of removed checkpoints."""
        if self._promise.state is not None:
            self._promise.state.keep(kept)

    def finish(self) -> None:
        """Erase every key."""
        if self._promise.state is not None:
            self._promise.state.erase()

    def privacy(self) -> Privacy:
        """Return what the engine vouches for, with epsilon of all steps that the ledger counts."""
        plan = self._promise.plan
        counted, claimed = plan.steps + self._replayed, self._engine.privacy()
        if self._void or claimed.guarantee == "none":
            return replace(claimed, epsilon=None, steps=counted, guarantee="none")
        return replace(claimed, epsilon=plan.epsilon(counted), steps=counted)

    def warnings(self) -> tuple[str, ...]:
        """Return replayed steps and examples without a finite loss, where there are any."""
        told = []
        if self._replayed:
            told.append(
                f"the generator state of the interrupted run was lost, or made for another device, batch or version: "
                f"{self._replayed} steps drew fresh noise and are counted twice in epsilon"
            )
        if self._engine.counters.silenced:
            silenced = self._engine.counters.silenced
            told.append(f"{silenced} gradients of examples were not finite: those examples contributed nothing")
        return tuple(told)


@contextmanager
def private_steps(
    setting: Setting, promise: Promise, step: int, randomness: PrivateRandomness, state: Mapping[str, Any]
) -> Iterator[PrivateSteps]:
    """Give the steps of a private run with the engine attached to the model; the model is left as it was found.

    Args:
        setting: how to compute.
        promise: the plan, its ledger entry and the place of its keys.
        step: steps done.
        randomness: of the step about to run.
        state: what `PrivateSteps.state` returned at the checkpoint; empty at the start.
    """
    reservation = promise.reservation
    engine = PrivateEngine(
        setting.inputs.model,
        setting.optimizer,
        promise.plan,
        randomness,
        units=setting.inputs.units,
        before_step=None if reservation is None else reservation.spend,
    )
    try:
        engine.restore(step, randomness, state.get("clipping_norm"))
        yield PrivateSteps(setting, promise, engine)
    finally:
        engine.detach()
