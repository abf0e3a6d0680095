"""Language modeling: losses against the model's own, perplexity, and masks that depend on nothing but the row."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from contracts.stock_checkpoints import bert_tokenizer, byte_tokenizer, roberta_tokenizer
from contracts.task_tables import TABLES
from troth.data import from_rows
from troth.errors import ModelError
from troth.seeds import PublicSeeds
from troth.tasks import CausalLanguageModeling, MaskedLanguageModeling, Ragged
from troth.tasks.masking import Masking, row_keys

TABLE = TABLES["language_modeling"]


@cache
def model() -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=257, n_positions=64, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0,
        initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPT2LMHeadModel(config).eval()


def causal(max_length: int = 64) -> CausalLanguageModeling:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    return CausalLanguageModeling(tokenizer, (), max_length)


def masked(seed: int = 0) -> MaskedLanguageModeling:
    return MaskedLanguageModeling(roberta_tokenizer(), (), 62, seed=seed)


def test_the_causal_loss_is_the_models_own_mean_over_one_row() -> None:
    made = causal()
    encoded = made.encode(TABLE)
    for row in range(4):
        batch = made.collate(encoded, np.array([row]))
        assert made.per_example_loss(model(), batch)[0].item() == pytest.approx(model()(**batch).loss.item(), rel=1e-5)


def test_the_end_is_predicted_though_its_token_is_the_padding_token() -> None:
    made = causal()
    batch = made.collate(made.encode(from_rows([{"text": "it"}, {"text": "play jazz"}], "texts")), np.arange(2))
    end = made.tokenizer.eos_token_id
    assert made.tokenizer.pad_token_id == end
    assert batch["labels"][0].tolist() == [end, *made.tokenizer("it")["input_ids"], end] + [-100] * 7
    assert batch["labels"][1, -1] == end


def test_a_text_that_is_cut_has_no_end() -> None:
    encoded = causal(max_length=8).encode(from_rows([{"text": "play some jazz"}, {"text": "it"}], "texts"))
    assert encoded.truncated == 1
    assert encoded.ragged["input_ids"].lengths.tolist() == [8, 4]
    assert encoded.ragged["input_ids"].row(0)[-1] != 0


def test_perplexity_is_the_exponential_of_mean_token_nats() -> None:
    made = causal()
    scores = made.score(model(), TABLE)
    perplexity, accuracy, loss = made.measure(
        scores, TABLE, prefix="test", seeds=PublicSeeds(0), outside_guarantee=False
    )
    tokens = np.array([len(made.tokenizer(text)["input_ids"]) + 1 for text in TABLE.column("text")])
    np.testing.assert_array_equal(scores.detail["tokens"], tokens)
    assert perplexity.value == pytest.approx(np.exp((scores.losses * tokens).sum() / tokens.sum()))
    assert perplexity.protocol["tokens"] == tokens.sum()
    assert (perplexity.direction, loss.direction, accuracy.direction) == ("lower", "lower", "higher")
    assert loss.value == pytest.approx(scores.losses.mean())
    assert accuracy.value == pytest.approx((scores.correct * tokens).sum() / tokens.sum())


def test_scoring_in_small_batches_of_a_large_vocabulary_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = causal()
    whole = made.score(model(), TABLE)
    monkeypatch.setattr("troth.tasks.language_modeling._LOGITS_AT_ONCE", 1)
    np.testing.assert_allclose(made.score(model(), TABLE).losses, whole.losses, rtol=1e-5)


def test_masked_perplexity_is_called_what_it_is() -> None:
    from transformers import RobertaConfig, RobertaForMaskedLM

    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    network = RobertaForMaskedLM(RobertaConfig(vocab_size=261, pad_token_id=1, **shape))
    scores = masked().score(network, TABLE)
    perplexity = masked().measure(scores, TABLE, prefix="test", seeds=PublicSeeds(0), outside_guarantee=False)[0]
    assert "pseudo-perplexity" in str(perplexity.protocol["definition"])
    assert perplexity.protocol["predicts"] == "masked tokens, from all others"


# masks


def test_masks_are_a_pure_function_of_row_seed_and_draw() -> None:
    made = masked()
    encoded = made.encode(TABLE)
    rows = np.array([3, 1, 7])
    first, again = made.collate(encoded, rows, draw=5), made.collate(encoded, rows, draw=5)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["labels"], made.collate(encoded, rows, draw=6)["labels"])
    reseeded = masked(seed=1)
    assert not torch.equal(first["labels"], reseeded.collate(reseeded.encode(TABLE), rows, draw=5)["labels"])


def test_adding_a_row_changes_no_other_rows_mask() -> None:
    """The sensitivity bound of add/remove neighbours wants it: a mask may not depend on a row's number."""
    made = masked()
    new = from_rows([{"text": "a new row"}, *({"text": text} for text in TABLE.column("text"))], "texts")
    before, after = made.encode(TABLE), made.encode(new)
    for row in range(len(TABLE)):
        old_batch = made.collate(before, np.array([row]), draw=2)
        new_batch = made.collate(after, np.array([row + 1]), draw=2)
        assert all(torch.equal(old_batch[name], new_batch[name]) for name in old_batch)


