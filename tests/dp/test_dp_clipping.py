"""The clipping rules: bounds that hold for any gradient, the loop by hand, and what adaptive clipping pays."""

from __future__ import annotations

import copy
import math

import dp_models
import numpy as np
import pytest
import torch
from dp_oracle import Case, ComparedEngine
from torch import Tensor, nn

import troth.dp.linear
from troth.accounting.plan import PrivacyPlan
from troth.dp import Observer, PrivateEngine, inspect
from troth.dp.clipping import automatic_factors, clip_factors
from troth.errors import EngineStateError, PrivacyError
from troth.seeds import PrivateRandomness


@pytest.fixture(params=["ghost", "written out"], autouse=True)
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny layers would always have their gradients written out."""
    monkeypatch.setattr(troth.dp.linear, "instantiates", lambda *widths: request.param == "written out")


NORMS = torch.tensor([0.0, 1e-30, 1e-8, 0.3, 1.0, 7.0, 1e12, 1e30, -1e-9, math.nan, math.inf], dtype=torch.float64)


@pytest.mark.parametrize("rule", [clip_factors, automatic_factors])
@pytest.mark.parametrize("clipping_norm", [1e-3, 0.5, 100.0])
def test_no_gradient_adds_more_than_the_clipping_norm(rule: object, clipping_norm: float) -> None:
    factors = rule(NORMS, clipping_norm, 4)
    assert bool(factors.isfinite().all())
    finite = NORMS.isfinite()
    assert bool((factors[~finite] == 0).all())
    shares = factors[finite] * NORMS[finite].clamp(min=0).sqrt()
    assert bool((shares <= clipping_norm / 4 * (1 + 1e-12)).all())


def test_automatic_clipping_is_the_published_formula() -> None:
    assert automatic_factors(torch.tensor([4.0]), 0.5, 1).item() == pytest.approx(0.5 / 2.01)


def plan_of(rows: int, **fields: object) -> PrivacyPlan:
    numbers = {"noise_multiplier": 0.0, "clipping_norm": 0.7, **fields}
    return PrivacyPlan(rows, rows, 1.0, 50, delta=0.1 / rows, **numbers)


def engine_for(model: nn.Module, plan: PrivacyPlan, **kwargs: object) -> PrivateEngine:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    return ComparedEngine(model, optimizer, plan, kwargs.pop("key", PrivateRandomness()), **kwargs)


def run_step(engine: PrivateEngine, case: Case, model: nn.Module, physical: int = 2) -> dict[str, Tensor]:
    for rows in engine.batch(physical):
        engine.backward(case.losses(model, {k: v[rows] for k, v in case.batch.items()}))
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    engine.step()
    return found


def norm(gradient: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(g.square().sum()) for g in gradient.values()))


def assert_close(found: dict[str, Tensor], truth: dict[str, Tensor], rows: int) -> None:
    for name, total in truth.items():
        assert float((found[name] * rows - total).norm()) <= 1e-11 * max(1e-3, norm(truth)), name


@pytest.mark.parametrize("name", ["bert", "gpt2", "mlp"])
def test_automatic_clipping_equals_the_loop(name: str) -> None:
    case = dp_models.CASES[name]().double()
    grads = case.example_gradients()
    truth = {n: sum(0.7 / (norm(g) + 0.01) * g[n] for g in grads) for n in grads[0]}
    model = copy.deepcopy(case.model)
    assert_close(run_step(engine_for(model, plan_of(case.rows, clipping="automatic")), case, model), truth, case.rows)


def layer_of(parameter: str) -> str:
    return parameter.rsplit(".", 1)[0]


@pytest.mark.parametrize("name", ["bert", "mlp", "pre_norm", "llama"])
def test_per_layer_clipping_equals_the_loop(name: str) -> None:
    case = dp_models.CASES[name]().double()
    grads = case.example_gradients()
    layers = {layer_of(n) for n in grads[0]}
    share = 0.7 / math.sqrt(len(layers))
    truth = {n: torch.zeros_like(g) for n, g in grads[0].items()}
    for gradient in grads:
        for layer in layers:
            inside = {n: g for n, g in gradient.items() if layer_of(n) == layer}
            factor = min(1.0, share / (norm(inside) + 1e-6))
            for n, g in inside.items():
                truth[n] += factor * g
    model = copy.deepcopy(case.model)
    assert_close(run_step(engine_for(model, plan_of(case.rows, clipping="per_layer")), case, model), truth, case.rows)


def test_per_layer_clipping_bounds_the_whole_gradient() -> None:
    """Tied weights belong to one layer: the sum over layers stays below C."""
    case = dp_models.CASES["gpt2"]().double()
    one = Case(case.model, {k: v[:1] for k, v in case.batch.items()}, case.losses)
    model = copy.deepcopy(one.model)
    plan = PrivacyPlan(2, 2, 1.0, 5, 0.0, 0.01, 0.05, clipping="per_layer")
    engine = engine_for(model, plan)
    for rows in engine.batch(1):
        engine.backward(one.losses(model, {k: v[[0] * len(rows)] for k, v in one.batch.items()}))
    total = norm({n: p.grad for n, p in model.named_parameters()}) * plan.divisor
    assert 0 < total <= 2 * 0.01 * (1 + 1e-9)  # twice the same example
    assert len({layer_of(r.name) for r in inspect(case.model)}) > 5


@pytest.mark.parametrize("clipping", ["automatic", "per_layer", "adaptive"])
def test_a_poisoned_example_adds_exactly_nothing(clipping: str) -> None:
    case = dp_models.CASES["mlp"]()
    extra = {"quantile": 0.5, "quantile_noise": 10.0} if clipping == "adaptive" else {}
    sums = []
    for poison in (False, True):
        model = copy.deepcopy(case.model)
        engine = engine_for(model, plan_of(case.rows, clipping=clipping, **extra))
        for rows in engine.batch(100):
            losses = case.losses(model, {k: v[rows] for k, v in case.batch.items()})
            engine.backward(torch.cat([losses[:1] * (math.nan if poison else 0.0), losses[1:]]))
        sums.append({n: p.grad.clone() for n, p in model.named_parameters()})
    assert all(torch.allclose(sums[0][n], sums[1][n], atol=1e-7) for n in sums[0])


# Adaptive clipping


def adaptive(rows: int, **fields: object) -> PrivacyPlan:
    return plan_of(rows, clipping="adaptive", quantile=0.5, **{"quantile_noise": 10.0, **fields})


def test_the_norm_follows_the_quantile_of_the_norms() -> None:
    """Without noise and with all examples in every batch, C ends between the middle norms; from above and below."""
    case = dp_models.CASES["mlp"]().double()
    norms = sorted(norm(g) for g in case.example_gradients())
    for start in (0.01 * norms[2], 20 * norms[2]):
        model = copy.deepcopy(case.model)
        plan = PrivacyPlan(
            case.rows, case.rows, 1.0, 200, 0.0, start, 0.01, clipping="adaptive", quantile=0.5, quantile_noise=10.0
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-12)
        engine = ComparedEngine(model, optimizer, plan, PrivateRandomness())
        for batch in engine.batches(10):
            for rows in batch:
                engine.backward(case.losses(model, {k: v[rows] for k, v in case.batch.items()}))
            engine.step()
        assert norms[1] < engine.clipping_norm < norms[3]


def test_the_noise_scales_with_the_norm_as_it_stands() -> None:
    case = dp_models.CASES["mlp"]().double()
    noise: list[Tensor] = []
    model = copy.deepcopy(case.model)
    plan = adaptive(case.rows, noise_multiplier=1.0, clipping_norm=1e4)
    engine = engine_for(model, plan, observer=Observer(noise=lambda flat: noise.append(flat.clone())))
    engine.restore(1, PrivateRandomness(), clipping_norm=1.0)
    run_step(engine, case, model)
    used = noise[0][noise[0] != 0]
    assert float(used.std()) == pytest.approx(plan.gradient_noise_multiplier / case.rows, rel=0.25)


def test_the_count_is_paid_for() -> None:
    plan = adaptive(100, noise_multiplier=1.0, quantile_noise=5.0)
    # two Gaussian queries on one sample: their combined sigma^-2 is the sum, the count's sensitivity being 1/2
    assert plan.gradient_noise_multiplier**-2 + (2 * 5.0) ** -2 == pytest.approx(1.0)
    assert plan.mechanism.noise_multiplier == 1.0
    with pytest.raises(PrivacyError, match="the count alone would spend more"):
        adaptive(100, noise_multiplier=1.0, quantile_noise=0.5)


def test_the_count_carries_the_noise_it_says() -> None:
    """C after one step has the spread of exp(-step noise / E); a false alarm once in a million runs."""
    from scipy.stats import chi2

    case = dp_models.CASES["mlp"]()
    plan = adaptive(case.rows, noise_multiplier=1.0, quantile_noise=3.0)
    moves = []
    for _ in range(60):
        model = copy.deepcopy(case.model)
        engine = engine_for(model, plan, self_check=False)
        run_step(engine, case, model, 100)
        moves.append(math.log(engine.clipping_norm / plan.clipping_norm) * case.rows / plan.quantile_step)
    statistic = float(np.var(moves, ddof=1)) * 59 / 9
    assert chi2.ppf(5e-7, 59) < statistic < chi2.isf(5e-7, 59)


def test_going_on_needs_the_norm_of_the_checkpoint() -> None:
    case = dp_models.CASES["mlp"]()
    engine = engine_for(case.model, adaptive(case.rows))
    with pytest.raises(EngineStateError, match="goes on from the clipping norm"):
        engine.restore(3, PrivateRandomness())
    engine.restore(3, PrivateRandomness(), clipping_norm=0.123)
    assert engine.clipping_norm == 0.123
