"""Models for the oracle: enlarged initialisation, so that every layer holds a visible share of the gradient's norm."""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers as hf
from dp_oracle import Batch, Case, enlarge
from torch import Tensor, nn
from torch.nn import functional as F

ROWS, TOKENS, VOCABULARY = 5, 7, 50
RANGE = 0.4


def _text(generator: torch.Generator, *, vocabulary: int = VOCABULARY, tokens: int = TOKENS, pad: int = 0) -> Batch:
    """Token ids with repeats, lengths from 2 to `tokens`, the rest padding."""
    ids = torch.randint(4, vocabulary, (ROWS, tokens), generator=generator)
    ids[:, 1] = ids[:, 0]
    lengths = torch.randint(2, tokens + 1, (ROWS,), generator=generator)
    mask = torch.arange(tokens) < lengths[:, None]
    return {"input_ids": ids.where(mask, pad), "attention_mask": mask.long()}


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    return F.cross_entropy(model(**inputs).logits, batch["labels"], reduction="none")


def token_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean loss over each example's own labelled tokens; -100 is ignored."""
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    logits = model(**inputs).logits
    labels = batch["labels"]
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none")
    counted = labels != -100
    return losses.view(labels.shape).sum(1) / counted.sum(1).clamp(min=1)


def span_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean of the losses of start and end, each over the example's own tokens."""
    inputs = {k: v for k, v in batch.items() if k not in ("start", "end")}
    out = model(**inputs)
    padding = batch["attention_mask"] == 0
    start, end = (logits.masked_fill(padding, -1e4) for logits in (out.start_logits, out.end_logits))
    losses = [F.cross_entropy(x, batch[k], reduction="none") for x, k in ((start, "start"), (end, "end"))]
    return (losses[0] + losses[1]) / 2


def _generator() -> torch.Generator:
    torch.manual_seed(11)
    return torch.Generator().manual_seed(7)


def _classify(model: nn.Module, **text: int) -> Case:
    generator = _generator()
    batch = _text(generator, **text)
    batch["labels"] = torch.randint(3, (ROWS,), generator=generator)
    return Case(enlarge(model).eval(), batch, cross_entropy)


def _tag(model: nn.Module, labels: int, **text: int) -> Case:
    generator = _generator()
    batch = _text(generator, **text)
    tags = torch.randint(labels, batch["input_ids"].shape, generator=generator)
    batch["labels"] = tags.where(
        (batch["attention_mask"] == 1) & (torch.rand(tags.shape, generator=generator) > 0.3), -100
    )
    return Case(enlarge(model).eval(), batch, token_loss)


def _answer(model: nn.Module, **text: int) -> Case:
    generator = _generator()
    batch = _text(generator, **text)
    lengths = batch["attention_mask"].sum(1)
    for name in ("start", "end"):
        batch[name] = (torch.rand(ROWS, generator=generator) * lengths).long()
    return Case(enlarge(model).eval(), batch, span_loss)


def _write(model: nn.Module, *, start: int = 0, pad: int = 0) -> Case:
    """Text to text: targets of four tokens, one of them shorter."""
    generator = _generator()
    batch = _text(generator, pad=pad)
    labels = torch.randint(4, VOCABULARY, (ROWS, 4), generator=generator)
    labels[1, 2:] = -100
    before = torch.full((ROWS, 1), start)
    batch["decoder_input_ids"] = torch.cat([before, labels[:, :-1].where(labels[:, :-1] != -100, pad)], 1)
    batch["labels"] = labels
    return Case(enlarge(model).eval(), batch, token_loss)


def mlp() -> Case:
    _generator()
    model = nn.Sequential(
        nn.Linear(6, 9), nn.GELU(), nn.LayerNorm(9), nn.Linear(9, 9, bias=False), nn.Tanh(), nn.Linear(9, 3)
    )
    x = torch.randn(ROWS, 6)
    y = torch.randint(3, (ROWS,))
    return Case(enlarge(model), {"x": x, "y": y}, lambda m, b: F.cross_entropy(m(b["x"]), b["y"], reduction="none"))


