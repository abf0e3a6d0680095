"""Training behind one function: plain without a plan, private with one; new or resumed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from troth import __version__
from troth.accounting import PrivacyPlan, Reservation
from troth.errors import DataError, PrivacyError, ResumeError, RunError
from troth.files import failing_in_one_line, locked, remove_unfinished
from troth.host_memory import keep_freed_memory
from troth.results import Json
from troth.training.batch_size import activation_bytes, physical_batch_size
from troth.training.checkpoints import Checkpoint, checkpoint_steps, latest_checkpoint, remove_checkpoints
from troth.training.device import autocast
from troth.training.identity import Identity, identity, rows_digest
from troth.training.journal import Journal
from troth.training.loop import Loop, model_tensors
from troth.training.optimizer import make_optimizer, restore_optimizer
from troth.training.outcome import TrainInputs, TrainOutcome
from troth.training.plain import PlainSteps
from troth.training.private import Promise, private_steps, randomness_at, recovered
from troth.training.private_state import PrivateState
from troth.training.progress import Progress
from troth.training.steps import Setting

__all__ = ["as_found", "fit", "setting_of"]


def fit(
    inputs: TrainInputs,
    *,
    plan: PrivacyPlan | None,
    reservation: Reservation | None,
    resume: bool,
    progress: Progress,
) -> TrainOutcome:
    """Train the model of `inputs` in place and return what was done.

    Without a plan the mean loss of shuffled batches is descended; with one, every step of the plan is carried out by
    the private engine and written to the ledger before its update is visible. The ledger entry is left open: call
    ``reservation.finish()`` when what the run is for (its record, its exported model) is on the disk, so that a kill
    before that leaves a run that can be resumed.

    Guarantees:
    - kill at any moment, then `resume`: on a CPU a plain or `insecure_seed` run ends with the same bits as without;
    - a private run repeats the steps after its checkpoint with the same samples and noise, or counts them again;
    - the caller's random state (torch, NumPy, Python), the model's mode and its `forward` are left as they were found;
    - no generator state enters a checkpoint.

    Args:
        inputs: task, model, rows, configuration, seeds, folder and device.
        plan: the privacy plan; None trains without privacy.
        reservation: the plan's entry in the ledger; a private run without ``run.insecure_seed`` needs one.
        resume: whether to go on from the newest whole checkpoint, or from the start where there is none.
        progress: where to say how far it is.

    Raises:
        PrivacyError: plan, configuration and ledger entry do not belong together.
        ResumeError: the checkpoint was made under another configuration, or from other rows.
        RunError: checkpoints are there and `resume` is not set, another process trains here, the loss is not finite, or
            the disk is full; what was written before is whole.
        KeyboardInterrupt: Ctrl-C; the last finished step is in a checkpoint.
    """
    _check(inputs, plan, reservation, resume)
    keep_freed_memory()
    nn.Module.to(inputs.model, inputs.device)
    folder = inputs.folder / "checkpoints"
    with locked(folder), as_found(inputs):
        found = _found(folder, resume)
        setting = setting_of(inputs, private=plan is not None)
        if plan is None:
            own = identity(inputs.config, inputs.model, rows=rows_digest(inputs.train))
            journal, step = _restored(found, setting, own), 0 if found is None else found.step
            return _outcome(Loop(setting, PlainSteps(setting), folder, own, progress, journal, step, found is None))
        return _fit_privately(setting, plan, reservation, folder, found, progress)


def _check(inputs: TrainInputs, plan: PrivacyPlan | None, reservation: Reservation | None, resume: bool) -> None:
    config = inputs.config
    if not len(inputs.train):
        raise DataError("data.train: there are no rows to train on")
    if plan is None:
        if config.privacy is not None:
            raise PrivacyError("the run file has a [privacy] section but there is no plan; make one with make_plan")
        return
    units = len(inputs.train) if inputs.units is None else len(inputs.units)
    if plan.examples != units:
        what = "users" if plan.unit == "user" else "examples"
        raise PrivacyError(f"the plan is for {plan.examples} {what}, data.train has {units}; make a new plan")
    if plan.expected_batch_size != config.train.expected_batch_size:
        raise PrivacyError(
            f"the plan expects batches of {plan.expected_batch_size}, train.expected_batch_size is "
            f"{config.train.expected_batch_size}; make a new plan"
        )
    if config.run.insecure_seed is None and reservation is None:
        raise PrivacyError("private training needs an entry in the ledger: pass what Ledger.reserve returns")
    if reservation is not None and reservation.plan != plan:
        raise PrivacyError(f"the plan is not the one reserved in ledger entry {reservation.id}; reserve it anew")
    if reservation is not None and not resume and reservation.steps_spent:
        raise PrivacyError(f"ledger entry {reservation.id} has been trained under before; reserve anew, or resume")


@contextmanager
def as_found(inputs: TrainInputs) -> Iterator[None]:
    """Give the caller's random state and the model's mode back at the end, and drop its gradients."""
    model, training = inputs.model, inputs.model.training
    cuda = [torch.cuda.current_device()] if inputs.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        model.train()
        try:
            yield
        finally:
            model.train(training)
            model.zero_grad(set_to_none=True)


def _found(folder: Path, resume: bool) -> Checkpoint | None:
    """Return the checkpoint to go on from; what a killed process left beyond it is removed."""
    steps = checkpoint_steps(folder)
    if steps and not resume:
        raise RunError(
            f"{folder}: holds checkpoints of an earlier run; continue it with --resume, or take a new folder"
        )
    with failing_in_one_line(folder):
        remove_unfinished(folder)
    found = latest_checkpoint(folder)
    last = -1 if found is None else found.step
    remove_checkpoints(folder, [s for s in steps if s > last])
    return found


def setting_of(inputs: TrainInputs, *, private: bool) -> Setting:
    """Return how a run computes: its optimizer, its physical batch size and its number format."""
    train = inputs.config.train
    context = autocast(inputs.device, train.precision)
    physical = train.physical_batch_size
    if physical == "auto":
        each = activation_bytes(inputs.model, inputs.task, inputs.train, inputs.device, context)
        lengths = inputs.train.lengths
        typical = max(1, int(each * lengths.mean() / max(1, lengths.max())))
        physical = physical_batch_size(each, typical, train.expected_batch_size, inputs.device, private=private)
    return Setting(inputs, make_optimizer(inputs.model, train), physical, context)


def _restored(found: Checkpoint | None, setting: Setting, own: Identity) -> Journal:
    """Put the checkpoint's weights and optimizer state in place and return its notes."""
    if found is None:
        return Journal()
    own.check(_mapping(found.state["identity"]))
    model = setting.inputs.model
    places, stored = model_tensors(model), found.tensors["model"]
    for name, place in places.items():
        if name not in stored or stored[name].shape != place.shape:
            raise ResumeError(f"checkpoint: has no tensor {name} of shape {list(place.shape)}; start a new run")
        if not torch.equal(place, stored[name].to(place.device)):  # constant buffers may be views that take no copy
            with torch.no_grad():
                place.copy_(stored[name])
    restore_optimizer(model, setting.optimizer, found.tensors.get("optimizer", {}))
    return Journal.from_dict(_mapping(found.state["journal"]))


