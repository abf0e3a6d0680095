"""What an extraction found, canary by canary, and the measurements it is reported by. No text and no code is in it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from troth.attacks.exposure import null_exposure, uniformity_p_value
from troth.errors import DataError
from troth.intervals import Interval, clopper_pearson, share_interval
from troth.results import Direction, Json, Measurement
from troth.seeds import PublicSeeds

__all__ = ["Arm", "Baseline", "ExtractionMeasurements", "ExtractionResult", "measure_extraction", "pooled"]

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

_LEAST = 10  # canaries below which a mean is not supported, and decoys below which a p value is not
_CONFIDENCE = 0.95


@dataclass(frozen=True, eq=False)
class Arm:
    """Canaries that are in the data, or decoys that are not; every array is [codes].

    Attributes:
        repeats: how often each stands in the data; 0 for decoys.
        rank: see `troth.attacks.exposure`; from 1 on.
        population: int64, the codes each was ranked among, itself included.
        exposure: bits.
        wrong_tokens: int64, slots of the guess matched to it that differ (Hamming distance); all where there is none.
        extrapolated: exposure under a skew normal law, bits; None where all codes were ranked.
    """

    repeats: Integers
    rank: Floats
    population: Integers
    exposure: Floats
    wrong_tokens: Integers
    extrapolated: Floats | None = None

    def __len__(self) -> int:
        return len(self.repeats)

    def take(self, rows: NDArray[np.bool_] | Integers) -> Arm:
        """Return some of the codes."""
        return Arm(
            self.repeats[rows],
            self.rank[rows],
            self.population[rows],
            self.exposure[rows],
            self.wrong_tokens[rows],
            None if self.extrapolated is None else self.extrapolated[rows],
        )


@dataclass(frozen=True)
class Baseline:
    """What as many random guesses, matched in the same way, get right.

    Attributes:
        exact_match: chance that a code is among the guesses.
        token_accuracy: mean share of right slots.
        hamming_distance: mean number of wrong slots.
    """

    exact_match: float
    token_accuracy: float
    hamming_distance: float


@dataclass(frozen=True, eq=False)
class ExtractionResult:
    """What an extraction found.

    Attributes:
        method: how codes were guessed.
        ranked: how ranks were taken.
        codes: how many the pattern has.
        slots: unknown tokens of a code.
        guesses: codes that the attacker named.
        random: the same number of random guesses.
        canaries: those that are in the data.
        decoys: those that are not, by the same guesses.
        insecure: whether the key came from an insecure seed.
    """

    method: str
    ranked: str
    codes: int
    slots: int
    guesses: int
    random: Baseline
    canaries: Arm
    decoys: Arm
    insecure: bool = False


class ExtractionMeasurements(NamedTuple):
    """What goes into a record.

    Attributes:
        measurements: each name once.
        series: ``<prefix>.by_repeats``: one row for each number of repeats, and one for the decoys.
    """

    measurements: tuple[Measurement, ...]
    series: dict[str, list[dict[str, Json]]]


def pooled(results: Sequence[ExtractionResult]) -> ExtractionResult:
    """Return several models' results as one; they must be of one method and one pattern.

    Raises:
        DataError: none, or results of different kinds.
    """
    if not results:
        raise DataError("results: none to pool")
    kinds = {(r.method, r.ranked, r.codes, r.slots) for r in results}
    if len(kinds) > 1:
        raise DataError(f"results of {len(kinds)} methods or patterns: pool those of one")
    first = results[0]
    weights = np.array([len(r.canaries) for r in results], dtype=np.float64)
    means = [
        float(np.average([getattr(r.random, name) for r in results], weights=weights))
        for name in ("exact_match", "token_accuracy", "hamming_distance")
    ]
    return ExtractionResult(
        first.method,
        first.ranked,
        first.codes,
        first.slots,
        sum(r.guesses for r in results),
        Baseline(*means),
        _joined([r.canaries for r in results]),
        _joined([r.decoys for r in results]),
        any(r.insecure for r in results),
    )


def measure_extraction(
    result: ExtractionResult,
    *,
    seeds: PublicSeeds,
    canary_share: float,
    prefix: str = "attack.canaries",
    protocol: Mapping[str, Json] = {},
    outside_guarantee: bool = True,
) -> ExtractionMeasurements:
    """Return the measurements of an extraction and its series over repeats.

    Names: ``exact_match``, ``token_accuracy``, ``hamming_distance``, ``rank`` and ``exposure`` below the prefix and,
    for the decoys, below ``<prefix>.decoy``; ``exposure_extrapolated`` where codes were sampled; and
    ``decoy_rank_p_value``. Each has its random baseline as `neutral`. Codes are resampled, models are not.

    Args:
        result: of one model, or `pooled`.
        seeds: public seed of the bootstrap.
        canary_share: of the training rows, in [0, 1).
        prefix: first part of the names.
        protocol: entries of every measurement's protocol.
        outside_guarantee: whether they read private data outside of what an epsilon covers.
    """
    facts = {**_facts(result, canary_share), **protocol}
    made = _Made(result, seeds, facts, outside_guarantee)
    found = made.arm(prefix, result.canaries) + made.arm(f"{prefix}.decoy", result.decoys)
    if len(result.decoys):
        found.append(made.p_value(f"{prefix}.decoy_rank_p_value"))
    rows = [
        made.row("canary", int(repeats), result.canaries.take(result.canaries.repeats == repeats))
        for repeats in np.unique(result.canaries.repeats)
    ]
    if len(result.decoys):
        rows.append(made.row("decoy", 0, result.decoys))
    return ExtractionMeasurements(tuple(found), {f"{prefix}.by_repeats": rows})


@dataclass(frozen=True)
class _Made:
    """Makes the measurements of one result."""

    result: ExtractionResult
    seeds: PublicSeeds
    facts: Mapping[str, Json]
    outside_guarantee: bool

    def arm(self, prefix: str, arm: Arm) -> list[Measurement]:
        if not len(arm):
            return []
        slots, random = self.result.slots, self.result.random
        population = int(arm.population.max())
        hits = int((arm.wrong_tokens == 0).sum())
        exact = self._measurement(
            f"{prefix}.exact_match", hits / len(arm), clopper_pearson(hits, len(arm)), arm, random.exact_match
        )
        found = [
            exact,
            self._mean(f"{prefix}.token_accuracy", arm, 1 - arm.wrong_tokens / slots, (0, 1), random.token_accuracy),
            self._mean(
                f"{prefix}.hamming_distance", arm, arm.wrong_tokens, (0, slots), random.hamming_distance, "places"
            ),
            self._mean(f"{prefix}.rank", arm, arm.rank, (1, population), (population + 1) / 2, "rank"),
            self._mean(
                f"{prefix}.exposure", arm, arm.exposure, (0, math.log2(population)), null_exposure(population), "bits"
            ),
        ]
        if arm.extrapolated is not None:
            most = max(float(arm.extrapolated.max()), math.log2(population))
            neutral = 1 / math.log(2)
            found.append(
                self._mean(f"{prefix}.exposure_extrapolated", arm, arm.extrapolated, (0, most), neutral, "bits")
            )
        return found

    def p_value(self, name: str) -> Measurement:
        decoys = self.result.decoys
        value = uniformity_p_value(decoys.rank, decoys.population)
        return Measurement(
            name,
            value,
            None,
            None,
            _CONFIDENCE,
            "kolmogorov-smirnov",
            len(decoys),
            "probability",
            supported=len(decoys) >= _LEAST,
            outside_guarantee=self.outside_guarantee,
            protocol={
                **self.facts,
                "tests": "decoys' ranks are uniform; a low value makes the canaries' ranks doubtful",
            },
        )

    def row(self, name: str, repeats: int, arm: Arm) -> dict[str, Json]:
        found = {m.name.rsplit(".", 1)[1]: m for m in self.arm(f"{name}.{repeats}", arm)}
        exposure, exact = found["exposure"], found["exact_match"]
        return {
            "arm": name,
            "repeats": repeats,
            "unknown_tokens": self.result.slots,
            "canaries": len(arm),
            "exposure": exposure.value,
            "exposure_low": exposure.low,
            "exposure_high": exposure.high,
            "exact_match": exact.value,
            "exact_match_low": exact.low,
            "exact_match_high": exact.high,
            "token_accuracy": found["token_accuracy"].value,
            "hamming_distance": found["hamming_distance"].value,
            "random_exact_match": self.result.random.exact_match,
        }

    def _mean(
        self,
        name: str,
        arm: Arm,
        values: NDArray[np.generic],
        limits: tuple[float, float],
        neutral: float,
        unit: str = "fraction",
    ) -> Measurement:
        """Return the mean of numbers within limits; the interval knows the limits, hence all alike is no certainty."""
        low, high = limits
        numbers = np.asarray(values, dtype=np.float64)
        parts = (numbers - low).clip(0, high - low)
        rng = self.seeds.generator("bootstrap", name)
        made = share_interval(parts, np.full(len(parts), high - low), rng, confidence=_CONFIDENCE)
        ends = [low + (high - low) * float(end) for end in (made.low or 0.0, 1.0 if made.high is None else made.high)]
        interval = Interval(ends[0], ends[1], made.confidence, made.method)
        return self._measurement(name, float(numbers.mean()), interval, arm, neutral, unit)

    def _measurement(
        self, name: str, value: float, interval: Interval, arm: Arm, neutral: float, unit: str = "fraction"
    ) -> Measurement:
        direction: Direction = "higher" if name.endswith((".hamming_distance", ".rank")) else "lower"
        if arm is self.result.decoys:
            direction = "neutral"
        return Measurement(
            name,
            value,
            interval.low,
            interval.high,
            interval.confidence,
            interval.method,
            len(arm),
            unit,
            direction=direction,
            neutral=neutral,
            supported=len(arm) >= _LEAST,
            outside_guarantee=self.outside_guarantee,
            protocol={**self.facts, "random_baseline": neutral},
        )


def _facts(result: ExtractionResult, canary_share: float) -> dict[str, Json]:
    return {
        "method": result.method,
        "ranks": result.ranked,
        "codes": result.codes,
        "unknown_tokens": result.slots,
        "guesses": result.guesses,
        "guessing": "as many codes as there are canaries, matched to them with the fewest wrong tokens",
        "canary_share": canary_share,
        "resampled": "canaries of the trained models",
        "key": "insecure seed" if result.insecure else "entropy of the operating system",
    }


def _joined(arms: Sequence[Arm]) -> Arm:
    extrapolated = [arm.extrapolated for arm in arms if arm.extrapolated is not None]
    return Arm(
        np.concatenate([arm.repeats for arm in arms]),
        np.concatenate([arm.rank for arm in arms]),
        np.concatenate([arm.population for arm in arms]),
        np.concatenate([arm.exposure for arm in arms]),
        np.concatenate([arm.wrong_tokens for arm in arms]),
        np.concatenate(extrapolated) if len(extrapolated) == len(arms) else None,
    )
