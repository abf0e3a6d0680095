"""The engine against other people's per-example gradients: torch.func and Opacus' hooks."""

from __future__ import annotations

import copy
import warnings

import dp_models
import pytest
import torch
from dp_oracle import Case, clipped_sum, distance, private_step
from torch import Tensor
from torch.func import functional_call, grad, vmap

CASES = {"mlp": dp_models.mlp, "roberta": dp_models.roberta}


def _assert_agree(case: Case, gradients: list[dict[str, Tensor]], tolerance: float) -> None:
    private = private_step(case)
    total = clipped_sum(gradients, 1.0)
    whole = torch.sqrt(sum(t.square().sum() for t in total.values()))
    for name, truth in total.items():
        assert (private.gradient[name] - truth).norm() <= tolerance * whole, name
    for block, squared in private.norms.items():
        truth = torch.stack([sum(g[name].square().sum() for name in block.split("+")) for g in gradients])
        assert distance(squared, truth) <= tolerance or float(truth.max()) < 1e-12, block


@pytest.mark.parametrize("name", list(CASES))
def test_agrees_with_vmapped_gradients(name: str) -> None:
    case = CASES[name]().double()
    model = copy.deepcopy(case.model)
    if name == "roberta":
        del case.batch["attention_mask"]  # a mask is built by code that vmap cannot trace
        model.set_attn_implementation("eager")  # the fused kernel has no rule for vmap
    parameters = dict(model.named_parameters())

    def loss(weights: dict[str, Tensor], example: dict[str, Tensor]) -> Tensor:
        batch = {k: v[None] for k, v in example.items()}

        class Stateless:
            def __call__(self, *args: Tensor, **kwargs: Tensor) -> object:
                return functional_call(model, weights, args, kwargs)

        return case.losses(Stateless(), batch)[0]  # type: ignore[arg-type]

    stacked = vmap(grad(loss), in_dims=(None, 0))(parameters, case.batch)
    gradients = [{n: g[i].detach() for n, g in stacked.items()} for i in range(case.rows)]
    _assert_agree(case, gradients, 1e-12)


@pytest.mark.parametrize("name", list(CASES))
def test_agrees_with_opacus_hooks(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Opacus' own imports and hooks
        from opacus import GradSampleModule

        case = CASES[name]().double()
        wrapped = GradSampleModule(copy.deepcopy(case.model).train(), loss_reduction="sum")
        wrapped.eval()
        for module in wrapped.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        wrapped.train()
        if name == "roberta":
            wrapped._module.set_attn_implementation("eager")
            for part in wrapped.modules():
                if isinstance(vars(part).get("attention_dropout"), float):
                    part.attention_dropout = 0.0
        case.losses(wrapped, case.batch).sum().backward()
    samples = {n.removeprefix("_module."): p.grad_sample for n, p in wrapped.named_parameters()}
    gradients = [{n: s[i].detach() for n, s in samples.items()} for i in range(case.rows)]
    _assert_agree(case, gradients, 1e-12)
