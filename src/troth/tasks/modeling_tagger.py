"""The BiLSTM-CRF tagger of the `bilstm-crf` preset: words and their characters in, tags that fit each other out.

A word is its row of a hashed table beside the largest answers of convolutions over its bytes (Ma and Hovy, ACL 2016);
an LSTM reads the words in both directions, and a linear-chain conditional random field scores the tags (Lample et al.,
NAACL 2016). Every trainable parameter belongs to an `nn.Embedding`, `nn.Conv1d`, `nn.LayerNorm`, `nn.LSTM`, `nn.Linear`
or `LinearChainCRF`, all of which private training clips exactly. Nothing mixes examples.

Against the papers: bytes take the place of characters, and the words' vectors are normalised before the LSTM, so that
it sees inputs of unit scale whatever the noise has done to the tables.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, TokenClassifierOutput

from troth.tasks.characters import BYTE_ROWS
from troth.tasks.crf import LinearChainCRF
from troth.tasks.hashed_tokenizer import HashedTokenizer

__all__ = ["TrothTaggerConfig", "TrothTaggerForTokenClassification", "TrothTaggerModel"]


class TrothTaggerConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """Shape of a troth-tagger model.

    Attributes:
        vocab_size: rows of the word table, special ones included.
        word_size: width of a word's own row.
        character_size: width of a byte's row.
        character_filters: how many convolutions read a word's bytes.
        character_taps: bytes that each of them sees at once; odd.
        hidden_size: width of a word's state, both directions together.
        num_hidden_layers: layers of the LSTM.
        hidden_dropout_prob: of words' vectors and states; none, since it cost private training and gained plain none.
        initializer_range: standard deviation of initial rows.
    """

    model_type = "troth-tagger"

    vocab_size: int = 8192
    word_size: int = 64
    character_size: int = 24
    character_filters: int = 48
    character_taps: int = 3
    hidden_size: int = 200
    num_hidden_layers: int = 1
    hidden_dropout_prob: float = 0.0
    initializer_range: float = 0.1
    pad_token_id: int | None = 0


class CharacterCNN(nn.Module):
    """Bytes of words in, one vector per word out: each convolution's largest answer anywhere in the word."""

    def __init__(self, config: TrothTaggerConfig) -> None:
        super().__init__()
        self.bytes = nn.Embedding(BYTE_ROWS, config.character_size)
        self.convolution = nn.Conv1d(
            config.character_size, config.character_filters, config.character_taps, padding=config.character_taps // 2
        )

    def forward(self, characters: Tensor) -> Tensor:
        """Return [batch, words, filters], at least 0, of `characters` [batch, words, bytes]; 0 for an empty word."""
        batch, words, length = characters.shape
        # Masked, not left to the padding's row: private training adds noise to that row too.
        inside = (characters != 0).view(batch * words, 1, length)
        read = self.bytes(characters).view(batch * words, length, -1).transpose(1, 2) * inside
        answers = torch.relu(self.convolution(read))
        return (answers * inside).amax(2).view(batch, words, -1)


class TrothTaggerPreTrainedModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """What all troth-tagger models share: configuration class and initialisation."""

    config: TrothTaggerConfig
    config_class = TrothTaggerConfig
    base_model_prefix = "encoder"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # transformers' own functions, which leave alone what a checkpoint has filled.
        if isinstance(module, nn.Linear | nn.Conv1d):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.LSTM):
            _init_lstm(module)
        elif isinstance(module, LinearChainCRF):
            for parameter in module.parameters():
                init.zeros_(parameter)


def _init_lstm(module: nn.LSTM) -> None:
    """Xavier for inputs, orthogonal for states, forget gates open (bias 1, Jozefowicz et al., ICML 2015)."""
    for name, parameter in module.named_parameters():
        if name.startswith("weight_ih"):
            init.xavier_uniform_(parameter)
        elif name.startswith("weight_hh"):
            init.orthogonal_(parameter)
        else:
            values = torch.zeros_like(parameter)
            if name.startswith("bias_ih"):
                values[module.hidden_size : 2 * module.hidden_size] = 1
            init.copy_(parameter, values)


