"""The presets: sizes, seeds, what they refuse, and a byte-level BPE that loses nothing."""

from __future__ import annotations

import importlib.util
import json
from importlib.resources import files
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel

from troth.errors import ModelError
from troth.seeds import PublicSeeds
from troth.tasks.hashed_tokenizer import HashedTokenizer
from troth.tasks.presets import PRESETS, preset_model, preset_tokenizer

KINDS = {"causal": "language_modeling", "masked": "language_modeling"}
ALL = [(preset.name, goal) for preset in PRESETS.values() for goal in preset.goals]
BYTES = preset_tokenizer("tiny-gpt2", 128)


def model_of(name: str, goal: str, seed: int = 1, **overrides: int | None) -> PreTrainedModel:
    kind = KINDS.get(goal, goal)
    labels = ("yes", "no", "maybe") if goal in ("classification", "tagging") else ()
    objective = goal if goal in KINDS else None
    return preset_model(name, kind, objective, labels, overrides, PublicSeeds(seed))


def size(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("name", "goal"), ALL)
def test_presets_but_mini_bert_stay_below_two_million_parameters(name: str, goal: str) -> None:
    model = model_of(name, goal)
    assert (size(model) < 2_000_000) == (name != "mini-bert")
    assert model.dtype == torch.float32
    assert model.config.vocab_size == len(preset_tokenizer(name, 64)) == PRESETS[name].vocabulary_size


def test_the_shapes_are_those_promised() -> None:
    tiny, mini = (model_of(name, "classification").config for name in ("tiny-bert", "mini-bert"))
    assert (tiny.num_hidden_layers, tiny.hidden_size, tiny.num_attention_heads, tiny.intermediate_size) == (
        2,
        128,
        2,
        512,
    )
    assert (mini.num_hidden_layers, mini.hidden_size, mini.num_attention_heads, mini.intermediate_size) == (
        4,
        384,
        6,
        1536,
    )
    assert tiny.hidden_dropout_prob == 0.1
    tagger = model_of("bilstm-crf", "tagging")
    assert (tagger.encoder.lstm.num_layers, tagger.encoder.lstm.hidden_size, tagger.encoder.lstm.bidirectional) == (
        1,
        100,
        True,
    )
    gpt2, t5 = model_of("tiny-gpt2", "causal").config, model_of("tiny-t5", "seq2seq").config
    assert (gpt2.n_layer, gpt2.n_embd, gpt2.n_head) == (2, 128, 2)
    assert (t5.num_layers, t5.num_decoder_layers, t5.d_model, t5.num_heads, t5.d_kv) == (2, 2, 128, 2, 64)


@pytest.mark.parametrize(
    ("name", "goal"),
    [("tiny-bert", "tagging"), ("tiny-gpt2", "causal"), ("tiny-t5", "seq2seq"), ("bilstm-crf", "tagging")],
)
def test_weights_come_from_the_public_seed_and_nothing_else(name: str, goal: str) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = model_of(name, goal).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    again, other = model_of(name, goal).state_dict(), model_of(name, goal, seed=2).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_labels_stand_in_the_configuration() -> None:
    config = model_of("tiny-bert", "classification").config
    assert config.id2label == {0: "yes", 1: "no", 2: "maybe"}
    assert config.label2id == {"yes": 0, "no": 1, "maybe": 2}
    assert config.num_labels == 3


def test_a_run_file_can_change_the_shape() -> None:
    model = model_of("tiny-bert", "tagging", layers=1, width=48, heads=3, vocabulary_size=300, max_length=700)
    config = model.config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (1, 48, 3)
    assert (config.vocab_size, config.max_position_embeddings, config.intermediate_size) == (300, 700, 192)
    assert preset_tokenizer("tiny-bert", 700, vocabulary_size=300).vocab_size == 300
    assert model_of("tiny-bert", "tagging", layers=None, max_length=32).config.max_position_embeddings == 512
    assert model_of("tiny-gpt2", "causal", width=64, max_length=600).config.n_positions == 600
    assert model_of("tiny-t5", "seq2seq", width=64, heads=4).config.d_kv == 16
    tagger = model_of("bilstm-crf", "tagging", layers=2, width=48, vocabulary_size=300)
    assert (tagger.encoder.lstm.num_layers, tagger.encoder.lstm.hidden_size) == (2, 24)
    assert tagger.encoder.words.weight.shape[0] == 300


def test_masked_models_follow_the_shape() -> None:
    model = model_of("tiny-bert", "masked", width=64, vocabulary_size=200)
    assert model(torch.ones(2, 3, dtype=torch.long)).logits.shape == (2, 3, 200)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_refusals_name_what_there_is() -> None:
    with pytest.raises(ModelError, match="'huge-bert': no such preset; there are tiny-bert"):
        preset_tokenizer("huge-bert", 32)
    with pytest.raises(ModelError, match="'tiny-gpt2' does not do classification: take tiny-bert or mini-bert"):
        model_of("tiny-gpt2", "classification")
    with pytest.raises(ModelError, match="does not do causal: take tiny-gpt2"):
        model_of("tiny-bert", "causal")
    with pytest.raises(ModelError, match="does not do causal: take tiny-gpt2"):
        preset_model("tiny-t5", "language_modeling", None, (), {}, PublicSeeds(1))
    with pytest.raises(ModelError, match=r"width = 100 is not a multiple of model.heads = 3"):
        model_of("tiny-bert", "tagging", width=100, heads=3)
    with pytest.raises(ModelError, match=r"model.heads = 2: bilstm-crf has no attention"):
        model_of("bilstm-crf", "tagging", heads=2)
    with pytest.raises(ModelError, match=r"model.width = 33: bilstm-crf halves it"):
        model_of("bilstm-crf", "tagging", width=33)
    with pytest.raises(ModelError, match="'bilstm-crf' does not do classification: take tiny-bert or mini-bert"):
        model_of("bilstm-crf", "classification")
    with pytest.raises(ModelError, match=r"model.depth: no such part"):
        model_of("tiny-bert", "tagging", depth=3)
    for make in (model_of, lambda name, goal, vocabulary_size: preset_tokenizer(name, 9, vocabulary_size=5000)):
        with pytest.raises(ModelError, match="fixed vocabulary of 4096"):
            make("tiny-gpt2", "causal", vocabulary_size=5000)


