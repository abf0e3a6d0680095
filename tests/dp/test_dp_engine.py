"""The engine's life: order of a step, counters, empty batches, neighbours, restore, detach, the user's own loop."""

from __future__ import annotations

import copy
import math

import dp_models
import numpy as np
import pytest
import torch
from dp_oracle import Batch, Case, ComparedEngine, Losses, plan_for
from torch import Tensor, nn

import troth.dp.embedding
import troth.dp.linear
from troth.accounting.plan import PrivacyPlan
from troth.dp import Observer, PrivateEngine, poisson_sample
from troth.errors import BudgetError, EngineStateError, UnsupportedModuleError
from troth.results import Privacy
from troth.seeds import PrivateRandomness


def _sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)


def _weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def _step(engine: PrivateEngine, case: Case, model: nn.Module) -> np.ndarray:
    rows = engine.sample()
    if len(rows):
        engine.backward(case.losses(model, {k: v[rows] for k, v in case.batch.items()}))
    engine.step()
    return rows


def _key(plan: PrivacyPlan, *sizes: bool) -> PrivateRandomness:
    """Return a key whose first batches under the plan are empty (False) or not (True), as asked."""
    for seed in range(1000):
        key = randomness = PrivateRandomness.create(seed)
        for full in sizes:
            if bool(len(poisson_sample(plan.examples, plan.sampling_rate, randomness.generator("sample")))) is not full:
                break
            randomness = randomness.advance()
        else:
            return key
    raise AssertionError("no such key")


# The order of a step


def test_the_ledger_is_told_before_the_update_is_visible() -> None:
    case = dp_models.mlp()
    seen: list[tuple[int, bool]] = []
    before = _weights(case.model)
    engine = ComparedEngine(
        case.model,
        _sgd(case.model),
        plan_for(case.rows),
        PrivateRandomness(),
        before_step=lambda step: seen.append((step, torch.equal(_weights(case.model), before))),
    )
    _step(engine, case, case.model)
    assert seen == [(0, True)]
    assert not torch.equal(_weights(case.model), before)
    _step(engine, case, case.model)
    assert [step for step, _ in seen] == [0, 1]


def test_a_refusing_ledger_stops_the_update() -> None:
    case = dp_models.mlp()
    before = _weights(case.model)

    def refuse(step: int) -> None:
        raise BudgetError("spent")

    engine = ComparedEngine(case.model, _sgd(case.model), plan_for(case.rows), PrivateRandomness(), before_step=refuse)
    with pytest.raises(BudgetError):
        _step(engine, case, case.model)
    assert torch.equal(_weights(case.model), before)
    assert engine.step_index == 0
    assert engine.counters.steps == 0


def test_an_interrupted_update_must_be_restored() -> None:
    case = dp_models.mlp()
    optimizer = _sgd(case.model)
    engine = ComparedEngine(case.model, optimizer, plan_for(case.rows), PrivateRandomness())
    handle = optimizer.register_step_post_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        _step(engine, case, case.model)
    handle.remove()
    with pytest.raises(EngineStateError, match=r"interrupted half-way: call engine\.restore"):
        engine.sample()
    engine.restore(0, PrivateRandomness())
    _step(engine, case, case.model)
    assert engine.step_index == 1


def test_randomness_ratchets_after_each_step() -> None:
    case = dp_models.mlp()
    first = PrivateRandomness.create(3)
    engine = ComparedEngine(case.model, _sgd(case.model), plan_for(case.rows), first)
    assert engine.randomness == first
    _step(engine, case, case.model)
    assert engine.randomness == first.advance()
    _step(engine, case, case.model)
    assert engine.randomness == first.advance().advance()


def test_sampling_again_before_the_step_gives_the_same_rows() -> None:
    case = dp_models.mlp()
    engine = ComparedEngine(case.model, _sgd(case.model), plan_for(50, examples=1000), PrivateRandomness())
    assert np.array_equal(engine.sample(), engine.sample())


# Empty batches, bad examples, neighbours


def test_an_empty_batch_makes_a_step_of_noise_alone() -> None:
    case = dp_models.mlp()
    noise: list[Tensor] = []
    plan = plan_for(1, examples=1000, noise_multiplier=2.0)
    before = _weights(case.model)
    key = _key(plan, False)
    engine = ComparedEngine(
        case.model, _sgd(case.model), plan, key, observer=Observer(noise=lambda flat: noise.append(flat.clone()))
    )
    assert len(engine.sample()) == 0
    engine.step()
    assert engine.counters.noise_draws == 1
    assert engine.counters.batch_sizes == [0]
    moved = before - _weights(case.model)
    drawn = torch.cat([p.grad.flatten() for p in case.model.parameters() if p.grad is not None])
    assert torch.allclose(moved, 0.1 * drawn, atol=1e-6)
    assert float(drawn.std()) == pytest.approx(2.0, rel=0.25)
    assert torch.isin(drawn, noise[0]).all()


