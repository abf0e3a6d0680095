"""From per-row arrays to measurements: value, interval, n and protocol, in one way for all tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from troth.intervals import (
    REPLICATES,
    Interval,
    Statistic,
    bootstrap,
    bootstrap_counts,
    bootstrap_mean,
    clopper_pearson,
)
from troth.results import Direction, Json, Measurement
from troth.seeds import PublicSeeds

__all__ = ["SMALLEST_BOOTSTRAP", "Measures"]

SMALLEST_BOOTSTRAP = 10
"""Rows below which a bootstrap interval is not supported: it cannot see what it has not drawn."""

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Measures:
    """Makes the measurements of one table: the names' prefix, the bootstrap's seeds and what they share.

    Attributes:
        prefix: first part of each name, such as ``test``.
        seeds: public seeds; each measurement has a stream of its own, named by the measurement.
        outside_guarantee: stamped on each measurement.
        protocol: entries of every measurement's protocol.
    """

    prefix: str
    seeds: PublicSeeds
    outside_guarantee: bool
    protocol: Mapping[str, Json] = field(default_factory=dict)

    def proportion(self, name: str, hits: NDArray[Any], **protocol: Json) -> Measurement:
        """Return the share of `hits` [rows] of 0 or 1, with the exact interval."""
        n, successes = len(hits), round(float(np.sum(hits)))
        interval = clopper_pearson(successes, n, CONFIDENCE)
        return self._measurement(name, successes / n, interval, n, protocol={"successes": successes, **protocol})

    def mean(self, name: str, values: NDArray[Any], *, unit: str = "fraction", **protocol: Json) -> Measurement:
        """Return the mean of `values` [rows], rows resampled."""

        def interval(rng: np.random.Generator) -> Interval:
            return bootstrap_mean(values, rng, confidence=CONFIDENCE)

        value = float(np.mean(values)) if len(values) else float("nan")
        return self._bootstrapped(name, value, interval, len(values), unit=unit, **protocol)

    def of_sums(
        self, name: str, sums: NDArray[Any], statistic: Statistic, *, unit: str = "fraction", **protocol: Json
    ) -> Measurement:
        """Return a function of the column sums of `sums` [rows, k], rows resampled."""

        def interval(rng: np.random.Generator) -> Interval:
            return bootstrap(sums, statistic, rng, confidence=CONFIDENCE)

        value = float(statistic(np.asarray(sums, dtype=np.float64).sum(axis=0, keepdims=True))[0])
        return self._bootstrapped(name, value, interval, len(sums), unit=unit, **protocol)

    def of_counts(self, name: str, counts: NDArray[Any], statistic: Statistic, **protocol: Json) -> Measurement:
        """Return a function of the counts [categories] of rows, rows resampled."""

        def interval(rng: np.random.Generator) -> Interval:
            return bootstrap_counts(counts, statistic, rng, confidence=CONFIDENCE)

        value = float(statistic(np.asarray(counts, dtype=np.float64)[None, :])[0])
        return self._bootstrapped(name, value, interval, int(np.sum(counts)), unit="fraction", **protocol)

    def loss(self, losses: NDArray[np.float64], scored: NDArray[np.bool_], **protocol: Json) -> Measurement:
        """Return the mean loss of the rows that have something to predict; the others are counted in the protocol."""
        left_out = int(np.sum(~scored))
        return self.mean("loss", losses[scored], unit="nats", rows_without_loss=left_out, **protocol)

    def _bootstrapped(
        self,
        name: str,
        value: float,
        make_interval: Callable[[np.random.Generator], Interval],
        n: int,
        *,
        unit: str,
        **protocol: Json,
    ) -> Measurement:
        # A diverged model gives losses that are not finite: no number then, rather than one over the rows that are.
        interval = Interval(None, None, CONFIDENCE, "bootstrap-percentile")
        if n and np.isfinite(value):
            interval = make_interval(self.seeds.generator("bootstrap", f"{self.prefix}.{name}"))
        made = {"resampled": "rows", "replicates": REPLICATES, **protocol}
        return self._measurement(name, value, interval, n, unit=unit, protocol=made)

    def _measurement(
        self,
        name: str,
        value: float,
        interval: Interval,
        n: int,
        *,
        unit: str = "fraction",
        protocol: Mapping[str, Json],
    ) -> Measurement:
        finite = bool(np.isfinite(value))
        direction: Direction = "higher" if unit == "fraction" else "lower"
        exact = interval.method == "clopper-pearson"
        return Measurement(
            f"{self.prefix}.{name}",
            value if finite else None,
            interval.low,
            interval.high,
            interval.confidence,
            interval.method,
            n,
            unit,
            direction=direction,
            supported=finite and (exact or n >= SMALLEST_BOOTSTRAP),
            outside_guarantee=self.outside_guarantee,
            protocol={**self.protocol, **protocol},
        )
