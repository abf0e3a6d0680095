"""What is clipped as one: examples with augmentations, users, micro-batches; against a loop over units."""

from __future__ import annotations

import copy
from dataclasses import replace

import dp_models
import numpy as np
import pytest
import torch
from dp_oracle import Case, ComparedEngine, clipped_sum, plan_for
from torch import Tensor, nn

import troth.dp.linear
from troth.accounting.plan import PrivacyPlan
from troth.data import Units
from troth.dp.batches import Group, draw_groups, physical_batches
from troth.errors import EngineStateError, PrivacyError
from troth.seeds import PrivateRandomness


@pytest.fixture(params=["ghost", "written out"], autouse=True)
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny layers would always have their gradients written out."""
    monkeypatch.setattr(troth.dp.linear, "instantiates", lambda *widths: request.param == "written out")


TOLERANCE = 1e-11
CASES = ["mlp", "bag", "bert", "gpt2", "t5", "repeated_layers"]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)


def unit_gradients(case: Case, groups: list[Group]) -> list[dict[str, Tensor]]:
    """Return each group's gradient: the weighted sum of its rows' gradients, each from its row alone."""
    rows = case.example_gradients()
    return [
        {n: sum(w * rows[r][n] for r, w in zip(g.rows, g.weights.tolist(), strict=True)) for n in rows[0]}
        for g in groups
    ]


def engine_sum(case: Case, plan: PrivacyPlan, units: Units, physical: int, key: PrivateRandomness) -> dict[str, Tensor]:
    """Return the clipped sum of one step without noise, by parameter."""
    model = copy.deepcopy(case.model)
    engine = ComparedEngine(model, sgd(model), plan, key, units=units)
    for rows in engine.batch(physical, np.arange(case.rows)[::-1].copy()):
        engine.backward(case.losses(model, {k: v[rows] for k, v in case.batch.items()}))
    found = {n: p.grad.clone() * plan.divisor for n, p in model.named_parameters() if p.requires_grad}
    engine.step()
    engine.detach()
    return found


def assert_same(found: dict[str, Tensor], truth: dict[str, Tensor]) -> None:
    scale = sum(float(t.square().sum()) for t in truth.values()) ** 0.5
    assert scale > 0
    for name, total in truth.items():
        assert float((found[name] - total).norm()) <= TOLERANCE * scale, name


@pytest.mark.parametrize("physical", [1, 3, 100])
@pytest.mark.parametrize("name", CASES)
def test_augmentations_are_one_unit_with_their_example(name: str, physical: int) -> None:
    case = dp_models.CASES[name]().double()
    units = Units.of([i // 2 for i in range(case.rows)])  # ROWS is odd: the last unit has one row
    plan = plan_for(len(units), clipping_norm=0.5)
    groups = [Group(units.rows(u), np.full(len(units.rows(u)), 1 / len(units.rows(u)))) for u in range(len(units))]
    truth = clipped_sum(unit_gradients(case, groups), 0.5)
    assert_same(engine_sum(case, plan, units, physical, PrivateRandomness()), truth)


def user_plan(users: int, bound: int, clipping_norm: float = 0.5) -> PrivacyPlan:
    return PrivacyPlan(users, users, 1.0, 100, 0.0, clipping_norm, 0.1 / users, unit="user", examples_per_user=bound)


@pytest.mark.parametrize("bound", [1, 2, 10])
def test_a_users_contribution_is_bounded_and_clipped_as_one(bound: int) -> None:
    case = dp_models.CASES["bert"]().double()
    units, key = Units.of(["a", "b", "a", "a", "b"]), PrivateRandomness.create(4)
    plan = user_plan(2, bound)
    groups, drawn = draw_groups(plan, units, key)
    assert drawn == 2
    assert [len(g.rows) for g in groups] == [min(3, bound), min(2, bound)]
    assert all(set(g.rows) <= set(units.rows(u)) for u, g in enumerate(groups))
    truth = clipped_sum(unit_gradients(case, groups), 0.5)
    assert_same(engine_sum(case, plan, units, 3, key), truth)


def test_the_rows_of_a_large_user_change_from_step_to_step() -> None:
    units, key = Units.of(["a"] * 50 + ["b"]), PrivateRandomness.create(1)
    plan = user_plan(2, 5)
    first, _ = draw_groups(plan, units, key)
    second, _ = draw_groups(plan, units, key.advance())
    assert set(first[0].rows) != set(second[0].rows)
    assert len(set(first[0].rows)) == 5


def micro_plan(rows: int, size: int) -> PrivacyPlan:
    return PrivacyPlan(rows, rows, 1.0, 100, 0.0, 0.5, 0.1 / rows, clip_unit="microbatch", microbatch_size=size)


@pytest.mark.parametrize("physical", [2, 100])
def test_micro_batches_are_clipped_as_one(physical: int) -> None:
    case = dp_models.CASES["bert"]().double()
    key, units = PrivateRandomness.create(2), Units.single(case.rows)
    plan = micro_plan(case.rows, 2)
    groups, _ = draw_groups(plan, units, key)
    assert sorted(np.concatenate([g.rows for g in groups])) == list(range(case.rows))
    truth = clipped_sum(unit_gradients(case, groups), 0.5)
    assert_same(engine_sum(case, plan, units, physical, key), truth)


def test_micro_batches_have_twice_the_sensitivity() -> None:
    """One unit more turns one micro-batch's gradient around: all others stay where they are."""
    plan = micro_plan(8, 4)
    assert plan.sensitivity == 2 * plan.clipping_norm
    assert plan.divisor == 2
    noisy = PrivacyPlan(8, 8, 1.0, 1, 1.5, 0.5, 0.01, clip_unit="microbatch", microbatch_size=4)
    assert noisy.sum_noise_std == 1.5 * 2 * 0.5


