"""What of a model is trained under adapters, where they go, and that merging leaves a plain model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

from contracts.stock_checkpoints import save_bert, save_gpt2
from contracts.task_tables import TABLES
from troth.config import RunConfig, parse
from troth.errors import ModelError
from troth.seeds import PublicSeeds
from troth.tasks import make_model, make_task, merge_adapters
from troth.tasks.trainable import set_trainable


def _file(kind: str, **model: Any) -> RunConfig:
    return parse(
        {
            "run": {"name": "x"},
            "model": {"trainable": "lora", **model},
            "data": {"train": "x"},
            "task": {"kind": kind},
        }
    )


def _model(config: RunConfig, seed: int = 0) -> Any:
    return make_model(config, make_task(config, TABLES[config.task.kind], Path()), PublicSeeds(seed), Path())


def _trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_bert(tmp_path_factory.mktemp("bert")))


@pytest.mark.parametrize("kind", ["classification", "tagging", "question_answering"])
def test_a_new_head_is_trained_beside_the_adapters(bert: str, kind: str) -> None:
    model = _model(_file(kind, checkpoint=bert))
    head = "qa_outputs" if kind == "question_answering" else "classifier"
    adapters = {n for n in _trained(model) if ".lora_" in n}
    assert _trained(model) - adapters == {f"{head}.weight", f"{head}.bias"}
    assert len(adapters) == 2 * 2 * 2  # layers, query and value, A and B
    assert all("self.query" in n or "self.value" in n for n in adapters)
    ranks = {p.shape[0] for n, p in model.named_parameters() if "lora_A" in n}
    scales = {m.scaling["default"] for m in model.modules() if type(m).__name__ == "Linear" and "scaling" in vars(m)}
    assert (ranks, scales) == ({8}, {2.0})  # rank 8, alpha 16


def test_a_head_that_the_checkpoint_brings_is_left_alone(bert: str) -> None:
    model = _model(_file("language_modeling", checkpoint=bert))
    assert all(".lora_" in name for name in _trained(model))


@pytest.mark.parametrize(
    ("preset", "kind", "names"),
    [
        ("tiny-bert", "classification", {"query", "value"}),
        ("tiny-gpt2", "language_modeling", {"c_attn"}),
        ("tiny-t5", "seq2seq", {"q", "v"}),
    ],
)
def test_presets_get_adapters_where_their_projections_are(preset: str, kind: str, names: set[str]) -> None:
    model = _model(_file(kind, preset=preset, layers=1, width=16, heads=2))
    places = {name.split(".lora_")[0].rpartition(".")[2] for name in _trained(model) if ".lora_" in name}
    assert places == names


def test_adapters_start_from_the_public_seed_and_change_nothing(bert: str) -> None:
    config = _file("classification", checkpoint=bert)
    before = torch.get_rng_state()
    first, again, other = (_model(config, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    weights = [dict(m.named_parameters()) for m in (first, again, other)]
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in weights[0])
    factors = [n for n in weights[0] if "lora_A" in n]
    assert all(not torch.equal(weights[0][n], weights[2][n]) for n in factors)
    ids = torch.tensor([[2, 7, 8, 3]])
    plain = _model(_file("classification", checkpoint=bert, trainable="all"), 1).eval()
    assert torch.equal(first.eval()(ids).logits, plain(ids).logits)  # B is zero


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_merged_adapters_leave_a_plain_model_that_does_the_same(family: str, tmp_path: Path) -> None:
    save, kind = (save_bert, "classification") if family == "bert" else (save_gpt2, "language_modeling")
    save(tmp_path)
    plain = _model(_file(kind, checkpoint=str(tmp_path), trainable="all"))
    model = _model(_file(kind, checkpoint=str(tmp_path))).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[2, 7, 8, 3]])
    trained = model(ids).logits.detach()
    assert not torch.allclose(trained, plain.eval()(ids).logits, atol=1e-3)
    merge_adapters(model, "lora")
    torch.testing.assert_close(model(ids).logits.detach(), trained, rtol=1e-4, atol=1e-4)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert [set(vars(m)) for m in model.modules()] == [set(vars(m)) for m in plain.modules()]
    assert list(model.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("trainable", ["all", "head", {"freeze": ["*.embeddings.*"]}])
def test_without_adapters_merging_does_nothing(bert: str, trainable: Any) -> None:
    model = _model(_file("classification", checkpoint=bert, trainable=trainable))
    before = {n: p.detach().clone() for n, p in model.state_dict().items()}
    merge_adapters(model, trainable)
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (hf.DistilBertConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=16, vocab_size=30), {"q_lin", "v_lin"}),
        (hf.MBartConfig(d_model=16, encoder_layers=1, decoder_layers=1, vocab_size=30), {"q_proj", "v_proj"}),
    ],
    ids=["distilbert", "mbart"],
)
def test_architectures_that_peft_has_no_choice_for(config: hf.PreTrainedConfig, names: set[str]) -> None:
    model = hf.AutoModel.from_config(config)
    set_trainable(model, "lora", "language_modeling", 0)
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in _trained(model)} == names


def test_an_architecture_without_known_projections_is_refused() -> None:
    config = hf.FNetConfig(vocab_size=30, hidden_size=16, num_hidden_layers=1, intermediate_size=16)
    with pytest.raises(ModelError, match=r"no projections are known .* in fnet models; write 'all'"):
        set_trainable(hf.FNetForSequenceClassification(config), "lora", "classification", 0)


def test_missing_peft_names_the_extra(bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match=r"needs peft, .* pip install 'troth\[lora\]'"):
        _model(_file("classification", checkpoint=bert))
