"""Quality over a stream: per period, what was forgotten, what came back, and how soon a protocol caught up.

The central object is the matrix of quality [trained, tested]: the model as it was at the end of each period, on the
test rows of each period. Test rows belong to periods by their own times (`Periods.of`).

- **forgetting** after period k (Chaudhry et al., 'Riemannian Walk', ECCV 2018, arXiv 1801.10112, forgetting measure):
  the mean over past periods j < k of max over l < k of quality[l, j], minus quality[k, j]. Above 0 where earlier models
  were better on what is past; below 0 where the present one is better than all of them.
- **backward transfer** after period k (Lopez-Paz and Ranzato, 'Gradient Episodic Memory', NeurIPS 2017, arXiv
  1706.08840): the mean over j < k of quality[k, j] - quality[j, j]. Below 0 where learning on harmed what was learnt.

Both are in the metric's unit and signed such that more quality counts as better: for a metric where lower is better the
differences are turned round. A period without test rows (NaN) is left out of the means.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from troth.errors import DataError
from troth.intervals import REPLICATES, bayesian_weights
from troth.results import Json, Measurement
from troth.seeds import PublicSeeds
from troth.tasks.measures import CONFIDENCE, SMALLEST_SHARE, SMALLEST_UNLIMITED

__all__ = [
    "Better",
    "StreamScores",
    "backward_transfer",
    "evaluation_views",
    "forgetting",
    "rounds_to_catch_up",
    "stream_measurements",
]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Better = Literal["higher", "lower"]
_SIGN = {"higher": 1.0, "lower": -1.0}


def forgetting(quality: Floats, better: Better = "higher") -> Floats:
    """Return [..., trained]: after each period, how much quality on past periods was lost since its best.

    >>> forgetting(np.array([[0.9, 0.2], [0.6, 0.8]])).round(3)
    array([nan, 0.3])

    Args:
        quality: [..., trained, tested], the same periods twice; NaN where nothing was tested.
        better: which way is better.

    Returns:
        In the metric's unit, 0 where the present model is as good as the best before it; NaN after the first period.
    """
    found = _SIGN[better] * _square(quality)
    out = np.full(found.shape[:-1], np.nan)
    best = found[..., 0, :]
    for now in range(1, found.shape[-1]):
        out[..., now] = _mean((best - found[..., now, :])[..., :now])
        best = np.fmax(best, found[..., now, :])
    return out


def backward_transfer(quality: Floats, better: Better = "higher") -> Floats:
    """Return [..., trained]: after each period, the change of quality on past periods since each was the present one.

    >>> backward_transfer(np.array([[0.9, 0.2], [0.6, 0.8]])).round(3)
    array([ nan, -0.3])

    Args:
        quality: [..., trained, tested], the same periods twice; NaN where nothing was tested.
        better: which way is better.
    """
    found = _SIGN[better] * _square(quality)
    own = np.diagonal(found, axis1=-2, axis2=-1)
    out = np.full(found.shape[:-1], np.nan)
    for now in range(1, found.shape[-1]):
        out[..., now] = _mean((found[..., now, :] - own)[..., :now])
    return out


def rounds_to_catch_up(
    rounds: Sequence[int],
    quality: Sequence[float],
    rounds_per_period: int,
    references: Sequence[float],
    *,
    margin: float = 0.0,
    better: Better = "higher",
) -> list[int | None]:
    """Return for each period the first of its rounds, counted from 1, after which the reference was reached.

    Reached means: quality is not worse than the reference protocol's at the end of the same period by more than the
    margin. Only rounds that were evaluated count, so that the answer is as fine as the evaluations are.

    Args:
        rounds: [evaluations] rounds done since the start of the stream, from 1.
        quality: [evaluations] of the protocol that catches up, after these rounds, on the rows of their period.
        rounds_per_period: how many rounds a period has.
        references: [periods] quality of the reference protocol on the same rows; NaN where there is none.
        margin: what is forgiven, in the metric's unit, not negative.
        better: which way is better.

    Returns:
        [periods]; None where it was never reached, or has no reference.

    Raises:
        ValueError: lengths differ, or a round beyond the last period.
    """
    if len(rounds) != len(quality):
        raise ValueError(f"{len(rounds)} rounds and {len(quality)} qualities: give one of each per evaluation")
    out: list[int | None] = [None] * len(references)
    for done, value in sorted(zip(rounds, quality, strict=True)):
        period, within = divmod(done - 1, rounds_per_period)
        if not 0 <= period < len(out):
            raise ValueError(f"round {done} is in none of {len(out)} periods of {rounds_per_period} rounds")
        if out[period] is None and _SIGN[better] * (value - references[period]) >= -margin:
            out[period] = within + 1
    return out


def evaluation_views(test_periods: Integers, period: int) -> dict[str, Integers]:
    """Return the test rows to evaluate on at the end of a period: of the current one, of all past ones, of the next.

    Args:
        test_periods: [rows] as `Periods.of` gives them.
        period: the period that ends.

    Returns:
        Row numbers by ``current``, ``past`` and ``next``; a view may be empty.
    """
    found = np.asarray(test_periods)
    return {
        "current": np.flatnonzero(found == period),
        "past": np.flatnonzero((found >= 0) & (found < period)),
        "next": np.flatnonzero(found == period + 1),
    }


@dataclass(frozen=True, eq=False)
class StreamScores:
    """What the models at the ends of the periods do on each test row: quality is sum(parts) / sum(wholes).

    Attributes:
        parts: [trained, rows] float64: right ones, or nats.
        wholes: [rows] float64, not negative: 1, words or tokens.
        periods: [rows] the period of each test row; outside of 0..trained - 1 it is left out.
        clusters: [rows] who each row came from, any numbers: rows of one user are resampled together.
    """

    parts: Floats
    wholes: Floats
    periods: Integers
    clusters: Integers

    @classmethod
    def of(cls, parts: Floats, wholes: Floats, periods: Integers, clusters: Integers | None = None) -> StreamScores:
        """Return the scores, checked; without `clusters` every row is its own.

        Raises:
            DataError: numbers that are not finite, or lengths that differ.
        """
        rows = np.asarray(wholes, dtype=np.float64)
        taken = np.asarray(parts, dtype=np.float64)
        owner = np.arange(len(rows)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
        if taken.ndim != 2 or {taken.shape[1], len(periods), len(owner)} != {len(rows)}:
            raise DataError(f"scores of a stream: parts {list(taken.shape)} and {len(rows)} wholes do not fit")
        if not (np.isfinite(taken).all() and np.isfinite(rows).all() and (rows >= 0).all()):
            raise DataError("scores of a stream: a number is not finite, or a whole is negative; leave such rows out")
        return cls(taken, rows, np.asarray(periods, dtype=np.int64), owner.astype(np.int64))

    def quality(self) -> Floats:
        """Return [trained, tested]; NaN where a period has nothing to test."""
        trained = len(self.parts)
        out = np.full((trained, trained), np.nan)
        for tested in range(trained):
            rows = np.flatnonzero(self.periods == tested)
            whole = self.wholes[rows].sum()
            if whole > 0:
                out[:, tested] = self.parts[:, rows].sum(axis=1) / whole
        return out

    def views(self) -> dict[str, Floats]:
        """Return [trained] quality on the rows of the ``current``, all ``past`` and the ``next`` period, pooled."""
        found: dict[str, list[float]] = {"current": [], "past": [], "next": []}
        for now in range(len(self.parts)):
            for name, rows in evaluation_views(self.periods, now).items():
                whole = self.wholes[rows].sum()
                found[name].append(float(self.parts[now, rows].sum() / whole) if whole > 0 else float("nan"))
        return {name: np.array(values) for name, values in found.items()}

    def replicates(self, rng: np.random.Generator, count: int) -> Floats:
        """Return [count, trained, tested] quality with the clusters weighted anew (Bayesian bootstrap)."""
        trained, clusters = len(self.parts), int(self.clusters.max()) + 1
        blocks = []
        for weights in bayesian_weights(np.ones(clusters), rng, count):
            block = np.full((len(weights), trained, trained), np.nan)
            for tested in range(trained):
                rows = np.flatnonzero(self.periods == tested)
                if self.wholes[rows].sum() > 0:
                    of_rows = weights[:, self.clusters[rows]]
                    block[:, :, tested] = of_rows @ self.parts[:, rows].T / (of_rows @ self.wholes[rows])[:, None]
            blocks.append(block)
        return np.concatenate(blocks)


def stream_measurements(
    scores: StreamScores,
    metric: str,
    *,
    seeds: PublicSeeds,
    better: Better = "higher",
    unit: str = "fraction",
    scale: Callable[[Floats], Floats] = np.asarray,
    outside_guarantee: bool = False,
) -> tuple[Measurement, ...]:
    """Return ``federated.stream.<metric>.forgetting`` and ``.backward_transfer`` after the last period.

    The interval is the value plus the percentiles of the deviations of replicates in which clusters of test rows are
    weighted anew; models are the same in all of them, hence it says nothing of another run's models. Forgetting takes
    a maximum of noisy numbers, which makes it too large on average where all models are alike. In simulation (three
    periods, 80 users of 3 rows, 400 repetitions, nominal 95 %) both were covered 94 % of the time where models
    differed, and a forgetting of zero between models that were all alike 88 %.

    Args:
        scores: of the models at the ends of the periods.
        metric: its name, such as ``accuracy``.
        seeds: public seeds of the replicates.
        better: which way the metric is better.
        unit: of the metric.
        scale: an increasing function that qualities are put through, such as the exponential for a perplexity.
        outside_guarantee: stamped on the measurements.
    """
    quality, clusters = scale(scores.quality()), len(np.unique(scores.clusters))
    replicates = scale(scores.replicates(seeds.generator("bootstrap", f"federated.stream.{metric}"), REPLICATES))
    protocol: dict[str, Json] = {
        "periods": len(quality),
        "rows": len(scores.wholes),
        "resampled": "users of test rows" if clusters < len(scores.wholes) else "test rows",
        "replicates": REPLICATES,
    }
    enough = clusters >= (SMALLEST_SHARE if unit == "fraction" else SMALLEST_UNLIMITED)
    out = []
    for name, way, make, source in _SUMMARIES:
        value, found = float(make(quality, better)[-1]), make(replicates, better)[:, -1]
        known = bool(np.isfinite(value) and np.isfinite(found).all())
        ends = [np.nan, np.nan]
        if known:
            ends = (value + np.quantile(found - found.mean(), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])).tolist()
        out.append(
            Measurement(
                f"federated.stream.{metric}.{name}",
                value if known else None,
                min(ends[0], value) if known else None,
                max(ends[1], value) if known else None,
                CONFIDENCE,
                "bayesian-bootstrap",
                clusters,
                unit,
                direction=way,
                neutral=0.0,
                supported=enough and known and ends[0] < ends[1],
                outside_guarantee=outside_guarantee,
                protocol={**protocol, "definition": source},
            )
        )
    return tuple(out)


_SUMMARIES: tuple[tuple[str, Better, Callable[[Floats, Better], Floats], str], ...] = (
    ("forgetting", "lower", forgetting, "Chaudhry et al. 2018"),
    ("backward_transfer", "higher", backward_transfer, "Lopez-Paz and Ranzato 2017"),
)


def _square(quality: Floats) -> Floats:
    found = np.asarray(quality, dtype=np.float64)
    if found.ndim < 2 or found.shape[-1] != found.shape[-2]:
        raise ValueError(f"quality has shape {list(found.shape)}; wants [trained, tested] over the same periods")
    return found


def _mean(values: Floats) -> Floats:
    """Return [...] means over the last axis without the numbers that are missing; NaN where all are."""
    there = ~np.isnan(values)
    counts = there.sum(axis=-1)
    sums = np.where(there, values, 0.0).sum(axis=-1)
    return np.asarray(np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0))