def test_membership_of_a_micro_batch_is_uniform_and_independent() -> None:
    """Chi-square over places; a false alarm once in a million runs."""
    from scipy.stats import chi2

    plan = micro_plan(2000, 20)
    counts = np.zeros(plan.divisor)
    groups, _ = draw_groups(plan, Units.single(2000), PrivateRandomness())
    for place, group in enumerate(groups):
        counts[place] = len(group.rows)
    statistic = float(((counts - 20) ** 2 / 20).sum())
    assert chi2.ppf(5e-7, plan.divisor - 1) < statistic < chi2.isf(5e-7, plan.divisor - 1)


def test_groups_of_unlike_size_are_put_with_their_like() -> None:
    groups = [Group(np.arange(n) + 10 * n, np.full(n, 1 / n)) for n in (3, 1, 2, 1, 3)]
    batches = physical_batches(groups, 4, None)
    assert [(b.groups, b.size) for b in batches] == [(2, 1), (1, 2), (1, 3), (1, 3)]
    assert batches[0].weights is None
    padded = physical_batches(groups, 100, None)[0]
    assert (padded.groups, padded.size) == (5, 3)
    assert padded.weights.reshape(5, 3).sum(1) == pytest.approx(np.ones(5))
    assert (padded.weights.reshape(5, 3)[0] == [1, 0, 0]).all()


def test_like_lengths_lie_together_and_nothing_is_lost() -> None:
    lengths = np.array([9, 1, 8, 2, 7, 3])
    groups = [Group(np.array([i]), np.ones(1)) for i in range(6)]
    batches = physical_batches(groups, 2, lengths)
    assert [b.rows.tolist() for b in batches] == [[1, 3], [5, 4], [2, 0]]


def test_losses_must_be_those_of_the_rows() -> None:
    case = dp_models.CASES["mlp"]()
    engine = ComparedEngine(case.model, sgd(case.model), plan_for(case.rows), PrivateRandomness())
    batch = engine.batch(3)
    rows = next(batch)
    with pytest.raises(EngineStateError, match="2 losses for 3 rows"):
        engine.backward(case.losses(case.model, {k: v[rows[:2]] for k, v in case.batch.items()}))
    with pytest.raises(EngineStateError, match="losses of the rows before are missing"):
        next(batch)


def test_a_forgotten_step_is_refused() -> None:
    case = dp_models.CASES["mlp"]()
    engine = ComparedEngine(case.model, sgd(case.model), plan_for(case.rows), PrivateRandomness())
    with pytest.raises(EngineStateError, match=r"engine\.step\(\) is missing"):
        for batch in engine.batches(8):
            for rows in batch:
                engine.backward(case.losses(case.model, {k: v[rows] for k, v in case.batch.items()}))


def test_units_must_be_those_of_the_plan() -> None:
    case = dp_models.CASES["mlp"]()
    with pytest.raises(PrivacyError, match="the plan is for 5 units, the data have 3"):
        ComparedEngine(case.model, sgd(case.model), plan_for(5), PrivateRandomness(), units=Units.single(3))
    with pytest.raises(PrivacyError, match="the plan protects users"):
        ComparedEngine(case.model, sgd(case.model), user_plan(5, 3), PrivateRandomness())


def test_units_of_several_rows_are_not_sampled_by_hand() -> None:
    case = dp_models.CASES["mlp"]()
    units = Units.of([0, 0, 1, 1, 2])
    engine = ComparedEngine(case.model, sgd(case.model), plan_for(3), PrivateRandomness(), units=units)
    with pytest.raises(EngineStateError, match=r"engine\.batch"):
        engine.sample()


def neighbours(kind: str, clipping_norm: float) -> list[tuple[PrivacyPlan, Units]]:
    """Return a plan and units for D and for D without its last unit; every unit joins every step."""
    if kind == "user":
        return [
            (user_plan(4, 10, clipping_norm), Units.of([0, 1, 2, 3, 3])),
            (user_plan(3, 10, clipping_norm), Units.of([0, 1, 2])),
        ]
    size = 2 if kind == "microbatch" else 1  # six and five units make three micro-batches either way
    return [
        (
            PrivacyPlan(n, n, 1.0, 9, 0.0, clipping_norm, 0.1 / n, clip_unit=kind, microbatch_size=size),
            Units.single(n),
        )
        for n in (6, 5)
    ]


@pytest.mark.parametrize("name", ["bert", "mlp"])
@pytest.mark.parametrize("kind", ["example", "microbatch", "user"])
def test_neighbours_differ_by_at_most_the_sensitivity(name: str, kind: str) -> None:
    """Record and replay: the same draws on D and on D without its last unit; the sums differ by at most S."""
    case = dp_models.CASES[name]().double()
    longer = {k: torch.cat([v, v[:1]]) if len(v) == case.rows else v for k, v in case.batch.items()}
    case = replace(case, batch=longer)
    (plan, units), (other_plan, other_units) = neighbours(kind, 1e-3)
    assert plan.divisor == other_plan.divisor or kind != "microbatch"
    for seed in range(5):
        key = PrivateRandomness.create(seed)
        one, other = engine_sum(case, plan, units, 100, key), engine_sum(case, other_plan, other_units, 100, key)
        gap = sum(float((one[n] - other[n]).square().sum()) for n in one) ** 0.5
        assert 0 < gap <= plan.sensitivity * (1 + 1e-9)
