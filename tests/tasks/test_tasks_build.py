"""From run file to task and model: labels, lengths, seeds, freezing, and what is refused."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from contracts.stock_checkpoints import bert_tokenizer, save_bert, save_gpt2, save_roberta, save_t5
from contracts.task_tables import TABLES
from troth.config import RunConfig, parse
from troth.errors import ModelError
from troth.seeds import PublicSeeds
from troth.tasks import (
    CausalLanguageModeling,
    MaskedLanguageModeling,
    Task,
    load_trained,
    make_model,
    make_task,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def run_file(kind: str, checkpoint: Path | str, *, objective: str | None = None, **model: Any) -> RunConfig:
    task = {"kind": kind} if objective is None else {"kind": kind, "objective": objective}
    raw = {
        "run": {"name": "x"},
        "model": {"checkpoint": str(checkpoint), **model},
        "data": {"train": "x"},
        "task": task,
    }
    return parse(raw)


def made(config: RunConfig) -> Task:
    return make_task(config, TABLES[config.task.kind], Path())


def model_of(config: RunConfig, seed: int = 0) -> torch.nn.Module:
    return make_model(config, made(config), PublicSeeds(seed), Path())


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_gpt2(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture
def copy(bert: Path, tmp_path: Path) -> Path:
    """A BERT folder that a test may spoil."""
    shutil.copytree(bert, tmp_path / "copy")
    return tmp_path / "copy"


# what is made


def test_labels_are_sorted_and_named_in_the_configuration(bert: Path) -> None:
    config = run_file("classification", bert)
    model = model_of(config)
    assert made(config).labels == ("lights", "music", "timer", "weather")
    assert model.config.id2label == {0: "lights", 1: "music", 2: "timer", 3: "weather"}
    assert model.config.label2id == {"lights": 0, "music": 1, "timer": 2, "weather": 3}
    assert made(run_file("tagging", bert)).labels == ("B-ACT", "I-OBJ", "O")


def test_the_checkpoints_own_order_is_kept_where_it_has_the_same_labels(bert: Path, tmp_path: Path) -> None:
    config = run_file("classification", bert)
    model = model_of(config)
    order = ["weather", "lights", "music", "timer"]
    model.config.id2label = dict(enumerate(order))
    model.config.label2id = {label: i for i, label in enumerate(order)}
    model.save_pretrained(tmp_path)
    made(config).tokenizer.save_pretrained(tmp_path)
    again = run_file("classification", tmp_path)
    assert made(again).labels == tuple(order)
    torch.testing.assert_close(model_of(again, seed=5).classifier.weight, model.classifier.weight)


def test_the_head_comes_from_the_public_seed_and_the_body_from_the_checkpoint(bert: Path) -> None:
    config = run_file("classification", bert)
    first, again, other = (model_of(config, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])
    body = "bert.encoder.layer.0.attention.self.query.weight"
    assert torch.equal(first[body], other[body])


def test_torchs_global_generator_is_left_as_it_was(bert: Path) -> None:
    before = torch.get_rng_state()
    model_of(run_file("classification", bert))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_head_of_another_size_is_made_anew(bert: Path, tmp_path: Path) -> None:
    model = BertForSequenceClassification(BertConfig.from_pretrained(bert, num_labels=9))
    model.save_pretrained(tmp_path)
    config = run_file("classification", bert)
    made(config).tokenizer.save_pretrained(tmp_path)
    resized = model_of(run_file("classification", tmp_path))
    assert resized.classifier.weight.shape == (4, 16)
    torch.testing.assert_close(
        resized.bert.embeddings.word_embeddings.weight, model.bert.embeddings.word_embeddings.weight
    )


def test_half_precision_checkpoints_are_loaded_in_float32(bert: Path, tmp_path: Path) -> None:
    config = run_file("classification", bert)
    model_of(config).to(torch.bfloat16).save_pretrained(tmp_path)
    made(config).tokenizer.save_pretrained(tmp_path)
    assert {p.dtype for p in model_of(run_file("classification", tmp_path)).parameters()} == {torch.float32}


def test_a_checkpoint_without_a_padding_token_pads_with_its_end(gpt2: Path) -> None:
    config = run_file("classification", gpt2)
    task, model = made(config), model_of(config)
    assert task.tokenizer.pad_token_id == task.tokenizer.eos_token_id == model.config.pad_token_id


def test_a_relative_checkpoint_is_relative_to_the_run_file(bert: Path) -> None:
    config = run_file("classification", bert.name)
    assert make_task(config, TABLES["classification"], bert.parent).max_length == 64


# presets


def preset_file(kind: str, preset: str, **model: Any) -> RunConfig:
    raw = {"run": {"name": "x"}, "model": {"preset": preset, **model}, "data": {"train": "x"}, "task": {"kind": kind}}
    return parse(raw)


def test_a_presets_shape_can_be_changed() -> None:
    config = preset_file("tagging", "tiny-bert", layers=1, width=32, heads=4, vocabulary_size=200, max_length=600)
    task, model = made(config), model_of(config)
    assert len(task.tokenizer) == model.get_input_embeddings().weight.shape[0] == 200
    assert (model.config.num_hidden_layers, model.config.hidden_size, model.config.num_attention_heads) == (1, 32, 4)
    assert task.max_length == 600
    assert model.config.max_position_embeddings >= 600
    assert model.config.id2label == {0: "B-ACT", 1: "I-OBJ", 2: "O"}
    assert model.config.pad_token_id == task.tokenizer.pad_token_id


@pytest.mark.parametrize(
    ("preset", "kind"), [("tiny-bert", MaskedLanguageModeling), ("tiny-gpt2", CausalLanguageModeling)]
)
def test_a_presets_objective_is_its_own(preset: str, kind: type[Task]) -> None:
    assert type(made(preset_file("language_modeling", preset))) is kind


@pytest.mark.parametrize(
    ("kind", "preset", "message"),
    [
        (
            "classification",
            "tiny-gpt2",
            "does causal language modeling, not classification: take tiny-bert or mini-bert",
        ),
        ("seq2seq", "mini-bert", "not seq2seq: take tiny-t5"),
        ("language_modeling", "tiny-t5", "not causal language modeling: take tiny-gpt2"),
    ],
)
def test_a_preset_that_does_not_do_the_task_is_refused_before_anything_is_encoded(
    kind: str, preset: str, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        made(preset_file(kind, preset))


def test_presets_come_from_the_public_seed() -> None:
    config = preset_file("classification", "tiny-bert", layers=1, width=32, heads=2)
    first, again, other = (model_of(config, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "encoder.embeddings.tokens.weight"
    assert not torch.equal(first[name], other[name])


# objectives


@pytest.mark.parametrize(
    ("save", "objective", "kind"),
    [
        (save_bert, None, MaskedLanguageModeling),
        (save_roberta, None, MaskedLanguageModeling),
        (save_gpt2, None, CausalLanguageModeling),
        (save_gpt2, "causal", CausalLanguageModeling),
        (save_bert, "masked", MaskedLanguageModeling),
    ],
)
def test_a_language_model_learns_what_its_architecture_was_made_for(
    save: Callable[[Path], Path], objective: str | None, kind: type[Task], tmp_path: Path
) -> None:
    assert type(made(run_file("language_modeling", save(tmp_path), objective=objective))) is kind


def test_a_masked_objective_wants_a_model_and_a_mask_token_for_it(gpt2: Path, copy: Path) -> None:
    with pytest.raises(ModelError, match="gpt2 models do no masked language modeling"):
        made(run_file("language_modeling", gpt2, objective="masked"))
    tokenizer = bert_tokenizer()
    tokenizer.mask_token = None
    tokenizer.save_pretrained(copy)
    with pytest.raises(ModelError, match="wants a tokenizer with a mask token"):
        made(run_file("language_modeling", copy, objective="masked"))


# lengths


@pytest.mark.parametrize(("save", "positions"), [(save_bert, 64), (save_gpt2, 64), (save_roberta, 62), (save_t5, 128)])
def test_an_open_length_is_that_of_the_model(save: Callable[[Path], Path], positions: int, tmp_path: Path) -> None:
    kind = "seq2seq" if save is save_t5 else "language_modeling"
    assert made(run_file(kind, save(tmp_path))).max_length == positions


def test_every_position_of_the_open_length_can_be_used(tmp_path: Path) -> None:
    config = run_file("classification", save_roberta(tmp_path))
    task, model = made(config), model_of(config)
    ids = torch.full((1, task.max_length), 20)
    assert model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.isfinite().all()
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        model(input_ids=torch.full((1, task.max_length + 1), 20))


def test_a_wanted_length_beyond_the_positions_is_refused(bert: Path) -> None:
    assert made(run_file("classification", bert, max_length=20)).max_length == 20
    with pytest.raises(ModelError, match=r"model.max_length = 65: .* has 64 positions; write at most 64"):
        made(run_file("classification", bert, max_length=65))


# what is trained


def trained(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_only_the_head_is_trained_where_asked(bert: Path) -> None:
    assert trained(model_of(run_file("classification", bert, trainable="head"))) == {
        "classifier.weight",
        "classifier.bias",
    }


def test_a_head_that_shares_the_embedding_cannot_be_trained_alone(gpt2: Path) -> None:
    with pytest.raises(ModelError, match="no head apart from its body"):
        model_of(run_file("language_modeling", gpt2, trainable="head"))


def test_patterns_freeze_what_they_match(bert: Path) -> None:
    everything = trained(model_of(run_file("classification", bert)))
    left = trained(
        model_of(run_file("classification", bert, trainable={"freeze": ["bert.embeddings.*", "*.layer.0.*"]}))
    )
    frozen = everything - left
    assert frozen
    assert all(name.startswith("bert.embeddings.") or ".layer.0." in name for name in frozen)
    assert not any(name.startswith("bert.embeddings.") or ".layer.0." in name for name in left)


def test_a_pattern_without_a_match_is_named_with_a_name_near_it(bert: Path) -> None:
    with pytest.raises(ModelError, match=r"'bert.embedding.word\*' matches no parameter; names look like 'bert.emb"):
        model_of(run_file("classification", bert, trainable={"freeze": ["*.layer.0.*", "bert.embedding.word*"]}))


def test_freezing_everything_is_refused(bert: Path) -> None:
    with pytest.raises(ModelError, match="freeze every parameter"):
        model_of(run_file("classification", bert, trainable={"freeze": ["*"]}))


# what is refused


class Bomb:
    """Leaves a mark when unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def test_pickled_weights_are_refused_and_never_opened(copy: Path, tmp_path: Path) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    with pytest.raises(ModelError, match=r"only pickled weights \(pytorch_model.bin\).*save_pretrained"):
        made(run_file("classification", copy))
    assert not (tmp_path / "mark").exists()


