"""The slow truth: one example at a time through a plain copy of the model, by autograd alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from troth.accounting.plan import PrivacyPlan
from troth.dp import Observer, PrivateEngine
from troth.seeds import PrivateRandomness

Batch = dict[str, Tensor]
Losses = Callable[[nn.Module, Batch], Tensor]


class ComparedEngine(PrivateEngine):
    """An engine that is told that the losses of these tests were compared alone and in company."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._to_compare = False


@dataclass(frozen=True)
class Case:
    """A model, a batch and the per-example loss of the one on the other."""

    model: nn.Module
    batch: Batch
    losses: Losses

    @property
    def rows(self) -> int:
        return len(next(iter(self.batch.values())))

    def take(self, rows: slice) -> Batch:
        return {k: v[rows] for k, v in self.batch.items()}

    def double(self) -> Case:
        model = copy.deepcopy(self.model).double()
        batch = {k: v.double() if v.is_floating_point() else v for k, v in self.batch.items()}
        return Case(model, batch, self.losses)

    def example_gradients(self) -> list[dict[str, Tensor]]:
        """Return each example's gradient by parameter name, from a plain copy of the model."""
        model = copy.deepcopy(self.model)
        named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        out = []
        for i in range(self.rows):
            loss = self.losses(model, self.take(slice(i, i + 1)))
            assert loss.shape == (1,)
            grads = torch.autograd.grad(loss[0], list(named.values()), allow_unused=True)
            out.append(
                {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named.items(), grads, strict=True)}
            )
        return out


def enlarge(model: nn.Module, scale: float = 0.3) -> nn.Module:
    """Move vectors off their initial 0 and 1, so that a wrong norm of any of them shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(scale * torch.randn_like(parameter))
    return model


def plan_for(
    rows: int,
    *,
    clipping_norm: float = 1.0,
    noise_multiplier: float = 0.0,
    steps: int = 100,
    examples: int | None = None,
) -> PrivacyPlan:
    """Return a plan that samples every row in every step, unless there are more examples than the batch holds."""
    n = rows if examples is None else examples
    return PrivacyPlan(n, rows, rows / n, steps, noise_multiplier, clipping_norm, 0.1 / n)


def clipped_sum(gradients: list[dict[str, Tensor]], clipping_norm: float) -> dict[str, Tensor]:
    """Return the sum of the clipped gradients by parameter name."""
    total = {n: torch.zeros_like(g) for n, g in gradients[0].items()}
    for gradient in gradients:
        norm = torch.sqrt(sum(g.double().square().sum() for g in gradient.values()))
        factor = min(1.0, clipping_norm / (float(norm) + 1e-6))
        for name, g in gradient.items():
            total[name] += factor * g
    return total


@dataclass(frozen=True)
class Private:
    """What the engine did in one step without noise."""

    norms: Mapping[str, Tensor]  # squared, by block [rows]
    gradient: Mapping[str, Tensor]  # the clipped sum, by parameter
    model: nn.Module


def private_step(
    case: Case, *, clipping_norm: float = 1.0, physical: int | None = None, optimizer: str = "sgd", lr: float = 0.1
) -> Private:
    """Run one step of the engine without noise on a copy of the case's model."""
    model = copy.deepcopy(case.model)
    trained = [p for p in model.parameters() if p.requires_grad]
    update = make_optimizer(optimizer, trained, lr)
    norms: dict[str, list[Tensor]] = {}

    def record(blocks: Mapping[str, Tensor]) -> None:
        for name, squared in blocks.items():
            norms.setdefault(name, []).append(squared.clone())

    engine = ComparedEngine(
        model,
        update,
        plan_for(case.rows, clipping_norm=clipping_norm),
        PrivateRandomness(),
        self_check=False,  # the oracle is to see by itself
        observer=Observer(norms=record),
    )
    assert len(engine.sample()) == case.rows
    size = physical or case.rows
    for start in range(0, case.rows, size):
        engine.backward(case.losses(model, case.take(slice(start, start + size))))
    gradient = {n: p.grad.clone() * case.rows for n, p in model.named_parameters() if p.requires_grad}
    engine.step()
    engine.detach()
    return Private({n: torch.cat(v) for n, v in norms.items()}, gradient, model)


def make_optimizer(name: str, parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9)
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01, fused=True)


def looped_step(
    case: Case, *, clipping_norm: float = 1.0, optimizer: str = "sgd", lr: float = 0.1
) -> tuple[list[dict[str, Tensor]], dict[str, Tensor], nn.Module]:
    """Return per-example gradients, their clipped sum, and a plain copy of the model after one update with it."""
    gradients = case.example_gradients()
    total = clipped_sum(gradients, clipping_norm)
    model = copy.deepcopy(case.model)
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    update = make_optimizer(optimizer, list(named.values()), lr)
    for name, parameter in named.items():
        parameter.grad = total[name] / case.rows
    update.step()
    return gradients, total, model


def distance(left: Tensor, right: Tensor) -> float:
    """Return |left - right| / |right| in the Euclidean norm (absolute where `right` is 0)."""
    scale = float(right.double().norm())
    gap = float((left.double() - right.double()).norm())
    return gap / scale if scale > 0 else gap


SHARE = {torch.float32: 1.0, torch.float64: 1e-2}
"""Errors are relative to a block's own squared norm plus this share of the whole: rounding is that of the whole."""


def _block_truth(block: str, gradients: list[dict[str, Tensor]]) -> Tensor:
    return torch.stack([sum(g[name].double().square().sum() for name in block.split("+")) for g in gradients])


def assert_exact(case: Case, *, tolerance: float, optimizer: str = "sgd", physical: int | None = None) -> None:
    """Norms block by block, the clipped sum, and the weights after the update."""
    gradients, total, looped = looped_step(case, optimizer=optimizer)
    private = private_step(case, optimizer=optimizer, physical=physical)
    whole = sum(_block_truth(block, gradients) for block in private.norms)
    share = SHARE[next(case.model.parameters()).dtype]
    named = {name for block in private.norms for name in block.split("+")}
    assert named == set(gradients[0]), "every trainable parameter stands in one block"
    for block, squared in private.norms.items():
        truth = _block_truth(block, gradients)
        # Some blocks have gradient 0 but for rounding (softmax ignores keys' biases): hence a share of the whole.
        assert bool(((squared - truth).abs() <= tolerance * (truth + share * whole)).all()), block
    scale = torch.sqrt(sum(t.double().square().sum() for t in total.values()))
    for name, truth in total.items():
        gap = (private.gradient[name].double() - truth.double()).norm()
        assert gap <= tolerance * max(truth.double().norm(), share**0.5 * scale), name
    for (name, left), right in zip(private.model.named_parameters(), looped.parameters(), strict=True):
        assert distance(left.detach(), right.detach()) <= tolerance, name
