"""From per-row arrays to measurements: value, interval, n and protocol, in one way for all tasks.

A measurement is supported where its interval can be relied on. That is so for exact intervals and computed bounds, and
for a bootstrap of enough rows: 10 where the number is a share, whose limits the interval knows, 30 where it has none.
An interval of width zero is never supported: rows that are all alike do not show that all others are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from troth.intervals import REPLICATES, Interval, clopper_pearson, ratio_interval, ratio_of_sums, share_interval
from troth.results import Direction, Json, Measurement
from troth.seeds import PublicSeeds
from troth.tasks.macro_f1 import THIN, Confusion, macro_f1, macro_f1_interval

__all__ = ["MOST_THIN_LABELS", "SMALLEST_SHARE", "SMALLEST_UNLIMITED", "Measures"]

SMALLEST_SHARE = 10
"""Rows below which the bootstrap of a number between 0 and 1 is not supported; rows of size 0 do not count."""

SMALLEST_UNLIMITED = 30
"""Rows below which the bootstrap of a loss or a perplexity is not supported: a larger one may not have been drawn."""

MOST_THIN_LABELS = 5
"""Labels with few rows above which a macro-F1 is not supported: `macro_f1_interval` has the figures."""

CONFIDENCE = 0.95

MakeInterval = Callable[[np.random.Generator], Interval]


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
        protocol = {"successes": successes, **protocol}
        return self._measurement(name, successes / n, interval, n, enough=True, protocol=protocol)

    def mean_share(self, name: str, shares: NDArray[Any], **protocol: Json) -> Measurement:
        """Return the mean of `shares` [rows] between 0 and 1."""
        return self.share(name, shares, np.ones(len(shares)), protocol)

    def share(
        self,
        name: str,
        parts: NDArray[Any],
        wholes: NDArray[Any],
        protocol: Mapping[str, Json],
        *,
        of_nothing: float = np.nan,
    ) -> Measurement:
        """Return sum(parts) / sum(wholes), both [rows], between 0 and 1; `of_nothing` where all wholes are 0."""
        value = ratio_of_sums(parts, wholes) if np.any(wholes) else of_nothing

        def interval(rng: np.random.Generator) -> Interval:
            return share_interval(parts, wholes, rng, confidence=CONFIDENCE)

        counting = int(np.sum(wholes > 0))
        made = self._interval(name, value, interval)
        exact = made.method == "zero-event-bound" and counting > 0
        enough = exact or counting >= SMALLEST_SHARE
        protocol = {**_resampled(made), "rows_that_count": counting, **protocol}
        return self._measurement(name, value, made, len(parts), enough=enough, protocol=protocol)

    def macro_f1(self, gold: NDArray[np.int64], predicted: NDArray[np.int64], **protocol: Json) -> Measurement:
        """Return macro-F1 of [rows] label numbers, over the labels that are gold or predicted."""
        confusion = Confusion.of(gold, predicted)

        def interval(rng: np.random.Generator) -> Interval:
            return macro_f1_interval(confusion, rng, confidence=CONFIDENCE)

        value = macro_f1(confusion)
        made = self._interval("macro_f1", value, interval)
        exact = made.method == "zero-event-bound"
        enough = exact or (len(gold) >= SMALLEST_SHARE and confusion.thin <= MOST_THIN_LABELS)
        labels: dict[str, Json] = {"labels": confusion.labels, f"labels_below_{THIN}_rows": confusion.thin}
        protocol = {"averaged_over": "labels that are gold or predicted", **_resampled(made), **labels, **protocol}
        return self._measurement("macro_f1", value, made, len(gold), enough=enough, protocol=protocol)

    def loss(self, losses: NDArray[np.float64], scored: NDArray[np.bool_], **protocol: Json) -> Measurement:
        """Return the mean loss of the rows that have something to predict; the others are counted in the protocol."""
        found = losses[scored]
        protocol = {"rows_without_loss": int(np.sum(~scored)), **protocol}
        return self.ratio("loss", found, np.ones(len(found)), protocol, unit="nats")

    def ratio(
        self,
        name: str,
        numerators: NDArray[Any],
        denominators: NDArray[Any],
        protocol: Mapping[str, Json],
        *,
        unit: str,
        scale: Callable[[float], float] = float,
    ) -> Measurement:
        """Return sum(numerators) / sum(denominators), both [rows], without known limits; lower is better.

        Args:
            name: without the prefix.
            numerators: [rows].
            denominators: [rows] not negative.
            protocol: how it was made.
            unit: of the number.
            scale: an increasing function that the number and its interval's ends are put through.
        """
        ratio = ratio_of_sums(numerators, denominators)

        def interval(rng: np.random.Generator) -> Interval:
            return ratio_interval(numerators, denominators, rng, confidence=CONFIDENCE)

        made = _scaled(self._interval(name, ratio, interval), scale)
        enough = np.sum(denominators > 0) >= SMALLEST_UNLIMITED
        protocol = {**_resampled(made), **protocol}
        return self._measurement(
            name, scale(ratio), made, len(numerators), enough=bool(enough), unit=unit, protocol=protocol
        )

    def _interval(self, name: str, value: float, make: MakeInterval) -> Interval:
        # A diverged model gives losses that are not finite: no number then, rather than one over the rows that are.
        if not np.isfinite(value):
            return Interval(None, None, CONFIDENCE, "bayesian-bootstrap")
        return make(self.seeds.generator("bootstrap", f"{self.prefix}.{name}"))

    def _measurement(
        self,
        name: str,
        value: float,
        interval: Interval,
        n: int,
        *,
        enough: bool,
        unit: str = "fraction",
        protocol: Mapping[str, Json],
    ) -> Measurement:
        direction: Direction = "higher" if unit == "fraction" else "lower"
        return Measurement(
            f"{self.prefix}.{name}",
            value if np.isfinite(value) else None,
            interval.low,
            interval.high,
            interval.confidence,
            interval.method,
            n,
            unit,
            direction=direction,
            supported=enough and bool(np.isfinite(value)) and _wide(interval),
            outside_guarantee=self.outside_guarantee,
            protocol={**self.protocol, **protocol},
        )


def _scaled(interval: Interval, scale: Callable[[float], float]) -> Interval:
    if interval.low is None or interval.high is None:
        return interval
    return Interval(scale(interval.low), scale(interval.high), interval.confidence, interval.method)


def _wide(interval: Interval) -> bool:
    """Return whether the interval has two finite ends that differ."""
    low, high = interval.low, interval.high
    return low is not None and high is not None and bool(np.isfinite([low, high]).all()) and low < high


def _resampled(interval: Interval) -> dict[str, Json]:
    if interval.method != "bayesian-bootstrap":
        return {}
    return {"resampled": "rows, by exponential weights", "replicates": REPLICATES}