def test_a_rows_mask_is_the_same_alone_and_in_a_batch() -> None:
    made = masked()
    encoded = made.encode(TABLE)
    batch = made.collate(encoded, np.arange(8))
    for row in range(8):
        alone = made.collate(encoded, np.array([row]))
        width = alone["labels"].shape[1]
        assert torch.equal(batch["labels"][row, :width], alone["labels"][0])
        assert torch.equal(batch["input_ids"][row, :width], alone["input_ids"][0])
        assert (batch["labels"][row, width:] == -100).all()


@given(st.lists(st.integers(3, 60), min_size=1, max_size=5), st.integers(0, 2**62))
def test_fifteen_percent_at_least_one_and_never_a_special_token(lengths: list[int], draw: int) -> None:
    masking = Masking(4, np.arange(10, 90), 1, 1)
    ids = Ragged.from_rows([list(range(10, 10 + n)) for n in lengths])
    padded = ids.pad(np.arange(len(lengths)), 1)
    masked_ids, labels = masking(padded, ids.lengths, row_keys(ids, 0), draw)
    chosen = labels != -100
    for row, n in enumerate(lengths):
        assert chosen[row].sum() == max(1, round(0.15 * (n - 2)))
        assert not chosen[row, 0]
        assert not chosen[row, n - 1 :].any()
    np.testing.assert_array_equal(labels[chosen], padded[chosen])
    np.testing.assert_array_equal(masked_ids[~chosen], padded[~chosen])


def test_eight_of_ten_are_masked_one_is_random_and_one_stays() -> None:
    """20,000 rows of one length: shares within five standard errors (false alarms below one in a million)."""
    masking = Masking(4, np.arange(10, 1010), 1, 1)
    ids = np.full((20_000, 22), 7)
    keys = np.random.default_rng(0).integers(0, 2**62, 20_000)
    masked_ids, labels = masking(ids, np.full(20_000, 22), keys, 0)
    chosen = labels != -100
    total = chosen.sum()
    assert total == 3 * 20_000
    for share, found in [(0.8, masked_ids == 4), (0.1, (masked_ids != 4) & (masked_ids != 7)), (0.1, masked_ids == 7)]:
        assert abs((found & chosen).sum() / total - share) < 5 * np.sqrt(share * (1 - share) / total)
    places = chosen.sum(axis=0)[1:21] / total
    assert abs(places - 1 / 20).max() < 5 * np.sqrt(1 / 20 / total)
    replaced = masked_ids[chosen & (masked_ids != 4) & (masked_ids != 7)]
    assert 10 <= replaced.min() < 15
    assert 1005 < replaced.max() < 1010
    assert abs(replaced.mean() - 509.5) < 5 * 1000 / np.sqrt(12 * len(replaced))


def test_consecutive_draws_of_a_row_are_unrelated() -> None:
    masking = Masking(4, np.arange(10, 90), 0, 0)
    ids, keys = np.full((1, 20), 7), np.array([1])
    counts = np.zeros(20)
    for draw in range(3000):
        counts += masking(ids, np.array([20]), keys, draw)[1][0] != -100
    assert abs(counts / 3000 - 0.15).max() < 5 * np.sqrt(0.15 * 0.85 / 3000)


def test_equal_texts_have_equal_keys_and_others_do_not() -> None:
    keys = row_keys(Ragged.from_rows([[1, 2], [3], [1, 2], [2, 1]]), 9)
    assert keys[0] == keys[2]
    assert len(set(keys.tolist())) == 3


def test_a_tokenizer_without_a_mask_token_is_refused() -> None:
    tokenizer = bert_tokenizer()
    tokenizer.mask_token = None
    made = MaskedLanguageModeling(tokenizer, (), 32)
    with pytest.raises(ModelError, match="mask token"):
        made.collate(made.encode(TABLE), np.arange(2))
