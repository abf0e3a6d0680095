"""Everything that would void the guarantee is refused with one line of its own, before anything is released."""

from __future__ import annotations

import copy
from collections.abc import Callable

import dp_models
import numpy as np
import pytest
import torch
from dp_oracle import Case, ComparedEngine, plan_for
from torch import Tensor, nn
from torch.nn import functional as F

from troth.dp import PrivateEngine
from troth.errors import EngineStateError, PrivacyError, SelfCheckError, TrothError, UnsupportedModuleError
from troth.seeds import PrivateRandomness

ROWS, WIDTH = 4, 3


def attach(
    model: nn.Module, optimizer: torch.optim.Optimizer | None = None, rows: int = ROWS, *, self_check: bool = True
) -> PrivateEngine:
    optimizer = optimizer or torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    plan = plan_for(rows, noise_multiplier=1.0)
    return ComparedEngine(model, optimizer, plan, PrivateRandomness(), self_check=self_check)


def assert_refused(kind: type[TrothError], action: Callable[[], object]) -> str:
    with pytest.raises(kind) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 2))


def x() -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1))


def per_example(model: nn.Module) -> Tensor:
    return model(x()).square().sum(1)


# Models


class Bare(nn.Module):
    """A parameter of its own beside a supported module."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, values: Tensor) -> Tensor:
        return self.head(values) * self.scale


@pytest.mark.parametrize(
    ("model", "named", "reason"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), "1", "BatchNorm1d mixes the examples"),
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, affine=False)), "1", "use LayerNorm"),
        (nn.Sequential(nn.Linear(3, 3), nn.SyncBatchNorm(3)), "1", "SyncBatchNorm mixes"),
        (nn.Sequential(nn.Linear(3, 3), nn.InstanceNorm1d(3, track_running_stats=True)), "1", "keeps statistics"),
        (nn.DataParallel(nn.Linear(3, 3)), "the model", "bare model"),
        (nn.Sequential(nn.RNN(3, 3)), "0.weight_ih_l0", r"RNN"),
        (nn.Sequential(nn.Conv2d(3, 3, 1)), "0.weight", r"Conv2d"),
        (nn.Sequential(nn.GroupNorm(1, 3)), "0.weight", r"GroupNorm"),
        (nn.TransformerEncoderLayer(4, 2), "self_attn.in_proj_weight", "MultiheadAttention"),
        (nn.Sequential(nn.Embedding(5, 3, sparse=True)), "0.weight", "sparse=False"),
        (nn.Sequential(nn.Embedding(5, 3, max_norm=1.0)), "0.weight", "max_norm"),
        (nn.Sequential(nn.Embedding(5, 3, scale_grad_by_freq=True)), "0.weight", "scale_grad_by_freq=False"),
        (nn.Sequential(nn.EmbeddingBag(5, 3)), "0.weight", "EmbeddingBag"),
        (Bare(), "scale", "the model itself (Bare)"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), "parametrizations.weight", "ParametrizationList"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_modules_without_a_rule_are_refused_by_name(model: nn.Module, named: str, reason: str) -> None:
    text = assert_refused(UnsupportedModuleError, lambda: attach(model))
    assert named in text
    assert reason in text


def test_a_subclass_with_its_own_forward_is_another_module() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    assert "weight of the model itself (Doubled)" in assert_refused(
        UnsupportedModuleError, lambda: attach(Doubled(3, 2))
    )


def test_a_refused_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.RNN(3, 3))
    assert_refused(UnsupportedModuleError, lambda: attach(model))
    assert "forward" not in vars(model[0])
    assert not model[0].weight._backward_hooks
    assert model[0].weight.grad is None


def test_a_frozen_unsupported_module_is_fine() -> None:
    model = nn.Sequential(nn.GroupNorm(1, WIDTH).requires_grad_(False), nn.Linear(WIDTH, 2))
    engine = attach(model)
    engine.sample()
    engine.backward(per_example(model))
    engine.step()
    assert engine.step_index == 1


def test_shared_parameters_of_unlike_rules_are_refused() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.LayerNorm(3)})
    model["b"].bias = model["a"].bias
    assert "shared by a.bias and b.bias" in assert_refused(UnsupportedModuleError, lambda: attach(model))


def test_low_precision_parameters_are_refused() -> None:
    assert "torch.bfloat16: keep" in assert_refused(UnsupportedModuleError, lambda: attach(linear().bfloat16()))


def test_mixed_types_are_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).double())
    assert "1.weight is torch.float64" in assert_refused(UnsupportedModuleError, lambda: attach(model))


def test_a_second_engine_is_refused() -> None:
    model = linear()
    attach(model)
    assert "call detach() on that engine" in assert_refused(UnsupportedModuleError, lambda: attach(model))


def test_a_model_with_nothing_to_train_is_refused() -> None:
    model = linear().requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert "no trainable parameter" in assert_refused(PrivacyError, lambda: attach(model, optimizer))


def test_an_optimizer_without_a_trainable_parameter_is_refused() -> None:
    model = linear()
    optimizer = torch.optim.SGD([model[0].weight], lr=0.1)
    assert "parameter 0.bias is trainable but not in" in assert_refused(PrivacyError, lambda: attach(model, optimizer))


def test_an_optimizer_with_foreign_or_frozen_parameters_is_refused() -> None:
    model = linear()
    foreign = torch.optim.SGD([*model.parameters(), nn.Parameter(torch.ones(2))], lr=0.1)
    assert "holds 1 parameters that are not" in assert_refused(PrivacyError, lambda: attach(model, foreign))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[0].bias.requires_grad = False
    assert "p.requires_grad" in assert_refused(PrivacyError, lambda: attach(model, optimizer))


# Losses


@pytest.mark.parametrize("reduce", [torch.mean, torch.sum, lambda t: t[:, None], lambda t: t.detach()])
def test_losses_that_are_not_one_per_example_are_refused(reduce: Callable[[Tensor], Tensor]) -> None:
    model = linear()
    engine = attach(model)
    engine.sample()
    text = assert_refused(EngineStateError, lambda: engine.backward(reduce(per_example(model))))
    assert "[batch]" in text or "gradients enabled" in text


def test_token_losses_are_refused() -> None:
    case = dp_models.gpt2()
    engine = attach(case.model, rows=case.rows)
    engine.sample()
    logits = case.model(case.batch["input_ids"]).logits
    losses = F.cross_entropy(logits.flatten(0, 1), case.batch["labels"].flatten(), reduction="none")
    assert "engine.sample() drew 5" in assert_refused(EngineStateError, lambda: engine.backward(losses))


@pytest.mark.parametrize(
    "couple",
    [
        lambda t: t - t.mean(0),  # a batch norm by hand
        lambda t: t * t.sum(0),
        lambda t: torch.softmax(t, 0),  # in-batch negatives
        lambda t: t + t.flip(0),
        lambda t: t.mean(0).expand(len(t), -1),  # a mean disguised as losses
    ],
)
def test_losses_that_couple_examples_are_refused(couple: Callable[[Tensor], Tensor]) -> None:
    model = linear()
    engine = attach(model)
    engine.sample()
    before = copy.deepcopy(model.state_dict())
    text = assert_refused(UnsupportedModuleError, lambda: engine.backward(couple(model(x())).square().sum(1)))
    assert text.startswith("0: the loss of one example has a gradient in the rows of others")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_bad_example_does_not_pass_for_coupling() -> None:
    model = linear()
    engine = attach(model)
    engine.sample()
    values = x()
    values[2] = torch.nan
    engine.backward(model(values).square().sum(1))
    engine.step()
    assert engine.counters.silenced == 1


def test_losses_that_were_never_compared_are_refused() -> None:
    """A loss over the tokens of the batch has the right shape, and gradients in its own rows alone."""
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = PrivateEngine(model, optimizer, plan_for(ROWS, noise_multiplier=1.0), PrivateRandomness())
    engine.sample()
    assert "call engine.check_losses" in assert_refused(SelfCheckError, lambda: engine.backward(per_example(model)))
    assert "none yet" not in assert_refused(EngineStateError, engine.step)
    engine.check_losses(lambda rows: model(x()[rows]).square().sum(1), np.arange(2))
    engine.backward(per_example(model))
    engine.step()
    assert engine.step_index == 1


def test_a_model_that_takes_a_mapping_is_checked_like_any_other() -> None:
    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(WIDTH, 2)

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return self.head(batch["values"])

    model = Mapped()
    engine = attach(model)
    engine.sample()
    engine.backward(model({"values": x()}).square().sum(1))
    engine.step()
    assert not engine._to_check


# Rows that cannot be told apart by example


class Positions(nn.Module):
    """Looks positions up by a vector of ids, which has no batch dimension at all."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 2), nn.Linear(2, 1)

    def forward(self, values: Tensor) -> Tensor:
        return self.head(values[:, :, None] + self.table(torch.arange(values.shape[1]))).square().sum((1, 2))


