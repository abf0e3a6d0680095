"""The first-batch self-check: the engine against plain autograd on this very model, before anything is released.

Silent failure is what private training suffers from (reference implementations trained dead models, or clipped the
wrong norm, without a word). So the first physical batch of a run is used to try the engine on the model as it is: a
few of its rows go through the model again, together and each alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from troth.dp.blocks import make_blocks
from troth.errors import EngineStateError, SelfCheckError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from troth.dp.tape import Tape
    from troth.dp.workspace import Workspace

__all__ = ["Call", "check_engine", "check_losses", "refuse_unmoved", "weights_of"]

_TOGETHER = 4  # rows that go through the engine at once
_ALONE = 2  # of these, how many are recomputed alone
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-8}
"""Relative; ghost norms in float32 differ from autograd's by some 1e-6, a bad one by far more than 1e-3."""
_DROPOUT = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout}
_ELEMENTS = 4096  # of each tensor looked at to see that it moved: noise moves every one
_SHARE = 1e-2  # a module that holds less than this share of the whole norm is compared with that share


@dataclass(frozen=True, eq=False)
class Call:
    """One call of the model: what it was given, and how many rows that were."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    rows: int

    def take(self, rows: slice) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments for some of the rows; what all rows share stays whole."""

        def part(value: Any) -> Any:  # noqa: ANN401  whatever the model takes
            if isinstance(value, Tensor) and value.dim() and value.shape[0] == self.rows:
                return value.detach()[rows]
            if isinstance(value, Mapping):
                return {k: part(v) for k, v in value.items()}
            return value

        return tuple(part(a) for a in self.args), {k: part(v) for k, v in self.kwargs.items()}


def check_engine(model: nn.Module, tape: Tape, call: Call, names: Mapping[nn.Parameter, str], work: Workspace) -> None:
    """Compare the engine's norms and sums with autograd's, and outputs of rows alone with outputs together.

    The loss is a random linear function of the model's outputs, so that every output counts. Dropout is off and the
    random state is left as it was.

    Args:
        model: with the engine attached.
        tape: where the engine's sites write.
        call: the model's first call.
        names: of the trainable parameters.
        work: a fresh one, which decides like the engine's own.

    Raises:
        SelfCheckError: names the module whose norm or sum is wrong, or says that rows depend on each other.
    """
    together, alone = min(_TOGETHER, call.rows), min(_ALONE, call.rows)
    device = next(iter(names)).device
    cuda = [device] if device.type == "cuda" else []
    with tape.paused(), torch.no_grad(), torch.random.fork_rng(devices=cuda):
        _refuse_coupled_training(model, call, together, alone)
    with torch.enable_grad(), torch.random.fork_rng(devices=cuda), _evaluating(model):
        args, kwargs = call.take(slice(0, together))
        outputs = _outputs(model(*args, **kwargs), together)
        directions = [torch.randn_like(out) for out in outputs]
        with tape.paused():
            truth = _truth(lambda row: _alone(model, call, row, outputs, directions, names), alone)
        losses = _surrogate(outputs, directions)
        with tape.running(together, work=work) as uses:
            losses.sum().backward()  # type: ignore[no-untyped-call]
            recorded = list(uses)
    blocks = make_blocks(recorded)
    with torch.no_grad():
        squares = [block.norms_squared(work) for block in blocks]
        _compare_norms(
            [(block.parameters, squared[:alone]) for block, squared in zip(blocks, squares, strict=True)],
            truth.squares,
            names,
        )
        weights = torch.zeros(together, dtype=torch.float64, device=losses.device)
        weights[:alone] = 1
        work.set_factors(weights)
        sums = {p: torch.zeros_like(p) for p in names}
        for block in blocks:
            block.add_clipped(sums, work)
        _compare_sums(sums, truth.total, names)


