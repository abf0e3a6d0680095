"""Families of transformers with layers of their own: each class that has a rule is proven inside a whole model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import dp_models
import pytest
import torch
import transformers as hf
from dp_models import RANGE, SMALL, SMALL_PAIR, VOCABULARY
from dp_oracle import Case, ComparedEngine, assert_exact, clipped_sum, plan_for, private_step
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers.models.bart.modeling_bart import BartLearnedPositionalEmbedding, BartScaledWordEmbedding
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import troth.dp.families
import troth.dp.registry
import troth.dp.tied
from troth.dp import inspect
from troth.dp.embedding import OWN_EMBEDDING
from troth.dp.norm import OWN_RMS_NORM
from troth.errors import UnsupportedModuleError
from troth.seeds import PrivateRandomness

SPECIAL = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
DECODER = {
    **SMALL,
    **SPECIAL,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "initializer_range": RANGE,
    "max_position_embeddings": 16,
}
PAIR = {**SMALL_PAIR, **SPECIAL}
T5_SHAPE = {
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "relative_attention_num_buckets": 8,
    "decoder_start_token_id": 0,
}

DECODERS = [
    *("Arcee", "BioGpt", "Cohere", "Cohere2", "Cwm", "Ernie4_5", "Exaone4", "Gemma", "Gemma2", "Gemma3Text", "Glm"),
    *("Glm4", "Granite", "Helium", "HunYuanDenseV1", "HyperCLOVAX", "Llama", "Ministral", "Ministral3", "Mistral"),
    *("Olmo", "Olmo2", "Olmo3", "Phi3", "Qwen2", "Qwen3", "SeedOss", "SmolLM3", "VaultGemma"),
]
PAIRS = [
    *("Bart", "BigBirdPegasus", "Blenderbot", "BlenderbotSmall", "M2M100", "MBart", "Marian", "Mvp", "Pegasus"),
    *("PLBart", "MT5", "T5", "UMT5"),
]
MASKED = ["EuroBert"]
FAMILIES = [*DECODERS, *PAIRS, *MASKED, "T5Gemma"]


def _config(family: str) -> hf.PreTrainedConfig:
    kind = getattr(hf, f"{family}Config")
    if family == "T5Gemma":
        return kind(encoder=DECODER, decoder={**DECODER, "cross_attention_hidden_size": 16}, vocab_size=VOCABULARY)
    if family in ("MT5", "T5", "UMT5"):
        return kind(**T5_SHAPE, vocab_size=VOCABULARY)
    return kind(**(PAIR if family in PAIRS else DECODER))


def _case(family: str) -> Case:
    config = _config(family)
    dp_models._generator()
    if family in DECODERS:
        return dp_models._tag(hf.AutoModelForCausalLM.from_config(config), VOCABULARY)
    if family in MASKED:
        return dp_models._tag(hf.AutoModelForMaskedLM.from_config(config), VOCABULARY)
    return dp_models._write(hf.AutoModelForSeq2SeqLM.from_config(config))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_private_step_of_the_family_equals_the_loop(family: str) -> None:
    case = _case(family)
    assert all(r.supported for r in inspect(case.model))
    assert_exact(case.double(), tolerance=1e-10)


@pytest.mark.parametrize("family", ["Gemma2", "MBart", "Qwen3"])
def test_the_family_is_exact_in_float32(family: str) -> None:
    assert_exact(_case(family), tolerance=1e-6)


def test_every_class_with_a_rule_stands_in_a_proven_model() -> None:
    proven = set()
    for family in FAMILIES:
        with torch.device("meta"):
            config = _config(family)
            auto = hf.AutoModelForCausalLM if family in DECODERS else hf.AutoModelForSeq2SeqLM
            model = (hf.AutoModelForMaskedLM if family in MASKED else auto).from_config(config)
        proven |= {troth.dp.registry._definer(module) for module in model.modules()}
    table = {**troth.dp.families.FAMILY_RULES, **troth.dp.families.FAMILY_PARENT_RULES}
    assert set(table) <= proven


class _Wide(TorchFunctionMode):
    """Float32, which models write into norms, rotations and softmax, is float64 inside it, as all else of the proof."""

    def __torch_function__(
        self, func: Callable[..., object], types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        if func is Tensor.float:
            return args[0].double()
        wide = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return func(*(torch.float64 if a is torch.float32 else a for a in args), **wide)


@pytest.mark.parametrize("family", ["Bart", "Gemma", "Mistral"])
def test_the_family_agrees_with_vmapped_gradients(family: str) -> None:
    case = _case(family).double()
    del case.batch["attention_mask"]  # a mask is built by code that vmap cannot trace
    model = copy.deepcopy(case.model)
    model.set_attn_implementation("eager")  # the fused kernel has no rule for vmap
    case = Case(case.model, {k: v.clamp(min=0) for k, v in case.batch.items()}, _mean_loss)

    def loss(weights: dict[str, Tensor], example: dict[str, Tensor]) -> Tensor:
        def stateless(**kwargs: Tensor) -> object:
            return functional_call(model, weights, (), {**kwargs, "use_cache": False})

        return _mean_loss(stateless, {k: v[None] for k, v in example.items()})[0]

    with _Wide():
        stacked = vmap(grad(loss), in_dims=(None, 0))(dict(model.named_parameters()), case.batch)
        private = private_step(case).gradient
    gradients = [{n: g[i].detach() for n, g in stacked.items()} for i in range(case.rows)]
    total = clipped_sum(gradients, 1.0)
    whole = torch.sqrt(sum(t.square().sum() for t in total.values()))
    assert max(float((private[n] - t).norm() / whole) for n, t in total.items()) <= 1e-12


def _mean_loss(model: Callable[..., object], batch: dict[str, Tensor]) -> Tensor:
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    logits = model(**inputs).logits  # type: ignore[attr-defined]
    return F.cross_entropy(logits.mT, batch["labels"], reduction="none").mean(1)


def test_tables_of_encoder_decoder_and_head_are_one_parameter() -> None:
    """BART looks its one table up twice, times a factor, and uses it as head."""
    case = dp_models.bart().double()
    tied = [r for r in inspect(case.model) if r.rule == "tied_embedding"]
    assert [r.name for r in tied] == ["model.shared.weight"]
    assert case.model.model.encoder.embed_tokens.embed_scale == 4.0
    assert_exact(case, tolerance=1e-12)


def test_a_missing_cross_term_of_scaled_tables_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(troth.dp.tied.TiedBlock, "_cross", lambda self, work: 0.0)
    case = dp_models.bart().double()
    with pytest.raises(Exception, match=r"shared\.weight"):
        assert_exact(case, tolerance=1e-6)


def test_frozen_parts_of_a_pair_stay_exact() -> None:
    case = dp_models.bart().double()
    for name, parameter in case.model.named_parameters():
        parameter.requires_grad = "encoder.layers.0" not in name and "encoder.embed_positions" not in name
    assert_exact(case, tolerance=1e-12)


# what is not proven is refused


class _OtherNorm(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states) * self.weight.mean()


class _OtherWords(BartScaledWordEmbedding):
    def forward(self, input_ids: Tensor) -> Tensor:
        return self.weight[input_ids] * self.embed_scale


@pytest.mark.parametrize("module", [_OtherNorm(4), _OtherWords(9, 4, 0, 2.0)], ids=["norm", "embedding"])
def test_a_subclass_with_a_forward_of_its_own_has_no_rule(module: nn.Module) -> None:
    (rule,) = inspect(nn.Sequential(module))
    assert (rule.supported, rule.rule) == (False, "unsupported")
    assert f"weight of 0 ({type(module).__name__})" in rule.reason


def _with_rule(monkeypatch: pytest.MonkeyPatch, kind: type[nn.Module], rule: object) -> None:
    name = f"{kind.__module__}.{kind.__qualname__}"
    monkeypatch.setattr(troth.dp.registry, "RULES", {**troth.dp.registry.RULES, name: rule})


def test_a_table_that_is_read_past_its_look_up_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule for scaled tables takes look-ups only: were it given to another class, its gradient would be refused."""
    _with_rule(monkeypatch, _OtherWords, OWN_EMBEDDING)
    model = nn.Sequential(_OtherWords(9, 4, 0, 2.0), nn.Linear(4, 2))
    case = Case(model, {"ids": torch.randint(9, (5, 3))}, lambda m, b: m(b["ids"]).square().sum((1, 2)))
    with pytest.raises(UnsupportedModuleError, match=r"0\.weight got a gradient outside of its module"):
        private_step(case)


