"""The engine against the slow truth: one example at a time through a plain copy of the model."""

from __future__ import annotations

import copy

import dp_models
import pytest
import torch
from dp_oracle import Case, ComparedEngine, assert_exact, clipped_sum, distance, looped_step, plan_for, private_step
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import troth.dp.embedding
import troth.dp.linear
from troth.errors import UnsupportedModuleError
from troth.seeds import PrivateRandomness

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
FAMILIES = list(dp_models.CASES)


def _case(name: str, dtype: torch.dtype) -> Case:
    case = dp_models.CASES[name]()
    return case.double() if dtype == torch.float64 else case


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_private_step_equals_the_loop(name: str, dtype: torch.dtype) -> None:
    case = _case(name, dtype)
    assert_exact(case, tolerance=TOLERANCE[dtype])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", FAMILIES)
def test_a_private_step_equals_the_loop_on_cuda(name: str) -> None:
    case = _case(name, torch.float64)
    batch = {k: v.cuda() for k, v in case.batch.items()}
    assert_exact(Case(case.model.cuda(), batch, case.losses), tolerance=1e-10)


@pytest.mark.parametrize("name", ["mlp", "llama", "t5"])  # without key biases, whose rounding Adam would blow up
def test_the_adamw_update_equals_the_loop(name: str) -> None:
    assert_exact(_case(name, torch.float64), tolerance=1e-12, optimizer="adamw")


@pytest.mark.parametrize("written_out", [True, False], ids=["written-out", "ghost"])
@pytest.mark.parametrize("name", ["mlp", "bert", "bert_masked", "repeated_layers", "gpt2", "t5"])
def test_both_ways_to_a_norm_are_exact(name: str, written_out: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(troth.dp.linear, "instantiates", lambda *widths: written_out)
    monkeypatch.setattr(troth.dp.embedding, "_GRAM_TOKENS", 1 if written_out else 1000)
    assert_exact(_case(name, torch.float64), tolerance=1e-12)


@pytest.mark.parametrize("physical", [1, 2, 4])
@pytest.mark.parametrize("name", ["mlp", "bert", "gpt2", "t5"])
def test_the_physical_batch_size_changes_nothing(name: str, physical: int) -> None:
    assert_exact(_case(name, torch.float64), tolerance=1e-12, physical=physical)


def test_the_encoder_holds_a_visible_share_of_the_norm() -> None:
    """With the usual initialisation a wrong ghost norm inside the encoder would go unseen; here it cannot."""
    norms = private_step(_case("bert", torch.float64)).norms
    whole = sum(float(s.sum()) for s in norms.values())
    encoder = sum(float(s.sum()) for name, s in norms.items() if "encoder" in name)
    assert encoder / whole > 0.3


def test_padding_changes_nothing() -> None:
    """Short examples in a batch of their own, without padding, give the same clipped sum."""
    case = _case("bert", torch.float64)
    padded = private_step(case).gradient
    lengths = case.batch["attention_mask"].sum(1)
    model = copy.deepcopy(case.model)
    plan = plan_for(case.rows)
    engine = ComparedEngine(model, torch.optim.SGD(model.parameters(), lr=0.1), plan, PrivateRandomness())
    engine.sample()
    for row in lengths.argsort().tolist():
        part = {
            k: v[row : row + 1, : int(lengths[row])] if v.dim() == 2 else v[row : row + 1]
            for k, v in case.batch.items()
        }
        engine.backward(case.losses(model, part))
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and float(padded[name].norm()) > 1e-9:
            assert distance(parameter.grad * case.rows, padded[name]) <= 1e-12, name


def test_gradients_of_shared_positions_are_told_apart() -> None:
    """Position ids of shape [1, time] are looked up once for the whole batch by stock BERT and DistilBERT."""
    for name in ("bert", "distilbert"):
        case = _case(name, torch.float64)
        block = next(n for n in private_step(case).norms if "position" in n)
        assert_exact(case, tolerance=1e-12)
        assert float(private_step(case).norms[block].min()) > 0


def test_explicit_position_ids_count_per_example() -> None:
    case = _case("bert", torch.float64)
    generator = torch.Generator().manual_seed(3)
    case.batch["position_ids"] = torch.randint(dp_models.TOKENS, case.batch["input_ids"].shape, generator=generator)
    assert_exact(case, tolerance=1e-12)


def test_one_weight_with_separate_biases() -> None:
    """Two linear maps share a weight but not a bias: the biases' norms must not ride on the weight's Gram matrices."""
    torch.manual_seed(0)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.tanh(self.first(x))).square().sum((1, 2))

    assert_exact(Case(Two().double(), {"x": torch.randn(5, 3, 4).double()}, lambda m, b: m(b["x"])), tolerance=1e-12)


