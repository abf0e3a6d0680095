"""Lower bounds on epsilon from how often an attack guessed right: counts in, numbers out.

Each rule assumes something, and holds only where that is so:

- `clopper_pearson_bounds`: the members' and the non-members' guesses are independent trials, as over models trained
  anew; canaries of one model are not.
- `one_run_bound`: canaries of one run, each included by a fair coin of its own; any (epsilon, delta) mechanism.
- `f_dp_one_run_bound`: the same, and the mechanism's trade-off curve belongs to the given family, ordered by its
  noise multiplier. A Gaussian curve says nothing about another mechanism.
- `joint_beta_interval`: a Bayesian credible interval of independent trials; it accuses nobody.

A bound is as good as its number of guesses was fixed before looking: see `troth.attacks.audit`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from scipy import optimize, special

from troth.attacks.trade_off_curves import Curve, DpSgdCurves, dp_sgd_curve, gaussian_curve

__all__ = [
    "Curve",
    "clopper_pearson_bounds",
    "curve_rates_bound",
    "dp_sgd_curve",
    "f_dp_best_bound",
    "f_dp_one_run_bound",
    "f_dp_rejects",
    "gaussian_curve",
    "joint_beta_interval",
    "one_run_bound",
    "one_run_p_value",
]

_MOST = 60.0  # nats; no count of guesses within reach proves more
_TOLERANCE = 1e-3
_LEAST_OCTAVE, _MOST_OCTAVE, _MOST_NOISE = -6, 14, 1e4  # noise multipliers (powers of 2) among which curves lie


def clopper_pearson_bounds(
    true_positives: np.ndarray,
    members: int,
    false_positives: np.ndarray,
    nonmembers: int,
    *,
    delta: float,
    significance: float,
) -> np.ndarray:
    """Return epsilon >= ln((TPR_low - delta) / FPR_high), at least 0, with `significance` / 2 for each rate.

    The usual bound of independent trials (Jagielski et al., arXiv 2006.07709, section 4.1). Both directions of the
    definition are used with the one event 'called a member': the other is (1 - FPR_high - delta) / (1 - TPR_low) with
    the roles of the rates exchanged, whose two one-sided limits are the same pair. Each bound holds by itself: the
    largest of several does not.

    Args:
        true_positives: members called members [thresholds].
        members: how many there are.
        false_positives: non-members called members [thresholds].
        nonmembers: how many there are.
        delta: of the claim, in [0, 1).
        significance: chance of a bound above the truth, in (0, 1).
    """
    hit, alarm = _limits(true_positives, members, false_positives, nonmembers, significance)
    with np.errstate(divide="ignore", invalid="ignore"):
        ways = np.stack([(hit - delta) / alarm, (1 - alarm - delta) / (1 - hit)])
        return np.asarray(np.log(np.maximum(np.nan_to_num(ways, nan=0.0), 1.0)).max(0))


def _limits(
    true_positives: np.ndarray, members: int, false_positives: np.ndarray, nonmembers: int, significance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return TPR_low and FPR_high [thresholds], each at half of the significance."""
    hits, alarms = np.asarray(true_positives, dtype=float), np.asarray(false_positives, dtype=float)
    tail = significance / 2
    hit = np.where(hits > 0, special.betaincinv(np.maximum(hits, 1), members - hits + 1, tail), 0.0)
    quiet = np.maximum(nonmembers - alarms, 1)
    return hit, np.where(alarms < nonmembers, special.betaincinv(alarms + 1, quiet, 1 - tail), 1.0)


def curve_rates_bound(
    true_positives: int,
    members: int,
    false_positives: int,
    nonmembers: int,
    *,
    family: Callable[[float], Curve],
    delta: float,
    significance: float,
) -> float:
    """Return the largest epsilon of the family that the rates of independent trials refute, at least 0.

    A curve is refuted where it ties TPR_low to a false-positive rate above FPR_high (Nasr et al., arXiv 2302.07956,
    section 4.2, for the Gaussian curve). Arguments as in `clopper_pearson_bounds` and `f_dp_one_run_bound`.
    """
    limits = _limits(np.array([true_positives]), members, np.array([false_positives]), nonmembers, significance)
    hit, alarm = (float(limit[0]) for limit in limits)
    cells = _cells(_TOLERANCE)

    def refutes(curve: Curve) -> bool:
        return curve.least_wrong(hit) > alarm

    noise = _least_refuted(refutes, family, _first_refuted(refutes, family, cells), cells)
    return 0.0 if noise is None else family(noise).epsilon(delta)