class Bag(nn.Module):
    """One table looked up twice, with padding ids in the middle: only the table itself takes their gradient away."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, 5, padding_idx=0)
        self.head = nn.Linear(5, 2)

    def forward(self, ids: Tensor) -> Tensor:
        x = torch.tanh(self.table(ids)) + self.table(ids.flip(1))
        return self.head(x).square().sum((1, 2))


def bag(tokens: int = TOKENS) -> Case:
    generator = _generator()
    model = Bag()
    ids = torch.randint(VOCABULARY // 4, (ROWS, tokens), generator=generator)
    ids[:, 2] = 0
    return Case(model, {"ids": ids}, lambda m, b: m(b["ids"]))


class PreNorm(nn.Module):
    """A pre-LayerNorm transformer of our own; its two layers may share their weights."""

    def __init__(self, width: int = 8, *, shared: bool = False) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, width, padding_idx=0)
        self.positions = nn.Embedding(TOKENS, width)
        layers = [self._layer(width) for _ in range(2)]
        self.layers = nn.ModuleList([layers[0], layers[0]] if shared else layers)
        self.final = nn.LayerNorm(width)
        self.head = nn.Linear(width, 3)

    @staticmethod
    def _layer(width: int) -> nn.ModuleDict:
        return nn.ModuleDict(
            {
                "norm1": nn.LayerNorm(width),
                "qkv": nn.Linear(width, 3 * width),
                "out": nn.Linear(width, width, bias=False),
                "norm2": nn.RMSNorm(width),
                "up": nn.Linear(width, 2 * width),
                "down": nn.Linear(2 * width, width),
            }
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.words(input_ids) + self.positions(torch.arange(input_ids.shape[1])[None])
        mask = attention_mask[:, None, None, :].bool()
        for layer in self.layers:
            q, k, v = (t.unflatten(2, (2, -1)).transpose(1, 2) for t in layer["qkv"](layer["norm1"](x)).chunk(3, 2))
            x = x + layer["out"](F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))
            x = x + layer["down"](F.gelu(layer["up"](layer["norm2"](x))))
        weights = attention_mask[:, :, None].to(x.dtype)
        return self.head((self.final(x) * weights).sum(1) / weights.sum(1))


def _pre_norm(shared: bool) -> Case:
    generator = _generator()
    model = PreNorm(shared=shared)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=RANGE)
    batch = _text(generator)
    batch["labels"] = torch.randint(3, (ROWS,), generator=generator)
    return Case(
        enlarge(model),
        batch,
        lambda m, b: F.cross_entropy(m(b["input_ids"], b["attention_mask"]), b["labels"], reduction="none"),
    )


def pre_norm() -> Case:
    return _pre_norm(False)


def repeated_layers() -> Case:
    return _pre_norm(True)


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def bert() -> Case:
    config = hf.BertConfig(
        vocab_size=VOCABULARY, max_position_embeddings=TOKENS + 3, initializer_range=RANGE, num_labels=3, **SMALL
    )
    _generator()
    case = _classify(hf.BertForSequenceClassification(config))
    case.batch["token_type_ids"] = (torch.arange(TOKENS) > 3).long().expand(ROWS, -1).contiguous()
    return case


def bert_tagger() -> Case:
    config = hf.BertConfig(
        vocab_size=VOCABULARY, max_position_embeddings=TOKENS, initializer_range=RANGE, num_labels=4, **SMALL
    )
    _generator()
    return _tag(hf.BertForTokenClassification(config), 4)


def bert_masked() -> Case:
    config = hf.BertConfig(vocab_size=VOCABULARY, max_position_embeddings=TOKENS, initializer_range=RANGE, **SMALL)
    _generator()
    return _tag(hf.BertForMaskedLM(config), VOCABULARY)


def roberta() -> Case:
    config = hf.RobertaConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=TOKENS + 4,
        initializer_range=RANGE,
        num_labels=3,
        type_vocab_size=1,
        **SMALL,
    )
    _generator()
    return _classify(hf.RobertaForSequenceClassification(config), pad=1)


def distilbert() -> Case:
    config = hf.DistilBertConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=TOKENS,
        initializer_range=RANGE,
        num_labels=3,
        dim=16,
        n_layers=2,
        n_heads=2,
        hidden_dim=24,
    )
    _generator()
    return _classify(hf.DistilBertForSequenceClassification(config))


def electra() -> Case:
    config = hf.ElectraConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=TOKENS,
        initializer_range=RANGE,
        num_labels=3,
        embedding_size=12,
        **SMALL,
    )
    _generator()
    return _classify(hf.ElectraForSequenceClassification(config))


def albert() -> Case:
    config = hf.AlbertConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=TOKENS,
        initializer_range=RANGE,
        num_labels=3,
        embedding_size=12,
        **SMALL,
    )
    _generator()
    return _classify(hf.AlbertForSequenceClassification(config))


def gpt2() -> Case:
    config = hf.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=TOKENS,
        n_embd=16,
        n_layer=2,
        n_head=2,
        initializer_range=RANGE,
        bos_token_id=0,
        eos_token_id=0,
    )
    _generator()
    return _tag(hf.GPT2LMHeadModel(config), VOCABULARY)


def llama() -> Case:
    config = hf.LlamaConfig(
        vocab_size=VOCABULARY, max_position_embeddings=TOKENS, initializer_range=RANGE, num_key_value_heads=1, **SMALL
    )
    _generator()
    return _tag(hf.LlamaForCausalLM(config), VOCABULARY)


def t5(**more: object) -> Case:
    config = hf.T5Config(
        vocab_size=VOCABULARY,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=2,
        num_heads=2,
        initializer_factor=1.0,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=6,
        **more,
    )
    _generator()
    return _write(hf.T5ForConditionalGeneration(config))


SMALL_PAIR = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": TOKENS,
    "init_std": RANGE,
    "scale_embedding": True,
}
"""BART's way to name a shape, with embeddings times 4."""


