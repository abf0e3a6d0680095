"""The real packaged models, where the user has them: they load from local files only and mean what they should."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.real_model
Packaged = Callable[[str], Path]


def test_minilm_knows_what_means_the_same(packaged: Packaged) -> None:
    folder = packaged("minilm")
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    model, info = AutoModel.from_pretrained(str(folder), local_files_only=True, output_loading_info=True)
    assert not info["missing_keys"] and tokenizer("hello world").input_ids == [101, 7592, 2088, 102]
    texts = ["A man is eating food.", "Someone eats a meal.", "The stock market fell today."]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    mask = batch.attention_mask[..., None]
    vectors = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    similar, *others = (vectors @ vectors.T)[torch.triu_indices(3, 3, 1).unbind()].tolist()
    assert similar == pytest.approx(0.76, abs=0.02) and max(others) < 0.1


def test_bert_tiny_is_a_masked_language_model(packaged: Packaged) -> None:
    folder = packaged("bert-tiny")
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    model, info = AutoModelForMaskedLM.from_pretrained(str(folder), local_files_only=True, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and model.num_parameters() == 4_416_698
    batch = tokenizer("the capital of france is [MASK].", return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits[0]
    topics = tokenizer.convert_ids_to_tokens(logits.amax(0).topk(8).indices.tolist())
    assert {"capital", "france", "french", "city"} <= set(topics)
    assert not (folder / "heads.pt").exists()


@pytest.mark.parametrize("name", ["minilm", "bert-tiny"])
def test_a_checkpoint_is_one_of_a_run_file(packaged: Packaged, name: str) -> None:
    folder = packaged(name)
    from troth.config import parse
    from troth.data import from_rows
    from troth.seeds import PublicSeeds
    from troth.tasks import make_model, make_task

    rows = [{"text": text, "label": label} for text, label in (("hi there", "a"), ("go home", "b")) * 4]
    raw = {
        "run": {"name": "x"},
        "model": {"checkpoint": str(folder)},
        "data": {"train": "t.jsonl"},
        "task": {"kind": "classification"},
    }
    table = from_rows(rows, "t")
    task = make_task(parse(raw), table, folder)
    model = make_model(parse(raw), task, PublicSeeds(0), folder)
    batch = task.collate(task.encode(table), np.arange(4))
    losses = task.per_example_loss(model, batch)
    losses.sum().backward()
    assert losses.shape == (4,) and all(p.grad is not None for n, p in model.named_parameters() if "layer.0" in n)


def test_smollm2_speaks(packaged: Packaged) -> None:
    folder = packaged("smollm2")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(str(folder), local_files_only=True, dtype=torch.float32)
    assert model.num_parameters() == 134_515_008 and tokenizer.model_max_length == 8192

    def perplexity(text: str) -> float:
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            return float(model(ids, labels=ids).loss.exp())

    fluent = "The weather was so nice today that we decided to have a picnic in the park."
    shuffled = " ".join(sorted(fluent.split(), key=lambda word: word[::-1]))
    assert perplexity(fluent) < 30 < 500 < perplexity(shuffled)


def test_glove_has_its_analogy(packaged: Packaged) -> None:
    folder = packaged("glove")
    vectors = np.load(folder / "vectors.npy", allow_pickle=False)
    words = (folder / "words.txt").read_text("utf-8").split("\n")[:-1]
    assert vectors.shape == (400_000, 50) and vectors.dtype == np.float32 and len(set(words)) == 400_000
    row = {word: index for index, word in enumerate(words)}
    wanted = vectors[row["king"]] - vectors[row["man"]] + vectors[row["woman"]]
    scores = vectors @ wanted / np.linalg.norm(vectors, axis=1)
    nearest = [words[i] for i in np.argsort(-scores)[:4]]
    assert "queen" in nearest


def test_chitchat_has_its_people(packaged: Packaged) -> None:
    folder = packaged("chitchat")
    with (folder / "chitchat.jsonl").open(encoding="ascii") as file:
        rows = [json.loads(line) for line in file]
    by_user = Counter(row["user"] for row in rows)
    assert len(rows) == 258_112 == len({row["id"] for row in rows}) and max(row["id"] for row in rows) == 258_144
    assert len(by_user) == 1_315 and sum(count >= 50 for count in by_user.values()) == 399
    assert len({row["conversation"] for row in rows}) == 7_168 and all(row["text"].strip() for row in rows)
    times = [row["time"] for row in rows]
    assert times == sorted(times) and {len(time) for time in times} == {19}
