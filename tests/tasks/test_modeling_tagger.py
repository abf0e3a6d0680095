"""The BiLSTM-CRF tagger: what private training and transformers rely on."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForTokenClassification, AutoTokenizer

from troth.tasks.characters import BYTE_ROWS, WORD_BYTES, byte_rows, word_row
from troth.tasks.crf import LinearChainCRF
from troth.tasks.hashed_tokenizer import HashedTokenizer
from troth.tasks.modeling_tagger import TrothTaggerConfig, TrothTaggerForTokenClassification, TrothTaggerModel

IDS = torch.tensor([[5, 9, 2, 7], [8, 12, 0, 0], [11, 0, 0, 0]])
MASK = (IDS != 0).long()
CHARACTERS = torch.tensor([[byte_rows("ab" * (1 + i % 3))[:7] for i in row] for row in IDS.tolist()]) * MASK[:, :, None]


def small(**more: object) -> TrothTaggerConfig:
    shape = {"vocab_size": 64, "word_size": 6, "character_size": 4, "character_filters": 5, "hidden_size": 8}
    return TrothTaggerConfig(**{**shape, "num_labels": 3, **more})


def made(**more: object) -> TrothTaggerForTokenClassification:
    """A model in eval mode and float64 with noise on every weight, so that nothing is 0 or 1 by chance."""
    torch.manual_seed(3)
    model = TrothTaggerForTokenClassification(small(**more)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def logits(model: nn.Module, rows: slice = slice(None), words: int = 4, length: int = 7) -> Tensor:
    return model(
        input_ids=IDS[rows, :words], attention_mask=MASK[rows, :words], characters=CHARACTERS[rows, :words, :length]
    ).logits


def test_every_parameter_belongs_to_a_leaf_that_is_called_once() -> None:
    model = made()
    calls: Counter[nn.Module] = Counter()
    owners = [m for m in model.modules() if list(m.parameters(recurse=False))]
    for module in owners:
        assert type(module) in (nn.Linear, nn.Embedding, nn.LayerNorm, nn.LSTM, nn.Conv1d, LinearChainCRF)
        module.register_forward_hook(lambda module, *_: calls.update([module]))
    tags = torch.where(MASK == 1, IDS % 3, -100)
    model(input_ids=IDS, attention_mask=MASK, characters=CHARACTERS, labels=tags).loss.backward()
    assert calls == Counter(owners)
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    assert not list(model.buffers())


def test_a_row_does_not_depend_on_its_batch_or_on_padding() -> None:
    model = made(num_hidden_layers=2)
    together = logits(model)
    for row, length in enumerate(MASK.sum(1).tolist()):
        alone = logits(model, slice(row, row + 1), length)
        torch.testing.assert_close(alone[0], together[row, :length], rtol=1e-12, atol=1e-12)
    wider = torch.nn.functional.pad(CHARACTERS, (0, 5))
    again = model(input_ids=IDS, attention_mask=MASK, characters=wider).logits
    torch.testing.assert_close(again, together, rtol=1e-12, atol=1e-12)


def test_noise_on_the_rows_of_padding_changes_nothing() -> None:
    """Private training adds noise to every row of a table, that of padding included."""
    model = made()
    before = logits(model)[MASK == 1]
    with torch.no_grad():
        model.encoder.characters.bytes.weight[0] += 100
        model.encoder.words.weight[0] += 100
    assert torch.equal(logits(model)[MASK == 1], before)


def test_words_are_told_apart_by_their_bytes_alone() -> None:
    model = made()
    other = CHARACTERS.clone()
    other[0, 0, 1] = 1 + ord("z")
    changed = model(input_ids=IDS, attention_mask=MASK, characters=other).logits
    assert (changed[0] - logits(model)[0]).abs().max() > 1e-3
    assert torch.equal(changed[1:], logits(model)[1:])


def test_the_loss_is_the_fields_per_tagged_word() -> None:
    model = made()
    tags = torch.where(MASK == 1, IDS % 3, -100)
    tags[0, 1] = -100
    scores, lengths = logits(model), MASK.sum(1)
    losses = model.losses(scores, tags, MASK)
    torch.testing.assert_close(losses, model.crf(scores, tags, lengths) / torch.tensor([3, 2, 1]))
    out = model(input_ids=IDS, attention_mask=MASK, characters=CHARACTERS, labels=tags)
    torch.testing.assert_close(out.loss, losses.mean())
    whole = model.losses(scores, IDS % 3)
    torch.testing.assert_close(whole, model.losses(scores, IDS % 3, torch.ones_like(MASK)))


def test_probabilities_and_decoding_are_the_fields() -> None:
    model = made()
    scores = logits(model)
    shares = model.log_probabilities(scores, MASK).exp()
    torch.testing.assert_close(shares[MASK == 1].sum(1), torch.ones(int(MASK.sum())).double())
    assert torch.equal(model.decode(scores, MASK), model.crf.decode(scores, MASK.sum(1)))
    assert torch.equal(model.decode(scores[:1]), model.decode(scores, MASK)[:1])


def test_fresh_weights_forget_gates_are_open_and_the_field_is_flat() -> None:
    torch.manual_seed(0)
    model = TrothTaggerForTokenClassification(TrothTaggerConfig(num_labels=5))
    lstm, half = model.encoder.lstm, model.config.hidden_size // 2
    for suffix in ("_l0", "_l0_reverse"):
        assert (lstm._parameters[f"bias_ih{suffix}"][half : 2 * half] == 1).all()
        assert lstm._parameters[f"bias_ih{suffix}"].sum() == half
        assert not lstm._parameters[f"bias_hh{suffix}"].any()
        states = lstm._parameters[f"weight_hh{suffix}"]
        torch.testing.assert_close(states.T @ states, torch.eye(half), atol=1e-5, rtol=0)
    assert not any(parameter.any() for parameter in model.crf.parameters())
    assert model.encoder.words.weight.std().item() == pytest.approx(model.config.initializer_range, rel=0.05)


def test_saved_and_loaded_by_the_auto_classes(tmp_path: Path) -> None:
    model = made().float()
    model.save_pretrained(tmp_path)
    HashedTokenizer(vocabulary_size=64).save_pretrained(tmp_path)
    assert {"config.json", "model.safetensors"} <= {path.name for path in tmp_path.iterdir()}
    loaded = AutoModelForTokenClassification.from_pretrained(tmp_path)
    assert type(loaded) is TrothTaggerForTokenClassification
    assert isinstance(AutoConfig.from_pretrained(tmp_path), TrothTaggerConfig)
    assert isinstance(AutoTokenizer.from_pretrained(tmp_path), HashedTokenizer)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())
    assert torch.equal(logits(loaded), logits(model))
    encoder = AutoModel.from_pretrained(tmp_path)
    assert type(encoder) is TrothTaggerModel
    assert torch.equal(encoder.lstm.weight_hh_l0, model.encoder.lstm.weight_hh_l0)


def test_made_without_memory_on_the_meta_device_and_copied() -> None:
    with torch.device("meta"):
        model = AutoModelForTokenClassification.from_config(small())
    assert all(parameter.is_meta for parameter in model.parameters())
    whole = made()
    assert torch.equal(logits(copy.deepcopy(whole)), logits(whole))


def test_dropout_only_in_training() -> None:
    model = made(hidden_dropout_prob=0.5)
    assert torch.equal(logits(model), logits(model))
    model.train()
    assert not torch.equal(logits(model), logits(model))


def test_embeddings_in_place_of_words() -> None:
    model = made()
    embedded = model.get_input_embeddings()(IDS)
    out = model(inputs_embeds=embedded, attention_mask=MASK, characters=CHARACTERS)
    assert torch.equal(out.logits, logits(model))
    table = nn.Embedding(64, 6, dtype=torch.float64)
    model.set_input_embeddings(table)
    assert model.encoder.words is table


def test_refusals() -> None:
    model = made()
    with pytest.raises(ValueError, match="wants characters"):
        model(input_ids=IDS, attention_mask=MASK)
    with pytest.raises(ValueError, match="one of input_ids and inputs_embeds"):
        model(characters=CHARACTERS)
    with pytest.raises(ValueError, match="hidden_size 7 is odd"):
        TrothTaggerModel(small(hidden_size=7))


def test_bytes_of_words() -> None:
    assert byte_rows("a\u00e9")[:4] == (98, 196, 170, 0)
    long = byte_rows("x" * 50)
    assert long == (ord("x") + 1,) * WORD_BYTES
    assert byte_rows("") == (0,) * WORD_BYTES
    assert max(byte_rows("\U0010ffff")) < BYTE_ROWS
    assert len(byte_rows("\ud800")) == WORD_BYTES


def test_rows_of_words() -> None:
    assert word_row("Play", 8192) == word_row("play", 8192) == HashedTokenizer()("play")["input_ids"][0]
    assert word_row("", 8192) == HashedTokenizer().unk_token_id
    assert word_row("[PAD]", 8192) >= 4
    assert {word_row(f"w{i}", 64) for i in range(600)} == set(range(4, 64))
