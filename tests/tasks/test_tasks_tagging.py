"""Tagging: spans and F1 against seqeval, words against first pieces, what the maximum length cuts."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import seqeval.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

from contracts.stock_checkpoints import bert_tokenizer, roberta_tokenizer
from contracts.task_tables import TABLES
from troth.data import Table, from_rows
from troth.seeds import PublicSeeds
from troth.tasks import Scores, Tagging
from troth.tasks.spans import spans

LABELS = ("B-ACT", "I-OBJ", "O")
WELL_FORMED_OR_NOT = ["O", "B-A", "I-A", "B-B", "I-B", "E-A", "S-B", "I-A-C", "B", "I", "E-", "X-A"]


def task(tokenizer: PreTrainedTokenizerFast | None = None, max_length: int = 32) -> Tagging:
    return Tagging(tokenizer or bert_tokenizer(), LABELS, max_length)


def model(seed: int = 0) -> BertForTokenClassification:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(bert_tokenizer()), num_labels=3, initializer_range=0.5, **shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BertForTokenClassification(config).eval()


def measured(made: Tagging, scores: Scores, table: Table) -> dict[str, float | None]:
    found = made.measure(scores, table, prefix="test", seeds=PublicSeeds(0), outside_guarantee=False)
    return {m.name: m.value for m in found}


@given(st.lists(st.sampled_from(WELL_FORMED_OR_NOT), max_size=9))
def test_spans_are_seqevals_malformed_tags_included(tags: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # seqeval warns of tags that are no BIO tags
        assert spans(tags) == set(get_entities(tags))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_span_f1_and_token_accuracy_are_seqevals(seed: int) -> None:
    table, made = TABLES["tagging"], task()
    scores = made.score(model(seed), table)
    gold, predicted = table.column("tags"), list(scores.detail["prediction"])
    found = measured(made, scores, table)
    assert found["test.span_f1"] == pytest.approx(seqeval.metrics.f1_score(gold, predicted, zero_division=0))
    assert found["test.token_accuracy"] == pytest.approx(seqeval.metrics.accuracy_score(gold, predicted))


def test_the_bootstrap_weights_whole_sentences() -> None:
    table, made = TABLES["tagging"], task()
    scores = made.score(model(), table)
    found = [set(get_entities(tags)) for tags in scores.detail["prediction"]]
    wanted = [set(get_entities(tags)) for tags in table.column("tags")]
    twice_right = np.array([2 * len(a & b) for a, b in zip(found, wanted, strict=True)])
    size = np.array([len(a) + len(b) for a, b in zip(found, wanted, strict=True)])
    rng = np.random.default_rng(0)
    lows, highs = [], []
    for _ in range(4000):
        weights, added = rng.exponential(size=len(table)), rng.exponential() * size[size > 0].mean()
        lows.append(weights @ twice_right / (weights @ size + added))
        highs.append((weights @ twice_right + added) / (weights @ size + added))
    f1 = made.measure(scores, table, prefix="test", seeds=PublicSeeds(0), outside_guarantee=False)[0]
    assert (f1.low, f1.high) == pytest.approx((np.quantile(lows, 0.025), np.quantile(highs, 0.975)), abs=0.03)


def test_a_word_is_tagged_at_its_first_piece() -> None:
    table = from_rows([{"tokens": ["play", "xyz", "now"], "tags": ["B-ACT", "I-OBJ", "O"]}], "row")
    made = task()
    encoded = made.encode(table)
    pieces = made.tokenizer.convert_ids_to_tokens(encoded.ragged["input_ids"].row(0).tolist())
    assert pieces == ["[CLS]", "play", "x", "##y", "##z", "now", "[SEP]"]
    assert encoded.ragged["labels"].row(0).tolist() == [-100, 0, 1, -100, -100, 2, -100]


def test_words_inside_a_sentence_are_read_with_the_space_before_them_where_the_tokenizer_wants_it() -> None:
    made = task(roberta_tokenizer())
    row = {"tokens": ["play", "jazz"], "tags": ["O", "O"]}
    ids = made.encode(from_rows([row], "row")).ragged["input_ids"].row(0).tolist()
    assert ids == made.tokenizer("play jazz")["input_ids"]


def test_the_loss_is_the_models_own_mean_over_words_of_one_row() -> None:
    made, network = task(), model()
    encoded = made.encode(TABLES["tagging"])
    for row in range(4):
        batch = made.collate(encoded, np.array([row]))
        own = network(**batch).loss
        assert made.per_example_loss(network, batch)[0].item() == pytest.approx(own.item(), rel=1e-5)


def test_words_beyond_the_maximum_length_are_predicted_outside_and_counted() -> None:
    table = from_rows([{"tokens": ["play"] * 12, "tags": ["B-ACT"] * 12}] * 10, "rows")
    made = task(max_length=8)  # room for six one-piece words
    encoded = made.encode(table)
    assert encoded.truncated == 10
    scores = made.score(model(), table)
    assert all(found[6:] == ["O"] * 6 for found in scores.detail["prediction"])
    f1 = made.measure(scores, table, prefix="test", seeds=PublicSeeds(0), outside_guarantee=False)[0]
    assert f1.protocol["words_cut"] == 60


def test_a_row_cut_inside_its_last_word_counts_as_cut() -> None:
    table = from_rows([{"tokens": ["play", "xyzxyz"], "tags": ["B-ACT", "O"]}], "row")
    encoded = task(max_length=6).encode(table)
    assert encoded.truncated == 1
    assert encoded.ragged["labels"].row(0).tolist() == [-100, 0, 2, -100, -100, -100]


def test_unseen_tags_are_wrong_counted_and_out_of_the_loss() -> None:
    rows = [{"tokens": ["play", "jazz"], "tags": ["B-NEW", "O"]}] * 11 + [{"tokens": ["it"], "tags": ["B-NEW"]}]
    table, made = from_rows(rows, "rows"), task()
    scores = made.score(model(), table)
    f1, accuracy, loss = made.measure(scores, table, prefix="test", seeds=PublicSeeds(0), outside_guarantee=False)
    assert f1.protocol["unseen_labels"] == 12
    assert f1.value == 0
    assert accuracy.value is not None
    assert accuracy.value <= 0.5
    assert np.isnan(scores.losses[-1])
    assert (loss.n, loss.protocol["rows_without_loss"]) == (11, 1)


def test_a_word_of_which_the_tokenizer_leaves_nothing_keeps_its_place() -> None:
    table = from_rows([{"tokens": ["play", "\u200b", "now"], "tags": ["B-ACT", "O", "I-OBJ"]}], "row")
    encoded = task().encode(table)
    assert encoded.ragged["labels"].row(0).tolist() == [-100, 0, 2, 1, -100]
    assert encoded.ragged["input_ids"].row(0)[2] == bert_tokenizer().unk_token_id
