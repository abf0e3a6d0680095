"""`inspect`: the rule of every parameter, as `troth doctor` shows it."""

from __future__ import annotations

from inspect import ismodule

import dp_models
import pytest
from torch import nn

import troth.dp
from troth.dp import ParameterRule, inspect

RULES = {
    "bert": {"linear", "embedding", "layer_norm"},
    "bert_masked": {"linear", "embedding", "layer_norm", "tied_embedding"},
    "gpt2": {"conv1d", "embedding", "layer_norm", "tied_embedding"},
    "llama": {"linear", "embedding", "rms_norm"},
    "t5": {"linear", "rms_norm", "tied_embedding", "relative_bias"},
    "bart": {"linear", "layer_norm", "embedding", "tied_embedding"},
    "bart_classifier": {"linear", "layer_norm", "embedding"},
    "frozen_bert": {"linear", "embedding", "layer_norm", "frozen"},
}


@pytest.mark.parametrize("name", list(RULES))
def test_stock_families_are_supported_in_full(name: str) -> None:
    model = dp_models.CASES[name]().model
    rules = inspect(model)
    assert [r.name for r in rules] == [n for n, _ in model.named_parameters()]
    assert [r.shape for r in rules] == [tuple(p.shape) for p in model.parameters()]
    assert [r.trainable for r in rules] == [p.requires_grad for p in model.parameters()]
    assert {r.rule for r in rules} - {"linear"} == RULES[name] - {"linear"}
    assert all(r.supported and not r.reason for r in rules)


def test_reasons_name_module_and_way_out() -> None:
    rules = {r.name: r for r in inspect(nn.ModuleDict({"gate": nn.Bilinear(3, 2, 2), "head": nn.Linear(2, 2)}))}
    bad = rules["gate.weight"]
    assert (bad.rule, bad.supported, bad.trainable) == ("unsupported", False, True)
    assert "gate (Bilinear)" in bad.reason
    assert "requires_grad_(False)" in bad.reason
    assert rules["head.weight"] == ParameterRule("head.weight", (2, 2), "linear", trainable=True, supported=True)


def test_frozen_parameters_are_supported_whatever_holds_them() -> None:
    model = nn.ModuleDict({"gate": nn.Bilinear(3, 2, 2).requires_grad_(False), "head": nn.Linear(2, 2)})
    assert all(r.supported for r in inspect(model))
    assert {r.rule for r in inspect(model)} == {"frozen", "linear"}


def test_modules_that_mix_examples_are_listed_without_parameters_too() -> None:
    rules = inspect(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False)))
    assert [(r.name, r.supported) for r in rules] == [("0.weight", True), ("0.bias", True), ("1", False)]
    frozen = inspect(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).requires_grad_(False)))
    assert [r.name for r in frozen if not r.supported] == ["1"]


def test_a_table_that_is_also_a_head_stands_there_once() -> None:
    rules = [r for r in inspect(dp_models.gpt2().model) if r.rule == "tied_embedding"]
    assert [r.name for r in rules] == ["transformer.wte.weight"]


def test_public_names() -> None:
    found = {name for name, value in vars(troth.dp).items() if not name.startswith("_") and not ismodule(value)}
    assert set(troth.dp.__all__) == found
    assert {"PrivateEngine", "inspect"} <= found
