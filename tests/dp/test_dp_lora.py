"""Adapters of peft under the private engine: exact per layer, merged and saved as without it, moved at any time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import dp_models
import peft
import pytest
import torch
from dp_oracle import Case, ComparedEngine, assert_exact, plan_for, private_step
from torch import nn

from troth.dp import PrivateEngine, inspect
from troth.errors import EngineStateError, PrivacyError, TrothError, UnsupportedModuleError
from troth.seeds import PrivateRandomness

# peft's wrapper asks transformers by a name that has become old
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

CONFIGS = {
    "bert": {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"},
    "bert_tagger": {"target_modules": ["query", "value"], "task_type": "TOKEN_CLS"},
    "gpt2": {"target_modules": ["c_attn", "c_proj"], "task_type": "CAUSAL_LM", "fan_in_fan_out": True},
    "t5": {"target_modules": ["q", "v", "wo"], "task_type": "SEQ_2_SEQ_LM"},
    "llama": {"target_modules": "all-linear", "task_type": "CAUSAL_LM", "use_rslora": True},
    "albert": {"target_modules": ["query", "value"], "modules_to_save": ["classifier"], "lora_bias": True},
}


def _adapted(name: str, **more: object) -> Case:
    """The case with adapters of rank 3 whose B is far from its usual zeros, so that A's gradient shows."""
    case = dp_models.CASES[name]()
    torch.manual_seed(5)
    model = peft.get_peft_model(case.model, peft.LoraConfig(r=3, lora_alpha=6, **{**CONFIGS[name], **more}))
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:
            nn.init.normal_(parameter, std=dp_models.RANGE)
    return Case(model.eval(), case.batch, case.losses)


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)


def _train(case: Case, engine: PrivateEngine, steps: int = 2) -> None:
    for _ in range(steps):
        engine.sample()
        engine.backward(case.losses(case.model, case.batch))
        engine.step()