def test_ids_without_a_batch_dimension_are_refused() -> None:
    model = Positions()
    engine = attach(model)
    engine.sample()
    text = assert_refused(UnsupportedModuleError, lambda: engine.backward(model(torch.randn(ROWS, ROWS + 1))))
    assert text.startswith("table (Embedding) works on a tensor of shape [5, 2]")


def test_ids_that_only_look_like_a_batch_are_refused() -> None:
    """As many positions as examples: the shapes agree by accident, the probe sees through it."""
    model = Positions()
    engine = attach(model)
    engine.sample()
    text = assert_refused(UnsupportedModuleError, lambda: engine.backward(model(torch.randn(ROWS, ROWS))))
    assert text.startswith("table: the loss of one example has a gradient in the rows of others")


def test_time_first_inputs_are_refused() -> None:
    model = linear()
    engine = attach(model)
    engine.sample()
    text = assert_refused(
        UnsupportedModuleError, lambda: engine.backward(model(torch.randn(5, ROWS, WIDTH)).sum((0, 2)))
    )
    assert "first dimension is not the batch of 4 examples" in text


def test_shared_position_ids_need_the_batch_size() -> None:
    """A part of the model called alone: how many examples the shared look-up stands for is not known."""
    case = dp_models.distilbert()
    engine = attach(case.model, rows=case.rows)
    engine.sample()
    text = assert_refused(UnsupportedModuleError, lambda: case.model.distilbert(case.batch["input_ids"]))
    assert "call the model itself" in text


