"""The transformer encoder of the bert presets: pre-LayerNorm, mean pooling, every weight clippable per example.

Every trainable parameter is the weight or bias of an `nn.Linear`, `nn.Embedding` or `nn.LayerNorm`, is called through
that module and is used once in a forward pass (a tied masked-LM head uses the token table a second time), so that a
private engine that knows these three leaves clips the whole model exactly. Nothing mixes examples.

Three choices carry private training from scratch (figures in `troth.tasks.presets`): the mean over real tokens is
taken *before* the last LayerNorm, so that the classifier sees features of unit scale whatever the noise has done to
the embeddings; initial weights are small (standard deviation 0.02); the classifier starts at zero.
"""

from __future__ import annotations

from typing import cast

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
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.modeling_outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

__all__ = [
    "TrothBertConfig",
    "TrothBertForMaskedLM",
    "TrothBertForQuestionAnswering",
    "TrothBertForSequenceClassification",
    "TrothBertForTokenClassification",
    "TrothBertModel",
    "segment_ids",
]

SEGMENTS = 3


class TrothBertConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """Shape of a troth-bert model; names as in transformers' own BERT where the two agree.

    Attributes:
        vocab_size: rows of the token table, special tokens included.
        type_vocab_size: 0 for no segment table; 3 for first text, second text, and those tokens of the second text
            that also stand in the first (see `segment_ids`).
        initializer_range: standard deviation of initial linear weights and embedding rows.
        head_width: width in which the masked language model's head meets the vocabulary.
        tie_word_embeddings: whether that head shares the token table (head_width is hidden_size then).
    """

    model_type = "troth-bert"

    vocab_size: int = 8192
    hidden_size: int = 128
    num_hidden_layers: int = 2
    num_attention_heads: int = 2
    intermediate_size: int = 512
    hidden_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    head_width: int = 128
    pad_token_id: int | None = 0
    sep_token_id: int | None = 2
    tie_word_embeddings: bool = False


def segment_ids(input_ids: Tensor, separator: int) -> Tensor:
    """Return the segment of each token [batch, time]: 0 first text, 1 second text, 2 second and also in the first.

    The first text ends before the first separator; without one the whole row is 0. A row depends on itself only.

    >>> segment_ids(torch.tensor([[7, 8, 2, 9, 8]]), separator=2)
    tensor([[0, 0, 1, 1, 2]])
    """
    first = (input_ids == separator).cumsum(dim=1) == 0
    shared = ((input_ids[:, :, None] == input_ids[:, None, :]) & first[:, None, :]).any(dim=2)
    return (~first).long() + (~first & shared).long()


class TrothBertEmbeddings(nn.Module):
    """Token, position and (where the configuration has them) segment rows, summed."""

    def __init__(self, config: TrothBertConfig) -> None:
        super().__init__()
        self.separator = config.sep_token_id
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.segments = nn.Embedding(config.type_vocab_size, config.hidden_size) if config.type_vocab_size else None
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor | None, token_type_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """Return the sum [batch, time, hidden]; `inputs_embeds` takes the place of the token rows."""
        if inputs_embeds is not None:
            hidden = inputs_embeds
        elif input_ids is not None:
            hidden = self.tokens(input_ids)
        else:
            raise ValueError("input_ids and inputs_embeds are both missing: give one of them")
        batch, time = hidden.shape[:2]
        if time > self.positions.num_embeddings:
            raise ValueError(f"a row has {time} tokens and the model {self.positions.num_embeddings} positions: cut it")
        # One row of positions per example: the gradient of a broadcast row cannot be told apart by example.
        hidden = hidden + self.positions(torch.arange(time, device=hidden.device).expand(batch, time))
        if self.segments is not None:
            hidden = hidden + self.segments(self._types(input_ids, token_type_ids))
        return cast(Tensor, self.dropout(hidden))

    def _types(self, input_ids: Tensor | None, token_type_ids: Tensor | None) -> Tensor:
        if token_type_ids is not None:
            return token_type_ids
        if input_ids is None or self.separator is None:
            raise ValueError("a model with segments wants token_type_ids where there are no input_ids or no separator")
        return segment_ids(input_ids, self.separator)