def check_losses(model: nn.Module, losses_of: Callable[[np.ndarray], Tensor], rows: np.ndarray) -> None:
    """Compare the losses of a few rows alone with their losses in company, dropout off.

    A loss that is divided by the number of tokens of the batch, or that looks at the other examples, has the right
    shape and gradients in the right rows, and still lets one example change the share of all others.

    Args:
        model: the model that `losses_of` calls.
        losses_of: gives the losses [rows] of rows of the data set.
        rows: of the first batch, all of them together; the first few alone.

    Raises:
        SelfCheckError: the loss of an example depends on the other examples of its batch.
    """
    device = next(model.parameters()).device
    cuda = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=cuda), _evaluating(model):
        together = losses_of(rows)
        alone = torch.cat([losses_of(rows[i : i + 1]) for i in range(min(_ALONE, len(rows)))])
    known = alone.isfinite()
    gap = ((together[: len(alone)] - alone).abs() / alone.abs().clamp(min=1e-2))[known]
    if len(rows) > 1 and len(gap) and float(gap.max()) > 10 * _tolerance(alone.dtype):
        raise SelfCheckError(
            f"the loss of an example changes with the other examples of its batch (by {float(gap.max()):.1e} of its "
            "size), so that no clipping bounds an example's share: divide token losses by the example's own number of "
            "tokens, and leave out terms that look at the whole batch"
        )


Gradients = dict[nn.Parameter, Tensor]


@dataclass(frozen=True, eq=False)
class _Truth:
    """Plain autograd's word: each row's squared norms by parameter, and the sum of the rows' gradients."""

    squares: list[dict[nn.Parameter, float]]
    total: Gradients


def _truth(gradients: Callable[[int], Gradients], rows: int) -> _Truth:
    """Take the rows one after the other, so that no more than two gradients are in memory."""
    squares: list[dict[nn.Parameter, float]] = []
    total: Gradients = {}
    for row in range(rows):
        found = gradients(row)
        squares.append({p: _square(g) for p, g in found.items()})
        for parameter, gradient in found.items():
            total[parameter] = total[parameter].add_(gradient) if row else gradient
    return _Truth(squares, total)