def test_a_first_empty_batch_does_not_hide_an_unused_parameter() -> None:
    """Whether every parameter is seen is decided by the first batch that holds an example."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"used": nn.Linear(3, 1), "unused": nn.Linear(3, 1)})
    plan = plan_for(1, examples=1000, noise_multiplier=1.0)
    engine = ComparedEngine(model, _sgd(model), plan, _key(plan, False, False, True), self_check=False)
    for _ in range(2):
        engine.sample()
        engine.step()
    x = torch.randn(len(engine.sample()), 3)
    engine.backward(model["used"](x).square().sum(1))
    with pytest.raises(UnsupportedModuleError, match=r"parameter unused\.weight got no gradient"):
        engine.step()
    assert engine.step_index == 2


def _sum(
    case: Case, rows: int, *, losses: Losses | None = None, noise_multiplier: float = 0.0, physical: int | None = None
) -> dict[str, Tensor]:
    """Return the step's sum over the first `rows` rows, times the expected batch size; the key is always the same."""
    model = copy.deepcopy(case.model)
    engine = ComparedEngine(
        model, _sgd(model), plan_for(rows, noise_multiplier=noise_multiplier), PrivateRandomness.create(17)
    )
    engine.sample()
    size = physical or rows
    for start in range(0, rows, size):
        engine.backward((losses or case.losses)(model, case.take(slice(start, min(start + size, rows)))))
    out = {n: p.grad.clone() * rows for n, p in model.named_parameters() if p.grad is not None}
    engine.step()
    return out


def _without_last(case: Case) -> Losses:
    """The case's losses with that of the batch's last example not a number, so that it takes no part."""

    def losses(model: nn.Module, batch: Batch) -> Tensor:
        values = case.losses(model, batch)
        return torch.cat([values[:-1], values[-1:] * math.nan])

    return losses


@pytest.mark.parametrize("name", ["mlp", "bert", "gpt2", "t5"])
def test_neighbours_differ_by_at_most_the_clipping_norm(name: str) -> None:
    """Record and replay: the same key with and without one example; the noised sums differ by at most C = 1."""
    case = dp_models.CASES[name]().double()
    left = _sum(case, case.rows, noise_multiplier=1.0)
    right = _sum(case, case.rows, losses=_without_last(case), noise_multiplier=1.0)
    gap = torch.sqrt(sum((left[n] - right[n]).square().sum() for n in left))
    assert 0.2 < float(gap) <= 1 + 1e-9
    assert float(torch.sqrt(sum(g.square().sum() for g in left.values()))) > 10  # the noise was in both


