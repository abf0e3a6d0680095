"""Seq2seq: ROUGE-L against rouge-score, teacher forcing against the model's own loss, greedy output."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from transformers import GenerationConfig, T5Config, T5ForConditionalGeneration

from contracts.stock_checkpoints import bert_tokenizer, byte_tokenizer, save_bert, save_t5
from contracts.task_tables import TABLES
from troth.config import parse
from troth.data import from_rows
from troth.errors import ModelError
from troth.seeds import PublicSeeds
from troth.tasks import Seq2Seq, make_task
from troth.tasks.rouge import longest_common_subsequence, rouge_l

WORDS = st.lists(st.sampled_from(["the", "Cat", "sat.", "on-mat", "7", "été", "…", "  "]), max_size=12)


@cache
def model() -> T5ForConditionalGeneration:
    config = T5Config(
        vocab_size=len(byte_tokenizer(t5=True)),
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
        initializer_factor=3.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return T5ForConditionalGeneration(config).eval()


def task(max_length: int = 24) -> Seq2Seq:
    return Seq2Seq(byte_tokenizer(t5=True), (), max_length)


@given(WORDS, WORDS)
def test_rouge_l_is_that_of_rouge_score_without_stemming(found: list[str], wanted: list[str]) -> None:
    prediction, reference = " ".join(found), " ".join(wanted)
    expected = RougeScorer(["rougeL"], use_stemmer=False).score(reference, prediction)["rougeL"].fmeasure
    assert rouge_l(prediction, reference) == pytest.approx(expected)


@given(st.lists(st.sampled_from("abcd"), max_size=80), st.lists(st.sampled_from("abcd"), max_size=80))
def test_the_common_subsequence_is_that_of_the_table(first: list[str], second: list[str]) -> None:
    table = np.zeros((len(first) + 1, len(second) + 1), dtype=int)
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            table[i + 1, j + 1] = table[i, j] + 1 if a == b else max(table[i, j + 1], table[i + 1, j])
    assert longest_common_subsequence(first, second) == table[-1, -1]


def test_the_loss_is_the_models_own_mean_over_the_target_of_one_row() -> None:
    made = task()
    encoded = made.encode(TABLES["seq2seq"])
    for row in range(4):
        batch = made.collate(encoded, np.array([row]))
        own = model()(**batch).loss
        assert made.per_example_loss(model(), batch)[0].item() == pytest.approx(own.item(), rel=1e-5)


def test_a_target_ends_unless_it_is_cut() -> None:
    table = from_rows([{"source": "on", "target": "off"}, {"source": "on", "target": "x" * 40}], "pairs")
    encoded = task().encode(table)
    end = byte_tokenizer(t5=True).eos_token_id
    assert encoded.ragged["labels"].row(0)[-1] == end
    assert end not in encoded.ragged["labels"].row(1)
    assert encoded.ragged["labels"].lengths.tolist() == [4, 24]
    assert encoded.truncated == 1


def test_output_is_greedy_and_that_of_the_row_alone() -> None:
    made, table = task(), TABLES["seq2seq"]
    written = made.score(model(), table).detail["prediction"]
    greedy = GenerationConfig(max_new_tokens=24, do_sample=False, num_beams=1)
    for row in range(6):
        ids = torch.tensor([made.tokenizer(table.column("source")[row])["input_ids"]])
        alone = model().generate(ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
        assert written[row] == made.tokenizer.decode(alone[0], skip_special_tokens=True)
    assert len(set(written)) > 1


def test_exact_match_and_rouge_l_are_means_over_rows() -> None:
    made = task()
    sources = from_rows([{"source": text} for text in TABLES["seq2seq"].column("source")], "sources")
    written = made.score(model(), sources).detail["prediction"]
    targets = [f"  {text} " if row % 3 == 0 else "turn it off" for row, text in enumerate(written)]
    rows = [{"source": s, "target": t} for s, t in zip(sources.column("source"), targets, strict=True)]
    table = from_rows(rows, "pairs")
    scores = made.score(model(), table)
    assert scores.correct.tolist() == [float(row % 3 == 0) for row in range(24)]
    rouge, exact, _ = made.measure(scores, table, prefix="test", seeds=PublicSeeds(0), outside_guarantee=False)
    assert exact.value == pytest.approx(8 / 24)
    assert exact.interval_method == "clopper-pearson"
    assert rouge.value == pytest.approx(np.mean([rouge_l(a, b) for a, b in zip(written, targets, strict=True)]))


def test_a_model_without_a_decoder_is_refused(tmp_path: Path) -> None:
    raw = {
        "run": {"name": "x"},
        "model": {"checkpoint": str(save_bert(tmp_path / "bert"))},
        "data": {"train": "rows"},
        "task": {"kind": "seq2seq"},
    }
    config = parse(raw)
    with pytest.raises(ModelError, match="bert models do no seq2seq"):
        make_task(config, TABLES["seq2seq"], tmp_path)


def test_a_model_without_a_start_token_is_refused(tmp_path: Path) -> None:
    made = task()
    network = T5ForConditionalGeneration.from_pretrained(save_t5(tmp_path / "t5"))
    network.generation_config.decoder_start_token_id = None
    batch = made.collate(made.encode(TABLES["seq2seq"]), np.arange(2))
    with pytest.raises(ModelError, match="decoder_start_token_id"):
        made.per_example_loss(network, batch)


def test_a_tokenizer_without_an_end_is_refused() -> None:
    tokenizer = bert_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    with pytest.raises(ModelError, match="end-of-text"):
        Seq2Seq(tokenizer, (), 24).encode(TABLES["seq2seq"])
