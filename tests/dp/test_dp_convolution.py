"""Convolutions over time under the private engine: torch's own outputs, and each example's own gradient."""

from __future__ import annotations

import copy

import pytest
import torch
from dp_oracle import Case, ComparedEngine, assert_exact, plan_for, private_step
from torch import Tensor, nn
from torch.nn import functional as F

import troth.dp.linear
from troth.dp import inspect
from troth.dp.convolution import patches
from troth.errors import UnsupportedModuleError
from troth.seeds import PrivateRandomness

ROWS, CHANNELS, TIME = 5, 3, 9
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12}
SHAPES: dict[str, dict[str, object]] = {
    "plain": {},
    "one-tap": {"kernel_size": 1},
    "stride": {"stride": 2, "padding": 1},
    "dilation": {"dilation": 3, "padding": 2},
    "stride-and-dilation": {"stride": 3, "dilation": 2, "padding": 4, "bias": False},
    "same": {"kernel_size": 5, "padding": "same"},
    "valid": {"padding": "valid"},
    "reflect": {"padding": 2, "padding_mode": "reflect"},
    "circular": {"padding": 2, "padding_mode": "circular", "stride": 2},
    "replicate": {"kernel_size": 2, "padding": "same", "padding_mode": "replicate"},
}


class Convolutions(nn.Module):
    """Two convolutions with a square between, so that the first needs the gradient of the second's input."""

    def __init__(self, **shape: object) -> None:
        super().__init__()
        self.low = nn.Conv1d(CHANNELS, 4, **{"kernel_size": 3, **shape})
        self.high = nn.Conv1d(4, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.high(torch.tanh(self.low(x))).square().sum((1, 2))


def case_of(**shape: object) -> Case:
    torch.manual_seed(2)
    return Case(Convolutions(**shape), {"x": torch.randn(ROWS, CHANNELS, TIME)}, lambda m, b: m(b["x"]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_a_private_step_equals_the_loop(shape: str, dtype: torch.dtype) -> None:
    case = case_of(**SHAPES[shape])
    assert_exact(case.double() if dtype == torch.float64 else case, tolerance=TOLERANCE[dtype])


@pytest.mark.parametrize("written_out", [True, False], ids=["written-out", "ghost"])
def test_both_ways_to_a_norm_are_exact(written_out: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(troth.dp.linear, "instantiates", lambda *shape: written_out)
    assert_exact(case_of(stride=2).double(), tolerance=1e-12)


@pytest.mark.parametrize("trained", ["low.weight", "low.bias", "high.weight", "high.bias"])
def test_frozen_parts(trained: str) -> None:
    case = case_of().double()
    for name, parameter in case.model.named_parameters():
        parameter.requires_grad = name == trained
    assert_exact(case, tolerance=1e-12)


def test_filters_used_twice_and_shared_by_two() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (nn.Conv1d(CHANNELS, CHANNELS, 3, padding=1) for _ in range(2))
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.tanh(self.first(torch.tanh(self.first(x))))).square().sum((1, 2))

    torch.manual_seed(2)
    case = Case(Twice(), {"x": torch.randn(ROWS, CHANNELS, TIME)}, lambda m, b: m(b["x"])).double()
    assert_exact(case, tolerance=1e-12)


@pytest.mark.parametrize("shape", list(SHAPES))
def test_patches_times_filters_are_the_convolution(shape: str) -> None:
    module = case_of(**SHAPES[shape]).model.low.double()
    x = torch.randn(ROWS, CHANNELS, TIME).double()
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    read = patches(padded, module.kernel_size[0], module.stride[0], module.dilation[0])
    bias = 0 if module.bias is None else module.bias
    torch.testing.assert_close((read @ module.weight.mT.flatten(1).t() + bias).transpose(1, 2), module(x))


class CharacterTagger(nn.Module):
    """Every word a row of its own for the convolution: [batch * words, channels, characters]."""

    def __init__(self) -> None:
        super().__init__()
        self.characters = nn.Embedding(20, CHANNELS)
        self.convolution = nn.Conv1d(CHANNELS, 4, 3, padding=1)
        self.head = nn.Linear(4, 2)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        batch, words, characters = ids.shape
        read = self.characters(ids).view(batch * words, characters, -1).transpose(1, 2)
        found = torch.relu(self.convolution(read)).amax(2).view(batch, words, -1)
        own = torch.arange(words) < lengths[:, None]
        return (self.head(found).square().sum(2) * own).sum(1)


def characters_case() -> Case:
    torch.manual_seed(2)
    ids = torch.randint(20, (ROWS, 4, 6))
    return Case(CharacterTagger(), {"ids": ids, "lengths": torch.tensor([4, 1, 3, 2, 4])}, lambda m, b: m(**b)).double()


@pytest.mark.parametrize("physical", [5, 2, 1])
def test_words_as_rows_of_their_own_are_exact(physical: int) -> None:
    assert_exact(characters_case(), tolerance=1e-12, physical=physical)


def test_autocast_leaves_norms_in_full_precision() -> None:
    plain = case_of()

    def losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return plain.losses(model, batch).float()

    found, wanted = private_step(Case(plain.model, plain.batch, losses)), private_step(plain)
    assert all(squared.dtype == torch.float32 for squared in found.norms.values())
    for name, squared in wanted.norms.items():
        torch.testing.assert_close(found.norms[name], squared, rtol=0.1, atol=1e-3)


def test_detach_puts_the_module_back() -> None:
    case = characters_case()
    names, before = list(case.model.state_dict()), case.model(**case.batch).detach()
    engine = ComparedEngine(
        case.model, torch.optim.SGD(case.model.parameters(), lr=0.1), plan_for(ROWS), PrivateRandomness()
    )
    assert "forward" in vars(case.model.convolution)
    assert torch.equal(copy.deepcopy(case.model)(**case.batch), before)
    assert torch.equal(case.model(**case.batch).detach(), before)
    engine.detach()
    assert "forward" not in vars(case.model.convolution)
    assert list(case.model.state_dict()) == names


def test_rules_and_refusals_name_the_module() -> None:
    assert {r.rule for r in inspect(Convolutions())} == {"convolution"}
    groups = inspect(nn.ModuleDict({"low": nn.Conv1d(4, 4, 3, groups=2)}))
    assert all("low (Conv1d) convolves 2 groups of channels apart" in r.reason for r in groups)
    assert not any(r.supported for r in inspect(nn.Conv2d(2, 2, 2)))
    engine_case = Case(nn.Conv1d(3, 2, 2), {"x": torch.randn(3, TIME)}, lambda m, b: m(b["x"]).sum(1))
    with pytest.raises(UnsupportedModuleError, match="no dimension for the examples"):
        private_step(engine_case)
