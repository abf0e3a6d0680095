"""Stock checkpoints of seven families train privately from the command line as they are, whole or by adapters."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

from contracts.stock_checkpoints import (
    save_bart,
    save_bert,
    save_distilbert,
    save_gpt2,
    save_llama,
    save_roberta,
    save_t5,
)
from contracts.task_tables import TABLES
from troth.config import load
from troth.errors import RunError
from troth.runs import stages as troth_stages
from troth.runs.catalogue import METRICS
from troth.runs.measurable import why_never_measured
from troth.seeds import PublicSeeds
from troth.tasks import load_trained, make_model, make_task

pytestmark = pytest.mark.slow

ROLES = {
    "classification": ("text", "label"),
    "tagging": ("tokens", "tags"),
    "question_answering": ("question", "context", "answers"),
    "seq2seq": ("source", "target"),
    "language_modeling": ("text",),
}
MEASURED = {
    "classification": "test.accuracy",
    "tagging": "test.span_f1",
    "question_answering": "test.f1",
    "seq2seq": "test.rouge_l",
    "language_modeling": "test.perplexity",
}
FAMILIES = {
    "bert": (save_bert, "classification"),
    "bert tagging": (save_bert, "tagging"),
    "bert answers": (save_bert, "question_answering"),
    "bert masked": (save_bert, "language_modeling"),
    "distilbert": (save_distilbert, "classification"),
    "roberta": (save_roberta, "classification"),
    "gpt2": (save_gpt2, "language_modeling"),
    "llama": (save_llama, "language_modeling"),
    "t5": (save_t5, "seq2seq"),
    "bart": (save_bart, "seq2seq"),
    "bart classification": (save_bart, "classification"),
}
RUN = """
[run]
name = "x"
seed = 1
[model]
checkpoint = "stock"
max_length = {length}
[data]
train = "train.jsonl"
test = "test.jsonl"
{roles}
[task]
kind = "{kind}"
[train]
epochs = 1
learning_rate = 1e-2
expected_batch_size = 12
[privacy]
noise_multiplier = 1.0
target_delta = 1e-3
"""


@pytest.fixture
def stock(tmp_path: Path) -> Callable[[str], Path]:
    """Write a stock checkpoint, a small table in two files and a run file over them."""

    def write(name: str) -> Path:
        save, kind = FAMILIES[name]
        save(tmp_path / "stock")
        rows = list(TABLES[kind].dataset)
        for part, chosen in (("train", rows), ("test", rows[:6])):
            (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
        roles = "\n".join(f'{role} = "{role}"' for role in ROLES[kind])
        length = 40 if kind == "question_answering" else 24
        path = tmp_path / "run.toml"
        path.write_text(RUN.format(kind=kind, roles=roles, length=length))
        return path

    return write


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_stock_checkpoint_trains_privately(troth: Callable, stock: Callable, name: str, tmp_path: Path) -> None:
    called = troth("train", stock(name), "--json", "--quiet")
    assert called.code == 0, called.err
    record = called.json
    assert record["privacy"]["guarantee"] == "differential_privacy"
    assert record["privacy"]["steps"] == 2
    measured = {m["name"] for m in record["measurements"]}
    assert MEASURED[FAMILIES[name][1]] in measured
    assert not [n for n in measured if why_never_measured(n, load(tmp_path / "run.toml"))]
    assert {n.removeprefix("test.") for n in measured if n.startswith("test.")} == set(METRICS[FAMILIES[name][1]])
    before, after = _weights(tmp_path / "stock"), _weights(tmp_path / "runs" / "x" / "model")
    shared = [n for n in before if n in after and before[n].shape == after[n].shape and before[n].is_floating_point()]
    assert len(shared) > len(before) / 2
    assert all(not torch.equal(before[n], after[n]) for n in shared if "final_logits_bias" not in n)


@pytest.mark.parametrize("name", ["bert", "distilbert", "gpt2", "llama", "t5", "bart"])
def test_adapters_are_trained_and_the_model_holds_them_merged(
    troth: Callable, stock: Callable, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stock(name)
    called = troth("train", path, "--set", "model.trainable=lora", "--json", "--quiet")
    assert called.code == 0, called.err
    assert called.json["privacy"]["guarantee"] == "differential_privacy"
    folder = tmp_path / "runs" / "x" / "model"
    assert not (folder / "adapter_config.json").exists()
    config = load(path)
    task = make_task(config, TABLES[config.task.kind], tmp_path)
    start = make_model(config, task, PublicSeeds(1), tmp_path).state_dict()
    for module in [m for m in sys.modules if m.partition(".")[0] == "peft"]:
        monkeypatch.setitem(sys.modules, module, None)  # as where peft is not installed
    _, model = load_trained(folder, config)
    trained = model.state_dict()
    assert set(trained) == set(start)
    moved = {n for n in trained if not torch.equal(trained[n], start[n])}
    projections = {"bert": "query", "distilbert": "q_lin", "gpt2": "c_attn", "t5": ".q.", "bart": "q_proj"}
    assert any(projections.get(name, "q_proj") in n for n in moved)
    heads = {n for n in moved if "classifier" in n}
    assert bool(heads) == (config.task.kind == "classification")
    assert not any("norm" in n.lower() or "emb" in n or ".wte" in n or "shared" in n for n in moved)


def test_a_resumed_run_merges_the_adapters_it_trained(
    troth: Callable, stock: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stock("bert")
    path.write_text(path.read_text().replace("seed = 1", 'seed = 1\ninsecure_seed = 3\nguarantee = "none"'))
    train = ("train", path, "--set", "model.trainable=lora", "--quiet")
    assert troth(*train).code == 0

    def fail(*arguments: object, **options: object) -> None:
        raise RunError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(troth_stages, "export", fail)
        assert troth(*train).code == 1
    assert troth(*train, "--resume").code == 0
    whole, resumed = (_weights(tmp_path / "runs" / name / "model") for name in ("x", "x-2"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[n], resumed[n]) for n in whole)
    assert not any("lora" in n for n in resumed)


def test_a_federation_trains_adapters_and_exports_them_merged(troth: Callable, stock: Callable, tmp_path: Path) -> None:
    path = stock("bert")
    private = path.read_text().index("[privacy]")
    clients = '[federated]\nrounds = 1\ncohort_size = 2\nclients = { partition = "iid", clients = 2 }\n'
    path.write_text(path.read_text()[:private] + clients)
    called = troth("federate", path, "--set", "model.trainable=lora", "--json", "--quiet")
    assert called.code == 0, called.err
    before, after = _weights(tmp_path / "stock"), _weights(tmp_path / "runs" / "x" / "model")
    assert not any("lora" in n for n in after)
    moved = {n for n in after if n in before and not torch.equal(before[n], after[n])}
    assert moved
    assert all("self.query" in n or "self.value" in n for n in moved)


def test_adapters_without_peft_are_refused_in_one_line(
    troth: Callable, stock: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stock("bert")
    monkeypatch.setitem(sys.modules, "peft", None)
    called = troth("train", path, "--set", "model.trainable=lora", "--quiet")
    assert called.code == 2
    assert called.err == (
        "error: model.trainable = 'lora' needs peft, which is not installed: pip install 'troth[lora]'\n"
    )
    assert not any((tmp_path / "runs").glob("*"))


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
PAIR = {f"{side}_{part}": 2 for side in ("encoder", "decoder") for part in ("layers", "attention_heads", "ffn_dim")}
CONFIGS = {
    "BertForSequenceClassification": (hf.BertConfig(**SMALL), {"linear", "embedding", "layer_norm"}),
    "DistilBertForTokenClassification": (
        hf.DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=24),
        {"linear", "embedding", "layer_norm"},
    ),
    "RobertaForMaskedLM": (hf.RobertaConfig(**SMALL), {"linear", "embedding", "tied_embedding", "layer_norm"}),
    "AlbertForQuestionAnswering": (
        hf.AlbertConfig(embedding_size=8, **SMALL),
        {"linear", "embedding", "layer_norm"},
    ),
    "ElectraForSequenceClassification": (
        hf.ElectraConfig(embedding_size=8, **SMALL),
        {"linear", "embedding", "layer_norm"},
    ),
    "GPT2LMHeadModel": (
        hf.GPT2Config(n_embd=16, n_layer=2, n_head=2),
        {"conv1d", "embedding", "tied_embedding", "layer_norm"},
    ),
    "LlamaForCausalLM": (hf.LlamaConfig(**SMALL), {"linear", "embedding", "rms_norm"}),
    "T5ForConditionalGeneration": (
        hf.T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2),
        {"linear", "tied_embedding", "relative_bias", "rms_norm"},
    ),
    "BartForConditionalGeneration": (
        hf.BartConfig(d_model=16, **PAIR),
        {"linear", "embedding", "tied_embedding", "layer_norm"},
    ),
}


@pytest.mark.parametrize("name", list(CONFIGS))
def test_doctor_shows_the_rule_of_every_parameter(troth: Callable, name: str, tmp_path: Path) -> None:
    config, rules = CONFIGS[name]
    config.vocab_size = 40
    model = getattr(hf, name)(config)
    model.save_pretrained(tmp_path)
    called = troth("doctor", tmp_path, "--json")
    assert called.code == 0, called.err
    items = called.json["items"]
    assert [item["name"] for item in items] == [n for n, _ in model.named_parameters()]
    assert [tuple(item["shape"]) for item in items] == [tuple(p.shape) for p in model.parameters()]
    assert {item["rule"] for item in items} == rules
    assert all(item["supported"] and item["trainable"] for item in items)