def test_a_norm_that_does_not_broadcast_its_weight_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof is able to fail: a norm that also averages its weight is not exact under the rule for norms."""
    _with_rule(monkeypatch, _OtherNorm, OWN_RMS_NORM)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), _OtherNorm(4), nn.Linear(4, 2)).double()
    case = Case(model, {"x": torch.randn(5, 3, 4).double()}, lambda m, b: m(b["x"]).square().sum((1, 2)))
    with pytest.raises(Exception, match=r"1\.weight|^1"):
        assert_exact(case, tolerance=1e-6)


def test_an_input_without_a_dimension_for_the_batch_is_refused() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = GemmaRMSNorm(4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + self.norm(torch.ones(4)))

    model = Constant()
    engine = ComparedEngine(
        model, torch.optim.SGD(model.parameters(), lr=0.1), plan_for(5), PrivateRandomness.create(1)
    )
    engine.sample()
    with pytest.raises(UnsupportedModuleError, match=r"norm \(GemmaRMSNorm\) works on a tensor of shape \[4\]"):
        engine.backward(model(torch.randn(5, 4)).sum(1))


# the model stays the user's


@pytest.mark.parametrize("family", ["Bart", "Gemma", "Llama", "T5"])
def test_the_model_is_as_it_was(family: str, tmp_path: Path) -> None:
    model = _case(family).model
    attributes = [set(vars(m)) for m in model.modules()]
    names, kinds = list(model.state_dict()), [type(m) for m in model.modules()]
    prompt = torch.randint(4, VOCABULARY, (2, 5), generator=torch.Generator().manual_seed(1))
    how = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 4, "do_sample": False, "num_beams": 2}
    more = {"decoder_input_ids": prompt} if family in PAIRS else {}
    written, logits = model.generate(prompt, **how), model(prompt, **more).logits
    engine = ComparedEngine(
        model, torch.optim.SGD(model.parameters(), lr=0.1), plan_for(5), PrivateRandomness.create(1)
    )
    assert list(model.state_dict()) == names
    assert [type(m) for m in model.modules()] == kinds
    assert torch.equal(model(prompt, **more).logits, logits)
    assert torch.equal(model.generate(prompt, **how), written)
    model.save_pretrained(tmp_path)
    engine.detach()
    assert [set(vars(m)) for m in model.modules()] == attributes
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(again(prompt, **more).logits, logits)


def test_positions_made_inside_a_module_count_per_example() -> None:
    """BART's positions are ids that nobody hands over: each example has a gradient of them."""
    case = dp_models.bart().double()
    kinds = [type(m) for m in case.model.modules()]
    assert kinds.count(BartLearnedPositionalEmbedding) == 2
    norms = private_step(case).norms
    blocks = [norms[f"model.{part}.embed_positions.weight"] for part in ("encoder", "decoder")]
    assert all(float(block.min()) > 0 for block in blocks)