def _engine(case: Case, optimizer: torch.optim.Optimizer | None = None) -> PrivateEngine:
    plan = plan_for(case.rows, noise_multiplier=1.0)
    return ComparedEngine(case.model, optimizer or _sgd(case.model), plan, PrivateRandomness.create(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_private_step_on_adapters_equals_the_loop(name: str, dtype: torch.dtype) -> None:
    case = _adapted(name)
    rules = inspect(case.model)
    assert all(r.supported for r in rules)
    assert {r.rule for r in rules if r.trainable} == {"linear"}
    assert any("lora_A" in r.name for r in rules if r.trainable)
    assert_exact(case.double() if dtype == torch.float64 else case, tolerance=1e-6 if dtype == torch.float32 else 1e-10)


def test_both_factors_of_an_adapter_hold_a_visible_share_of_the_norm() -> None:
    norms = private_step(_adapted("bert").double()).norms
    shares = {n: float(s.sum()) for n, s in norms.items()}
    for factor in ("lora_A", "lora_B"):
        assert sum(s for n, s in shares.items() if factor in n) / sum(shares.values()) > 0.05


def test_adapters_from_their_usual_start_are_exact() -> None:
    """B is zero: A has no gradient yet, and none is what the engine says."""
    case = dp_models.bert()
    model = peft.get_peft_model(case.model, peft.LoraConfig(r=3, **CONFIGS["bert"]))
    case = Case(model.eval(), case.batch, case.losses).double()
    assert_exact(case, tolerance=1e-10)
    assert all(float(s.max()) == 0 for n, s in private_step(case).norms.items() if "lora_A" in n)


def test_a_saved_head_is_trained_and_its_original_is_not() -> None:
    case = _adapted("bert")
    before = {n: p.detach().clone() for n, p in case.model.named_parameters()}
    _train(case, _engine(case))
    moved = {n for n, p in case.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n, p in case.model.named_parameters() if p.requires_grad}
    assert {n for n in moved if "lora" not in n} == {
        f"base_model.model.classifier.modules_to_save.default.{kind}" for kind in ("weight", "bias")
    }
    assert "base_model.model.classifier.original_module.weight" in before


# what comes after training


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_adapters_are_merged_and_saved_as_ever(name: str, tmp_path: Path) -> None:
    case = _adapted(name)
    base = copy.deepcopy(case.model.get_base_model()).state_dict()
    names, kind = list(case.model.state_dict()), type(case.model)
    engine = _engine(case)
    assert (list(case.model.state_dict()), type(case.model)) == (names, kind)
    _train(case, engine)
    engine.detach()
    trained = case.losses(case.model, case.batch).detach()
    case.model.save_pretrained(tmp_path / "adapter")
    assert {p.name for p in (tmp_path / "adapter").iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    fresh = peft.PeftModel.from_pretrained(_adapted(name).model.unload(), tmp_path / "adapter").eval()
    torch.testing.assert_close(case.losses(fresh, case.batch).detach(), trained, rtol=1e-5, atol=1e-5)
    merged = case.model.merge_and_unload()
    torch.testing.assert_close(case.losses(merged, case.batch).detach(), trained, rtol=1e-4, atol=1e-4)
    plain = {n.replace(".base_layer", "").replace(".original_module", "") for n in base if "default" not in n}
    assert set(merged.state_dict()) == plain
    merged.save_pretrained(tmp_path / "merged")
    again = type(merged).from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(case.losses(again, case.batch).detach(), trained, rtol=1e-4, atol=1e-4)


# orders of making, moving and attaching


def _wide_then_adapters(model: nn.Module, config: peft.LoraConfig) -> nn.Module:
    return peft.get_peft_model(model.to(torch.float64), config)


def _adapters_then_wide(model: nn.Module, config: peft.LoraConfig) -> nn.Module:
    return peft.get_peft_model(model, config).to(torch.float64)


@pytest.mark.parametrize("make", [_wide_then_adapters, _adapters_then_wide])
def test_moving_before_or_after_adapters_trains_all_of_them(
    make: Callable[[nn.Module, peft.LoraConfig], nn.Module],
) -> None:
    """Opacus issue 820: in one order the hooks held stale parameters, and nothing but the classifier was trained."""
    case = dp_models.bert()
    model = make(case.model, peft.LoraConfig(r=3, **CONFIGS["bert"]))
    case = Case(model.eval(), case.batch, case.losses)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    engine = _engine(case)
    _train(case, engine)
    engine.detach()
    assert all(not torch.equal(p, before[n]) for n, p in model.named_parameters() if p.requires_grad)
    assert_exact(case, tolerance=1e-10)


def test_an_optimizer_from_before_the_adapters_is_refused() -> None:
    case = dp_models.bert()
    optimizer = _sgd(case.model)
    adapted = _adapted("bert")
    with pytest.raises(PrivacyError, match=r"lora_A\.default\.weight is trainable but not in the optimizer"):
        _engine(adapted, optimizer)


def test_adapters_under_an_attached_engine_are_refused() -> None:
    case = dp_models.bert()
    engine = _engine(case)
    model = peft.get_peft_model(case.model, peft.LoraConfig(r=3, **CONFIGS["bert"]))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    engine.sample()
    with pytest.raises((TrothError, RuntimeError), match=r"was added|was frozen|outside of|not require grad"):
        engine.backward(case.losses(model, case.batch))
        engine.step()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_moving_under_an_attached_engine_is_refused() -> None:
    case = _adapted("bert")
    engine = _engine(case)
    case.model.to(torch.float64)
    engine.sample()
    with pytest.raises(EngineStateError, match="moved"):
        engine.backward(case.losses(case.model, case.batch))


def test_parameters_replaced_by_a_move_are_refused() -> None:
    """Where moving makes new parameters, optimizer and engine would go on with the old ones."""
    case = _adapted("bert")
    optimizer = _sgd(case.model)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        case.model.to(torch.float64)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
    with pytest.raises(PrivacyError, match="trainable but not in the optimizer"):
        _engine(case, optimizer)


# what cannot be clipped


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"target_modules": ["query", "word_embeddings"]}, r"lora_embedding_A"),
        ({"use_dora": True}, r"lora_magnitude_vector"),
    ],
    ids=["embedding", "dora"],
)
def test_adapters_with_bare_parameters_are_refused_by_name(more: dict[str, object], named: str) -> None:
    case = _adapted("bert", **more)
    assert any(not r.supported and named in r.name for r in inspect(case.model))
    with pytest.raises(UnsupportedModuleError, match=named):
        _engine(case)
