"""The engine against the slow truth: norms, clipped sums and updates, for every family, in float64 and float32."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from dp_models import CASES, mlp, pre_norm, roberta
from dp_oracle import Case, clipped_sum, distance, largest_gap, looped_step, private_step
from torch import nn

CLIPS = (0.3, 1e6)  # clips every example, clips none


def assert_equal_sums(case: Case, tolerance: float, clipping_norm: float, floor: float = 1e-4) -> None:
    gradients = case.example_gradients()
    expected = clipped_sum(gradients, clipping_norm)
    private = private_step(case, clipping_norm=clipping_norm)
    gap, name = largest_gap(private.gradient, expected, floor)
    assert gap <= tolerance, name
    squared = torch.stack([sum(g.double().square().sum() for g in gradient.values()) for gradient in gradients])
    found = torch.stack([n.double() for n in private.norms.values()]).sum(0)
    assert distance(found, squared) <= tolerance


@pytest.mark.parametrize("clipping_norm", CLIPS)
@pytest.mark.parametrize("name", CASES)
def test_float64_equals_the_loop(name: str, clipping_norm: float) -> None:
    assert_equal_sums(CASES[name]().double(), 1e-12, clipping_norm)


@pytest.mark.parametrize("name", CASES)
def test_float32_equals_the_loop(name: str) -> None:
    """Relative to each layer's norm, 1e-2 of the whole where it is smaller: the sums add up float32's own rounding."""
    assert_equal_sums(CASES[name](), 1e-5, 0.3, floor=1e-2)


@pytest.mark.parametrize(
    "name,optimizer,double,tolerance",
    [
        *[(name, optimizer, True, 1e-12) for name in ("mlp", "pre_norm") for optimizer in ("sgd", "adamw")],
        ("mlp", "sgd", False, 1e-6),
        ("pre_norm", "sgd", False, 1e-6),
        ("mlp", "adamw", False, 1e-6),  # AdamW blows the rounding of the key bias' zero gradient up to whole steps
    ],
)
def test_a_private_step_without_noise_is_a_step_of_the_loop(
    name: str, optimizer: str, double: bool, tolerance: float
) -> None:
    case = CASES[name]().double() if double else CASES[name]()
    private = private_step(case, clipping_norm=0.3, optimizer=optimizer, lr=1e-3)
    _, _, expected = looped_step(case, clipping_norm=0.3, optimizer=optimizer, lr=1e-3)
    gap, key = largest_gap(dict(private.model.named_parameters()), dict(expected.named_parameters()))
    assert gap <= tolerance, key


@pytest.mark.parametrize("name", ["pre_norm", "bert", "gpt2", "t5"])
def test_norms_are_right_layer_by_layer(name: str) -> None:
    """The head holds most of the norm: an error in the encoder's share shows only where layers are compared alone."""
    case = CASES[name]().double()
    gradients = case.example_gradients()
    private = private_step(case)
    shares = []
    for block, found in private.norms.items():
        keys = block.split("+")
        expected = torch.stack([sum(g[k].square().sum() for k in keys) for g in gradients])
        assert distance(found, expected) <= 1e-11, block
        shares.append(float(expected.sum()))
    assert sorted(shares)[len(shares) // 2] > 1e-6 * sum(shares)


@pytest.mark.parametrize("name", ["mlp", "pre_norm", "bert"])
@pytest.mark.parametrize("physical", [1, 2, 4])
def test_the_physical_batch_is_a_matter_of_speed_alone(name: str, physical: int) -> None:
    case = CASES[name]().double()
    whole, cut = private_step(case, clipping_norm=0.3), private_step(case, clipping_norm=0.3, physical=physical)
    gap, key = largest_gap(cut.gradient, whole.gradient)
    assert gap <= 1e-12, key


@pytest.mark.parametrize("make", [mlp, pre_norm])
def test_equals_functional_transforms(make: Callable[[], Case]) -> None:
    """`torch.func.vmap(grad)` as a second opinion on per-example gradients."""
    case = make().double()
    parameters = {n: p.detach() for n, p in case.model.named_parameters()}

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = copy.deepcopy(case.model)

        def forward(self, *rows: torch.Tensor) -> torch.Tensor:
            batch = {k: v[None] for k, v in zip(case.batch, rows, strict=True)}
            return case.losses(self.inner, batch)[0]

    module = Loss()
    wrapped = {f"inner.{n}": p for n, p in parameters.items()}

    def loss(weights: dict[str, torch.Tensor], *rows: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(module, weights, rows)

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, *[0] * len(case.batch)))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        stacked = each(wrapped, *case.batch.values())
    gradients = [{n: stacked[f"inner.{n}"][i] for n in parameters} for i in range(case.rows)]
    expected = clipped_sum(gradients, 0.3)
    private = private_step(case, clipping_norm=0.3)
    gap, name = largest_gap(private.gradient, expected)
    assert gap <= 1e-12, name


@pytest.mark.parametrize("make", [mlp, roberta])
def test_equals_opacus(make: Callable[[], Case]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus.grad_sample import GradSampleModule

        case = make().double()
        model = copy.deepcopy(case.model).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        wrapped = GradSampleModule(model, loss_reduction="sum")
        case.losses(wrapped, case.batch).sum().backward()
    named = {n.removeprefix("_module."): p for n, p in wrapped.named_parameters()}
    gradients = [{n: p.grad_sample[i] for n, p in named.items() if p.grad_sample is not None} for i in range(case.rows)]
    expected = clipped_sum(gradients, 0.3)
    private = private_step(case, clipping_norm=0.3)
    assert len(expected) >= len(private.gradient) - 1
    gap, name = largest_gap(private.gradient, expected)
    assert gap <= 1e-10, name


def test_one_example_moves_the_sum_by_at_most_the_clipping_norm() -> None:
    """Record and replay: the data set and the data set plus one example, same generators."""
    case = pre_norm().double()
    smaller = Case(case.model, case.take(slice(0, case.rows - 1)), case.losses)
    for clipping_norm in (0.01, 0.3, 5.0):
        whole, less = (
            private_step(case, clipping_norm=clipping_norm),
            private_step(smaller, clipping_norm=clipping_norm),
        )
        moved = torch.cat([(whole.gradient[n] - less.gradient[n]).flatten() for n in whole.gradient]).norm()
        assert float(moved) <= clipping_norm * (1 + 1e-12)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_an_example_without_a_finite_norm_adds_nothing(poison: float) -> None:
    case = mlp().double()
    poisoned = {k: v.clone() for k, v in case.batch.items()}
    poisoned["x"][2] = poison
    rest = Case(case.model, {k: torch.cat([v[:2], v[3:]]) for k, v in case.batch.items()}, case.losses)
    found = private_step(Case(case.model, poisoned, case.losses), clipping_norm=0.3)
    expected = private_step(rest, clipping_norm=0.3)
    for name, total in expected.gradient.items():
        assert distance(found.gradient[name], total) <= 1e-12, name


@pytest.mark.parametrize("name", ["pre_norm", "bert", "gpt2"])
def test_model_and_state_are_left_as_they_were(name: str) -> None:
    case = CASES[name]()
    before = list(case.model.state_dict())
    private = private_step(case)
    assert type(private.model) is type(case.model) and list(private.model.state_dict()) == before
    assert not any("forward" in vars(m) for m in private.model.modules())
    assert all(p.grad is None for p in private.model.parameters())
    with torch.no_grad():
        case.losses(private.model, case.batch)