def one_run_p_value(correct: int, guesses: int, canaries: int, epsilon: float, delta: float) -> float:
    """Return the largest chance of so many correct guesses that an (epsilon, delta) mechanism allows.

    Steinke, Nasr and Jagielski, arXiv 2305.08846, theorem 5.2: P[Bin(r, q) >= v] + 2 m delta max_i (P[Bin >= v - i] -
    P[Bin >= v]) / i, with q = e^epsilon / (1 + e^epsilon), r guesses of which v are correct, and m canaries.
    """
    q = float(special.expit(epsilon))
    if delta == 0 or correct == 0:
        return float(special.bdtrc(correct - 1.0, guesses, q)) if correct else 1.0
    above = special.bdtrc(np.arange(correct, -1, -1) - 1.0, guesses, q)  # P[Bin >= v], P[Bin >= v - 1], ..., P[>= 0]
    above = np.where(np.arange(correct, -1, -1) == 0, 1.0, above)
    steps = np.arange(1, correct + 1)
    worst = float(np.max((above[1:] - above[0]) / steps))
    return min(1.0, float(above[0]) + 2 * canaries * delta * worst)


@lru_cache(maxsize=65536)
def one_run_bound(correct: int, guesses: int, canaries: int, *, delta: float, significance: float) -> float:
    """Return the largest epsilon that so many correct guesses refute (Steinke et al., arXiv 2305.08846), at least 0.

    Args:
        correct: guesses that were right.
        guesses: how many were made; fixed beforehand, the other canaries are abstained from.
        canaries: all of them, each included with probability 1/2 on its own.
        delta: of the claim, in [0, 1).
        significance: chance of a bound above the truth, in (0, 1).
    """

    def excess(epsilon: float) -> float:
        return one_run_p_value(correct, guesses, canaries, epsilon, delta) - significance

    if guesses == 0 or excess(0.0) > 0:
        return 0.0
    if excess(_MOST) <= 0:
        return _MOST
    return float(optimize.brentq(excess, 0.0, _MOST, xtol=1e-9))


def f_dp_rejects(correct: int, guesses: int, canaries: int, curve: Curve, significance: float) -> bool:
    """Return whether so many correct guesses refute the curve (Mahloujifar et al., arXiv 2410.22235, algorithm 3).

    The recursion goes down from the observed count: r_i is the chance of at least i right ones among the guesses with
    the i-th guess right, h_i with it wrong; the curve ties h_{i-1} to r_i, and the counts tie their increments.
    """
    right = significance * correct / canaries
    wrong = significance * (guesses - correct) / canaries
    for i in range(correct - 1, -1, -1):
        least = curve.least_wrong(min(right, 1.0))
        if least > wrong:
            right += i / (guesses - i) * (least - wrong)
            wrong = least
            if right + wrong > guesses / canaries:
                return True
    return right + wrong > guesses / canaries


def f_dp_one_run_bound(
    correct: int,
    guesses: int,
    canaries: int,
    *,
    family: Callable[[float], Curve],
    delta: float,
    significance: float,
    tolerance: float = _TOLERANCE,
) -> float:
    """Return the largest epsilon of the family that so many correct guesses refute, at least 0.

    Args:
        correct: guesses that were right.
        guesses: how many were made; fixed beforehand.
        canaries: all of them, each included with probability 1/2 on its own.
        family: from a noise multiplier to the mechanism's curve; more noise, less leakage.
        delta: at which the curve is turned into an epsilon, in (0, 1).
        significance: chance of a bound above the truth, in (0, 1).
        tolerance: relative, of the noise multiplier; the refuted end is taken.
    """
    count = ((correct, guesses),)
    return f_dp_best_bound(count, canaries, family=family, delta=delta, significance=significance, tolerance=tolerance)[
        1
    ]


@lru_cache(maxsize=65536)
def f_dp_best_bound(
    counts: tuple[tuple[int, int], ...],
    canaries: int,
    *,
    family: Callable[[float], Curve],
    delta: float,
    significance: float,
    tolerance: float = _TOLERANCE,
) -> tuple[int, float]:
    """Return which of several counts proves most (the first of equal ones) and its `f_dp_one_run_bound`.

    One search for all of them: each curve is made once, and only the best count's is looked for.

    Args:
        counts: (correct, guesses) of each.
        canaries: as in `f_dp_one_run_bound`, like the rest.
        family: see there.
        delta: see there.
        significance: of each count.
        tolerance: see there.
    """
    starts = [
        _start(correct, guesses, canaries, family=family, significance=significance, tolerance=tolerance)
        for correct, guesses in counts
        if guesses
    ]

    def refuting(curve: Curve) -> int | None:
        """Return the first count that refutes the curve."""
        tried = ((place, correct, guesses) for place, (correct, guesses) in enumerate(counts) if guesses)
        return next((p for p, c, g in tried if f_dp_rejects(c, g, canaries, curve, significance)), None)

    start = min((cell for cell in starts if cell is not None), default=None)
    noise = _least_refuted(lambda curve: refuting(curve) is not None, family, start, _cells(tolerance))
    if noise is None:
        return 0, 0.0
    return refuting(family(noise)) or 0, family(noise).epsilon(delta)