def _square(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2


def _alone(
    model: nn.Module,
    call: Call,
    row: int,
    outputs: Sequence[Tensor],
    directions: Sequence[Tensor],
    names: Mapping[nn.Parameter, str],
) -> Gradients:
    """Return one row's gradients by plain autograd from the row alone; its outputs must be those it has in company."""
    args, kwargs = call.take(slice(row, row + 1))
    found = _outputs(model(*args, **kwargs), 1)
    _refuse_coupled(found, outputs, row)
    loss = _surrogate(found, [d[row : row + 1] for d in directions])[0]
    grads = torch.autograd.grad(loss, list(names), allow_unused=True)
    return {p: torch.zeros_like(p) if g is None else g for p, g in zip(names, grads, strict=True)}


def _refuse_coupled(alone: Sequence[Tensor], together: Sequence[Tensor], row: int) -> None:
    for mine, theirs in zip(alone, together, strict=True):
        scale = float(theirs[row].detach().abs().max()) + 1e-12
        gap = float((mine[0] - theirs[row]).detach().abs().max()) / scale
        if gap > 10 * _tolerance(mine.dtype):
            raise SelfCheckError(
                f"the model's output for an example changes with the other examples of its batch (by {gap:.1e} of its "
                "size), so that no clipping bounds an example's share: find the layer that mixes examples (batch "
                "statistics, routing, in-batch negatives) and replace it"
            )


class _WithoutDropout(TorchFunctionMode):
    """Inside it dropout passes its input on."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401  what any function of torch returns
        given = dict(kwargs or {})
        if func in _DROPOUT:
            return args[0] if args else given["input"]
        if func is F.scaled_dot_product_attention and "dropout_p" in given:
            given["dropout_p"] = 0.0
        return func(*args, **given)


def _refuse_coupled_training(model: nn.Module, call: Call, together: int, alone: int) -> None:
    """Compare outputs in the mode that the model trains in, where only dropout makes it random.

    A model that is random in another way too cannot be compared; its evaluation mode is, elsewhere.
    """

    def outputs(rows: slice) -> list[Tensor]:
        args, kwargs = call.take(rows)
        return _outputs(model(*args, **kwargs), rows.stop - rows.start, differentiable=False)

    with _WithoutDropout():
        first, second = (outputs(slice(0, together)) for _ in range(2))
        if all(torch.equal(a, b) for a, b in zip(first, second, strict=True)):
            for row in range(alone):
                _refuse_coupled(outputs(slice(row, row + 1)), first, row)


def _tolerance(dtype: torch.dtype) -> float:
    return _TOLERANCE.get(dtype, 3e-2)


def _surrogate(outputs: Sequence[Tensor], directions: Sequence[Tensor]) -> Tensor:
    """Return a loss per row: the inner product of its outputs with fixed directions, over the root of their number."""
    parts = [
        (out * direction).flatten(1).sum(1) / out[0].numel() ** 0.5
        for out, direction in zip(outputs, directions, strict=True)
    ]
    return torch.stack(parts).sum(0)


def _outputs(result: object, rows: int, *, differentiable: bool = True) -> list[Tensor]:
    """Return the outputs of a call that are (or could be) differentiable and have a row for each example."""
    values = result.values() if isinstance(result, Mapping) else result if isinstance(result, tuple) else [result]
    found = [
        v.reshape(rows, -1)
        for v in values
        if isinstance(v, Tensor) and v.dim() and v.shape[0] == rows
        if (v.requires_grad if differentiable else v.is_floating_point())
    ]
    if not found:
        raise SelfCheckError(
            "the model returns no tensor with a row for each example, so that the engine cannot be checked on it: call "
            "the model without a reduction in its loss, or attach the engine with self_check=False"
        )
    return found


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode for the block, each back into its own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _compare_norms(
    found: Sequence[tuple[tuple[nn.Parameter, ...], Tensor]],
    truths: Sequence[Mapping[nn.Parameter, float]],
    names: Mapping[nn.Parameter, str],
) -> None:
    for row, truth in enumerate(truths):
        whole = sum(truth.values())
        for parameters, squared in found:
            exact = sum(truth[p] for p in parameters)
            if abs(float(squared[row]) - exact) > _tolerance(parameters[0].dtype) * max(exact, _SHARE * whole):
                raise SelfCheckError(
                    f"{names[parameters[0]]}: the private engine's gradient norm of an example is not that of plain "
                    f"autograd (ratio of squares {float(squared[row]) / max(exact, 1e-30):.4g}): the engine does not "
                    "fit this model; please report it with the model's configuration"
                )


def _compare_sums(sums: Gradients, totals: Gradients, names: Mapping[nn.Parameter, str]) -> None:
    whole = sum(_square(t) for t in totals.values()) ** 0.5
    for parameter, total in totals.items():
        gap = _square(sums[parameter] - total) ** 0.5
        if gap > _tolerance(parameter.dtype) * max(_square(total) ** 0.5, _SHARE * whole):
            raise SelfCheckError(
                f"{names[parameter]}: the private engine's sum of gradients is {gap / max(whole, 1e-30):.1e} of the "
                "whole gradient away from plain autograd's: the engine does not fit this model; please report it with "
                "the model's configuration"
            )


def weights_of(names: Mapping[nn.Parameter, str]) -> dict[nn.Parameter, Tensor]:
    """Return copies of the trainable parameters' first elements, to compare with after the first update."""
    return {p: _first(p).clone() for p in names}


def _first(parameter: nn.Parameter) -> Tensor:
    return parameter.detach().flatten()[:_ELEMENTS]


def refuse_unmoved(before: Mapping[nn.Parameter, Tensor], names: Mapping[nn.Parameter, str]) -> None:
    """Check that the first update moved every trainable tensor: noise alone moves it.

    Stale parameters in hooks or optimizer train nothing while loss and epsilon look fine (Opacus issue 820).

    Raises:
        EngineStateError: one did not move.
    """
    still = [names[p] for p, old in before.items() if torch.equal(_first(p), old)]
    if still:
        more = f" and {len(still) - 1} more" if len(still) > 1 else ""
        raise EngineStateError(
            f"parameter {still[0]}{more} did not move in the first private step although noise was added: raise the "
            "learning rate (train.learning_rate), use precision float32, or freeze it (model.trainable)"
        )
