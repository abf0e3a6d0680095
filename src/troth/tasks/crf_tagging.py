"""One tag per word by a model that scores whole rows of tags: the likelihood of the path, and the best path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from troth.tasks.characters import WORD_BYTES, byte_rows, word_row
from troth.tasks.encoded import Encoded, Ragged
from troth.tasks.hashed_encoding import UNKNOWN
from troth.tasks.modeling_tagger import TrothTaggerForTokenClassification
from troth.tasks.tagging import Tagging, Words

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedModel

    from troth.data import Table
    from troth.tasks.task import Batch

__all__ = ["CrfTagging"]


@dataclass(frozen=True, eq=False)
class CrfTagging(Tagging):
    """Tagging with one token per word and a conditional random field over the tags.

    The loss is the path's negative log-likelihood per tagged word; a word whose tag is unknown may have any. Predicted
    are the tags of the most probable path, and log-probabilities are those of each tag given the whole row (token
    scores too, hence they do not add up to the row's loss, which stays the path's). The maximum length counts words; of
    a word's UTF-8 form the first `WORD_BYTES` bytes are read.
    """

    def encode(self, table: Table) -> Encoded:
        """Return ``input_ids``, ``characters`` (`WORD_BYTES` per word) and, where the table has tags, ``labels``."""
        return self._encode(table)[0]

    def collate(self, encoded: Encoded, indices: NDArray[Any], *, draw: int = 0) -> Batch:
        """Return the batch of every task, with ``characters`` as [batch, words, bytes], padded to the longest word."""
        batch = super().collate(encoded, indices, draw=draw)
        characters = batch["characters"].view(*batch["input_ids"].shape, WORD_BYTES)
        longest = int((characters != 0).any(0).any(0).sum())
        batch["characters"] = characters[:, :, : max(1, longest)].long()
        return batch

    def _encode(self, table: Table) -> tuple[Encoded, Words]:
        encoded, words = super()._encode(table)
        rows = table.column("tokens")
        distinct = {word for row in rows for word in row}
        known = {word: byte_rows(word) for word in distinct}
        ids = encoded.ragged["input_ids"]
        values = np.zeros((len(ids.values), WORD_BYTES), dtype=np.int16)
        for row, kept in enumerate(words.starts):
            if kept:
                values[ids.offsets[row] : ids.offsets[row + 1]] = [known[word] for word in rows[row][: len(kept)]]
        characters = Ragged(values.reshape(-1), ids.offsets * WORD_BYTES)
        ragged = {**encoded.ragged, "characters": characters}
        return Encoded(ragged, encoded.scalars, encoded.lengths, encoded.truncated), words

    def _words(self, rows: list[list[str]]) -> Words:
        """Return one token per word; a row without words is one unknown word, which has no tag."""
        size = self.tokenizer.vocab_size
        known = {word: word_row(word, size) for word in {word for row in rows for word in row}}
        kept = [row[: self.max_length] for row in rows]
        return Words(
            ids=[[known[word] for word in row] or [UNKNOWN] for row in kept],
            starts=[list(range(len(row))) for row in kept],
            truncated=sum(len(row) > self.max_length for row in rows),
        )

    def _logits(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        logits: Tensor = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], characters=batch["characters"]
        ).logits
        return logits

    def _losses(self, model: PreTrainedModel, logits: Tensor, batch: Batch) -> Tensor:
        return _field(model).losses(logits, batch["labels"], batch["attention_mask"])

    def _log_probabilities(self, model: PreTrainedModel, logits: Tensor, batch: Batch) -> Tensor:
        return _field(model).log_probabilities(logits, batch["attention_mask"])

    def _codes(self, model: PreTrainedModel, logits: Tensor, batch: Batch) -> Tensor:
        return _field(model).decode(logits, batch["attention_mask"])


def _field(model: PreTrainedModel) -> TrothTaggerForTokenClassification:
    return cast("TrothTaggerForTokenClassification", model)