def test_an_index_that_names_a_pickle_is_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "evil.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    (copy / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"a": "evil.bin"}}))
    with pytest.raises(ModelError, match=r"names 'evil\.bin', which is not a safetensors file"):
        made(run_file("classification", copy))
    assert not (tmp_path / "mark").exists()


def test_code_in_a_checkpoint_is_never_run(copy: Path, tmp_path: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["model_type"] = "unheard-of"
    config["auto_map"] = {"AutoConfig": "code.Config"}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "code.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'mark')!r}).touch()\n")
    with pytest.raises(ModelError, match=r"config.json cannot be used"):
        made(run_file("classification", copy))
    assert not (tmp_path / "mark").exists()


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def no_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


def an_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def broken_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("[]")


def broken_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x00" * 40)


def deeper(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))


def fewer_words(folder: Path) -> None:
    model = BertForSequenceClassification(BertConfig.from_pretrained(folder, vocab_size=40))
    model.save_pretrained(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_config, "has no config.json"),
        (no_weights, "has no model.safetensors"),
        (no_tokenizer, r"has no tokenizer; save it there"),
        (broken_tokenizer, "its tokenizer cannot be used"),
        (an_adapter, "holds an adapter; merge it"),
        (broken_config, "config.json cannot be used"),
        (broken_index, "is not a list of shards"),
        (broken_weights, "cannot be loaded for this task"),
        (deeper, r"lacks 16 of the model's weights.*first: bert.encoder.layer.2"),
        (fewer_words, r"the tokenizer has \d+ tokens and the model's embedding 40 rows"),
    ],
)
def test_a_spoilt_checkpoint_is_one_line_that_names_it(copy: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(copy)
    with pytest.raises(ModelError, match=message) as caught:
        model_of(run_file("classification", copy))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "no such folder, and not a hub id"),
        ("no folder at all", "no such folder, and not a hub id"),
        ("org/never-fetched", "neither a folder nor in the local hub cache, and the hub cannot be reached"),
    ],
)
def test_a_checkpoint_that_is_nowhere_is_refused(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=message):
        made(run_file("classification", name))


def test_a_file_is_not_a_checkpoint(copy: Path) -> None:
    with pytest.raises(ModelError, match="is a file; give the folder"):
        made(run_file("classification", copy / "config.json"))


# the hub


def test_a_hub_id_is_taken_from_the_local_cache(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "models--org--tiny"
    shutil.copytree(bert, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    config = run_file("classification", "org/tiny")
    assert model_of(config).config.num_labels == 4
    assert made(config).max_length == 64


# back from an exported folder


def test_a_folder_of_another_kind_is_not_taken_for_a_trained_one(bert: Path) -> None:
    with pytest.raises(ModelError, match=r"lacks \d+ of the model's weights"):
        load_trained(bert, run_file("classification", bert))


def test_scores_after_a_round_trip_through_a_folder_are_equal(bert: Path, tmp_path: Path) -> None:
    config = run_file("tagging", bert)
    task = made(config)
    model = make_model(config, task, PublicSeeds(4), Path())
    model.save_pretrained(tmp_path)
    task.tokenizer.save_pretrained(tmp_path)
    again, loaded = load_trained(tmp_path, config)
    np.testing.assert_array_equal(
        again.score(loaded, TABLES["tagging"]).losses, task.score(model, TABLES["tagging"]).losses
    )
