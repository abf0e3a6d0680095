"""What a run notes while it goes: a row per epoch, and the epoch under way."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from troth.results import Json, plain_json
from troth.training.steps import StepResult

__all__ = ["Journal"]


@dataclass
class Journal:
    """The series of a run and its cost so far; goes through a checkpoint without loss.

    Attributes:
        rows: one per finished epoch, see `TrainOutcome.series`.
        loss_sum: sum of losses of the epoch under way, nats.
        examples: examples of the epoch under way.
        steps: steps of the epoch under way.
        epoch_seconds: seconds of the epoch under way.
        work_seconds: seconds in the loop, earlier parts of a resumed run included.
    """

    rows: list[dict[str, Json]] = field(default_factory=list)
    loss_sum: float = 0.0
    examples: int = 0
    steps: int = 0
    epoch_seconds: float = 0.0
    work_seconds: float = 0.0

    @property
    def loss(self) -> float | None:
        """Mean loss of the epoch under way, or None before its first example."""
        return self.loss_sum / self.examples if self.examples else None

    def add(self, result: StepResult, seconds: float) -> None:
        """Note one step."""
        self.loss_sum += result.loss_sum
        self.examples += result.examples
        self.steps += 1
        self.epoch_seconds += seconds
        self.work_seconds += seconds

    def close_epoch(self, **values: Json) -> None:
        """Make the epoch under way a row, with further values beside its loss, and begin the next."""
        self.rows.append({**values, "loss": self.loss})
        self.loss_sum, self.examples, self.steps, self.epoch_seconds = 0.0, 0, 0, 0.0

    def to_dict(self) -> dict[str, Json]:
        """Return the JSON form."""
        out = plain_json(asdict(self))
        return out if isinstance(out, dict) else {}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Journal:
        """Return the journal that `to_dict` wrote."""
        return cls(**data)