def test_a_shared_look_up_for_another_batch_is_refused() -> None:
    case = dp_models.bert()
    engine = attach(case.model, rows=case.rows)
    engine.sample()
    losses = case.losses(case.model, case.batch)
    text = assert_refused(UnsupportedModuleError, lambda: engine.backward(losses[:3]))
    assert "not the batch of 3 examples" in text


# Parameters that bypass their modules


class Bypass(nn.Module):
    """Uses its head's weight a second time without calling the head."""

    def __init__(self, *, also: bool) -> None:
        super().__init__()
        self.first, self.head, self.also = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2), also

    def forward(self, values: Tensor) -> Tensor:
        hidden = self.first(values)
        out = F.linear(hidden, self.head.weight)
        return out + self.head(hidden) if self.also else out


@pytest.mark.parametrize("also", [True, False])
def test_a_weight_used_outside_of_its_module_is_refused(also: bool) -> None:
    model = Bypass(also=also)
    engine = attach(model)
    engine.sample()
    text = assert_refused(UnsupportedModuleError, lambda: engine.backward(per_example(model)))
    assert text.startswith("parameter head.weight got a gradient outside of its module")
    assert assert_refused(EngineStateError, engine.step).startswith("engine.step() after 0 examples")


def test_a_parameter_that_no_loss_uses_is_refused_before_the_first_update() -> None:
    model = nn.ModuleDict({"used": nn.Linear(WIDTH, 2), "unused": nn.Linear(WIDTH, 2)})
    engine = attach(model, self_check=False)
    engine.sample()
    before = model["used"].weight.detach().clone()
    engine.backward(per_example(model["used"]))
    text = assert_refused(UnsupportedModuleError, engine.step)
    assert text.startswith("parameter unused.weight got no gradient through its module in the first step (2 such)")
    assert torch.equal(before, model["used"].weight)


def test_a_detached_branch_is_refused_before_the_first_update() -> None:
    """A weight used only where gradients are off is not silently trained on noise."""

    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)

        def forward(self, values: Tensor) -> Tensor:
            return self.second(self.first(values).detach())

    model = Cut()
    engine = attach(model)
    engine.sample()
    engine.backward(per_example(model))
    assert "first.weight" in assert_refused(UnsupportedModuleError, engine.step)


# Order of calls


def test_a_stray_optimizer_step_is_refused() -> None:
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = attach(model, optimizer)
    before = model[0].weight.detach().clone()
    assert "call engine.step()" in assert_refused(EngineStateError, optimizer.step)
    engine.sample()
    engine.backward(per_example(model))
    assert_refused(EngineStateError, optimizer.step)
    assert torch.equal(before, model[0].weight)


