"""LSTM and GRU under the private engine: torch's own outputs, and each example's own gradient."""

from __future__ import annotations

import copy
from types import MethodType

import pytest
import torch
from dp_oracle import Case, ComparedEngine, assert_exact, distance, plan_for, private_step
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import troth.dp.linear
from troth.dp import inspect
from troth.dp.registry import make_sites
from troth.dp.tape import Tape
from troth.errors import UnsupportedModuleError
from troth.seeds import PrivateRandomness

ROWS, TIME, WIDTH, HIDDEN = 5, 6, 4, 3
LENGTHS = torch.tensor([3, 6, 1, 5, 6])
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12}
KINDS = [nn.LSTM, nn.GRU]
SHAPES: dict[str, dict[str, object]] = {
    "plain": {},
    "time-first": {"batch_first": False},
    "without-bias": {"bias": False},
    "bidirectional": {"bidirectional": True},
    "two-layers": {"num_layers": 2},
    "three-layers-bidirectional": {"num_layers": 3, "bidirectional": True},
    "two-layers-time-first": {"num_layers": 2, "batch_first": False, "bidirectional": True, "bias": False},
}
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
shapes = pytest.mark.parametrize("shape", list(SHAPES))
packings = pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])


def recurrent(kind: type[nn.RNNBase], shape: str = "plain", **more: object) -> nn.RNNBase:
    """A module with twice the usual weights, so that gates are far from linear."""
    torch.manual_seed(3)
    module = kind(WIDTH, HIDDEN, **{"batch_first": True, **SHAPES[shape], **more})
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2)
    return module