class TrothTaggerModel(TrothTaggerPreTrainedModel):
    """Words and characters in, a state per word out [batch, words, hidden]."""

    def __init__(self, config: TrothTaggerConfig) -> None:
        super().__init__(config)
        if config.hidden_size % 2:
            raise ValueError(f"hidden_size {config.hidden_size} is odd: the two directions have half of it each")
        self.words = nn.Embedding(config.vocab_size, config.word_size)
        self.characters = CharacterCNN(config)
        width = config.word_size + config.character_filters
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.lstm = nn.LSTM(
            width, config.hidden_size // 2, config.num_hidden_layers, batch_first=True, bidirectional=True
        )
        self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> nn.Module:
        """Return the word table."""
        return self.words

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put another word table in place."""
        self.words = cast("nn.Embedding", value)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        characters: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> BaseModelOutput:
        """Return the states of the words; behind a row's end they are 0.

        Args:
            input_ids: [batch, words] rows of the word table.
            attention_mask: [batch, words], 1 at a row's own words, which stand first; None means all.
            characters: [batch, words, bytes] as `troth.tasks.characters` makes them.
            inputs_embeds: [batch, words, word_size] in place of the words' rows.
        """
        if characters is None or (input_ids is None and inputs_embeds is None):
            raise ValueError("a tagger wants characters, and one of input_ids and inputs_embeds")
        words = self.words(input_ids) if inputs_embeds is None else inputs_embeds
        hidden = self.dropout(self.norm(torch.cat([words, self.characters(characters)], 2)))
        lengths = row_lengths(attention_mask, hidden)
        # Autocast would hand the LSTM half-precision inputs beside weights in full precision.
        with torch.autocast(hidden.device.type, enabled=False):
            read = hidden.to(self.lstm.weight_ih_l0.dtype)
            packed = pack_padded_sequence(read, lengths.cpu(), batch_first=True, enforce_sorted=False)
            states, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=hidden.shape[1])
        return BaseModelOutput(last_hidden_state=states)


class TrothTaggerForTokenClassification(TrothTaggerPreTrainedModel):
    """Emissions of each tag at each word, and the random field that makes them paths.

    ``logits`` are emissions, not probabilities: `log_probabilities` and `decode` read them as the field does.
    """

    def __init__(self, config: TrothTaggerConfig) -> None:
        super().__init__(config)
        labels = config.num_labels or 2
        self.encoder = TrothTaggerModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, labels)
        self.crf = LinearChainCRF(labels)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        characters: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> TokenClassifierOutput:
        """Return emissions [batch, words, labels] and, given tags [batch, words], the mean of the rows' losses."""
        states = self.encoder(input_ids, attention_mask, characters, inputs_embeds).last_hidden_state
        logits = self.classifier(self.dropout(states))
        loss = None if labels is None else self.losses(logits, labels, attention_mask).mean()
        return TokenClassifierOutput(loss=loss, logits=logits)

    def losses(self, logits: Tensor, labels: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return [batch] negative log-likelihoods of the rows' tags in nats, per tagged word; 0 where there is none.

        Args:
            logits: [batch, words, labels] emissions.
            labels: [batch, words], negative where a word's tag is unknown: it may be any then.
            attention_mask: [batch, words], 1 at a row's own words.
        """
        lengths = row_lengths(attention_mask, logits)
        tagged = (labels >= 0) & (torch.arange(labels.shape[1], device=labels.device) < lengths[:, None])
        return cast("Tensor", self.crf(logits, labels, lengths)) / tagged.sum(1).clamp(min=1)

    def log_probabilities(self, logits: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return [batch, words, labels] float64 log-probabilities of each word's tag given the row (no gradient)."""
        return self.crf.log_marginals(logits, row_lengths(attention_mask, logits))

    def decode(self, logits: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return [batch, words] the tags of the most probable path."""
        return self.crf.decode(logits, row_lengths(attention_mask, logits))


def row_lengths(attention_mask: Tensor | None, rows: Tensor) -> Tensor:
    """Return [batch] how many words each row has, at least 1: a row without any is read as one word of padding."""
    if attention_mask is None:
        return torch.full((rows.shape[0],), rows.shape[1], device=rows.device)
    return attention_mask.sum(1).clamp(min=1)


AutoConfig.register("troth-tagger", TrothTaggerConfig, exist_ok=True)
AutoTokenizer.register(TrothTaggerConfig, slow_tokenizer_class=HashedTokenizer, exist_ok=True)  # type: ignore[no-untyped-call]
AutoModel.register(TrothTaggerConfig, TrothTaggerModel, exist_ok=True)
AutoModelForTokenClassification.register(TrothTaggerConfig, TrothTaggerForTokenClassification, exist_ok=True)
