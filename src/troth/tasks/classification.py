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

__all__ = ["Classification", "macro_f1"]

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
        self, model: PreTrainedModel, table: Table, *, batch_size: int = 64, progress: ScoringProgress | None = None
    ) -> Scores:
        """Return losses, hits, ``log_probabilities`` and ``detail["prediction"]`` (class numbers)."""
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
        """Return ``accuracy`` (exact interval), ``macro_f1`` and ``loss`` (rows resampled)."""
        gold = self._codes(table)
        measures = Measures(prefix, seeds, outside_guarantee, {"unseen_labels": int(np.sum(gold == _UNSEEN))})
        counts, statistic = macro_f1(self._codes_with_unseen(table), scores.detail["prediction"])
        return (
            measures.proportion("accuracy", scores.correct),
            measures.of_counts("macro_f1", counts, statistic, averaged_over="labels that are gold or predicted"),
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


class _MacroF1:
    """Macro-F1 as a function of the counts of (gold, predicted) pairs."""

    def __init__(self, gold: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> None:
        pairs = len(gold)
        self._gold = np.zeros((pairs, classes))
        self._gold[np.arange(pairs), gold] = 1
        self._predicted = np.zeros((pairs, classes))
        self._predicted[np.arange(pairs), predicted] = 1

    def __call__(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return [replicates] for counts [replicates, pairs]."""
        either = counts @ (self._gold + self._predicted)  # 2 TP + FP + FN of each class
        hits = counts @ (self._gold * self._predicted)
        f1 = np.divide(2 * hits, either, out=np.zeros_like(hits), where=either > 0)
        present = np.sum(either > 0, axis=1)
        out: NDArray[np.float64] = f1.sum(axis=1) / np.maximum(present, 1)
        return out


def macro_f1(gold: NDArray[np.int64], predicted: NDArray[np.int64]) -> tuple[NDArray[np.int64], _MacroF1]:
    """Return the counts of (gold, predicted) pairs that occur and macro-F1 as a function of such counts.

    The mean, over the classes that occur as gold or predicted, of 2 TP / (2 TP + FP + FN): scikit-learn's
    ``f1_score(average="macro")``. In a resample, classes that do not occur are left out in the same way.

    Args:
        gold: [rows] class numbers from 0.
        predicted: [rows] class numbers from 0.
    """
    classes = int(max(gold.max(), predicted.max())) + 1
    pairs, counts = np.unique(gold * classes + predicted, return_counts=True)
    return counts, _MacroF1(pairs // classes, pairs % classes, classes)
