"""Text to text with an encoder and a decoder: teacher-forced cross-entropy; ROUGE-L, exact match of greedy output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig

from troth.errors import ModelError
from troth.tasks.encoded import Encoded, Ragged
from troth.tasks.measures import Measures
from troth.tasks.rouge import rouge_l
from troth.tasks.task import IGNORED, Batch, Scores, ScoringProgress, Task, evaluating, scoring_batches, token_mean_loss
from troth.tasks.token_scores import TokenGathering
from troth.tasks.tokens import Ids, pad_id, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from troth.data import Table
    from troth.results import Measurement
    from troth.seeds import PublicSeeds

__all__ = ["Seq2Seq"]


@dataclass(frozen=True, eq=False)
class Seq2Seq(Task):
    """Sequence to sequence; source and target are each cut to the maximum length.

    A target that is cut has no end-of-text token. Scoring writes greedily, at most the maximum length.
    """

    kind: ClassVar[str] = "seq2seq"

    def encode(self, table: Table) -> Encoded:
        """Return ``input_ids`` of the source and, where the table has targets, ``labels``."""
        room = self.max_length - self.template.length
        sources = tokenize(self.tokenizer, table.column("source"))
        cut = np.array([len(row) > room for row in sources])
        ids = Ragged.from_rows(self.template.wrap(row, self.max_length) for row in sources)
        if not table.has("target"):
            return Encoded({"input_ids": ids}, {}, ids.lengths, int(cut.sum()))
        targets = [self._target(row) for row in tokenize(self.tokenizer, table.column("target"))]
        cut |= np.array([len(row) > self.max_length for row in targets])
        labels = Ragged.from_rows(row[: self.max_length] for row in targets)
        return Encoded({"input_ids": ids, "labels": labels}, {}, ids.lengths + labels.lengths, int(cut.sum()))

    def per_example_loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """Return [batch] mean cross-entropy over the target's tokens in nats, each from the true tokens before it."""
        return token_mean_loss(self._logits(model, batch), batch["labels"])

    def score(
        self,
        model: PreTrainedModel,
        table: Table,
        *,
        batch_size: int = 64,
        progress: ScoringProgress | None = None,
        tokens: bool = False,
    ) -> Scores:
        """Return losses, exact matches and, in `detail`, ``rouge_l`` and the text written; tokens are the target's."""
        encoded = self.encode(table)
        written = np.full(len(encoded), "", dtype=object)
        losses = np.full(len(encoded), np.nan)
        gathered = TokenGathering()
        with evaluating(model) as device:
            for rows in scoring_batches(encoded.lengths, batch_size, progress):
                batch = {name: values.to(device) for name, values in self.collate(encoded, rows).items()}
                if "labels" in batch:
                    logits = self._logits(model, batch)
                    losses[rows] = token_mean_loss(logits, batch["labels"]).double().cpu().numpy()
                    if tokens:
                        gathered.add(rows, logits, batch["labels"])
                written[rows] = self._write(model, batch)
        found_tokens = gathered.scores(len(encoded)) if tokens else None
        if not table.has("target"):
            unknown = np.full(len(encoded), np.nan)
            return Scores(losses, unknown, None, {"rouge_l": unknown, "prediction": written}, found_tokens)
        pairs = list(zip(written, table.column("target"), strict=True))
        hits = np.array([float(found.split() == wanted.split()) for found, wanted in pairs])
        rouge = np.array([rouge_l(found, wanted) for found, wanted in pairs])
        return Scores(losses, hits, None, {"rouge_l": rouge, "prediction": written}, found_tokens)

    def measure(
        self, scores: Scores, table: Table, *, prefix: str, seeds: PublicSeeds, outside_guarantee: bool
    ) -> tuple[Measurement, ...]:
        """Return ``rouge_l``, ``exact_match`` (exact interval) and ``loss``, rows reweighted."""
        protocol = {"decoding": f"greedy, at most {self.max_length} tokens"}
        measures = Measures(prefix, seeds, outside_guarantee, protocol)
        return (
            measures.mean_share("rouge_l", scores.detail["rouge_l"], definition="ROUGE-L F1 without stemming"),
            measures.proportion("exact_match", scores.correct, definition="equal but for white space"),
            measures.loss(scores.losses, np.ones(len(scores), dtype=bool)),
        )

    def _logits(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """Return the decoder's logits [batch, time, vocabulary], each from the target's tokens before it."""
        labels = batch["labels"]
        before = torch.full_like(labels, _decoder_start(model))
        before[:, 1:] = labels[:, :-1].masked_fill(labels[:, :-1] == IGNORED, pad_id(self.tokenizer))
        output = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            decoder_input_ids=before,
            use_cache=False,
        )
        logits: Tensor = output.logits
        return logits

    def _write(self, model: PreTrainedModel, batch: Batch) -> list[str]:
        config = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=self.max_length,
            do_sample=False,
            num_beams=1,
            pad_token_id=pad_id(self.tokenizer),
            eos_token_id=self.tokenizer.eos_token_id,
            decoder_start_token_id=_decoder_start(model),
        )
        generate: Callable[..., Tensor] = cast(Any, model).generate  # transformers types it on a class of its own
        ids = generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], generation_config=config)
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _target(self, tokens: Ids) -> Ids:
        """Return all tokens of a target, with its special tokens and its end."""
        return [*self.template.prefix, *tokens, *self._end]

    @cached_property
    def _end(self) -> tuple[int, ...]:
        if self.template.suffix:
            return self.template.suffix
        if not isinstance(self.tokenizer.eos_token_id, int):
            raise ModelError("seq2seq wants a tokenizer with an end-of-text token: generation would never end")
        return (self.tokenizer.eos_token_id,)


def _decoder_start(model: PreTrainedModel) -> int:
    """Return the token the decoder starts from.

    Raises:
        ModelError: the model is no encoder-decoder with a start token.
    """
    start = model.generation_config.decoder_start_token_id if model.generation_config else None
    if not isinstance(start, int):
        raise ModelError("seq2seq wants an encoder-decoder model whose config names decoder_start_token_id, such as T5")
    return start