def test_bias_alone_is_trained() -> None:
    case = _case("mlp", torch.float64)
    for name, parameter in case.model.named_parameters():
        parameter.requires_grad = name.endswith("bias")
    assert_exact(case, tolerance=1e-12)


def test_long_inputs_of_a_table_are_exact() -> None:
    """More tokens than the Gram matrix is used for, with repeats, padding and a table looked up twice."""
    assert_exact(dp_models.bag(troth.dp.embedding._GRAM_TOKENS + 20).double(), tolerance=1e-12)


def test_four_dimensional_inputs_are_exact() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm([2, 3]), nn.RMSNorm(3, eps=1e-6), nn.Linear(3, 1)).double()
    case = Case(model, {"x": torch.randn(5, 3, 2, 4).double()}, lambda m, b: m(b["x"]).square().sum((1, 2, 3)))
    assert_exact(case, tolerance=1e-12)


def test_gradient_checkpointing_changes_nothing() -> None:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 4))

    class Checkpointed(nn.Module):
        def __init__(self, *, reentrant: bool | None) -> None:
            super().__init__()
            self.first, self.block, self.reentrant = nn.Linear(4, 4), copy.deepcopy(block), reentrant

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            if self.reentrant is None:
                return self.block(x).square().sum(1)
            return checkpoint(self.block, x, use_reentrant=self.reentrant).square().sum(1)

    def case(reentrant: bool | None) -> Case:
        torch.manual_seed(1)
        model = Checkpointed(reentrant=reentrant)
        return Case(model.double(), {"x": torch.randn(5, 4).double()}, lambda m, b: m(b["x"]))

    plain, again = private_step(case(None)).gradient, private_step(case(False)).gradient
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    with pytest.raises(UnsupportedModuleError, match="'use_reentrant': False"):
        private_step(case(True))


@pytest.mark.parametrize("name", ["mlp", "bert", "llama"])
def test_norms_stay_float32_under_autocast(name: str) -> None:
    """The clipped sum agrees with the loop's under the same autocast to bfloat16's own precision."""
    plain = _case(name, torch.float32)

    def losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return plain.losses(model, batch)

    case = Case(plain.model, plain.batch, losses)
    _, total, _ = looped_step(case)
    private = private_step(case)
    assert all(s.dtype == torch.float32 for s in private.norms.values())
    left = torch.cat([private.gradient[n].flatten() for n in total])
    assert distance(left, torch.cat([t.flatten() for t in total.values()])) < 1e-2


def test_dropout_stays_exact() -> None:
    """With dropout on, each clipped gradient is that of the very mask which the example drew in its batch."""
    case = _case("bert", torch.float64)
    case.model.train()
    plain = copy.deepcopy(case.model)
    torch.manual_seed(5)
    losses = case.losses(plain, case.batch)
    named = dict(plain.named_parameters())
    rows = [torch.autograd.grad(loss, list(named.values()), retain_graph=True) for loss in losses]
    total = clipped_sum([dict(zip(named, row, strict=True)) for row in rows], 1.0)
    torch.manual_seed(5)
    private = private_step(case).gradient
    whole = torch.sqrt(sum(t.square().sum() for t in total.values()))
    assert max(float((private[n] - t).norm() / whole) for n, t in total.items()) < 1e-12
    torch.manual_seed(6)
    other = private_step(case).gradient
    assert max(float((other[n] - t).norm() / whole) for n, t in total.items()) > 1e-3
