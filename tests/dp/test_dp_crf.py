"""The BiLSTM-CRF tagger under the private engine, and its random field alone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from dp_oracle import Case, ComparedEngine, assert_exact, clipped_sum, plan_for, private_step
from test_dp_units import assert_same, engine_sum, unit_gradients
from torch import Tensor, nn

import troth.dp.spread
from troth.data import Units
from troth.dp import inspect
from troth.dp.batches import Group
from troth.dp.tape import VectorUse
from troth.errors import UnsupportedModuleError
from troth.seeds import PrivateRandomness
from troth.tasks.characters import BYTE_ROWS
from troth.tasks.crf import LinearChainCRF
from troth.tasks.modeling_tagger import TrothTaggerConfig, TrothTaggerForTokenClassification

ROWS, WORDS, BYTES, LABELS = 5, 6, 7, 4
LENGTHS = torch.tensor([6, 1, 4, 2, 6])
TOLERANCE = {torch.float32: 5e-6, torch.float64: 1e-10}


def tagger(**more: object) -> TrothTaggerForTokenClassification:
    """A small tagger with large weights, the field's included."""
    torch.manual_seed(4)
    config = TrothTaggerConfig(
        vocab_size=30,
        word_size=5,
        character_size=3,
        character_filters=4,
        hidden_size=6,
        num_labels=LABELS,
        **more,
    )
    model = TrothTaggerForTokenClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return model


def tagger_case(*, partial: bool = False, **more: object) -> Case:
    model = tagger(**more)
    own = torch.arange(WORDS) < LENGTHS[:, None]
    characters = torch.randint(1, BYTE_ROWS, (ROWS, WORDS, BYTES))
    characters = characters.where(torch.arange(BYTES) < torch.randint(1, BYTES + 1, (ROWS, WORDS, 1)), 0)
    tags = torch.randint(LABELS, (ROWS, WORDS))
    if partial:
        tags = tags.where(torch.rand(ROWS, WORDS) > 0.4, -100)
    batch = {
        "input_ids": torch.randint(4, 30, (ROWS, WORDS)).where(own, 0),
        "attention_mask": own.long(),
        "characters": characters.where(own[:, :, None], 0),
        "labels": tags.where(own, -100),
    }

    def losses(m: nn.Module, b: dict[str, Tensor]) -> Tensor:
        inputs = {name: values for name, values in b.items() if name != "labels"}
        return m.losses(m(**inputs).logits, b["labels"], b["attention_mask"])

    return Case(model, batch, losses)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_private_step_of_the_tagger_equals_the_loop(layers: int, dtype: torch.dtype) -> None:
    case = tagger_case(num_hidden_layers=layers)
    assert_exact(case.double() if dtype == torch.float64 else case, tolerance=TOLERANCE[dtype])


def test_rows_with_unknown_tags_are_exact() -> None:
    assert_exact(tagger_case(partial=True).double(), tolerance=1e-10)


@pytest.mark.parametrize("physical", [1, 2, 4])
def test_the_physical_batch_size_changes_nothing(physical: int) -> None:
    assert_exact(tagger_case().double(), tolerance=1e-10, physical=physical)


@pytest.mark.parametrize("trained", ["crf.transitions", "crf.start", "crf", "encoder.characters", "encoder.lstm"])
def test_frozen_parts(trained: str) -> None:
    case = tagger_case().double()
    for name, parameter in case.model.named_parameters():
        # With the classifier, since the engine's self-check wants outputs of the model that have a gradient.
        parameter.requires_grad = name.startswith((trained, "classifier.bias"))
    assert_exact(case, tolerance=1e-10)


@pytest.mark.parametrize("physical", [2, 100])
def test_two_rows_of_one_unit_are_clipped_as_one(physical: int) -> None:
    """The words of a unit's rows are told apart from its other rows' and from other units'."""
    case = tagger_case().double()
    units = Units.of([row // 2 for row in range(ROWS)])
    groups = [Group(units.rows(u), np.full(len(units.rows(u)), 1 / len(units.rows(u)))) for u in range(len(units))]
    truth = clipped_sum(unit_gradients(case, groups), 0.5)
    plan = plan_for(len(units), clipping_norm=0.5)
    assert_same(engine_sum(case, plan, units, physical, PrivateRandomness()), truth)


def test_a_field_used_twice_and_transitions_shared_by_two() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emit = nn.Linear(3, LABELS)
            self.first, self.second = LinearChainCRF(LABELS), LinearChainCRF(LABELS)
            self.second.transitions = self.first.transitions

        def forward(self, x: Tensor, tags: Tensor, lengths: Tensor) -> Tensor:
            emissions = self.emit(x)
            twice = self.first(emissions, tags, lengths) + self.first(-emissions, tags.flip(1), lengths)
            return twice + self.second(emissions.sin(), tags, lengths)

    torch.manual_seed(2)
    model = Two()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    batch = {"x": torch.randn(ROWS, WORDS, 3), "tags": torch.randint(LABELS, (ROWS, WORDS)), "lengths": LENGTHS}
    assert_exact(Case(model, batch, lambda m, b: m(**b)).double(), tolerance=1e-10)


def test_the_field_holds_a_visible_share_of_the_norm() -> None:
    norms = private_step(tagger_case().double()).norms
    whole = sum(float(squared.sum()) for squared in norms.values())
    for part in ("crf.transitions", "encoder.characters.convolution", "encoder.lstm"):
        assert sum(float(squared.sum()) for name, squared in norms.items() if part in name) > 1e-3 * whole, part


def test_transitions_as_if_rows_shared_one_gradient_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect planted in the rule: every row is given the mean of all rows' gradients."""

    def shared(name: str, parameter: nn.Parameter, grads: Tensor) -> VectorUse:
        return VectorUse(name, parameter, grads.mean(0).expand_as(grads))

    monkeypatch.setattr(troth.dp.spread, "VectorUse", shared)
    with pytest.raises(UnsupportedModuleError, match="crf: the loss of one example has a gradient in the rows of"):
        private_step(tagger_case().double())


def test_every_parameter_of_the_tagger_has_its_rule() -> None:
    rules = {r.name: r for r in inspect(tagger())}
    assert all(r.supported for r in rules.values())
    found = {name.rsplit(".", 1)[0]: r.rule for name, r in rules.items()}
    assert found == {
        "encoder.words": "embedding",
        "encoder.characters.bytes": "embedding",
        "encoder.characters.convolution": "convolution",
        "encoder.norm": "layer_norm",
        "encoder.lstm": "lstm",
        "classifier": "linear",
        "crf": "crf",
    }


def test_detach_puts_the_model_back() -> None:
    case = tagger_case()
    model = case.model
    names, before = list(model.state_dict()), case.losses(model, case.batch).detach()
    engine = ComparedEngine(model, torch.optim.SGD(model.parameters(), lr=0.1), plan_for(ROWS), PrivateRandomness())
    assert "potentials" in vars(model.crf)
    assert torch.allclose(case.losses(model, case.batch).detach(), before, atol=1e-6)
    assert torch.allclose(case.losses(copy.deepcopy(model), case.batch), before, atol=1e-6)
    assert list(model.state_dict()) == names
    engine.detach()
    assert "potentials" not in vars(model.crf)
    assert all(isinstance(p, nn.Parameter) for p in (model.crf.start, model.crf.transitions, model.crf.end))
    assert torch.equal(case.losses(model, case.batch).detach(), before)