class Reader(nn.Module):
    """Reads with a recurrent module; the loss looks at every output of a row's own and at the last states."""

    def __init__(self, rnn: nn.RNNBase, *, packed: bool) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.rnn, self.packed = rnn, packed
        self.head = nn.Linear(HIDDEN * (2 if rnn.bidirectional else 1), 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        first = self.rnn.batch_first
        read = torch.tanh(self.inner(x))
        given = read if first else read.transpose(0, 1)
        if self.packed:
            given = pack_padded_sequence(given, lengths, batch_first=first, enforce_sorted=False)
        out, states = self.rnn(given)
        if self.packed:
            out, _ = pad_packed_sequence(out, batch_first=first, total_length=x.shape[1])
        own = torch.arange(x.shape[1]) < lengths[:, None]
        losses = (self.head(out if first else out.transpose(0, 1)).square().sum(2) * own).sum(1)
        for number, state in enumerate(states if isinstance(states, tuple) else (states,)):
            weights = torch.linspace(0.5 + number, 1.5, state.numel() // len(x), dtype=x.dtype)
            losses = losses + (state.transpose(0, 1).flatten(1) * weights).sum(1).sin()
        return losses


def case_of(rnn: nn.RNNBase, *, packed: bool = False) -> Case:
    model = Reader(rnn, packed=packed)
    lengths = LENGTHS if packed else torch.full((ROWS,), TIME)
    return Case(model, {"x": torch.randn(ROWS, TIME, WIDTH), "lengths": lengths}, lambda m, b: m(b["x"], b["lengths"]))


def attached(module: nn.Module) -> tuple[nn.Module, Tape]:
    """A copy of the module that writes on a tape, without an engine around it."""
    module, tape = copy.deepcopy(module), Tape()
    for site in make_sites(module, tape):
        tape.sites[site.module] = site
        vars(site.host)[site.rule.method] = MethodType(site.rule.forward(tape), site.host)
    return module, tape


def flat(results: object) -> list[Tensor]:
    """The tensors in what a recurrent module returns."""
    if isinstance(results, PackedSequence):
        return [t for t in results if t is not None]
    if isinstance(results, Tensor):
        return [results]
    return [tensor for result in results for tensor in flat(result)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@packings
@shapes
@kinds
def test_a_private_step_equals_the_loop(kind: type[nn.RNNBase], shape: str, packed: bool, dtype: torch.dtype) -> None:
    case = case_of(recurrent(kind, shape), packed=packed)
    assert_exact(case.double() if dtype == torch.float64 else case, tolerance=TOLERANCE[dtype])


@packings
@shapes
@kinds
def test_outputs_and_input_gradients_are_torchs_own(kind: type[nn.RNNBase], shape: str, packed: bool) -> None:
    plain = recurrent(kind, shape).double()
    private, tape = attached(plain)
    x = torch.randn(ROWS, TIME, WIDTH, dtype=torch.float64)
    layers = plain.num_layers * (2 if plain.bidirectional else 1)
    starts = [torch.randn(layers, ROWS, HIDDEN, dtype=torch.float64) for _ in range(2)]

    def run(module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        leaves = [t.clone().requires_grad_() for t in (x, *starts)]
        given = leaves[0] if plain.batch_first else leaves[0].transpose(0, 1)
        if packed:
            given = pack_padded_sequence(given, LENGTHS, batch_first=plain.batch_first, enforce_sorted=False)
        hidden = (leaves[1], leaves[2]) if kind is nn.LSTM else leaves[1]
        outputs = flat(module(given, hidden))
        total = sum((t.sin() * torch.arange(1, t.numel() + 1).view(t.shape)).sum() for t in outputs if t.requires_grad)
        with tape.running(ROWS):
            found = torch.autograd.grad(total, leaves[: 3 if kind is nn.LSTM else 2])
        return outputs, list(found)

    (theirs, their_grads), (ours, our_grads) = run(plain), run(private)
    assert len(ours) == len(theirs) >= 2
    assert all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(ours, theirs, strict=True))
    assert all(torch.allclose(a, b, rtol=1e-13, atol=1e-13) for a, b in zip(ours, theirs, strict=True))
    assert all(distance(a, b) < 1e-13 for a, b in zip(our_grads, their_grads, strict=True))


@kinds
def test_rows_packed_in_order_stay_in_order(kind: type[nn.RNNBase]) -> None:
    """A sequence packed by falling length carries no permutation."""
    plain = recurrent(kind, "bidirectional").double()
    private, _ = attached(plain)
    lengths = LENGTHS.sort(descending=True).values
    given = pack_padded_sequence(torch.randn(ROWS, TIME, WIDTH).double(), lengths, batch_first=True)
    ours, theirs = flat(private(given)), flat(plain(given))
    assert given.sorted_indices is None
    assert all(torch.allclose(a, b, rtol=1e-13, atol=1e-13) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("written_out", [True, False], ids=["written-out", "ghost"])
@kinds
def test_both_ways_to_a_norm_are_exact(
    kind: type[nn.RNNBase], written_out: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(troth.dp.linear, "instantiates", lambda *shape: written_out)
    assert_exact(case_of(recurrent(kind, "bidirectional"), packed=True).double(), tolerance=1e-12)


@pytest.mark.parametrize("physical", [1, 2, 4])
@kinds
def test_the_physical_batch_size_changes_nothing(kind: type[nn.RNNBase], physical: int) -> None:
    case = case_of(recurrent(kind, "three-layers-bidirectional"), packed=True).double()
    assert_exact(case, tolerance=1e-12, physical=physical)


@pytest.mark.parametrize(
    "trained", ["weight_hh", "bias_ih", "_l1", "l0_reverse", "weight_ih_l1_reverse", "head"], ids=str
)
@kinds
def test_frozen_parts(kind: type[nn.RNNBase], trained: str) -> None:
    case = case_of(recurrent(kind, "three-layers-bidirectional"), packed=True).double()
    for name, parameter in case.model.named_parameters():
        parameter.requires_grad = trained in name
    assert_exact(case, tolerance=1e-12)


@kinds
def test_a_module_called_twice_and_weights_shared_by_two(kind: type[nn.RNNBase]) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = recurrent(kind), recurrent(kind)
            self.second.weight_hh_l0 = self.first.weight_hh_l0
            self.back = nn.Linear(HIDDEN, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            x = self.back(self.first(x)[0])
            out, _ = self.second(self.back(self.first(x)[0]))
            return out.square().sum((1, 2))

    torch.manual_seed(1)
    case = Case(Twice(), {"x": torch.randn(ROWS, TIME, WIDTH)}, lambda m, b: m(b["x"])).double()
    assert_exact(case, tolerance=1e-12)


@kinds
def test_states_handed_on_to_a_decoder(kind: type[nn.RNNBase]) -> None:
    class Transducer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reader, self.writer = recurrent(kind, "two-layers"), recurrent(kind, "two-layers")

        def forward(self, x: Tensor) -> Tensor:
            _, states = self.reader(x)
            return self.writer(x.flip(1), states)[0].sin().sum((1, 2))

    torch.manual_seed(1)
    case = Case(Transducer(), {"x": torch.randn(ROWS, TIME, WIDTH)}, lambda m, b: m(b["x"])).double()
    assert_exact(case, tolerance=1e-12)


def private_gradient(module: nn.RNNBase, x: Tensor) -> dict[str, Tensor]:
    """The clipped sum of the module alone, without the self-check, which switches dropout off."""
    module = copy.deepcopy(module)
    engine = ComparedEngine(
        module, torch.optim.SGD(module.parameters(), lr=0.1), plan_for(len(x)), PrivateRandomness(), self_check=False
    )
    engine.sample()
    engine.backward(module(x)[0].square().sum((1, 2)))
    return {name: parameter.grad * len(x) for name, parameter in module.named_parameters()}


@kinds
def test_dropout_between_layers_stays_exact(kind: type[nn.RNNBase], monkeypatch: pytest.MonkeyPatch) -> None:
    """With one mask for both, a two-layer module is two modules with dropout between."""
    torch.manual_seed(5)
    mask = (torch.rand(ROWS, TIME, HIDDEN) > 0.5).double() * 2
    rates: list[tuple[float, bool]] = []

    def masked(x: Tensor, p: float, training: bool) -> Tensor:
        rates.append((p, training))
        return x * mask

    class Stack(nn.Module):
        """The same two layers as modules of their own; the mask is part of the input."""

        def __init__(self, both: nn.RNNBase) -> None:
            super().__init__()
            self.low = kind(WIDTH, HIDDEN, batch_first=True).double()
            self.high = kind(HIDDEN, HIDDEN, batch_first=True).double()
            for name, parameter in both.named_parameters():
                layer = self.low if name.endswith("_l0") else self.high
                vars(layer)["_parameters"][f"{name[:-1]}0"].data.copy_(parameter)

        def forward(self, x: Tensor) -> Tensor:
            out = self.low(x[:, :, :WIDTH])[0] * x[:, :, WIDTH:]
            return self.high(out)[0].square().sum((1, 2))

    both = recurrent(kind, "two-layers", dropout=0.5).double().train()
    stack = Stack(both)
    x = torch.randn(ROWS, TIME, WIDTH).double()
    wanted = private_step(Case(stack, {"x": torch.cat([x, mask], 2)}, lambda m, b: m(b["x"]))).gradient
    monkeypatch.setattr(F, "dropout", masked)
    found = private_gradient(both, x)
    assert set(rates) == {(0.5, True)}
    for name, gradient in found.items():
        layer = "low" if name.endswith("_l0") else "high"
        assert distance(gradient, wanted[f"{layer}.{name[:-1]}0"]) < 1e-12, name


@kinds
def test_dropout_only_in_training(kind: type[nn.RNNBase]) -> None:
    private, _ = attached(recurrent(kind, "two-layers", dropout=0.5))
    x = torch.randn(ROWS, TIME, WIDTH)
    assert not torch.equal(private(x)[0], private(x)[0])
    private.eval()
    assert torch.equal(private(x)[0], private(x)[0])


class Characters(nn.Module):
    """A recurrent module over the characters of each word, every word a row of its own."""

    def __init__(self, rnn: nn.RNNBase, *, by_word: bool, confirmed: bool) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH) if confirmed else nn.Identity()
        self.rnn, self.by_word = rnn, by_word
        self.head = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        batch, words = x.shape[:2]
        x = self.inner(x)
        x = x.transpose(0, 1) if self.by_word else x
        out = self.rnn(x.flatten(0, 1))[0].square().sum(1)
        out = out.view(words, batch, -1).transpose(0, 1) if self.by_word else out.view(batch, words, -1)
        return self.head(out.mean(1)).square().sum(1)


def words_case(*, by_word: bool = False, confirmed: bool = True) -> Case:
    torch.manual_seed(1)
    model = Characters(recurrent(nn.LSTM), by_word=by_word, confirmed=confirmed)
    return Case(model, {"x": torch.randn(ROWS, 3, TIME, WIDTH)}, lambda m, b: m(b["x"])).double()


def test_words_as_rows_of_their_own_are_exact() -> None:
    assert_exact(words_case(), tolerance=1e-12)
    assert_exact(words_case(), tolerance=1e-12, physical=2)


def test_words_that_nothing_confirms_are_refused() -> None:
    with pytest.raises(UnsupportedModuleError, match=r"rnn \(LSTM\) works on 3 rows for each example"):
        private_step(words_case(confirmed=False))


def test_words_laid_out_word_by_word_are_refused() -> None:
    """[words * batch] divides as well as [batch * words], but the rows are not those of one example."""
    with pytest.raises(UnsupportedModuleError, match=r"rnn: .* rows of others"):
        private_step(words_case(by_word=True))


def test_words_of_unequal_number_are_refused_though_they_divide() -> None:
    """Two examples of 1 and 3 words without padding are four rows, as two of 2 are."""
    torch.manual_seed(1)
    model = nn.ModuleDict({"inner": nn.Linear(WIDTH, WIDTH), "rnn": recurrent(nn.LSTM), "head": nn.Linear(HIDDEN, 2)})
    own = torch.tensor([[True, False, False], [True, True, True]])

    def losses(m: nn.Module, b: dict[str, Tensor]) -> Tensor:
        kept = own[: len(b["x"])]
        out = m["rnn"](m["inner"](b["x"])[kept])[0].sum((1, 2))
        return torch.zeros(len(kept)).index_add(0, kept.nonzero()[:, 0], out)

    case = Case(model, {"x": torch.randn(2, 3, TIME, WIDTH)}, losses)
    with pytest.raises(UnsupportedModuleError, match="2 rows for each example"):
        private_step(case)


def test_detach_puts_the_module_back() -> None:
    case = case_of(recurrent(nn.LSTM, "bidirectional"))
    model = case.model
    names, before = list(model.state_dict()), model(**case.batch).detach()
    engine = ComparedEngine(
        model, torch.optim.SGD(model.parameters(), lr=0.1), plan_for(ROWS), PrivateRandomness(), self_check=False
    )
    assert type(model.rnn) is nn.LSTM
    assert list(model.state_dict()) == names
    assert "forward" in vars(model.rnn)
    assert torch.allclose(copy.deepcopy(model)(**case.batch), before)
    with torch.no_grad():
        assert torch.equal(model(**case.batch), before)
    engine.detach()
    assert "forward" not in vars(model.rnn)
    assert torch.equal(model(**case.batch).detach(), before)


def test_a_row_that_is_not_finite_adds_nothing() -> None:
    case = case_of(recurrent(nn.LSTM, "bidirectional"), packed=True).double()
    case.batch["x"][1, 0, 0] = torch.nan
    found = private_step(case).gradient
    rest = {k: torch.cat([v[:1], v[2:]]) for k, v in case.batch.items()}
    wanted = private_step(Case(case.model, rest, case.losses)).gradient
    assert all(distance(found[name], wanted[name]) < 1e-12 for name in wanted)


@kinds
def test_autocast_leaves_the_recurrence_in_full_precision(kind: type[nn.RNNBase]) -> None:
    private, _ = attached(recurrent(kind, "bidirectional"))
    x = torch.randn(ROWS, TIME, WIDTH)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = private(x.bfloat16())[0]
    assert out.dtype == torch.float32
    assert torch.equal(out, private(x.bfloat16().float())[0])


def test_rules_and_refusals_name_the_module() -> None:
    assert {r.rule for r in inspect(recurrent(nn.LSTM, "three-layers-bidirectional"))} == {"lstm"}
    assert {r.rule for r in inspect(recurrent(nn.GRU, "two-layers"))} == {"gru"}
    projected = inspect(nn.ModuleDict({"rnn": nn.LSTM(4, 3, proj_size=2)}))
    assert all("rnn (LSTM) projects its states (proj_size)" in r.reason for r in projected[:4])
    assert not any(r.supported for r in projected)
    assert "nn.RNN" not in str(inspect(nn.RNN(2, 2))) and not inspect(nn.RNN(2, 2))[0].supported
    private, _ = attached(recurrent(nn.LSTM))
    with pytest.raises(UnsupportedModuleError, match=r"no dimension for the examples"):
        private(torch.randn(TIME, WIDTH))


@kinds
def test_a_state_that_all_examples_would_share_is_refused_as_by_torch(kind: type[nn.RNNBase]) -> None:
    private, _ = attached(recurrent(kind))
    state = torch.zeros(1, 1, HIDDEN)
    with pytest.raises(RuntimeError, match="Expected hidden size"):
        private(torch.randn(ROWS, TIME, WIDTH), (state, state) if kind is nn.LSTM else state)


def test_time_first_inputs_of_a_batch_first_module_are_refused() -> None:
    case = case_of(recurrent(nn.LSTM)).double()

    def losses(m: nn.Module, b: dict[str, Tensor]) -> Tensor:
        return m.rnn(b["x"].transpose(0, 1))[0].sum((0, 2))

    with pytest.raises(UnsupportedModuleError, match=r"rnn \(LSTM\) .* first dimension is not the batch"):
        private_step(Case(nn.ModuleDict({"rnn": case.model.rnn}), case.batch, losses))