def _mapping(value: Json) -> dict[str, Json]:
    if not isinstance(value, dict):
        raise ResumeError("checkpoint: not of this version; start a new run without --resume")
    return value


def _fit_privately(
    setting: Setting,
    plan: PrivacyPlan,
    reservation: Reservation | None,
    folder: Path,
    found: Checkpoint | None,
    progress: Progress,
) -> TrainOutcome:
    inputs = setting.inputs
    seed, step = inputs.config.run.insecure_seed, 0 if found is None else found.step
    rows = rows_digest(inputs.train)
    entry = None if reservation is None else reservation.id
    own = identity(
        inputs.config, inputs.model, rows=None if seed is None else rows, plan=plan.digest(), reservation=entry
    )
    with ExitStack() as stack:
        keys = None
        if seed is None and reservation is not None:
            keys = stack.enter_context(PrivateState.opened(reservation.id, rows, _same_draws(setting)))
        journal = _restored(found, setting, own)
        promise = Promise(plan, reservation, keys)
        if seed is None:
            randomness = recovered(promise, step, from_checkpoint=found is not None)
        else:
            randomness = randomness_at(step, seed)
        state = {} if found is None else _mapping(found.state.get("steps", {}))
        steps = stack.enter_context(private_steps(setting, promise, step, randomness, state))
        return _outcome(Loop(setting, steps, folder, own, progress, journal, step, found is None))


def _same_draws(setting: Setting) -> dict[str, Json]:
    """Return what must be the same for the same key to give the same noise and the same gradients."""
    return {
        "device": setting.inputs.device.type,
        "physical_batch_size": setting.physical,
        "versions": [__version__, torch.__version__, np.__version__],
    }


def _outcome(loop: Loop) -> TrainOutcome:
    loop.run()
    return TrainOutcome(
        loop.step, loop.journal.rows, loop.steps.privacy(), loop.journal.work_seconds, loop.steps.warnings()
    )
