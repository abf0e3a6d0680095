"""The one seam to models: what every task gives to training, attacks, federations, fairness and distillation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from troth.tasks.encoded import Encoded, Ragged
from troth.tasks.tokens import Template, pad_id, template

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from troth.data import Table
    from troth.results import Measurement
    from troth.seeds import PublicSeeds
    from troth.tasks.token_scores import TokenScores

__all__ = ["IGNORED", "Batch", "Scores", "ScoringProgress", "Task", "evaluating", "scoring_batches", "token_mean_loss"]

Batch = dict[str, Tensor]
ScoringProgress = Callable[[int, int], None]
IGNORED = -100
"""The label of a token that is not predicted."""


@dataclass(frozen=True, eq=False)
class Scores:
    """What a model does on each row of a table, in the table's order.

    Attributes:
        losses: [rows] float64 nats; NaN where a row has nothing to predict (unseen label, no token).
        correct: [rows] float64 in [0, 1]: 1 means all right. Classification: hit; tagging: share of right tags;
            question answering and seq2seq: exact match; language modeling: share of right tokens.
        log_probabilities: [rows, classes] float64, natural logarithm; classification only.
        detail: per-row arrays the task's metrics need, such as ``prediction``, ``f1`` or span counts.
        tokens: statistics of each predicted token, where they were asked for; None for classification.
    """

    losses: NDArray[np.float64]
    correct: NDArray[np.float64]
    log_probabilities: NDArray[np.float64] | None = None
    detail: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    tokens: TokenScores | None = None

    def __len__(self) -> int:
        return len(self.losses)


@dataclass(frozen=True, eq=False)
class Task(ABC):
    """Text in, losses and scores out; immutable once made.

    Guarantees:
    - `per_example_loss` of a row does not depend on the other rows of its batch, nor on padding or on their order;
    - `collate` is a pure function of its arguments: the same arguments give the same batch, before and after a resume;
    - `score` leaves the model as it was: weights, training mode and gradients.

    Attributes:
        tokenizer: made without looking at private text (a preset's or a checkpoint's own).
        labels: class or tag names in the order of the model's outputs; empty where the task has none.
        max_length: tokens of a row after which it is cut, special tokens included.
    """

    kind: ClassVar[str]

    tokenizer: PreTrainedTokenizerBase
    labels: tuple[str, ...] = ()
    max_length: int = 128

    @abstractmethod
    def encode(self, table: Table) -> Encoded:
        """Return the table as numbers, one row per example."""

    @abstractmethod
    def per_example_loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """Return [batch] losses in nats, with a graph: float32, also under autocast (float64 for a float64 model).

        Token losses are means over the example's own target tokens; an example without any has loss 0. Made from
        logits, never the model's own loss: that one divides by a number of tokens of the whole batch, which couples
        examples and voids the sensitivity bound of private training.
        """

    @abstractmethod
    def score(
        self,
        model: PreTrainedModel,
        table: Table,
        *,
        batch_size: int = 64,
        progress: ScoringProgress | None = None,
        tokens: bool = False,
    ) -> Scores:
        """Return per-row scores in the table's order.

        Args:
            model: left as it was.
            table: rows of the task.
            batch_size: rows in a forward pass.
            progress: called with rows done and rows in all.
            tokens: whether to fill `Scores.tokens` from the same forward passes; without effect on the rest, and on a
                task with one label per text.
        """

    @abstractmethod
    def measure(
        self, scores: Scores, table: Table, *, prefix: str, seeds: PublicSeeds, outside_guarantee: bool
    ) -> tuple[Measurement, ...]:
        """Return the task's field metrics of `scores` on the table they came from, each with its interval.

        Args:
            scores: what `score` returned for `table`.
            table: the same table.
            prefix: first part of the names, such as ``test`` for ``test.accuracy``.
            seeds: public seeds of the bootstrap.
            outside_guarantee: True where the table is private data that epsilon does not cover.
        """

    def collate(self, encoded: Encoded, indices: NDArray[Any], *, draw: int = 0) -> Batch:
        """Return the rows at `indices` as CPU tensors padded to the longest of them.

        Args:
            encoded: what `encode` returned, or rows of it.
            indices: [batch] row numbers.
            draw: which draw of a task that draws at random when collating (masked language modeling): pass the epoch or
                step. Without effect elsewhere.

        Returns:
            int64 tensors: ragged columns [batch, longest], scalar columns [batch], and ``attention_mask``.
        """
        rows = np.asarray(indices, dtype=np.int64)
        batch = {name: self._padded(name, column, rows) for name, column in encoded.ragged.items()}
        batch["attention_mask"] = attention_mask(encoded.ragged["input_ids"], rows)
        for name, values in encoded.scalars.items():
            batch[name] = torch.from_numpy(values[rows])
        return batch

    def _padded(self, name: str, column: Ragged, rows: NDArray[np.int64]) -> Tensor:
        fill = {"input_ids": pad_id(self.tokenizer), "labels": IGNORED}.get(name, 0)
        return torch.from_numpy(column.pad(rows, fill))

    @cached_property
    def template(self) -> Template:
        """The special tokens the tokenizer puts around one text."""
        return template(self.tokenizer)


def attention_mask(column: Ragged, rows: NDArray[np.int64]) -> Tensor:
    """Return int64 [batch, longest]: 1 at a row's own tokens, 0 at padding."""
    lengths = column.offsets[rows + 1] - column.offsets[rows]
    inside = np.arange(int(lengths.max(initial=0))) < lengths[:, None]
    return torch.from_numpy(inside.astype(np.int64))


def full_precision(logits: Tensor) -> Tensor:
    """Return logits in float32 where they came in half precision, else as they are."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def token_mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return [batch]: the mean cross-entropy in nats over each row's own labelled tokens, 0 where it has none.

    Args:
        logits: [batch, time, classes], any floating dtype.
        labels: [batch, time] int64; `IGNORED` where nothing is predicted.
    """
    losses = torch.nn.functional.cross_entropy(
        full_precision(logits).flatten(0, 1), labels.flatten(), reduction="none", ignore_index=IGNORED
    )
    counts = (labels != IGNORED).sum(dim=1)
    return losses.view_as(labels).sum(dim=1) / counts.clamp(min=1)


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[torch.device]:
    """Put every module in eval mode without gradients, yield the model's device, and restore each module's mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(mode=False)
    try:
        with torch.no_grad():
            yield next(model.parameters()).device
    finally:
        for module, mode in modes:
            module.training = mode


def scoring_batches(
    lengths: NDArray[Any], batch_size: int, progress: ScoringProgress | None
) -> Iterator[NDArray[np.int64]]:
    """Yield batches of row indices, longest rows first so that a batch pads little; tell `progress` of each done."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    for start in range(0, len(order), max(1, batch_size)):
        rows = order[start : start + max(1, batch_size)]
        yield rows
        if progress:
            progress(start + len(rows), len(order))
