"""One label per text: cross-entropy; accuracy, macro-F1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from troth.tasks.encoded import Encoded, Ragged
from troth.tasks.measures import Measures
from troth.tasks.task import IGNORED, Batch, Scores, ScoringProgress, Task, evaluating, full_precision, scoring_batches
from troth.tasks.tokens import tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from troth.data import Table
    from troth.results import Measurement
    from troth.seeds import PublicSeeds

__all__ = ["Classification"]

_UNSEEN = -1


@dataclass(frozen=True, eq=False)
class Classification(Task):
    """Sequence classification with a fixed label set.

    A label outside of `labels` (``data.unseen_labels = "count_as_error"``) is encoded as -1: its loss is 0 in training
    and NaN in `Scores`, it counts as wrong in accuracy and as a class of its own, never found, in macro-F1; how many
    there are stands in every measurement's ``protocol.unseen_labels``.
    """

    kind: ClassVar[str] = "classification"

    def encode(self, table: Table) -> Encoded:
        """Return ``input_ids`` and, where the table has labels, ``labels`` [rows]."""
        tokens = tokenize(self.tokenizer, table.column("text"))
        room = self.max_length - self.template.length
        ids = Ragged.from_rows(self.template.wrap(row, self.max_length) for row in tokens)
        scalars = {"labels": self._codes(table)} if table.has("label") else {}
        return Encoded({"input_ids": ids}, scalars, ids.lengths, sum(len(row) > room for row in tokens))

    def per_example_loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """Return [batch] cross-entropy of the label in nats; 0 for an unseen label."""
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        targets = batch["labels"].masked_fill(batch["labels"] == _UNSEEN, IGNORED)
        return torch.nn.functional.cross_entropy(
            full_precision(logits), targets, reduction="none", ignore_index=IGNORED
        )

    def score(
        self,
        model: PreTrainedModel,
        table: Table,
        *,
        batch_size: int = 64,
        progress: ScoringProgress | None = None,
        tokens: bool = False,
    ) -> Scores:
        """Return losses, hits, ``log_probabilities`` and ``detail["prediction"]`` (class numbers); never tokens."""
        encoded = self.encode(table)
        logs = np.zeros((len(encoded), len(self.labels)))
        with evaluating(model) as device:
            for rows in scoring_batches(encoded.lengths, batch_size, progress):
                batch = self.collate(encoded, rows)
                inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
                logs[rows] = torch.log_softmax(model(**inputs).logits.double(), dim=1).cpu().numpy()
        gold = encoded.scalars.get("labels", np.full(len(encoded), _UNSEEN))
        found = gold != _UNSEEN
        prediction = logs.argmax(axis=1)
        losses = np.full(len(encoded), np.nan)
        losses[found] = -logs[found, gold[found]]
        return Scores(losses, (prediction == gold).astype(np.float64), logs, {"prediction": prediction})

    def measure(
        self, scores: Scores, table: Table, *, prefix: str, seeds: PublicSeeds, outside_guarantee: bool
    ) -> tuple[Measurement, ...]:
        """Return ``accuracy`` (exact interval), ``macro_f1`` and ``loss`` (rows reweighted)."""
        gold = self._codes(table)
        measures = Measures(prefix, seeds, outside_guarantee, {"unseen_labels": int(np.sum(gold == _UNSEEN))})
        return (
            measures.proportion("accuracy", scores.correct),
            measures.macro_f1(self._codes_with_unseen(table), scores.detail["prediction"]),
            measures.loss(scores.losses, gold != _UNSEEN),
        )

    def _codes(self, table: Table) -> NDArray[np.int64]:
        codes = {label: code for code, label in enumerate(self.labels)}
        return np.array([codes.get(label, _UNSEEN) for label in table.column("label")], dtype=np.int64)

    def _codes_with_unseen(self, table: Table) -> NDArray[np.int64]:
        """Return [rows] label numbers; each unseen label has a number of its own after those of `labels`."""
        gold = table.column("label")
        unseen = sorted(set(gold) - set(self.labels))
        codes = {label: code for code, label in enumerate((*self.labels, *unseen))}
        return np.array([codes[label] for label in gold], dtype=np.int64)
