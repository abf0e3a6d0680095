"""How often a lower bound on epsilon exceeds the truth, and how much it proves: simulated audits of known mechanisms.

Run ``python benchmarks/attacks_validity.py``. It prints a table and writes ``results/attacks_validity.md``. Each cell
is a mechanism whose epsilon is known and which the rule's assumption covers: randomised response for the rules that
hold for every mechanism, the Gaussian mechanism with a coordinate for each canary for the Gaussian curve, DP-SGD with
such coordinates for the accountant's curve. A bound at 95 % confidence may exceed the truth in 5 % of audits. Beside
troth's rules stand two that others ship: the best Clopper-Pearson bound over all thresholds, and the best one-run
bound over a hundred guess counts, both without a correction.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
from scipy import optimize

from troth.accounting import Mechanism, composed_epsilon
from troth.attacks import Claim, audit_one_run, audit_rates, dp_sgd_curve, gaussian_curve
from troth.attacks.audit import guess_counts
from troth.attacks.epsilon_bounds import clopper_pearson_bounds, one_run_bound
from troth.intervals import clopper_pearson
from troth.seeds import PublicSeeds

RESULTS = Path(__file__).parent / "results"
EPSILONS, SIZES, DELTA = (0.5, 1.0, 2.0, 4.0, 8.0), (200, 1000, 5000), 1e-5
SGD_RATE, SGD_STEPS = 0.25, 8
CURVE = dp_sgd_curve(SGD_RATE, SGD_STEPS)

Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Cell:
    """One rule on one mechanism: `draw` gives scores and coins, `bound` the lower bound."""

    rule: str
    mechanism: str
    epsilon: float
    canaries: int
    draw: Draw
    bound: Callable[[np.ndarray, np.ndarray, int], float]
    ours: bool = True


def randomised_response(epsilon: float) -> Draw:
    """Each coin is shown truly with probability e^ε / (1 + e^ε); scores carry noise of their own to break ties."""

    def draw(rng: np.random.Generator, canaries: int) -> tuple[np.ndarray, np.ndarray]:
        included = rng.random(canaries) < 0.5
        true = rng.random(canaries) < 1 / (1 + math.exp(-epsilon))
        return (included == true) + 1e-3 * rng.random(canaries), included

    return draw


@lru_cache
def gaussian_noise(epsilon: float) -> float:
    """Return σ of the Gaussian mechanism of sensitivity 1 that is (ε, DELTA) private."""
    return float(optimize.brentq(lambda s: gaussian_curve(s).epsilon(DELTA) - epsilon, 0.05, 100, xtol=1e-12))


def gaussian(epsilon: float) -> Draw:
    noise = gaussian_noise(epsilon)

    def draw(rng: np.random.Generator, canaries: int) -> tuple[np.ndarray, np.ndarray]:
        included = rng.random(canaries) < 0.5
        return included + noise * rng.standard_normal(canaries), included

    return draw


def dp_sgd(noise: float) -> Draw:
    """Each step of DP-SGD shows each canary's coordinate; the score is the likelihood ratio of all steps."""

    def draw(rng: np.random.Generator, canaries: int) -> tuple[np.ndarray, np.ndarray]:
        included = rng.random(canaries) < 0.5
        sampled = included & (rng.random((SGD_STEPS, canaries)) < SGD_RATE)
        seen = sampled + noise * rng.standard_normal((SGD_STEPS, canaries))
        ratio = np.log1p(SGD_RATE * np.expm1((seen - 0.5) / noise**2))
        return ratio.sum(0), included

    return draw


def one_run(delta: float, family: Callable | None, selection: str = "bonferroni") -> Callable:  # type: ignore[type-arg]
    def bound(scores: np.ndarray, included: np.ndarray, seed: int) -> float:
        seeds = PublicSeeds(seed)
        found = audit_one_run(scores, included, Claim(delta), family=family, selection=selection, seeds=seeds)  # type: ignore[arg-type]
        return found.epsilon_lower_bound

    return bound


def rates(delta: float, thresholds: list[float] | None) -> Callable[[np.ndarray, np.ndarray, int], float]:
    def bound(scores: np.ndarray, included: np.ndarray, seed: int) -> float:
        members, nonmembers = scores[included], scores[~included]
        found = audit_rates(members, nonmembers, Claim(delta), thresholds=thresholds, seeds=PublicSeeds(seed))
        return found.epsilon_lower_bound

    return bound