def test_a_gradient_scaler_is_refused() -> None:
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = attach(model, optimizer)
    engine.sample()
    scaler = torch.amp.GradScaler("cpu")
    engine.backward(scaler.scale(per_example(model)))
    assert "by a GradScaler" in assert_refused(EngineStateError, lambda: scaler.step(optimizer))


def test_a_plain_backward_is_refused() -> None:
    model = linear()
    attach(model)
    text = assert_refused(EngineStateError, lambda: per_example(model).sum().backward())
    assert "engine.backward(losses) instead of loss.backward()" in text


def test_backward_without_a_sample_is_refused() -> None:
    model = linear()
    engine = attach(model)
    assert "engine.sample() drew 0" in assert_refused(EngineStateError, lambda: engine.backward(per_example(model)))


def test_step_without_a_sample_is_refused() -> None:
    engine = attach(linear())
    assert "drew none yet" in assert_refused(EngineStateError, engine.step)


def test_more_rows_than_sampled_are_refused() -> None:
    """Rows of somebody else's loader: the accounted sampler would not be the one that ran."""
    model = linear()
    engine = attach(model)
    engine.sample()
    engine.backward(per_example(model))
    assert "8 examples in a batch" in assert_refused(EngineStateError, lambda: engine.backward(per_example(model)))


def test_a_dropped_physical_batch_is_refused() -> None:
    model = linear()
    engine = attach(model)
    engine.sample()
    engine.backward(model(x()[:3]).square().sum(1))
    assert "after 3 examples where engine.sample() drew 4" in assert_refused(EngineStateError, engine.step)


def test_more_steps_than_planned_are_refused() -> None:
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = ComparedEngine(model, optimizer, plan_for(ROWS, steps=1), PrivateRandomness())
    engine.sample()
    engine.backward(per_example(model))
    engine.step()
    assert "all 1 steps of the privacy plan are done" in assert_refused(EngineStateError, engine.sample)


def test_a_detached_engine_is_refused() -> None:
    model = linear()
    engine = attach(model)
    engine.detach()
    for action in (
        engine.sample,
        engine.step,
        lambda: engine.backward(per_example(model)),
        lambda: engine.restore(0, PrivateRandomness()),
    ):
        assert "detached" in assert_refused(EngineStateError, action)


# Gradients that somebody else wrote to


@pytest.mark.parametrize(
    "meddle",
    [
        lambda model, optimizer: optimizer.zero_grad(set_to_none=False),
        lambda model, optimizer: model.zero_grad(set_to_none=False),
        lambda model, optimizer: nn.utils.clip_grad_norm_(model.parameters(), 0.1),
        lambda model, optimizer: model[0].weight.grad.mul_(2),
        lambda model, optimizer: [p.grad.data.zero_() for p in model.parameters()],
        lambda model, optimizer: model[0].bias.grad.data.mul_(0.5),
    ],
    ids=["optimizer.zero_grad", "model.zero_grad", "clip_grad_norm", "scaling", "zero past autograd", "scaling one"],
)
def test_changed_gradients_are_refused(meddle: Callable[[nn.Module, torch.optim.Optimizer], object]) -> None:
    """Above all those which zero the noise and then go on adding clipped sums."""
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = attach(model, optimizer)
    engine.sample()
    engine.backward(model(x()[:2]).square().sum(1))
    meddle(model, optimizer)
    assert "changed in place" in assert_refused(
        EngineStateError, lambda: engine.backward(model(x()[2:]).square().sum(1))
    )
    assert assert_refused(EngineStateError, engine.step)


def test_another_optimizer_over_the_parameters_is_refused() -> None:
    model = linear()
    other = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = attach(model)
    engine.sample()
    engine.backward(per_example(model))
    assert "another optimizer" in assert_refused(EngineStateError, other.step)
    unrelated = linear()
    unrelated(x()).sum().backward()
    torch.optim.SGD(unrelated.parameters(), lr=0.1).step()
    engine.detach()
    other.step()


def test_an_optimizer_that_evaluates_the_loss_again_is_refused() -> None:
    model = linear()
    assert "LBFGS" in assert_refused(PrivacyError, lambda: attach(model, torch.optim.LBFGS(model.parameters())))


