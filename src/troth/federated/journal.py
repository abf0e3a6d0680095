"""What a federation keeps about its rounds: the series of its record, and counts that go through checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from troth.federated.engine import RoundOutcome
from troth.federated.rounds import Turn
from troth.results import Json, Measurement, plain_json

__all__ = ["ROUND", "FederatedOutcome", "PhaseSeconds", "RoundJournal", "metric_of"]

ROUND = "federated.round."


@dataclass(frozen=True)
class FederatedOutcome:
    """What a federation did; the model holds the global parameters after the last round.

    Attributes:
        rounds: rounds done.
        series: ``federated.round``, one row per evaluated round: ``round``, a column per metric, ``low`` and ``high``
            of the first metric, ``loss`` (mean local training loss since the row before, nats), ``evaluation_loss``
            (the measured one, where the task has it), ``cohort``, and,
            counted from the start, ``samples``, ``steps``, ``bytes``, ``bytes_up``, ``bytes_down``, ``rejected`` and
            ``seconds`` of client and server work: quality belongs beside rounds, samples **and** bytes.
            ``federated.participation``, one row per round, see `RoundJournal.add`. Of a stream also
            ``federated.period``, one row per period and tested period.
        measurements: the last evaluation as ``federated.round.<metric>``, and what the federation cost.
        work_seconds: seconds of client and server work, those of earlier parts of a resumed run included.
        warnings: what the user should know, one line each.
    """

    rounds: int
    series: Mapping[str, list[dict[str, Json]]]
    measurements: tuple[Measurement, ...]
    work_seconds: float
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class PhaseSeconds:
    """Seconds of a round by phase: drawing the cohort, clients' work, the server's step."""

    select: float
    clients: float
    server: float

    @property
    def total(self) -> float:
        """Seconds of the round without its evaluation."""
        return self.select + self.clients + self.server


@dataclass
class RoundJournal:
    """The series of a federation and its cost so far; goes through a checkpoint without loss.

    Attributes:
        rows: one per evaluated round, see `FederatedOutcome.series`.
        participation: one per round, see `add`.
        periods: one per period of a stream and tested period.
        samples: examples processed on clients, each local epoch counted.
        steps: local gradient steps.
        bytes_up: bytes from clients to the server.
        bytes_down: bytes from the server to clients.
        asked: clients asked.
        dropped: clients that were asked and did not report.
        surplus: clients that reported too late.
        rejected: updates left out, by reason.
        unstacked: clients that were to be stacked and were run one after the other.
        idle_rounds: rounds in which no update came in.
        seconds: of client and server work.
        losses: examples since the last row.
        loss_sum: sum of their losses, nats.
    """

    rows: list[dict[str, Json]] = field(default_factory=list)
    participation: list[dict[str, Json]] = field(default_factory=list)
    periods: list[dict[str, Json]] = field(default_factory=list)
    samples: int = 0
    steps: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    asked: int = 0
    dropped: int = 0
    surplus: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    unstacked: int = 0
    idle_rounds: int = 0
    seconds: float = 0.0
    losses: int = 0
    loss_sum: float = 0.0

    @property
    def loss(self) -> float | None:
        """Mean loss of the examples since the last row, or None before the first."""
        return self.loss_sum / self.losses if self.losses else None

    @property
    def rejections(self) -> int:
        """Updates left out, for whatever reason."""
        return sum(self.rejected.values())

    def add(self, outcome: RoundOutcome, turn: Turn, spent: PhaseSeconds, gini: float, probed: int = 0) -> None:
        """Note one round.

        `probed` clients were sent the model to say their loss before the cohort was chosen (power of choice).

        The row of ``federated.participation`` holds the round, who was ``asked``, how many counted (``selected``),
        ``dropped`` out, came too late (``surplus``), were ``rejected`` or ``probed``; ``samples``, ``steps``,
        ``bytes_up`` and ``bytes_down`` of this round; the ``gini`` coefficient of participation so far; seconds by
        phase; and what the turn says besides.
        """
        late = turn.dropped + turn.surplus
        each = outcome.bytes_down // max(1, outcome.clients)  # those that do not count were sent the model as well
        up = outcome.bytes_up + turn.surplus * (outcome.bytes_up // max(1, outcome.clients))
        down = outcome.bytes_down + (late + probed) * each
        taken = outcome.aggregate.clients if outcome.aggregate else 0
        self.samples += outcome.samples
        self.steps += outcome.steps
        self.bytes_up += up
        self.bytes_down += down
        self.asked += turn.asked
        self.dropped += turn.dropped
        self.surplus += turn.surplus
        for reason, count in outcome.rejected.items():
            self.rejected[reason] = self.rejected.get(reason, 0) + count
        self.unstacked += outcome.unstacked
        self.idle_rounds += not taken
        self.seconds += spent.total
        self.losses += outcome.losses
        self.loss_sum += outcome.loss_sum
        self.participation.append(
            {
                "round": len(self.participation) + 1,
                "asked": turn.asked,
                "selected": taken,
                "dropped": turn.dropped,
                "surplus": turn.surplus,
                "probed": probed,
                "rejected": sum(outcome.rejected.values()),
                "samples": outcome.samples,
                "steps": outcome.steps,
                "bytes_up": up,
                "bytes_down": down,
                "gini": gini,
                "seconds_select": spent.select,
                "seconds_clients": spent.clients,
                "seconds_server": spent.server,
                **turn.more,
            }
        )

    def close(self, round_number: int, found: Sequence[Measurement]) -> None:
        """Make what was seen since the last row a row, with what was measured after it."""
        row: dict[str, Json] = {"round": round_number, **{metric_of(m): m.value for m in found}}
        if found:
            row |= {"low": found[0].low, "high": found[0].high}
        latest = self.participation[-1]["selected"] if self.participation else 0
        if "loss" in row:
            row["evaluation_loss"] = row["loss"]
        row |= {"loss": self.loss, "cohort": latest, "samples": self.samples, "steps": self.steps}
        row |= {"bytes": self.bytes_up + self.bytes_down, "bytes_up": self.bytes_up, "bytes_down": self.bytes_down}
        self.rows.append(row | {"rejected": self.rejections, "seconds": self.seconds})
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
