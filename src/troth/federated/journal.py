"""What a federation notes while it goes, and what it hands back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from troth.federated.engine import RoundOutcome
from troth.results import Json, Measurement, plain_json

__all__ = ["FederatedOutcome", "RoundJournal", "metric_of"]

ROUND = "federated.round."


@dataclass(frozen=True)
class FederatedOutcome:
    """What a federation did; the model holds the global parameters after the last round.

    Attributes:
        rounds: rounds done.
        series: one row per evaluated round: ``round``, a column per metric, ``low`` and ``high`` of the first metric,
            ``loss`` (mean local training loss since the row before, nats), ``cohort`` (clients a round), and, counted
            from the start, ``samples``, ``steps``, ``bytes``, ``bytes_up``, ``bytes_down``, ``rejected`` and
            ``seconds`` of client and server work. Quality belongs beside rounds, samples **and** bytes.
        measurements: the last evaluation as ``federated.round.<metric>``, and what the federation cost.
        work_seconds: seconds of client and server work, those of earlier parts of a resumed run included.
        warnings: what the user should know, one line each.
    """

    rounds: int
    series: list[dict[str, Json]]
    measurements: tuple[Measurement, ...]
    work_seconds: float
    warnings: tuple[str, ...] = ()


@dataclass
class RoundJournal:
    """The series of a federation and its cost so far; goes through a checkpoint without loss.

    Attributes:
        rows: one per evaluated round, see `FederatedOutcome.series`.
        samples: examples processed on clients, each local epoch counted.
        steps: local gradient steps.
        bytes_up: bytes from clients to the server.
        bytes_down: bytes from the server to clients.
        rejected: updates left out because they were not finite.
        seconds: of client and server work.
        losses: examples since the last row.
        loss_sum: sum of their losses, nats.
    """

    rows: list[dict[str, Json]] = field(default_factory=list)
    samples: int = 0
    steps: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    rejected: int = 0
    seconds: float = 0.0
    losses: int = 0
    loss_sum: float = 0.0

    @property
    def loss(self) -> float | None:
        """Mean loss of the examples since the last row, or None before the first."""
        return self.loss_sum / self.losses if self.losses else None

    def add(self, outcome: RoundOutcome, seconds: float) -> None:
        """Note one round."""
        self.samples += outcome.samples
        self.steps += outcome.steps
        self.bytes_up += outcome.bytes_up
        self.bytes_down += outcome.bytes_down
        self.rejected += outcome.rejected
        self.seconds += seconds
        self.losses += outcome.losses
        self.loss_sum += outcome.loss_sum

    def close(self, round_number: int, cohort: int, found: Sequence[Measurement]) -> None:
        """Make what was seen since the last row a row, with what was measured after it."""
        row: dict[str, Json] = {"round": round_number, **{metric_of(m): m.value for m in found}}
        if found:
            row |= {"low": found[0].low, "high": found[0].high}
        row |= {"loss": self.loss, "cohort": cohort, "samples": self.samples, "steps": self.steps}
        row |= {"bytes": self.bytes_up + self.bytes_down, "bytes_up": self.bytes_up, "bytes_down": self.bytes_down}
        self.rows.append(row | {"rejected": self.rejected, "seconds": self.seconds})
        self.losses, self.loss_sum = 0, 0.0

    def to_dict(self) -> dict[str, Json]:
        """Return the JSON form."""
        out = plain_json(asdict(self))
        return out if isinstance(out, dict) else {}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RoundJournal:
        """Return the journal that `to_dict` wrote."""
        return cls(**data)


def metric_of(measurement: Measurement) -> str:
    """Return a metric's name without what it was measured under: ``test.accuracy`` -> ``accuracy``."""
    name = measurement.name
    return name.removeprefix(ROUND) if name.startswith(ROUND) else name.partition(".")[2] or name