def bart() -> Case:
    _generator()
    model = hf.BartForConditionalGeneration(hf.BartConfig(**SMALL_PAIR))
    model.final_logits_bias.normal_()  # a buffer, not trained
    return _write(model, start=2, pad=1)


def bart_classifier() -> Case:
    _generator()
    case = _classify(hf.BartForSequenceClassification(hf.BartConfig(num_labels=3, **SMALL_PAIR)), pad=1)
    ids, lengths = case.batch["input_ids"], case.batch["attention_mask"].sum(1)
    ids[torch.arange(ROWS), lengths - 1] = 2  # one end of text in each example, where the head reads
    return case


def bart_answers() -> Case:
    _generator()
    return _answer(hf.BartForQuestionAnswering(hf.BartConfig(**SMALL_PAIR)), pad=1)


def bert_answers() -> Case:
    config = hf.BertConfig(vocab_size=VOCABULARY, max_position_embeddings=TOKENS, initializer_range=RANGE, **SMALL)
    _generator()
    return _answer(hf.BertForQuestionAnswering(config))


def frozen_bert() -> Case:
    case = bert()
    for name, parameter in case.model.named_parameters():
        parameter.requires_grad = not ("word_embeddings" in name or "layer.0" in name or name.endswith("query.weight"))
    return case


CASES: dict[str, Callable[[], Case]] = {
    f.__name__: f
    for f in (
        mlp,
        bag,
        pre_norm,
        repeated_layers,
        bert,
        bert_tagger,
        bert_masked,
        frozen_bert,
        roberta,
        distilbert,
        electra,
        albert,
        gpt2,
        llama,
        t5,
        bart,
        bart_classifier,
        bart_answers,
        bert_answers,
    )
}
