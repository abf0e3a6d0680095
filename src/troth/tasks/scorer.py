"""A look into a model: what attacks and fairness ask of it, whichever model it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from troth.errors import ModelError
from troth.tasks.task import Scores, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from troth.data import Table

__all__ = ["Scorer", "Signal", "TaskScorer"]

Signal = Literal["losses", "log_probabilities"]


class Scorer(Protocol):
    """Per-row signals of a model; `has` says which of them it gives."""

    def has(self) -> frozenset[Signal]:
        """Return the names of the methods that work."""
        ...

    def losses(self, table: Table) -> NDArray[np.float64]:
        """Return [rows] losses in nats; NaN where a row has nothing to predict (a label unseen in training)."""
        ...

    def log_probabilities(self, table: Table) -> NDArray[np.float64]:
        """Return [rows, classes] natural-log probabilities."""
        ...


@dataclass(frozen=True, eq=False)
class TaskScorer:
    """The scorer of a task and a model trained for it.

    Attributes:
        task: how text becomes losses.
        model: the model looked into; left as it was.
        batch_size: rows in a forward pass.
    """

    task: Task
    model: PreTrainedModel
    batch_size: int = 64

    def has(self) -> frozenset[Signal]:
        """Return ``losses``, and ``log_probabilities`` for a task with one label per text."""
        return frozenset({"losses", "log_probabilities"} if self.task.kind == "classification" else {"losses"})

    def losses(self, table: Table) -> NDArray[np.float64]:
        """Return [rows] losses in nats; NaN where a row has nothing to predict."""
        return self._scores(table).losses

    def log_probabilities(self, table: Table) -> NDArray[np.float64]:
        """Return [rows, classes] natural-log probabilities.

        Raises:
            ModelError: the task has no classes.
        """
        found = self._scores(table).log_probabilities
        if found is None:
            raise ModelError(f"a {self.task.kind} model has no log_probabilities of classes; ask has() first")
        return found

    def _scores(self, table: Table) -> Scores:
        return self.task.score(self.model, table, batch_size=self.batch_size)
