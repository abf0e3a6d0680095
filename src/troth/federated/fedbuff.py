"""FedBuff: asynchronous federated learning with a buffer, its delays simulated.

Nguyen et al., AISTATS 2022, arXiv 2106.06639, algorithm 1. At any time `concurrency` clients are at work; the server
updates as soon as a buffer of updates has come back, each made from the model that its client was sent. Here a client's
work takes a random time; what follows from that, who reports when and how stale, is exact.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from troth.config_federated import BufferConfig
from troth.federated.algorithm import Parameters
from troth.federated.selection import Cohort
from troth.results import Json

__all__ = ["Arrivals", "InFlight", "OldVersions"]

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Arrivals:
    """The clients whose updates fill a buffer.

    Attributes:
        cohorts: version of the model they were sent -> those clients with their weights.
        staleness: mean number of updates that the server made meanwhile.
    """

    cohorts: Mapping[int, Cohort]
    staleness: float


@dataclass(eq=False)
class InFlight:
    """Clients at work, in the order in which they were sent their model.

    Attributes:
        clients: numbers.
        versions: rounds done when each was sent its model.
        weights: what its update counts, before staleness.
        finish: time at which each reports; the unit is the mean delay's.
        now: present time.
    """

    clients: Integers = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    versions: Integers = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    weights: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    finish: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    now: float = 0.0

    def send(self, cohort: Cohort, version: int, config: BufferConfig, rng: np.random.Generator) -> None:
        """Send the present model to a cohort; each client reports after an exponential time."""
        delay = rng.standard_exponential(len(cohort.clients)) * config.mean_delay
        self.clients = np.r_[self.clients, cohort.clients]
        self.versions = np.r_[self.versions, np.full(len(cohort.clients), version, dtype=np.int64)]
        self.weights = np.r_[self.weights, cohort.weights * len(cohort.clients)]
        self.finish = np.r_[self.finish, self.now + delay]

    def arrive(self, size: int, version: int, config: BufferConfig) -> Arrivals:
        """Return the first `size` clients to report, and take them out.

        Each counts its weight over `size`, times (1 + staleness) ** -staleness_power.
        """
        first = np.argsort(self.finish, kind="stable")[:size]
        self.now = float(self.finish[first].max(initial=self.now))
        stale = version - self.versions[first]
        weights = self.weights[first] / max(len(first), 1) * (1.0 + stale) ** -config.staleness_power
        fresh = bool((stale == 0).all())
        cohorts = {}
        for sent in np.unique(self.versions[first]).tolist():
            mine = self.versions[first] == sent
            order = np.argsort(self.clients[first][mine])
            cohorts[sent] = Cohort(self.clients[first][mine][order], weights[mine][order], fresh)
        keep = np.setdiff1d(np.arange(len(self.clients)), first)
        self.clients, self.versions = self.clients[keep], self.versions[keep]
        self.weights, self.finish = self.weights[keep], self.finish[keep]
        return Arrivals(cohorts, float(stale.mean()) if len(stale) else 0.0)

    def to_dict(self) -> dict[str, Json]:
        """Return the JSON form; numbers come back to the last bit."""
        return {
            "clients": self.clients.tolist(),
            "versions": self.versions.tolist(),
            "weights": self.weights.tolist(),
            "finish": self.finish.tolist(),
            "now": self.now,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, list[float] | float]) -> InFlight:
        """Return what `to_dict` wrote."""
        return cls(
            np.asarray(data["clients"], dtype=np.int64),
            np.asarray(data["versions"], dtype=np.int64),
            np.asarray(data["weights"], dtype=np.float64),
            np.asarray(data["finish"], dtype=np.float64),
            float(np.asarray(data["now"])),
        )


class OldVersions:
    """Global models of earlier rounds that clients at work still start from."""

    def __init__(self) -> None:
        self._kept: dict[int, Parameters] = {}

    def keep(self, version: int, parameters: Parameters, wanted: Collection[int]) -> None:
        """Keep the present version, and of the earlier ones those that are wanted."""
        self._kept[version] = parameters
        self._kept = {v: p for v, p in self._kept.items() if v in wanted or v == version}

    def of(self, version: int) -> Parameters:
        """Return a version's parameters."""
        return self._kept[version]

    def trees(self) -> dict[str, Parameters]:
        """Return what a checkpoint has to hold: ``version-N`` -> parameters."""
        return {f"version-{version}": parameters for version, parameters in self._kept.items()}

    def restore(self, trees: Mapping[str, Parameters]) -> None:
        """Go on from what `trees` returned; other trees are passed over."""
        name = "version-"
        self._kept = {int(n.removeprefix(name)): p for n, p in trees.items() if n.startswith(name)}