class TrothBertLayer(nn.Module):
    """One pre-LayerNorm block: attention, then a GELU feed-forward, each added to its input."""

    def __init__(self, config: TrothBertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        if width % self.heads:
            raise ValueError(f"hidden_size {width} is not a multiple of num_attention_heads {self.heads}")
        self.attention_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.expand = nn.Linear(width, config.intermediate_size)
        self.contract = nn.Linear(config.intermediate_size, width)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Return the block's output [batch, time, hidden]; `mask` [batch, 1, 1, time] is True at tokens to be seen."""
        x = self.attention_norm(hidden)
        query, key, value = (self._split(part(x)) for part in (self.query, self.key, self.value))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        hidden = hidden + self.dropout(self.output(attended.transpose(1, 2).flatten(2)))
        return hidden + cast(Tensor, self.dropout(self.contract(F.gelu(self.expand(self.feed_forward_norm(hidden))))))

    def _split(self, x: Tensor) -> Tensor:
        """Return [batch, heads, time, hidden / heads]."""
        batch, time, width = x.shape
        return x.view(batch, time, self.heads, width // self.heads).transpose(1, 2)


class TrothBertPreTrainedModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """What all troth-bert models share: configuration class and initialisation."""

    config: TrothBertConfig
    config_class = TrothBertConfig
    base_model_prefix = "encoder"
    _supports_sdpa = True
    _no_split_modules = ["TrothBertLayer"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # transformers' own functions, which leave alone what a checkpoint has filled.
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=self.config.initializer_range)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)


class TrothBertModel(TrothBertPreTrainedModel):
    """The encoder: token ids [batch, time] in, states [batch, time, hidden] out."""

    def __init__(self, config: TrothBertConfig) -> None:
        super().__init__(config)
        self.embeddings = TrothBertEmbeddings(config)
        self.layers = nn.ModuleList(TrothBertLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> nn.Module:
        """Return the token table."""
        return self.embeddings.tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put another token table in place."""
        self.embeddings.tokens = cast(nn.Embedding, value)

    def states(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        inputs_embeds: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """Return the states [batch, time, hidden] before the last LayerNorm: embeddings, then one after each layer."""
        states = [self.embeddings(input_ids, token_type_ids, inputs_embeds)]
        mask = None if attention_mask is None else attention_mask[:, None, None, :].bool()
        for layer in self.layers:
            states.append(layer(states[-1], mask))
        return tuple(states)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutput:
        """Return the normalised states of the last layer, and all states where asked for."""
        states = self.states(input_ids, attention_mask, token_type_ids, inputs_embeds)
        last = self.norm(states[-1])
        return BaseModelOutput(
            last_hidden_state=last, hidden_states=_wanted(self.config, output_hidden_states, (*states[:-1], last))
        )


class TrothBertForSequenceClassification(TrothBertPreTrainedModel):
    """One label per text: mean of the last states over real tokens, LayerNorm, linear."""

    def __init__(self, config: TrothBertConfig) -> None:
        super().__init__(config)
        self.encoder = TrothBertModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels or 2)
        self.post_init()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.classifier:
            init.zeros_(module.weight)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> SequenceClassifierOutput:
        """Return logits [batch, labels] and, given labels [batch], their mean cross-entropy."""
        states = self.encoder.states(input_ids, attention_mask, token_type_ids, inputs_embeds)
        pooled = self.encoder.norm(_mean(states[-1], attention_mask))
        logits = self.classifier(self.dropout(pooled))
        return SequenceClassifierOutput(
            loss=None if labels is None else F.cross_entropy(logits, labels),
            logits=logits,
            hidden_states=_wanted(self.config, output_hidden_states, states),
        )


class TrothBertForTokenClassification(TrothBertPreTrainedModel):
    """One label per token."""

    def __init__(self, config: TrothBertConfig) -> None:
        super().__init__(config)
        self.encoder = TrothBertModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels or 2)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> TokenClassifierOutput:
        """Return logits [batch, time, labels] and, given labels [batch, time], the mean loss of all not -100."""
        out = self.encoder(input_ids, attention_mask, token_type_ids, inputs_embeds, output_hidden_states)
        logits = self.classifier(self.dropout(out.last_hidden_state))
        return TokenClassifierOutput(
            loss=None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten()),
            logits=logits,
            hidden_states=out.hidden_states,
        )


class TrothBertForQuestionAnswering(TrothBertPreTrainedModel):
    """Start and end of the answer, one logit per token for each."""

    def __init__(self, config: TrothBertConfig) -> None:
        super().__init__(config)
        self.encoder = TrothBertModel(config)
        self.span = nn.Linear(config.hidden_size, 2)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> QuestionAnsweringModelOutput:
        """Return start and end logits [batch, time] and, given positions [batch], the mean of both cross-entropies."""
        out = self.encoder(input_ids, attention_mask, token_type_ids, inputs_embeds, output_hidden_states)
        start, end = self.span(out.last_hidden_state).unbind(dim=-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = (F.cross_entropy(start, start_positions) + F.cross_entropy(end, end_positions)) / 2
        return QuestionAnsweringModelOutput(
            loss=loss, start_logits=start, end_logits=end, hidden_states=out.hidden_states
        )


class TrothBertForMaskedLM(TrothBertPreTrainedModel):
    """The token behind each mask: linear, GELU, LayerNorm, then a projection on the vocabulary."""

    _tied_weights_keys = {"decoder.weight": "encoder.embeddings.tokens.weight"}  # noqa: RUF012  transformers' protocol

    def __init__(self, config: TrothBertConfig) -> None:
        super().__init__(config)
        if config.tie_word_embeddings and config.head_width != config.hidden_size:
            raise ValueError(f"a tied head has hidden_size {config.hidden_size} as head_width, not {config.head_width}")
        self.encoder = TrothBertModel(config)
        self.dense = nn.Linear(config.hidden_size, config.head_width)
        self.dense_norm = nn.LayerNorm(config.head_width, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.head_width, config.vocab_size)
        self.post_init()  # type: ignore[no-untyped-call]

    def get_output_embeddings(self) -> nn.Module:
        """Return the projection on the vocabulary."""
        return self.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Put another projection in place."""
        self.decoder = cast(nn.Linear, new_embeddings)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> MaskedLMOutput:
        """Return logits [batch, time, vocabulary] and, given labels [batch, time], the mean loss of all not -100."""
        out = self.encoder(input_ids, attention_mask, token_type_ids, inputs_embeds, output_hidden_states)
        logits = self.decoder(self.dense_norm(F.gelu(self.dense(out.last_hidden_state))))
        return MaskedLMOutput(
            loss=None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten()),
            logits=logits,
            hidden_states=out.hidden_states,
        )


def _mean(states: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return the mean [batch, hidden] of states [batch, time, hidden] over real tokens; 0 where a row has none."""
    if attention_mask is None:
        return states.mean(dim=1)
    real = attention_mask[:, :, None].to(states.dtype)
    return (states * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)


def _wanted(config: TrothBertConfig, asked: bool | None, states: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Return the states where the call, or else the configuration, asks for them."""
    return states if (config.output_hidden_states if asked is None else asked) else None


AutoConfig.register("troth-bert", TrothBertConfig, exist_ok=True)
for _auto, _model in (
    (AutoModel, TrothBertModel),
    (AutoModelForSequenceClassification, TrothBertForSequenceClassification),
    (AutoModelForTokenClassification, TrothBertForTokenClassification),
    (AutoModelForQuestionAnswering, TrothBertForQuestionAnswering),
    (AutoModelForMaskedLM, TrothBertForMaskedLM),
):
    _auto.register(TrothBertConfig, _model, exist_ok=True)