def best_threshold(scores: np.ndarray, included: np.ndarray, seed: int) -> float:
    """The best Clopper-Pearson bound over all thresholds, uncorrected: what troth does not do."""
    order = included[np.argsort(-scores, kind="stable")]
    hits, alarms = np.cumsum(order), np.cumsum(~order)
    limits = {"delta": 0.0, "significance": 0.05}
    return float(clopper_pearson_bounds(hits, int(hits[-1]), alarms, int(alarms[-1]), **limits).max())


def best_guess_count(scores: np.ndarray, included: np.ndarray, seed: int) -> float:
    """The best one-run bound over a hundred guess counts, uncorrected: what troth does not do."""
    canaries = len(scores)
    counts = np.unique(np.linspace(1, canaries, 100).astype(int)).tolist()
    correct = [guess_counts(scores, included, g) for g in counts]
    return max(
        one_run_bound(c, g, canaries, delta=0.0, significance=0.05) for c, g in zip(correct, counts, strict=True)
    )


def cells() -> Iterator[Cell]:
    for epsilon in EPSILONS:
        for size in SIZES:
            response, normal = randomised_response(epsilon), gaussian(epsilon)
            yield Cell("one-run, 3 shares", "randomised response", epsilon, size, response, one_run(0.0, None))
            yield Cell("one-run, split", "randomised response", epsilon, size, response, one_run(0.0, None, "split"))
            yield Cell("f-DP one-run, 3 shares", "Gaussian", epsilon, size, normal, one_run(DELTA, gaussian_curve))
            yield Cell("Clopper-Pearson, preset", "randomised response", epsilon, size, response, rates(0.0, [0.5]))
            yield Cell("Clopper-Pearson, split", "randomised response", epsilon, size, response, rates(0.0, None))
            yield Cell("best threshold", "randomised response", epsilon, size, response, best_threshold, ours=False)
            yield Cell("best guess count", "randomised response", epsilon, size, response, best_guess_count, ours=False)
    for noise in (2.0, 1.0):
        epsilon = composed_epsilon([(Mechanism(SGD_RATE, noise), SGD_STEPS)], DELTA)
        rule = f"f-DP one-run, accountant's curve (q {SGD_RATE}, {SGD_STEPS} steps)"
        yield Cell(rule, f"DP-SGD, noise multiplier {noise}", epsilon, 1000, dp_sgd(noise), one_run(DELTA, CURVE))


def simulate(cell: Cell, audits: int) -> str:
    rng = np.random.default_rng(np.random.SeedSequence([7, audits, cell.canaries, round(1000 * cell.epsilon)]))
    found = np.array([cell.bound(*cell.draw(rng, cell.canaries), i) for i in range(audits)])
    above = int((found > cell.epsilon).sum())
    interval = clopper_pearson(above, audits)
    return (
        f"| {cell.rule} | {cell.mechanism} | {cell.epsilon:.2f} | {cell.canaries:,} | {audits:,} | "
        f"{100 * above / audits:.2f} [{100 * (interval.low or 0):.2f}, {100 * (interval.high or 0):.2f}] | "
        f"{found.mean():.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--audits", type=int, default=10_000, help="per cell of troth's rules; a tenth for the others")
    parser.add_argument("--dry", action="store_true", help="print, write nothing")
    arguments = parser.parse_args()
    lines = [
        "# How often a lower bound on epsilon exceeds the truth",
        "",
        "Simulated audits at 95 % confidence. Exceeded: percent of audits whose bound is above the true epsilon, with "
        "the 95 % interval (nominal: at most 5). Mean bound: what the audit proves. The last two rules of each block "
        "are those of other tools.",
        "",
        "| rule | mechanism | true epsilon | canaries | audits | exceeded % | mean bound |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in cells():
        lines.append(simulate(cell, arguments.audits if cell.ours else max(20, arguments.audits // 10)))
        print(lines[-1], flush=True)
    facts = ", ".join(f"{p} {version(p)}" for p in ("numpy", "scipy", "dp-accounting"))
    lines += ["", f"{datetime.now(UTC).date().isoformat()}, {facts}.", ""]
    if not arguments.dry:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "attacks_validity.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
