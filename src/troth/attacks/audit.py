"""Audits: from scores of canaries, or of members and non-members, to a lower bound on epsilon that holds.

What makes a bound hold is that nothing about the guesses was chosen by how well they did. Taking the best of many
thresholds or guess counts, as others do, accuses a correct mechanism in 15-30 % of audits. Here the number of guesses
is preset, or corrected for (Bonferroni), or chosen on other canaries than those it is tested on (split).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from troth.attacks.epsilon_bounds import (
    Curve,
    clopper_pearson_bounds,
    curve_rates_bound,
    f_dp_best_bound,
    one_run_bound,
)
from troth.attacks.roc import scores_of
from troth.errors import DataError
from troth.results import Measurement
from troth.seeds import PublicSeeds

__all__ = ["GUESS_SHARES", "Claim", "EpsilonBound", "Verdict", "audit_one_run", "audit_rates", "guess_counts"]

GUESS_SHARES = (0.05, 0.25, 1.0)  # of the canaries: few sure guesses where the leak is large, many where it is small
_MINIMUM_CANARIES = 10
_OF_FAMILY = "; the mechanism's trade-off curve is of the family given"

Selection = Literal["bonferroni", "split"]
Verdict = Literal["consistent", "violation", "underpowered"]


@dataclass(frozen=True)
class Claim:
    """What is tested: that a mechanism is (epsilon, delta) private.

    Attributes:
        delta: in [0, 1).
        epsilon: in nats; None where only the bound is asked for.
        confidence: that the bound is to have, in (0, 1).

    Raises:
        DataError: a number outside of its range.
    """

    delta: float
    epsilon: float | None = None
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not 0 <= self.delta < 1 or not 0 < self.confidence < 1:
            raise DataError(f"delta = {self.delta}, confidence = {self.confidence}: must lie in [0, 1) and (0, 1)")
        if self.epsilon is not None and not self.epsilon >= 0:
            raise DataError(f"epsilon = {self.epsilon}: must be at least 0")

    @property
    def significance(self) -> float:
        """Chance of a bound above the truth that is put up with."""
        return 1 - self.confidence


@dataclass(frozen=True)
class EpsilonBound:
    """A lower bound on epsilon, with what it rests on.

    Attributes:
        epsilon_lower_bound: at least so many nats, unless the assumptions fail or chance did (1 - confidence).
        largest_provable_epsilon: what a perfect attack would have proved with so many canaries; a low bound beside a
            low largest one says little.
        claim: what was tested; with at least its confidence the bound is not above the truth.
        method: ``one-run``, ``f-dp-one-run``, ``clopper-pearson`` or ``f-dp-clopper-pearson``.
        selection: how the number of guesses, or the threshold, was chosen.
        guesses: canaries guessed about, by the choice that gave the bound.
        correct: guesses that were right.
        canaries: that the bound rests on; in a split audit those of the testing half.
        assumes: what must be so for the bound to hold.
    """

    epsilon_lower_bound: float
    largest_provable_epsilon: float
    claim: Claim
    method: str
    selection: str
    guesses: int
    correct: int
    canaries: int
    assumes: str

    @property
    def verdict(self) -> Verdict | None:
        """``violation`` where the bound exceeds the claim; ``underpowered`` where no attack could have shown that."""
        if self.claim.epsilon is None:
            return None
        if self.epsilon_lower_bound > self.claim.epsilon:
            return "violation"
        return "underpowered" if self.largest_provable_epsilon <= self.claim.epsilon else "consistent"

    def measurement(self, name: str = "attack.audit.epsilon_lower_bound") -> Measurement:
        """Return the bound as a measurement of a record."""
        return Measurement(
            name,
            self.epsilon_lower_bound,
            self.epsilon_lower_bound,
            None,
            self.claim.confidence,
            self.method,
            self.canaries,
            "nats",
            direction="lower",
            neutral=0.0,
            supported=self.canaries >= _MINIMUM_CANARIES,
            outside_guarantee=True,
            protocol={
                "delta": self.claim.delta,
                "selection": self.selection,
                "guesses": self.guesses,
                "correct": self.correct,
                "largest_provable_epsilon": self.largest_provable_epsilon,
                "theoretical_epsilon": self.claim.epsilon,
                "verdict": self.verdict,
                "assumes": self.assumes,
            },
        )


def guess_counts(scores: np.ndarray, included: np.ndarray, guesses: int) -> int:
    """Return how many of `guesses` are right: the higher half of them called included, the lower half left out.

    Ties are broken by position, which the coins know nothing of; of an odd number the higher side gets one more.

    Args:
        scores: [canaries], higher = more likely included.
        included: [canaries], bool.
        guesses: how many canaries are guessed about, at most all; those in the middle are abstained from.
    """
    return _right_guesses(scores, included, [guesses])[0]


def _right_guesses(scores: np.ndarray, included: np.ndarray, guesses: Sequence[int]) -> list[int]:
    """Return `guess_counts` of several numbers of guesses, sorting once."""
    ordered = included[np.argsort(-scores, kind="stable")]
    highest, lowest = np.cumsum(np.append(False, ordered)), np.cumsum(np.append(False, ~ordered[::-1]))
    return [int(highest[(g + 1) // 2] + lowest[g // 2]) for g in guesses]


def audit_one_run(
    scores: np.ndarray,
    included: np.ndarray,
    claim: Claim,
    *,
    family: Callable[[float], Curve] | None = None,
    selection: Selection = "bonferroni",
    guess_shares: Sequence[float] = GUESS_SHARES,
    seeds: PublicSeeds | None = None,
) -> EpsilonBound:
    """Return a lower bound on epsilon from the canaries of one training run.

    Args:
        scores: [canaries], higher = more likely included.
        included: [canaries], bool: each canary's coin, thrown independently with probability 1/2 before training.
        claim: what is tested, with the bound's confidence.
        family: the mechanism's trade-off curves by noise multiplier (`gaussian_curve`, or `dp_sgd_curve` for DP-SGD);
            with it the f-DP rule is used, which assumes that the mechanism is of this kind, else Steinke's rule.
        selection: ``bonferroni``: the best of the guess shares, each at its part of the significance (one share is
            simply preset); ``split``: the share that does best on one half of the canaries, tested on the other.
        guess_shares: of the canaries, each in (0, 1], fixed before the scores were seen.
        seeds: public seed of the split; needed for ``split`` only.

    Raises:
        DataError: scores that are not finite, too few canaries, all in or all out, a share outside of (0, 1], or a
            split without a seed.
    """
    values, coins = _canaries(scores, included)
    _check_family(claim, family)
    shares = _checked(guess_shares)

    def best(counts: Sequence[int], correct: Sequence[int], of: int, chance: float) -> tuple[int, float]:
        limits = {"delta": claim.delta, "significance": chance}
        if family is not None:
            return f_dp_best_bound(tuple(zip(correct, counts, strict=True)), of, family=family, **limits)
        found = [one_run_bound(c, g, of, **limits) for g, c in zip(counts, correct, strict=True)]
        return int(np.argmax(found)), max(found)

    if selection == "split":
        first, values, coins = _halves(values, coins, seeds)
        counts = _counts(shares, len(first[0]))
        chosen, _ = best(counts, _right_guesses(*first, counts), len(first[0]), claim.significance)
        shares = [shares[chosen]]
    each = claim.significance / len(shares)
    counts = _counts(shares, len(values))
    correct = _right_guesses(values, coins, counts)
    chosen, proved = best(counts, correct, len(values), each)
    return EpsilonBound(
        proved,
        best(counts, counts, len(values), each)[1],
        claim,
        "one-run" if family is None else "f-dp-one-run",
        "preset" if len(guess_shares) == 1 else selection,
        counts[chosen],
        correct[chosen],
        len(values),
        "each canary included by an independent fair coin" + ("" if family is None else _OF_FAMILY),
    )


def audit_rates(
    member_scores: np.ndarray,
    nonmember_scores: np.ndarray,
    claim: Claim,
    *,
    family: Callable[[float], Curve] | None = None,
    thresholds: Sequence[float] | None = None,
    seeds: PublicSeeds | None = None,
) -> EpsilonBound:
    """Return a lower bound on epsilon from independent trials, by Clopper-Pearson limits of both rates.

    Args:
        member_scores: [trials with the example], higher = more likely a member.
        nonmember_scores: [trials without it].
        claim: what is tested, with the bound's confidence.
        family: the mechanism's trade-off curves, as in `audit_one_run`; proves more, by assuming more.
        thresholds: fixed before the scores were seen; several are corrected for (Bonferroni). None chooses one on half
            of the trials and tests it on the other half.
        seeds: public seed of the split; needed without thresholds.

    Raises:
        DataError: scores that are not finite, or too few; a curve with delta 0.
    """
    members, nonmembers = scores_of(member_scores, "member scores"), scores_of(nonmember_scores, "non-member scores")
    if min(len(members), len(nonmembers)) < _MINIMUM_CANARIES:
        raise DataError(
            f"{len(members)} members and {len(nonmembers)} non-members: an audit wants {_MINIMUM_CANARIES} of each"
        )
    _check_family(claim, family)

    def proved(hits: int, alarms: int, chance: float) -> float:
        of, limits = (len(members), len(nonmembers)), {"delta": claim.delta, "significance": chance}
        if family is not None:
            return curve_rates_bound(hits, of[0], alarms, of[1], family=family, **limits)
        return float(clopper_pearson_bounds(np.array([hits]), of[0], np.array([alarms]), of[1], **limits)[0])

    chosen = None if thresholds is None else scores_of(thresholds, "thresholds")
    selection = "split" if chosen is None else "preset" if len(chosen) == 1 else "bonferroni"
    if chosen is None:
        (first_in, members), (first_out, nonmembers) = _half(members, seeds, "in"), _half(nonmembers, seeds, "out")
        chosen = _best_threshold(first_in, first_out, claim)
    each = claim.significance / len(chosen)
    counts = list(zip(_above(members, chosen).tolist(), _above(nonmembers, chosen).tolist(), strict=True))
    found = [proved(hits, alarms, each) for hits, alarms in counts]
    best = int(np.argmax(found))
    hits, alarms = counts[best]
    return EpsilonBound(
        found[best],
        proved(len(members), 0, each),
        claim,
        "clopper-pearson" if family is None else "f-dp-clopper-pearson",
        selection,
        len(members) + len(nonmembers),
        hits + len(nonmembers) - alarms,
        len(members) + len(nonmembers),
        "scores of independent trials, one model each; canaries of one model are not independent"
        + ("" if family is None else _OF_FAMILY),
    )


def _best_threshold(members: np.ndarray, nonmembers: np.ndarray, claim: Claim) -> np.ndarray:
    """Return the score at which these trials would prove most [1]; to be tested on other trials."""
    every = np.unique(np.concatenate([members, nonmembers]))
    limits = {"delta": claim.delta, "significance": claim.significance}
    hits, alarms = _above(members, every), _above(nonmembers, every)
    tried = clopper_pearson_bounds(hits, len(members), alarms, len(nonmembers), **limits)
    return every[[int(np.argmax(tried))]]


def _above(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return how many scores lie strictly above each threshold, in O((n + thresholds) log n)."""
    return len(scores) - np.searchsorted(np.sort(scores), thresholds, side="right")