@lru_cache(maxsize=65536)
def _start(
    correct: int,
    guesses: int,
    canaries: int,
    *,
    family: Callable[[float], Curve],
    significance: float,
    tolerance: float,
) -> int | None:
    """Return the first cell that a count refutes, by the family's rough curves where it has them."""
    return _first_refuted(
        lambda curve: f_dp_rejects(correct, guesses, canaries, curve, significance), family, _cells(tolerance)
    )


def _cells(tolerance: float) -> int:
    """Return into how many cells an octave of noise multipliers is cut: cell c is at 2 ** (c / cells)."""
    return int(2 ** max(0, math.ceil(math.log2(math.log(2) / math.log1p(tolerance)))))


def _least_refuted(
    refutes: Callable[[Curve], bool], family: Callable[[float], Curve], start: int | None, cells: int
) -> float | None:
    """Return the smallest refuted noise multiplier on the grid, None where none is; those above it are refuted too.

    Curves may take seconds to make: `start` is what `_first_refuted` found on rough ones, and the exact ones next to it
    decide. Where a family has no rough ones, they have done so.
    """
    if not isinstance(family, DpSgdCurves):
        return None if start is None else 2 ** (start / cells)
    if start is None and not refutes(family(_MOST_NOISE)):
        return None
    low, high = _LEAST_OCTAVE * cells - 1, _MOST_OCTAVE * cells
    found = high if start is None else start

    def refuted(cell: int) -> bool:
        return refutes(family(2 ** (cell / cells)))

    # Away from the place found, in growing steps, until one curve is refuted and one is kept.
    away, first = 1, refuted(found)
    low, high = (low, found) if first else (found, high)
    while high - low > 1:
        tried = max(low + 1, found - away) if first else min(high - 1, found + away)
        away, here = 2 * away, refuted(tried)
        low, high = (low, tried) if here else (tried, high)
        if here != first:
            break
    if high == _MOST_OCTAVE * cells and not refutes(family(_MOST_NOISE)):
        return None
    return float(2 ** (_between(refuted, low, high) / cells))


def _first_refuted(refutes: Callable[[Curve], bool], family: Callable[[float], Curve], cells: int) -> int | None:
    """Return the first refuted cell, from noise multiplier 1 outwards: the further, the slower are curves to make."""
    curves = family.rough if isinstance(family, DpSgdCurves) else family

    def refuted(cell: int) -> bool:
        return refutes(curves(2 ** (cell / cells)))

    octave = 0
    if refuted(0):
        while octave > _LEAST_OCTAVE and refuted((octave - 1) * cells):
            octave -= 1
        if octave == _LEAST_OCTAVE:
            return octave * cells
    else:
        if not refutes(curves(_MOST_NOISE)):
            return None
        octave = next(o for o in range(1, _MOST_OCTAVE + 1) if o == _MOST_OCTAVE or refuted(o * cells))
    return _between(refuted, (octave - 1) * cells, octave * cells)


def _between(refuted: Callable[[int], bool], low: int, high: int) -> int:
    """Return the first refuted cell above `low`, at most `high`, by halving."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if refuted(middle) else (middle, high)
    return high


def joint_beta_interval(
    true_positives: int, members: int, false_positives: int, nonmembers: int, *, delta: float, confidence: float
) -> tuple[float, float]:
    """Return the equal-tailed credible interval of epsilon (Zanella-Béguelin et al., arXiv 2206.05199).

    Both error rates have Jeffreys' prior Beta(1/2, 1/2). The posterior chance that epsilon is at most e is the mass of
    the (e, delta) privacy region, which is integrated over one rate by quadrature and exactly over the other.

    Args:
        true_positives: members called members.
        members: how many there are.
        false_positives: non-members called members.
        nonmembers: how many there are.
        delta: of the region, in [0, 1).
        confidence: posterior mass of the interval, in (0, 1).
    """
    missed = (members - true_positives + 0.5, true_positives + 0.5)
    nodes, weights = np.polynomial.legendre.leggauss(400)
    # Nodes crowd at both ends, where a rate near 0 or 1 has its mass: u = sin²(π (x + 1) / 4).
    angle = np.pi * (nodes + 1) / 4
    chances, weights = np.sin(angle) ** 2, weights * np.sin(2 * angle) * np.pi / 4
    alarms = special.betaincinv(false_positives + 0.5, nonmembers - false_positives + 0.5, chances)

    def least(rate: np.ndarray, epsilon: float) -> np.ndarray:
        both = np.maximum(1 - delta - math.exp(epsilon) * rate, math.exp(-epsilon) * (1 - delta - rate))
        return np.maximum(both, 0.0)

    def mass(epsilon: float) -> float:
        low, high = least(alarms, epsilon), 1 - least(1 - alarms, epsilon)
        inside = special.betainc(*missed, np.maximum(high, low)) - special.betainc(*missed, low)
        return float(weights @ inside)

    def quantile(chance: float) -> float:
        if mass(0.0) >= chance:
            return 0.0
        return float(optimize.brentq(lambda e: mass(e) - chance, 0.0, _MOST, xtol=1e-6))

    tail = (1 - confidence) / 2
    return quantile(tail), quantile(1 - tail)