def test_gradients_that_were_there_before_come_back() -> None:
    model = linear()
    model[0].weight.grad = before = torch.ones(2, WIDTH)
    engine = attach(model)
    assert model[0].weight.grad is not before
    engine.detach()
    assert model[0].weight.grad is before
    assert model[0].bias.grad is None


class RunningMean(nn.Module):
    """Keeps a mean of what it sees, and hands its input on."""

    def __init__(self, *, persistent: bool) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH), persistent=persistent)

    def forward(self, rows: Tensor) -> Tensor:
        self.mean.mul_(0.9).add_(0.1 * rows.detach().mean(0))
        return rows


@pytest.mark.parametrize("persistent", [True, False])
def test_statistics_that_would_be_released_without_noise_are_refused(persistent: bool) -> None:
    model = nn.Sequential(RunningMean(persistent=persistent), nn.Linear(WIDTH, 2))
    engine = attach(model)
    engine.sample()
    engine.backward(per_example(model))
    if persistent:
        assert "buffer 0.mean was changed" in assert_refused(UnsupportedModuleError, engine.step)
    else:
        engine.step()


class ScaledInTraining(nn.Module):
    """Divides by a statistic of the batch, detached, in training only; dropout beside it must not hide that."""

    def forward(self, rows: Tensor) -> Tensor:
        scaled = rows / (rows.detach().std() + 0.1) if self.training else rows
        return F.dropout(scaled, 0.5, self.training)


def test_coupling_in_training_mode_alone_is_refused() -> None:
    model = nn.Sequential(ScaledInTraining(), nn.Linear(WIDTH, 2)).train()
    engine = attach(model)
    engine.sample()
    text = assert_refused(SelfCheckError, lambda: engine.backward(per_example(model)))
    assert "changes with the other examples" in text


def test_a_loss_that_takes_in_its_neighbours_is_refused() -> None:
    model = linear()
    engine = attach(model)
    engine.sample()
    losses = per_example(model)
    mixed = torch.stack([losses[0], losses[1] + 0.2 * losses[2], losses[2], losses[3]])
    assert "rows of others" in assert_refused(UnsupportedModuleError, lambda: engine.backward(mixed))


def test_replaced_gradients_are_refused() -> None:
    model = linear()
    engine = attach(model)
    engine.sample()
    model[0].bias.grad = torch.zeros(2)
    assert "gradient of 0.bias was replaced" in assert_refused(
        EngineStateError, lambda: engine.backward(per_example(model))
    )


def test_a_moved_model_is_refused() -> None:
    model = linear()
    engine = attach(model)
    engine.sample()
    model.double()
    losses = model(x().double()).square().sum(1)
    assert "moved" in assert_refused(EngineStateError, lambda: engine.backward(losses))


def test_a_replaced_parameter_is_refused() -> None:
    model = linear()
    attach(model)
    model[0].weight = nn.Parameter(torch.ones(2, WIDTH))
    assert "0.weight was replaced" in assert_refused(EngineStateError, lambda: model(x()))


def _add(model: nn.Sequential, optimizer: torch.optim.Optimizer) -> None:
    model.append(nn.Linear(2, 2))


def _freeze(model: nn.Sequential, optimizer: torch.optim.Optimizer) -> None:
    model[0].bias.requires_grad = False


def _group(model: nn.Sequential, optimizer: torch.optim.Optimizer) -> None:
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})


@pytest.mark.parametrize("change", [_add, _freeze, _group])
def test_changed_parameter_sets_are_refused(
    change: Callable[[nn.Sequential, torch.optim.Optimizer], None],
) -> None:
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = attach(model, optimizer)
    engine.sample()
    engine.backward(per_example(model))
    change(model, optimizer)
    assert "attach a new engine" in assert_refused(EngineStateError, engine.step)


def test_weights_changed_between_forward_and_backward_are_refused() -> None:
    model = linear()
    engine = attach(model)
    engine.sample()
    losses = model(x().requires_grad_()).square().sum(1)
    with torch.no_grad():
        model[0].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        engine.backward(losses)


def test_the_case_helper_really_leaves_rows_apart() -> None:
    """The refusals above would mean little if sound models were refused as well."""
    case: Case = dp_models.bert()
    engine = attach(case.model, rows=case.rows)
    engine.sample()
    engine.backward(case.losses(case.model, case.batch))
    engine.step()
    assert engine.step_index == 1