def test_a_language_model_takes_the_presets_own_objective() -> None:
    made = preset_model("tiny-bert", "language_modeling", None, (), {"layers": 1}, PublicSeeds(1))
    assert type(made).__name__ == "TrothBertForMaskedLM"
    made = preset_model("tiny-gpt2", "language_modeling", None, (), {"layers": 1}, PublicSeeds(1))
    assert type(made).__name__ == "GPT2LMHeadModel"


@given(st.text())
@example("<eos> <pad>\u0000\t\r\n  ﷽ e\u0301 \U0010ffff")
def test_the_byte_bpe_reads_back_every_text(text: str) -> None:
    ids = BYTES(text, add_special_tokens=False)["input_ids"]
    assert BYTES.decode(ids) == text
    assert BYTES.decode(ids, skip_special_tokens=True) == text


def test_the_byte_bpe_has_all_bytes_and_its_special_tokens_first() -> None:
    vocabulary = BYTES.get_vocab()
    assert len(BYTES) == 4096
    assert set(pre_tokenizers.ByteLevel.alphabet()) <= set(vocabulary)
    assert [BYTES.pad_token_id, BYTES.bos_token_id, BYTES.eos_token_id] == [0, 1, 2]


def test_special_tokens_around_a_text() -> None:
    t5 = preset_tokenizer("tiny-t5", 128)
    plain = BYTES("Good morrow", add_special_tokens=False)["input_ids"]
    assert BYTES("Good morrow")["input_ids"] == [1, *plain]
    assert t5("Good morrow")["input_ids"] == [*plain, 2]
    assert t5("<eos>")["input_ids"].count(2) == 1


@pytest.mark.parametrize(("name", "goal"), [("tiny-gpt2", "causal"), ("tiny-t5", "seq2seq")])
def test_stock_models_are_saved_loaded_and_write(name: str, goal: str, tmp_path: Path) -> None:
    model, tokenizer = model_of(name, goal).eval(), preset_tokenizer(name, 40)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    auto = AutoModelForCausalLM if goal == "causal" else AutoModelForSeq2SeqLM
    loaded, same = auto.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    text = "Speak, <eos> speak — ça va"
    assert same(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (same.model_max_length, same.pad_token_id) == (40, 0)
    batch = same(text, return_tensors="pt")
    ids = batch["input_ids"]
    written = loaded.generate(input_ids=ids, attention_mask=batch["attention_mask"], max_new_tokens=3, do_sample=False)
    assert written[0, 0] == (1 if goal == "causal" else 0)
    assert written.shape[1] <= (ids.shape[1] if goal == "causal" else 1) + 3


def test_a_hashed_preset_is_saved_with_its_tokenizer(tmp_path: Path) -> None:
    model_of("tiny-bert", "classification", layers=1).save_pretrained(tmp_path)
    preset_tokenizer("tiny-bert", 40).save_pretrained(tmp_path)
    assert isinstance(AutoTokenizer.from_pretrained(tmp_path), HashedTokenizer)


def test_tiny_bert_learns_which_words_matter() -> None:
    tokenizer, model = preset_tokenizer("tiny-bert", 32), model_of("tiny-bert", "classification")
    openings = ["please {} the lamp in room {}", "could you {} it at {}", "{} everything before {} o'clock"]
    texts = [line.format(verb, hour) for line in openings for verb in ("dim", "raise") for hour in range(3)]
    labels = torch.tensor([int("raise" in text) for text in texts])
    batch = dict(tokenizer(texts, padding=True, return_tensors="pt"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    torch.manual_seed(0)
    for _ in range(20):
        loss = F.cross_entropy(model(**batch).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    unseen = dict(tokenizer(["dim them now", "raise them now"], padding=True, return_tensors="pt"))
    assert model.eval()(**unseen).logits.argmax(dim=1).tolist() == [0, 1]


def maker() -> ModuleType:
    path = Path(__file__).parents[2] / "docs" / "make_byte_bpe.py"
    spec = importlib.util.spec_from_file_location("make_byte_bpe", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.real_data
def test_the_asset_is_what_its_maker_makes_of_its_public_source(real_data: Path) -> None:
    made = json.loads(maker().make((real_data / "tiny_shakespeare" / "input.txt").read_text(encoding="utf-8")).to_str())
    shipped = json.loads((files("troth.tasks") / "assets" / "byte_bpe_4096.json").read_text(encoding="utf-8"))
    assert shipped["model"]["merges"] == made["model"]["merges"]
    assert shipped["model"]["vocab"] == made["model"]["vocab"]
    assert shipped["added_tokens"] == made["added_tokens"]
