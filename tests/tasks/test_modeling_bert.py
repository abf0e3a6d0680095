"""The bert presets' encoder: what private training and transformers rely on."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from troth.tasks.modeling_bert import (
    TrothBertConfig,
    TrothBertForMaskedLM,
    TrothBertForQuestionAnswering,
    TrothBertForSequenceClassification,
    TrothBertForTokenClassification,
    TrothBertModel,
    TrothBertPreTrainedModel,
    segment_ids,
)

HEADS = {
    TrothBertForSequenceClassification: AutoModelForSequenceClassification,
    TrothBertForTokenClassification: AutoModelForTokenClassification,
    TrothBertForQuestionAnswering: AutoModelForQuestionAnswering,
    TrothBertForMaskedLM: AutoModelForMaskedLM,
    TrothBertModel: AutoModel,
}
IDS = torch.tensor([[5, 9, 2, 7, 9, 0, 0], [8, 2, 6, 4, 11, 5, 8], [12, 0, 0, 0, 0, 0, 0]])
MASK = (IDS != 0).long()
every_head = pytest.mark.parametrize("head", list(HEADS), ids=lambda head: head.__name__)


def small(**more: object) -> TrothBertConfig:
    shape = {
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 32,
        "head_width": 12,
        "max_position_embeddings": 8,
    }
    return TrothBertConfig(**{**shape, "type_vocab_size": 3, "num_labels": 3, **more})


def made(head: type[TrothBertPreTrainedModel], **more: object) -> TrothBertPreTrainedModel:
    """A model in eval mode and float64 with noise on every weight, so that nothing is 0 or 1 by chance."""
    torch.manual_seed(3)
    model = head(small(**more)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def outputs(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> list[Tensor]:
    out = model(input_ids=ids, attention_mask=mask)
    names = ("logits", "start_logits", "end_logits", "last_hidden_state")
    return [out[name] for name in names if name in out]


@every_head
def test_every_parameter_belongs_to_a_leaf_that_is_called_once(head: type[TrothBertPreTrainedModel]) -> None:
    model = made(head)
    calls: Counter[nn.Module] = Counter()
    owners = [m for m in model.modules() if list(m.parameters(recurse=False))]
    for module in owners:
        assert type(module) in (nn.Linear, nn.Embedding, nn.LayerNorm)
        module.register_forward_hook(lambda module, *_: calls.update([module]))
    total = sum(output.sum() for output in outputs(model, IDS, MASK))
    assert calls == Counter(owners)
    total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not list(model.buffers())


@every_head
def test_a_row_does_not_depend_on_its_batch_or_on_padding(head: type[TrothBertPreTrainedModel]) -> None:
    model = made(head)
    together = outputs(model, IDS, MASK)
    for row, length in enumerate(MASK.sum(dim=1).tolist()):
        alone = outputs(model, IDS[row : row + 1, :length], MASK[row : row + 1, :length])
        for one, all_rows in zip(alone, together, strict=True):
            torch.testing.assert_close(one[0], all_rows[row, : one.shape[1]], rtol=1e-12, atol=1e-12)


def test_a_layer_is_torchs_own_pre_norm_layer() -> None:
    model = made(TrothBertModel)
    layer = model.layers[0]
    theirs = nn.TransformerEncoderLayer(
        16,
        2,
        dim_feedforward=32,
        activation="gelu",
        norm_first=True,
        batch_first=True,
        dropout=0.0,
        dtype=torch.float64,
    ).eval()
    with torch.no_grad():
        parts = (layer.query, layer.key, layer.value)
        theirs.self_attn.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.self_attn.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        pairs = [
            (theirs.self_attn.out_proj, layer.output),
            (theirs.linear1, layer.expand),
            (theirs.linear2, layer.contract),
        ]
        pairs += [(theirs.norm1, layer.attention_norm), (theirs.norm2, layer.feed_forward_norm)]
        for copied, own in pairs:
            copied.load_state_dict(own.state_dict())
    hidden = torch.randn(3, 7, 16, dtype=torch.float64)
    found = layer(hidden, MASK[:, None, None, :].bool())
    wanted = theirs(hidden, src_key_padding_mask=MASK == 0)
    torch.testing.assert_close(found[MASK == 1], wanted[MASK == 1], rtol=1e-10, atol=1e-10)


def test_classification_norms_the_mean_over_real_tokens() -> None:
    model = made(TrothBertForSequenceClassification)
    out = model(input_ids=IDS, attention_mask=MASK, output_hidden_states=True)
    last = out.hidden_states[-1]
    means = torch.stack([last[row, : int(MASK[row].sum())].mean(dim=0) for row in range(3)])
    torch.testing.assert_close(out.logits, model.classifier(model.encoder.norm(means)))
    assert len(out.hidden_states) == 3
    bare = model(input_ids=IDS[1:2])
    torch.testing.assert_close(bare.logits[0], out.logits[1])
    assert bare.hidden_states is None


def test_a_row_of_padding_only_is_finite() -> None:
    model = made(TrothBertForSequenceClassification)
    logits = model(
        input_ids=torch.zeros(2, 4, dtype=torch.long), attention_mask=torch.tensor([[0] * 4, [1] * 4])
    ).logits
    assert torch.isfinite(logits).all()


def test_fresh_weights_are_small_and_the_classifier_is_zero() -> None:
    torch.manual_seed(0)
    model = TrothBertForSequenceClassification(TrothBertConfig(num_labels=5))
    for name, parameter in model.named_parameters():
        if name.startswith("classifier") or name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05), name


def test_segments() -> None:
    ids = torch.tensor([[7, 8, 2, 9, 8, 0], [7, 8, 9, 7, 0, 0], [2, 7, 2, 7, 9, 9]])
    assert segment_ids(ids, separator=2).tolist() == [[0, 0, 1, 1, 2, 1], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]]


def test_segments_are_found_or_given() -> None:
    model = made(TrothBertForQuestionAnswering)
    found = model(input_ids=IDS, attention_mask=MASK).start_logits
    given = model(input_ids=IDS, attention_mask=MASK, token_type_ids=segment_ids(IDS, 2)).start_logits
    assert torch.equal(found, given)
    other = model(input_ids=IDS, attention_mask=MASK, token_type_ids=torch.zeros_like(IDS)).start_logits
    assert not torch.allclose(found, other)
    embedded = model.get_input_embeddings()(IDS)
    again = model(inputs_embeds=embedded, attention_mask=MASK, token_type_ids=segment_ids(IDS, 2)).start_logits
    assert torch.equal(found, again)
    with pytest.raises(ValueError, match="token_type_ids"):
        model(inputs_embeds=embedded)


def test_losses_are_those_of_the_logits() -> None:
    labels = torch.tensor([2, 0, 1])
    out = made(TrothBertForSequenceClassification)(input_ids=IDS, attention_mask=MASK, labels=labels)
    assert torch.equal(out.loss, F.cross_entropy(out.logits, labels))
    tags = torch.where(MASK == 1, IDS % 3, -100)
    out = made(TrothBertForTokenClassification)(input_ids=IDS, attention_mask=MASK, labels=tags)
    torch.testing.assert_close(out.loss, F.cross_entropy(out.logits[MASK == 1], tags[MASK == 1]))
    out = made(TrothBertForMaskedLM)(input_ids=IDS, attention_mask=MASK, labels=torch.where(MASK == 1, IDS, -100))
    torch.testing.assert_close(out.loss, F.cross_entropy(out.logits[MASK == 1], IDS[MASK == 1]))
    ends = torch.tensor([3, 4, 0])
    out = made(TrothBertForQuestionAnswering)(IDS, MASK, start_positions=ends, end_positions=ends)
    wanted = (F.cross_entropy(out.start_logits, ends) + F.cross_entropy(out.end_logits, ends)) / 2
    assert torch.equal(out.loss, wanted)


@every_head
def test_saved_and_loaded_by_the_auto_class(head: type[TrothBertPreTrainedModel], tmp_path: Path) -> None:
    model = made(head).float()
    model.save_pretrained(tmp_path)
    assert {"config.json", "model.safetensors"} == {path.name for path in tmp_path.iterdir()}
    loaded = HEADS[head].from_pretrained(tmp_path)
    assert type(loaded) is head
    assert isinstance(AutoConfig.from_pretrained(tmp_path), TrothBertConfig)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    for one, other in zip(outputs(model, IDS, MASK), outputs(loaded, IDS, MASK), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("head", [h for h in HEADS if h is not TrothBertForMaskedLM], ids=lambda head: head.__name__)
def test_an_encoder_moves_whole_to_another_head(head: type[TrothBertPreTrainedModel], tmp_path: Path) -> None:
    pretrained = made(TrothBertForMaskedLM).float()
    pretrained.save_pretrained(tmp_path)
    back = tmp_path / "back"
    moved = HEADS[head].from_pretrained(tmp_path)
    moved.save_pretrained(back)
    returned = AutoModelForMaskedLM.from_pretrained(back)
    for name, value in pretrained.encoder.state_dict().items():
        assert torch.equal(moved.base_model.state_dict()[name], value), name
        assert torch.equal(returned.encoder.state_dict()[name], value), name


def test_a_tied_head_shares_the_token_table(tmp_path: Path) -> None:
    model = made(TrothBertForMaskedLM, tie_word_embeddings=True, head_width=16).float()
    assert model.decoder.weight is model.encoder.embeddings.tokens.weight
    model.save_pretrained(tmp_path)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert loaded.decoder.weight is loaded.encoder.embeddings.tokens.weight
    assert torch.equal(loaded.decoder.weight, model.decoder.weight)
    with pytest.raises(ValueError, match="head_width"):
        TrothBertForMaskedLM(small(tie_word_embeddings=True))


def test_made_without_memory_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = AutoModelForTokenClassification.from_config(small())
    assert all(parameter.is_meta for parameter in model.parameters())


def test_dropout_only_in_training() -> None:
    model = made(TrothBertForSequenceClassification)
    assert torch.equal(model(IDS, MASK).logits, model(IDS, MASK).logits)
    model.train()
    assert not torch.equal(model(IDS, MASK).logits, model(IDS, MASK).logits)


def test_the_token_table_can_be_replaced() -> None:
    model = made(TrothBertForMaskedLM)
    table = nn.Embedding(64, 16, dtype=torch.float64)
    model.set_input_embeddings(table)
    assert model.get_input_embeddings() is table
    head = copy.deepcopy(model.get_output_embeddings())
    model.set_output_embeddings(head)
    assert model.get_output_embeddings() is head


def test_refusals() -> None:
    model = made(TrothBertModel)
    with pytest.raises(ValueError, match="9 tokens and the model 8 positions"):
        model(torch.ones(1, 9, dtype=torch.long))
    with pytest.raises(ValueError, match="both missing"):
        model()
    with pytest.raises(ValueError, match="multiple"):
        TrothBertModel(small(num_attention_heads=3))
