"""Small models made from a configuration, with tokenizers that owe nothing to the user's text.

| preset | what | tokenizer |
|---|---|---|
| `tiny-bert` | pre-LayerNorm encoder, 2 layers, 128 wide, 2 heads | words and pieces hashed into 8,192 rows |
| `mini-bert` | the same, 4 layers, 384 wide, 6 heads | the same |
| `tiny-gpt2` | transformers' GPT-2, 2 layers, 128 wide, 2 heads | byte-level BPE of 4,096 entries, public text |
| `tiny-t5` | transformers' T5, 2 + 2 layers, 128 wide, 2 heads | the same |
| `bilstm-crf` | words and a CNN over their bytes, one BiLSTM layer 200 wide, a CRF | whole words, hashed alike |

Measured with `tiny-bert` on the 700 test texts of SNIPS: 0.969 plain (4 epochs, batch 64, AdamW 1e-3) and 0.956 at
epsilon 8, delta 1e-5 (12 epochs, expected batch 512, clipping norm 0.1, AdamW 2e-3), one run each, from scratch. In
trial runs of 3 epochs under the noise of the 12, one seed each: mean before the last LayerNorm 0.926, after it 0.913;
embeddings with standard deviation 1 in place of 0.02 about 0.80; with the pieces of long words and numbers 0.931.
The segment table of the question answering model took F1 from 0.24 to 0.27 on the built-in corpus (4 epochs, one seed).

Slots of the same texts with `bilstm-crf`, AdamW, from scratch, one run each: span F1 0.918 plain (3 epochs, batch 32,
5e-3); at epsilon 8, delta 1e-5, clipping norm 0.1 and a rate of 2e-2, 0.63 (3 epochs, expected batch 256) and 0.750
(12 epochs, 512). The rate decides: at 2e-3 and a wider model, 0.10.

All but `mini-bert` have fewer than two million parameters. A masked language model shares its token table with its
head: on SNIPS, after 615 steps, that found 15.1 % of masked tokens, where a head of its own, narrowed to stay below two
million, found 7.7 %.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, cast

from tokenizers import Tokenizer, processors
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from troth.errors import ModelError
from troth.tasks.checkpoints import seeded
from troth.tasks.hashed_tokenizer import HashedTokenizer
from troth.tasks.modeling_bert import (
    SEGMENTS,
    TrothBertConfig,
    TrothBertForMaskedLM,
    TrothBertForQuestionAnswering,
    TrothBertForSequenceClassification,
    TrothBertForTokenClassification,
)
from troth.tasks.modeling_tagger import TrothTaggerConfig, TrothTaggerForTokenClassification

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from troth.seeds import PublicSeeds

__all__ = ["PRESETS", "Preset", "preset_model", "preset_tokenizer"]

Family = Literal["bert", "gpt2", "t5", "tagger"]
_POSITIONS = 512
_BYTE_BPE = "byte_bpe_4096.json"
_PAD, _BOS, _EOS = "<pad>", "<bos>", "<eos>"


@dataclass(frozen=True)
class Preset:
    """The shape of a preset model.

    Attributes:
        name: what a run file calls it.
        family: ``bert``, ``gpt2``, ``t5`` or ``tagger``.
        layers: blocks (of the encoder and of the decoder each, for ``t5``).
        width: size of a token's state, that of both directions together for ``tagger``.
        heads: attention heads in a block; 0 for a model without attention.
        vocabulary_size: rows of the token table.
        goals: kinds of task it does; a language model's objective stands for the kind.
        summary: one line for listings.
    """

    name: str
    family: Family
    layers: int
    width: int
    heads: int
    vocabulary_size: int
    goals: tuple[str, ...]
    summary: str


@dataclass(frozen=True)
class _Shape:
    """A preset's shape with a run file's changes."""

    layers: int
    width: int
    heads: int
    vocabulary_size: int
    positions: int


_BERT_MODELS: Mapping[str, Any] = {
    "classification": TrothBertForSequenceClassification,
    "tagging": TrothBertForTokenClassification,
    "question_answering": TrothBertForQuestionAnswering,
    "masked": TrothBertForMaskedLM,
}
_BERT_GOALS = tuple(_BERT_MODELS)

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            Preset("tiny-bert", "bert", 2, 128, 2, 8192, _BERT_GOALS, "encoder, 2 layers x 128, hashed words"),
            Preset("mini-bert", "bert", 4, 384, 6, 8192, _BERT_GOALS, "encoder, 4 layers x 384, hashed words"),
            Preset("tiny-gpt2", "gpt2", 2, 128, 2, 4096, ("causal",), "decoder, 2 layers x 128, byte-level BPE"),
            Preset(
                "tiny-t5", "t5", 2, 128, 2, 4096, ("seq2seq",), "encoder-decoder, 2 + 2 layers x 128, byte-level BPE"
            ),
            Preset(
                "bilstm-crf", "tagger", 1, 200, 0, 8192, ("tagging",), "BiLSTM x 200, CRF, hashed words and their bytes"
            ),
        )
    }
)
"""The presets by name."""


def preset_tokenizer(preset: str, max_length: int, *, vocabulary_size: int | None = None) -> PreTrainedTokenizerBase:
    """Return a preset's tokenizer; nothing in it stems from the user's text.

    Args:
        preset: a name in `PRESETS`.
        max_length: most tokens of a text where the caller asks for truncation.
        vocabulary_size: rows of a hashed table where they are not the preset's own.

    Raises:
        ModelError: no such preset, or a vocabulary size for one whose vocabulary is fixed.
    """
    record = _record(preset)
    rows = _rows(record, vocabulary_size)
    if record.family in _HASHED:
        return HashedTokenizer(vocabulary_size=rows, model_max_length=max_length)
    tokenizer = Tokenizer.from_str(_asset())
    around = f"{_BOS} $A" if record.family == "gpt2" else f"$A {_EOS}"
    pair = f"{_BOS} $A $B" if record.family == "gpt2" else f"$A {_EOS} $B {_EOS}"
    special = [(token, tokenizer.token_to_id(token)) for token in (_BOS, _EOS)]
    tokenizer.post_processor = processors.TemplateProcessing(single=around, pair=pair, special_tokens=special)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=_PAD,
        bos_token=_BOS,
        eos_token=_EOS,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,  # "<eos>" in a user's text is text
    )


def preset_model(
    preset: str,
    kind: str,
    objective: str | None,
    labels: Sequence[str],
    overrides: Mapping[str, int | None],
    seeds: PublicSeeds,
) -> PreTrainedModel:
    """Return a preset model with fresh weights, on the CPU in float32, in training mode.

    Weights come from ``seeds`` alone; torch's global generator is left as it was.

    Args:
        preset: a name in `PRESETS`.
        kind: the kind of task, such as ``classification``.
        objective: ``causal`` or ``masked`` for language modeling; None takes what the preset does.
        labels: names of the classes or tags, in the order of the outputs; empty for other kinds.
        overrides: ``layers``, ``width``, ``heads``, ``vocabulary_size``, ``max_length``; None leaves the preset's own.
        seeds: the run's public seeds.

    Raises:
        ModelError: no such preset, a kind it does not do, or a shape that does not work out.
    """
    record = _record(preset)
    goal = _goal(record, kind, objective)
    shape = _shape(record, overrides)
    config = _CONFIGS[record.family](shape, goal)
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    make = _BERT_MODELS[goal] if record.family == "bert" else _OTHER_MODELS[record.family]
    with seeded(seeds.integer("model", "preset")):
        return cast("PreTrainedModel", make(config))


def _bert_config(shape: _Shape, goal: str) -> PreTrainedConfig:
    return TrothBertConfig(
        vocab_size=shape.vocabulary_size,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width,
        max_position_embeddings=shape.positions,
        type_vocab_size=SEGMENTS if goal == "question_answering" else 0,
        head_width=shape.width,
        tie_word_embeddings=goal == "masked",
    )


def _gpt2_config(shape: _Shape, goal: str) -> PreTrainedConfig:
    ids = _special_ids()
    return GPT2Config(
        vocab_size=shape.vocabulary_size,
        n_embd=shape.width,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_positions=shape.positions,
        pad_token_id=ids[_PAD],
        bos_token_id=ids[_BOS],
        eos_token_id=ids[_EOS],
    )


def _t5_config(shape: _Shape, goal: str) -> PreTrainedConfig:
    ids = _special_ids()
    config = T5Config(
        vocab_size=shape.vocabulary_size,
        d_model=shape.width,
        d_kv=shape.width // shape.heads,
        d_ff=4 * shape.width,
        num_layers=shape.layers,
        num_decoder_layers=shape.layers,
        num_heads=shape.heads,
        pad_token_id=ids[_PAD],
        eos_token_id=ids[_EOS],
    )
    config.update({"decoder_start_token_id": ids[_PAD]})
    return config


def _tagger_config(shape: _Shape, goal: str) -> PreTrainedConfig:
    return TrothTaggerConfig(
        vocab_size=shape.vocabulary_size,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
    )


_CONFIGS: Mapping[Family, Callable[[_Shape, str], PreTrainedConfig]] = {
    "bert": _bert_config,
    "gpt2": _gpt2_config,
    "t5": _t5_config,
    "tagger": _tagger_config,
}
_OTHER_MODELS: Mapping[Family, Any] = {
    "gpt2": GPT2LMHeadModel,
    "t5": T5ForConditionalGeneration,
    "tagger": TrothTaggerForTokenClassification,
}
_HASHED: tuple[Family, ...] = ("bert", "tagger")


def _record(preset: str) -> Preset:
    if preset not in PRESETS:
        raise ModelError(f"model.preset = {preset!r}: no such preset; there are {', '.join(PRESETS)}")
    return PRESETS[preset]


def _goal(record: Preset, kind: str, objective: str | None) -> str:
    """Return what the model is for: the kind, or a language model's objective.

    Raises:
        ModelError: the preset does not do that.
    """
    goal = kind
    if kind == "language_modeling":
        own = [goal for goal in record.goals if goal in ("causal", "masked")]
        goal = objective or (own[0] if own else "causal")
    if goal not in record.goals:
        others = [other.name for other in PRESETS.values() if goal in other.goals]
        way_out = f"take {' or '.join(others)}" if others else f"it does {', '.join(record.goals)}"
        raise ModelError(f"model.preset = {record.name!r} does not do {goal}: {way_out}")
    return goal


def _shape(record: Preset, overrides: Mapping[str, int | None]) -> _Shape:
    known = ("layers", "width", "heads", "vocabulary_size", "max_length")
    for key in overrides:
        if key not in known:
            raise ModelError(f"model.{key}: no such part of a preset's shape; there are {', '.join(known)}")
    width = overrides.get("width") or record.width
    heads = overrides.get("heads") or record.heads
    if not record.heads:
        if heads:
            raise ModelError(f"model.heads = {heads}: {record.name} has no attention; leave the key out")
        if width % 2:
            raise ModelError(f"model.width = {width}: {record.name} halves it for two directions; write an even number")
    elif width % heads:
        raise ModelError(f"model.width = {width} is not a multiple of model.heads = {heads}: change one of them")
    return _Shape(
        layers=overrides.get("layers") or record.layers,
        width=width,
        heads=heads,
        vocabulary_size=_rows(record, overrides.get("vocabulary_size")),
        positions=max(_POSITIONS, overrides.get("max_length") or 0),
    )


def _rows(record: Preset, vocabulary_size: int | None) -> int:
    """Return how many rows the token table has.

    Raises:
        ModelError: another number than that of a fixed vocabulary.
    """
    if vocabulary_size is None or vocabulary_size == record.vocabulary_size:
        return record.vocabulary_size
    if record.family not in _HASHED:
        raise ModelError(
            f"model.vocabulary_size = {vocabulary_size}: {record.name} has a fixed vocabulary of "
            f"{record.vocabulary_size} entries; leave the key out"
        )
    return vocabulary_size


@cache
def _asset() -> str:
    """Return the byte-level BPE as JSON."""
    return (files("troth.tasks") / "assets" / _BYTE_BPE).read_text(encoding="utf-8")


@cache
def _special_ids() -> Mapping[str, int]:
    """Return the ids of the byte-level BPE's special tokens."""
    return {entry["content"]: entry["id"] for entry in json.loads(_asset())["added_tokens"]}
