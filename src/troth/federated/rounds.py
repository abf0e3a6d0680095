"""Where the cohorts of a federation come from: a fixed population, a stream's periods, or clients that report late."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from troth.config_federated import BufferConfig, FederatedConfig
from troth.federated.fedbuff import InFlight
from troth.federated.participation import CohortSampler, Losses
from troth.federated.population import FederatedData
from troth.federated.selection import Cohort, PowerOfChoice, make_selection
from troth.federated.selection_activity import Activity
from troth.federated.stream import Period, Stream
from troth.results import Json
from troth.seeds import PublicSeeds

__all__ = ["BufferedRounds", "FixedRounds", "RoundSource", "StreamRounds", "Turn"]

Integers = NDArray[np.int64]
_LATEST_ROUND = 65_535  # what a registry's 16 bits hold


@dataclass(frozen=True, eq=False)
class Turn:
    """What a round is made of.

    Attributes:
        parts: model version -> the clients that work from it; one part, of the present version, unless clients report
            late. A version is the number of rounds done when the model was sent.
        data: who holds which rows in this round.
        asked: clients that were asked in this round.
        dropped: of those, clients that do not report.
        surplus: of those, clients that report too late to count.
        more: what the round's row of the record says besides.
    """

    parts: Mapping[int, Cohort]
    data: FederatedData
    asked: int
    dropped: int
    surplus: int
    more: Mapping[str, Json] = field(default_factory=dict)

    @classmethod
    def of(cls, version: int, cohort: Cohort, data: FederatedData, more: Mapping[str, Json] | None = None) -> Turn:
        """Return a round whose clients all work from one model."""
        return cls({version: cohort}, data, cohort.asked, cohort.dropped, cohort.surplus, more or {})


class RoundSource(Protocol):
    """Gives the rounds of a federation one after the other; its state goes through a checkpoint."""

    @property
    def rounds(self) -> int:
        """How many rounds there are."""

    @property
    def clients(self) -> int:
        """How many clients the population has."""

    def next(self, round_index: int, losses: Losses) -> Turn:
        """Return what round `round_index` is made of."""

    def guard(self, rows: Integers) -> None:
        """Refuse rows that must not be read."""

    def state(self) -> tuple[dict[str, Json], dict[str, Tensor]]:
        """Return what a checkpoint has to hold, as JSON and as tensors."""

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned."""

    def versions(self) -> set[int]:
        """Return the model versions that clients still work from."""


class FixedRounds:
    """Rounds over one population whose rows do not change."""

    def __init__(
        self, config: FederatedConfig, data: FederatedData, seeds: PublicSeeds, last_seen: NDArray[np.integer] | None
    ) -> None:
        self._config, self._data, self._seeds = config, data, seeds
        self._rest = np.zeros(len(data), dtype=np.uint16)
        now = 0 if last_seen is None else int(last_seen.max(initial=0))
        self._sampler = CohortSampler(
            make_selection(config.selection),
            Activity(data.counts, last_seen, self._rest, now),
            config.participation,
        )
        self._sampler.draw(config.cohort_size, 0, seeds, lambda k: np.zeros(len(k)))  # refuses what cannot be drawn

    @property
    def rounds(self) -> int:
        """``federated.rounds``."""
        return self._config.rounds

    @property
    def clients(self) -> int:
        """Clients of the population."""
        return len(self._data)

    def next(self, round_index: int, losses: Losses) -> Turn:
        """Return a cohort of the present model."""
        return Turn.of(round_index, self.draw(round_index, self._config.cohort_size, losses), self._data)

    def draw(self, round_index: int, size: int, losses: Losses) -> Cohort:
        """Return a cohort of `size` clients; those that are asked rest afterwards."""
        cohort = self._sampler.draw(size, round_index, self._seeds, losses)
        separation = self._config.participation.minimum_separation
        if separation:
            self._rest[cohort.asked_clients] = min(round_index + 1 + separation, _LATEST_ROUND)
        return cohort

    def draw_others(self, round_index: int, size: int, losses: Losses, busy: Integers) -> Cohort:
        """Return a cohort of which nobody is busy; needs a `minimum_separation` above 0, by which the busy rest."""
        until = self._rest[busy]
        self._rest[busy] = _LATEST_ROUND
        cohort = self.draw(round_index, size, losses)
        self._rest[busy] = until
        return cohort

    def guard(self, rows: Integers) -> None:
        """Refuse nothing: all rows are there for good."""

    def state(self) -> tuple[dict[str, Json], dict[str, Tensor]]:
        """Return who rests until when."""
        return {}, {"rest": torch.from_numpy(self._rest.astype(np.int32))}

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned."""
        self._rest[:] = tensors["rest"].numpy().astype(np.uint16)

    def versions(self) -> set[int]:
        """Return none: everybody works from the present model."""
        return set()


class BufferedRounds:
    """Rounds of FedBuff: each ends when ``cohort_size`` of the clients at work have reported.

    A client that was asked rests for a round at least, and as long as it is at work.
    """

    def __init__(self, config: FederatedConfig, data: FederatedData, seeds: PublicSeeds) -> None:
        self._config, self._data, self._seeds = config, data, seeds
        self._buffer = config.buffer or BufferConfig()
        rested = config.participation.model_copy(
            update={"minimum_separation": max(1, config.participation.minimum_separation)}
        )
        self._fixed = FixedRounds(config.model_copy(update={"participation": rested}), data, seeds, None)
        self._at_work = InFlight()

    @property
    def rounds(self) -> int:
        """``federated.rounds``."""
        return self._config.rounds

    @property
    def clients(self) -> int:
        """Clients of the population."""
        return len(self._data)

    def next(self, round_index: int, losses: Losses) -> Turn:
        """Return the clients that report next, by the model that each was sent."""
        missing = (self._buffer.concurrency or 2 * self._config.cohort_size) - len(self._at_work.clients)
        asked = dropped = surplus = 0
        if missing > 0:
            sent = self._fixed.draw_others(round_index, missing, losses, self._at_work.clients)
            asked, dropped, surplus = sent.asked, sent.dropped, sent.surplus
            rng = self._seeds.generator("delays", round_index)
            self._at_work.send(sent, round_index, self._buffer, rng)
        arrived = self._at_work.arrive(self._config.cohort_size, round_index, self._buffer)
        more: dict[str, Json] = {"staleness": arrived.staleness, "time": self._at_work.now}
        return Turn(arrived.cohorts, self._data, asked, dropped, surplus, more)

    def guard(self, rows: Integers) -> None:
        """Refuse nothing: all rows are there for good."""

    def state(self) -> tuple[dict[str, Json], dict[str, Tensor]]:
        """Return who rests until when, and who is at work."""
        state, tensors = self._fixed.state()
        return {**state, "at_work": self._at_work.to_dict()}, tensors

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned."""
        self._fixed.restore(state, tensors)
        self._at_work = InFlight.from_dict(state["at_work"])

    def versions(self) -> set[int]:
        """Return the versions that clients at work were sent."""
        return set(self._at_work.versions.tolist())


