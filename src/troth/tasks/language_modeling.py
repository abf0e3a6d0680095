"""Next-token and masked language modeling: token cross-entropy per text; perplexity."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from troth.tasks.encoded import Encoded, Ragged
from troth.tasks.masking import Masking, row_keys
from troth.tasks.measures import Measures
from troth.tasks.task import IGNORED, Batch, Scores, ScoringProgress, Task, evaluating, scoring_batches, token_mean_loss
from troth.tasks.token_scores import TokenGathering
from troth.tasks.tokens import Ids, pad_id, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from troth.data import Table
    from troth.results import Json, Measurement
    from troth.seeds import PublicSeeds

__all__ = ["CausalLanguageModeling", "LanguageModeling", "MaskedLanguageModeling"]

_LOGITS_AT_ONCE = 2**25  # numbers in one scoring batch's logits
SCORING_DRAW = 2**62
"""The draw of masks when scoring: always the same, so that the losses of two models can be compared."""


@dataclass(frozen=True, eq=False)
class LanguageModeling(Task):
    """What both objectives share: scoring and perplexity. One row of the table is one text and one clipping unit."""

    kind: ClassVar[str] = "language_modeling"
    predicts: ClassVar[str]

    @abstractmethod
    def aligned(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return logits [batch, time, vocabulary] and, for each, the token it should predict [batch, time]."""

    def per_example_loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """Return [batch] mean cross-entropy over the text's predicted tokens in nats; 0 where it has none."""
        return token_mean_loss(*self.aligned(model, batch))

    def score(
        self,
        model: PreTrainedModel,
        table: Table,
        *,
        batch_size: int = 64,
        progress: ScoringProgress | None = None,
        tokens: bool = False,
    ) -> Scores:
        """Return losses, shares of right tokens and, in `detail`, ``nats``, ``tokens`` and ``right`` of each text."""
        encoded = self.encode(table)
        longest = int(encoded.lengths.max(initial=1))
        at_once = min(batch_size, max(1, _LOGITS_AT_ONCE // (longest * len(self.tokenizer))))
        found = np.zeros((len(encoded), 3))
        gathered = TokenGathering()
        with evaluating(model) as device:
            for rows in scoring_batches(encoded.lengths, at_once, progress):
                batch = self.collate(encoded, rows, draw=SCORING_DRAW)
                logits, labels = self.aligned(model, {name: values.to(device) for name, values in batch.items()})
                counts = (labels != IGNORED).sum(dim=1)
                right = (logits.argmax(dim=2) == labels).sum(dim=1)
                nats = token_mean_loss(logits, labels).double() * counts
                found[rows] = torch.stack([nats, counts, right], dim=1).cpu().numpy()
                if tokens:
                    gathered.add(rows, logits, labels)
        detail = {"nats": found[:, 0], "tokens": found[:, 1].astype(np.int64), "right": found[:, 2].astype(np.int64)}
        some = detail["tokens"] > 0
        share = np.divide(found, found[:, 1:2], out=np.full_like(found, np.nan), where=some[:, None])
        right_share = np.where(some, share[:, 2], 0.0)
        return Scores(share[:, 0], right_share, None, detail, gathered.scores(len(encoded)) if tokens else None)

    def measure(
        self, scores: Scores, table: Table, *, prefix: str, seeds: PublicSeeds, outside_guarantee: bool
    ) -> tuple[Measurement, ...]:
        """Return ``perplexity``, ``token_accuracy`` and ``loss``, rows (texts) reweighted."""
        detail = scores.detail
        tokens = int(detail["tokens"].sum())
        protocol: dict[str, Json] = {"predicts": self.predicts, "tokens": tokens, "max_length": self.max_length}
        measures = Measures(prefix, seeds, outside_guarantee, protocol)
        nats, definition = detail["nats"], {"definition": self.definition}
        return (
            measures.ratio("perplexity", nats, detail["tokens"], definition, unit="ratio", scale=_exponential),
            measures.share("token_accuracy", detail["right"], detail["tokens"], {}),
            measures.loss(scores.losses, detail["tokens"] > 0),
        )

    @property
    @abstractmethod
    def definition(self) -> str:
        """What the perplexity is, for the protocol."""


@dataclass(frozen=True, eq=False)
class CausalLanguageModeling(LanguageModeling):
    """Each token from those before it.

    A begin-of-text token is put before the text and an end-of-text token after it where the tokenizer has them, so that
    the first token and the end are predicted too; a text that is cut has no end.
    """

    predicts: ClassVar[str] = "every token after the first, from those before it"

    def encode(self, table: Table) -> Encoded:
        """Return ``input_ids``."""
        before, after = self._around
        room = self.max_length - len(before)
        rows = [_joined(before, tokens, after, room) for tokens in tokenize(self.tokenizer, table.column("text"))]
        ids = Ragged.from_rows(row for row, _ in rows)
        return Encoded({"input_ids": ids}, {}, ids.lengths, sum(cut for _, cut in rows))

    def collate(self, encoded: Encoded, indices: NDArray[Any], *, draw: int = 0) -> Batch:
        """Return ``input_ids``, ``attention_mask`` and ``labels`` (the ids, ignored at padding)."""
        batch = super().collate(encoded, indices, draw=draw)
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
        return batch

    def aligned(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the logits at each token but the last, and the token that follows."""
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return logits[:, :-1], batch["labels"][:, 1:]

    @property
    def definition(self) -> str:
        """What the perplexity is, for the protocol."""
        return "exp of the mean nats per predicted token"

    @cached_property
    def _around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        begin, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        before = self.template.prefix or ((begin,) if isinstance(begin, int) else ())
        return before, self.template.suffix or ((end,) if isinstance(end, int) else ())


@dataclass(frozen=True, eq=False)
class MaskedLanguageModeling(LanguageModeling):
    """Masked tokens from all others: 15 % of a text's tokens, at least one.

    Which tokens are masked is a function of the public `seed`, the text's own tokens and `draw` alone: collating stays
    pure, and adding or removing another row changes no mask, as the sensitivity bound of private training wants.
    Scoring always uses the same draw.

    Attributes:
        seed: public seed of the masks.
    """

    predicts: ClassVar[str] = "masked tokens, from all others"
    seed: int = 0

    def encode(self, table: Table) -> Encoded:
        """Return ``input_ids`` and ``mask_keys``, the seeds of each row's masks."""
        tokens = tokenize(self.tokenizer, table.column("text"))
        room = self.max_length - self.template.length
        ids = Ragged.from_rows(self.template.wrap(row, self.max_length) for row in tokens)
        scalars = {"mask_keys": row_keys(ids, self.seed)}
        return Encoded({"input_ids": ids}, scalars, ids.lengths, sum(len(row) > room for row in tokens))

    def collate(self, encoded: Encoded, indices: NDArray[Any], *, draw: int = 0) -> Batch:
        """Return ``input_ids`` with masks, ``attention_mask`` and ``labels``: the tokens to find, others ignored.

        Args:
            encoded: what `encode` returned, or rows of it.
            indices: [batch] row numbers.
            draw: which masks: another number gives other masks of the same rows, such as one per epoch.
        """
        rows = np.asarray(indices, dtype=np.int64)
        ids = encoded.ragged["input_ids"]
        masked, labels = self._masking(
            ids.pad(rows, pad_id(self.tokenizer)), ids.lengths[rows], encoded.scalars["mask_keys"][rows], draw
        )
        columns = np.arange(masked.shape[1])
        inside = columns < ids.lengths[rows][:, None]
        return {
            "input_ids": torch.from_numpy(masked),
            "attention_mask": torch.from_numpy(inside.astype(np.int64)),
            "labels": torch.from_numpy(labels),
        }

    def aligned(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the logits and the tokens to find at masked places."""
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return logits, batch["labels"]

    @property
    def definition(self) -> str:
        """What the perplexity is, for the protocol."""
        return "pseudo-perplexity: exp of the mean nats per masked token, one fixed mask of 15 % of each text"

    @cached_property
    def _masking(self) -> Masking:
        return Masking.of(self.tokenizer, self.template)


def _joined(before: tuple[int, ...], tokens: Ids, after: tuple[int, ...], room: int) -> tuple[Ids, bool]:
    """Return the row, and whether it was cut."""
    whole = [*tokens, *after]
    return [*before, *whole[:room]], len(whole) > room


def _exponential(nats: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(nats))
