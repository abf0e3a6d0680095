"""What the engine refuses before it releases anything: each check raises one line that names the way out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from troth.dp.tape import Tape, Use, VectorUse
from troth.errors import EngineStateError, PrivacyError, UnsupportedModuleError

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from troth.accounting.plan import PrivacyPlan
    from troth.data import Units

__all__ = [
    "persistent_buffers",
    "probe_independence",
    "refuse_changed",
    "refuse_losses",
    "refuse_mismatch",
    "refuse_other_units",
    "refuse_unseen",
    "refuse_written_buffers",
    "trainable",
]


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters by their first name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def refuse_mismatch(parameters: Mapping[str, nn.Parameter], optimizer: Optimizer) -> None:
    """Check that the optimizer updates exactly the trainable parameters.

    Raises:
        PrivacyError: there are none, or one side holds a parameter that the other does not.
    """
    if not parameters:
        raise PrivacyError("the model has no trainable parameter: unfreeze some, or train without [privacy]")
    held = {p for group in optimizer.param_groups for p in group["params"]}
    if isinstance(optimizer, torch.optim.LBFGS):
        raise PrivacyError(
            "LBFGS evaluates the loss several times a step, which no single noisy gradient allows: use SGD or AdamW"
        )
    names = {p: name for name, p in parameters.items()}
    missing = [name for p, name in names.items() if p not in held]
    if missing:
        raise PrivacyError(
            f"parameter {missing[0]} is trainable but not in the optimizer ({len(missing)} such): give the optimizer "
            "every trainable parameter, or freeze it (requires_grad_(False))"
        )
    foreign = sum(p not in names for p in held)
    if foreign:
        raise PrivacyError(
            f"the optimizer holds {foreign} parameters that are not trainable parameters of the model: give it "
            "[p for p in model.parameters() if p.requires_grad]"
        )


def refuse_changed(attached: Mapping[nn.Parameter, str], model: nn.Module, optimizer: Optimizer) -> None:
    """Check that model and optimizer still hold the parameters that the engine was attached to, given their names.

    Raises:
        EngineStateError: one was added, removed, frozen or unfrozen.
    """
    present = trainable(model)
    there = set(present.values())
    added = [name for name, p in present.items() if p not in attached]
    gone = [name for p, name in attached.items() if p not in there]
    held = sum(len(group["params"]) for group in optimizer.param_groups)
    if not added and not gone and held == len(attached):
        return
    what = "the optimizer's parameters were changed"
    if gone:
        what = f"parameter {gone[0]} was frozen, removed or replaced"
    elif added:
        what = f"parameter {added[0]} was added or unfrozen"
    raise EngineStateError(
        f"{what} after the private engine was attached: detach it, make a new optimizer, attach a new engine"
    )


def refuse_other_units(plan: PrivacyPlan, units: Units | None) -> None:
    """Check that the plan speaks of these units; without any, every row is one.

    Raises:
        PrivacyError: their number is another, or a user-level plan comes without its users' rows.
    """
    if units is None and plan.unit == "user":
        raise PrivacyError("the plan protects users: pass units=privacy_units(table, 'user'), the rows of each user")
    if units is not None and len(units) != plan.examples:
        raise PrivacyError(
            f"the plan is for {plan.examples} units, the data have {len(units)}: make the plan for these, or pass "
            "units=privacy_units(table, unit)"
        )


def refuse_losses(losses: Tensor) -> None:
    """Check that losses are one number per example with a graph behind them.

    Raises:
        EngineStateError: their shape is not [batch], or no gradient can come from them.
    """
    if losses.dim() != 1:
        raise EngineStateError(
            f"losses have shape {list(losses.shape)}, wanted is [batch], one loss per example: make the loss with "
            "reduction='none' and average token losses within each example"
        )
    if not losses.requires_grad:
        raise EngineStateError(
            "losses have no gradient: compute them with gradients enabled, by a model with trainable parameters"
        )


def refuse_unseen(names: Mapping[nn.Parameter, str], seen: set[nn.Parameter]) -> None:
    """Check that every trainable parameter was seen by the tape.

    Raises:
        UnsupportedModuleError: one was not: its module is not part of the loss, or was bypassed.
    """
    unseen = [name for p, name in names.items() if p not in seen]
    if unseen:
        raise UnsupportedModuleError(
            f"parameter {unseen[0]} got no gradient through its module in the first step ({len(unseen)} such): freeze "
            "it (requires_grad_(False)) if the loss does not use it, or call its module instead of using its weight"
        )


def probe_independence(tape: Tape, losses: Tensor, parameters: Sequence[nn.Parameter]) -> bool:
    """Check that examples' losses send gradients to their own rows only; returns whether it could be checked.

    Two more backward passes, from the losses of every other row, then of the rest. They find losses and layers that
    couple examples, and look-ups whose first dimension only happens to be as long as the batch. All gradients stay as
    they are.

    Raises:
        UnsupportedModuleError: names the module nearest to the loss in which another example's row has a gradient.
    """
    finite = losses.detach().isfinite()
    even = torch.arange(len(losses), device=losses.device) % 2 == 0
    if len(losses) < 2 or not bool((finite & even).any()) or not bool((finite & ~even).any()):
        return False
    for side in (even, ~even):
        _refuse_foreign_rows(_uses_of(tape, losses, finite & side, parameters), ~side)
    return True


def _uses_of(tape: Tape, losses: Tensor, chosen: Tensor, parameters: Sequence[nn.Parameter]) -> list[Use]:
    """Return what the chosen losses alone write on the tape."""
    with tape.running(len(losses)) as uses:
        try:
            torch.autograd.grad(losses[chosen].sum(), list(parameters), retain_graph=True, allow_unused=True)
        except RuntimeError as error:
            if "use_reentrant" not in str(error):
                raise
            raise UnsupportedModuleError(
                "gradient checkpointing with use_reentrant=True cannot be checked for independence of examples: enable "
                "it with gradient_checkpointing_kwargs={'use_reentrant': False}"
            ) from None
        return list(uses)


def _refuse_foreign_rows(uses: Sequence[Use], others: Tensor) -> None:
    for use in uses:
        rows = (use.grads if isinstance(use, VectorUse) else use.g)[others]
        if bool(((rows != 0) & rows.isfinite()).any()):
            raise UnsupportedModuleError(
                f"{use.name}: the loss of one example has a gradient in the rows of others, so that no clipping bounds "
                "an example's share: make losses and layers work on each example alone, the batch as first dimension"
            )


def persistent_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the buffers that `state_dict` holds, by name."""
    kept = model.state_dict().keys()
    return {name: buffer.detach().clone() for name, buffer in model.named_buffers() if name in kept}


def refuse_written_buffers(before: Mapping[str, Tensor], model: nn.Module) -> None:
    """Check that the first batch left the buffers as they were: they are released with the weights, without noise.

    Raises:
        UnsupportedModuleError: names one that changed.
    """
    now = dict(model.named_buffers())
    for name, old in before.items():
        if name in now and not torch.equal(old, now[name]):
            raise UnsupportedModuleError(
                f"buffer {name} was changed by the forward pass: it would be released with the weights, without noise; "
                "freeze it (running statistics to evaluation mode), or register it with persistent=False"
            )