def _canaries(scores: np.ndarray, included: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, coins = scores_of(scores, "canary scores"), np.asarray(included)
    if coins.dtype != np.bool_ or coins.shape != values.shape:
        raise DataError(f"included: {coins.dtype} of shape {list(coins.shape)} for {len(values)} scores: one bool each")
    if len(values) < _MINIMUM_CANARIES:
        raise DataError(f"{len(values)} canaries: an audit wants {_MINIMUM_CANARIES}, better 1,000")
    if coins.all() or not coins.any():
        raise DataError("all canaries are on one side: each is to be included with probability 1/2")
    return values, coins


def _check_family(claim: Claim, family: Callable[[float], Curve] | None) -> None:
    if family is not None and claim.delta == 0:
        raise DataError("delta = 0: a curve of noise is private at no epsilon without a delta; give one above 0")


def _checked(shares: Sequence[float]) -> list[float]:
    if not shares or any(not 0 < s <= 1 for s in shares):
        raise DataError(f"guess_shares = {list(shares)}: give at least one number above 0, at most 1")
    return list(shares)


def _counts(shares: Sequence[float], canaries: int) -> list[int]:
    return [max(1, round(share * canaries)) for share in shares]


def _half(scores: np.ndarray, seeds: PublicSeeds | None, what: str) -> tuple[np.ndarray, np.ndarray]:
    if seeds is None:
        raise DataError("seeds: a split wants a public seed; or give thresholds that were fixed before")
    order = seeds.generator("audit split", what).permutation(len(scores))
    first, second = np.split(scores[order], [len(scores) // 2])
    return first, second


def _halves(
    scores: np.ndarray, included: np.ndarray, seeds: PublicSeeds | None
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, np.ndarray]:
    if seeds is None:
        raise DataError("seeds: selection = 'split' wants a public seed")
    order = seeds.generator("audit split", "canaries").permutation(len(scores))
    first, second = np.split(order, [len(order) // 2])
    return (scores[first], included[first]), scores[second], included[second]