class StreamRounds:
    """Rounds over the periods of a stream, ``rounds_per_period`` in each; who is active is who has rows in the window.

    Attributes:
        period: the open period; None before the first round.
        empty_rounds: rounds in which nobody had a row.
        small_rounds: rounds in which fewer clients than ``cohort_size`` had one.
    """

    def __init__(
        self,
        config: FederatedConfig,
        stream: Stream,
        clients: int,
        seeds: PublicSeeds,
        gradients: Callable[[Integers], NDArray[np.float32]],
    ) -> None:
        self._config, self._stream, self._seeds, self._gradients = config, stream, seeds, gradients
        self._clients = clients
        self._per_period = config.stream.rounds_per_period if config.stream else 1
        self._rest = np.zeros(clients, dtype=np.uint16)
        self._sampler: CohortSampler | None = None
        self.period: Period | None = None
        self.empty_rounds = self.small_rounds = 0

    @property
    def rounds(self) -> int:
        """Rounds of all periods."""
        return len(self._stream) * self._per_period

    @property
    def clients(self) -> int:
        """Clients of the population."""
        return self._clients

    def next(self, round_index: int, losses: Losses) -> Turn:
        """Return a cohort of the clients that have rows in the open period's window."""
        if round_index % self._per_period == 0:
            self._enter(self._stream.advance(self._gradients))
        period = self.period
        if period is None:
            raise RuntimeError("a stream's rounds begin with its first period")
        active = int((period.population.counts > 0).sum())
        size = min(self._config.cohort_size, self._sampler.rates.drawable if self._sampler else 0)
        self.small_rounds += size < self._config.cohort_size
        nobody = np.zeros(0, dtype=np.int64)
        cohort = Cohort(nobody, np.zeros(0), sums_to_one=True)
        if self._sampler is None:
            self.empty_rounds += 1
        else:
            cohort = self._sampler.draw(size, round_index, self._seeds, losses)
            separation = self._config.participation.minimum_separation
            if separation:
                self._rest[cohort.asked_clients] = min(round_index + 1 + separation, _LATEST_ROUND)
        more: dict[str, Json] = {"period": period.index, "active": active}
        return Turn.of(round_index, cohort, period.training, more)

    def _enter(self, period: Period) -> None:
        self.period = period
        active = (period.population.counts > 0).any()
        seen = (period.last_seen + 1).astype(np.uint16)  # 0 is unknown
        activity = Activity(period.population.counts, seen, self._rest, period.index + 1)
        rule = make_selection(self._config.selection)
        if isinstance(rule, PowerOfChoice):
            rule = replace(rule, candidates=min(rule.candidates, int((period.population.counts > 0).sum())))
        self._sampler = CohortSampler(rule, activity, self._config.participation) if active else None

    def ends_period(self, rounds_done: int) -> bool:
        """Return whether a period is over after so many rounds."""
        return rounds_done % self._per_period == 0

    def guard(self, rows: Integers) -> None:
        """Refuse rows that have expired, were deleted or have not arrived."""
        self._stream.guard(rows)

    def state(self) -> tuple[dict[str, Json], dict[str, Tensor]]:
        """Return who rests until when, the open period and what is replayed."""
        held = {f"stream_{name}": torch.from_numpy(a) for name, a in self._stream.state().items()}
        counts: dict[str, Json] = {"empty_rounds": self.empty_rounds, "small_rounds": self.small_rounds}
        return counts, {"rest": torch.from_numpy(self._rest.astype(np.int32)), **held}

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned."""
        self._rest[:] = tensors["rest"].numpy().astype(np.uint16)
        held = {n.removeprefix("stream_"): t.numpy() for n, t in tensors.items() if n.startswith("stream_")}
        period = self._stream.restore(held)
        if period is not None:
            self._enter(period)
        self.empty_rounds, self.small_rounds = state["empty_rounds"], state["small_rounds"]

    def versions(self) -> set[int]:
        """Return none: everybody works from the present model."""
        return set()