@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e38])
def test_an_example_with_a_non_finite_norm_adds_exactly_nothing(poison: float) -> None:
    case = dp_models.mlp()
    clean = _sum(case, case.rows - 1)
    case.batch["x"][-1] = poison
    poisoned = _sum(case, case.rows)
    for name, truth in clean.items():
        assert torch.allclose(poisoned[name], truth, rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("written_out", [True, False])
@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_a_poisoned_row_of_a_transformer_adds_exactly_nothing(
    name: str, written_out: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every layer's share of the example is dropped, in shared tables too, by either way to a norm."""
    monkeypatch.setattr(troth.dp.linear, "instantiates", lambda *widths: written_out)
    monkeypatch.setattr(troth.dp.embedding, "_GRAM_TOKENS", 1 if written_out else 1000)
    case = dp_models.CASES[name]().double()
    clean = _sum(case, case.rows - 1)
    poisoned = _sum(case, case.rows, losses=_without_last(case))
    for parameter, truth in clean.items():
        gap = float((poisoned[parameter] - truth).norm())
        assert gap <= 1e-12 * max(1.0, float(truth.norm())), parameter


def test_silenced_examples_are_counted() -> None:
    case = dp_models.mlp()
    engine = ComparedEngine(case.model, _sgd(case.model), plan_for(case.rows), PrivateRandomness())
    engine.sample()
    engine.backward(_without_last(case)(case.model, case.batch))
    engine.step()
    assert engine.counters.silenced == 1
    assert engine.counters.batch_sizes == [case.rows]


def test_the_sum_is_divided_by_the_expected_batch_size() -> None:
    case = dp_models.mlp().double()
    model = copy.deepcopy(case.model)
    plan = plan_for(10, examples=40)  # E = 10
    engine = ComparedEngine(model, _sgd(model), plan, PrivateRandomness.create(1))
    rows = engine.sample()
    assert len(rows) not in {0, 10}
    picked = rows % case.rows
    engine.backward(case.losses(model, {k: v[picked] for k, v in case.batch.items()}))
    gradients = case.example_gradients()
    for name, parameter in model.named_parameters():
        total = torch.zeros_like(parameter)
        for row in picked:
            norm = math.sqrt(sum(float(g.square().sum()) for g in gradients[row].values()))
            total += min(1.0, 1.0 / (norm + 1e-6)) * gradients[row][name]
        assert torch.allclose(parameter.grad, total / 10, rtol=1e-10, atol=1e-14), name


# Counters and privacy


def test_counters_hold_what_the_loop_did() -> None:
    case = dp_models.mlp()
    engine = ComparedEngine(case.model, _sgd(case.model), plan_for(case.rows), PrivateRandomness())
    sampled = [len(_step(engine, case, case.model)) for _ in range(3)]
    assert engine.counters.batch_sizes == sampled
    assert engine.counters.examples == sum(sampled)
    assert engine.counters.steps == engine.counters.noise_draws == engine.step_index == 3


def test_privacy_speaks_of_the_steps_done() -> None:
    case = dp_models.mlp()
    plan = PrivacyPlan(10**4, 10, 1e-3, 10, 1.0, 1.0, 1e-5)
    engine = ComparedEngine(case.model, _sgd(case.model), plan, PrivateRandomness())
    assert engine.privacy().epsilon == 0.0
    assert engine.privacy().guarantee == "differential_privacy"
    rows = engine.sample() % case.rows
    engine.backward(case.losses(case.model, {k: v[rows] for k, v in case.batch.items()}))
    engine.step()
    record = engine.privacy()
    assert record.steps == 1
    assert record.epsilon == pytest.approx(plan.epsilon(1))
    assert (record.sampling_rate, record.noise_multiplier, record.clipping_norm) == (1e-3, 1.0, 1.0)
    assert Privacy.from_dict(record.to_dict()) == record


def test_no_guarantee_without_noise_or_with_an_insecure_seed() -> None:
    for noise, randomness in ((0.0, PrivateRandomness()), (1.0, PrivateRandomness.create(1))):
        case = dp_models.mlp()
        engine = ComparedEngine(case.model, _sgd(case.model), plan_for(5, noise_multiplier=noise), randomness)
        _step(engine, case, case.model)
        assert engine.privacy().guarantee == "none"
        assert engine.privacy().epsilon is None


# Resume


def test_restored_runs_repeat_the_uninterrupted_one() -> None:
    case = dp_models.bert()
    plan = plan_for(case.rows, noise_multiplier=0.7)

    def run(model: nn.Module, engine: PrivateEngine, steps: int) -> None:
        for _ in range(steps):
            _step(engine, case, model)

    whole = copy.deepcopy(case.model)
    run(whole, ComparedEngine(whole, _sgd(whole), plan, PrivateRandomness.create(9)), 4)
    part = copy.deepcopy(case.model)
    engine = ComparedEngine(part, _sgd(part), plan, PrivateRandomness.create(9))
    run(part, engine, 2)
    resumed = copy.deepcopy(case.model)
    resumed.load_state_dict(part.state_dict())
    again = ComparedEngine(resumed, _sgd(resumed), plan, PrivateRandomness())
    again.restore(engine.step_index, engine.randomness)
    run(resumed, again, 2)
    assert torch.equal(_weights(whole), _weights(resumed))
    assert again.step_index == 4


def test_restore_drops_what_was_accumulated() -> None:
    case = dp_models.mlp()
    engine = ComparedEngine(case.model, _sgd(case.model), plan_for(case.rows), PrivateRandomness.create(1))
    engine.sample()
    engine.backward(case.losses(case.model, case.take(slice(0, 2))))
    engine.restore(0, PrivateRandomness.create(1))
    _step(engine, case, case.model)
    assert engine.counters.batch_sizes == [case.rows]


# The model stays the user's


def test_the_model_is_untouched_and_detach_restores_everything(tmp_path: object) -> None:
    case = dp_models.bert()
    model = case.model
    kinds = [type(m) for m in model.modules()]
    names, attributes = list(model.state_dict()), [set(vars(m)) for m in model.modules()]
    optimizer = _sgd(model)
    out = model(case.batch["input_ids"]).logits
    engine = ComparedEngine(model, optimizer, plan_for(case.rows), PrivateRandomness())
    assert [type(m) for m in model.modules()] == kinds
    assert list(model.state_dict()) == names
    assert torch.equal(model(case.batch["input_ids"]).logits, out)
    with torch.no_grad():
        assert torch.equal(model(case.batch["input_ids"]).logits, out)
    model.save_pretrained(str(tmp_path))
    again = type(model).from_pretrained(str(tmp_path))
    assert torch.equal(again(case.batch["input_ids"]).logits, out)
    _step(engine, case, model)
    engine.detach()
    engine.detach()
    assert [set(vars(m)) for m in model.modules()] == attributes
    assert all(p.grad is None for p in model.parameters())
    assert not any(p._backward_hooks for p in model.parameters())
    case.losses(model, case.batch).mean().backward()
    optimizer.step()
    with pytest.raises(EngineStateError, match="detached"):
        engine.sample()


def test_generation_works_while_the_engine_is_attached() -> None:
    case = dp_models.gpt2()
    prompt = case.batch["input_ids"][:2, :3]
    mask = torch.ones_like(prompt)
    plain = case.model.generate(prompt, attention_mask=mask, max_new_tokens=3, do_sample=False, pad_token_id=0)
    ComparedEngine(case.model, _sgd(case.model), plan_for(case.rows), PrivateRandomness())
    attached = case.model.generate(prompt, attention_mask=mask, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert torch.equal(plain, attached)


def test_a_deep_copy_of_an_attached_model_is_a_plain_model() -> None:
    case = dp_models.mlp()
    ComparedEngine(case.model, _sgd(case.model), plan_for(case.rows), PrivateRandomness())
    twin = copy.deepcopy(case.model)
    with torch.no_grad():
        twin[0].weight.zero_()
    assert not torch.equal(twin(case.batch["x"]), case.model(case.batch["x"]))
    case.losses(twin, case.batch).sum().backward()
    assert all(p.grad is not None for p in twin.parameters())


def test_schedulers_and_parameter_groups_work() -> None:
    case = dp_models.mlp().double()
    model = copy.deepcopy(case.model)
    weights = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.SGD([{"params": weights, "lr": 0.1}, {"params": vectors, "lr": 0.0}], lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step == 0 else 0.0)
    engine = ComparedEngine(model, optimizer, plan_for(case.rows), PrivateRandomness())
    _step(engine, case, model)
    schedule.step()
    moved = [not torch.equal(p, q) for p, q in zip(model.parameters(), case.model.parameters(), strict=True)]
    assert moved == [p.dim() > 1 for p in model.parameters()]
    still = _weights(model)
    _step(engine, case, model)
    assert torch.equal(_weights(model), still)


def test_fused_adamw_takes_the_views() -> None:
    case = dp_models.pre_norm()
    optimizer = torch.optim.AdamW(case.model.parameters(), lr=1e-3, fused=True)
    engine = ComparedEngine(case.model, optimizer, plan_for(case.rows, noise_multiplier=1.0), PrivateRandomness())
    before = [p.detach().clone() for p in case.model.parameters()]
    _step(engine, case, case.model)
    assert all(not torch.equal(p, q) for p, q in zip(case.model.parameters(), before, strict=True))


def test_zero_grad_in_between_loses_nothing() -> None:
    """Views that `zero_grad` dropped are put back, noise and sums included."""
    case = dp_models.mlp().double()
    results = []
    for interfere in (False, True):
        model = copy.deepcopy(case.model)
        optimizer = _sgd(model)
        plan = plan_for(case.rows, noise_multiplier=1.0)
        engine = ComparedEngine(model, optimizer, plan, PrivateRandomness.create(5))
        engine.sample()
        for start in range(case.rows):
            if interfere:
                optimizer.zero_grad()
            engine.backward(case.losses(model, case.take(slice(start, start + 1))))
        if interfere:
            model.zero_grad()
        engine.step()
        results.append(_weights(model))
    assert torch.equal(*results)


def test_zeroing_a_finished_batch_is_harmless() -> None:
    case = dp_models.mlp()
    optimizer = _sgd(case.model)
    engine = ComparedEngine(case.model, optimizer, plan_for(case.rows, noise_multiplier=1.0), PrivateRandomness())
    for _ in range(2):
        optimizer.zero_grad(set_to_none=False)
        _step(engine, case, case.model)
    assert engine.counters.noise_draws == 2


def test_an_empty_physical_batch_adds_nothing() -> None:
    case = dp_models.mlp()
    engine = ComparedEngine(case.model, _sgd(case.model), plan_for(case.rows), PrivateRandomness())
    engine.sample()
    engine.backward(case.losses(case.model, case.take(slice(0, 0))))
    assert engine.counters.noise_draws == 0
