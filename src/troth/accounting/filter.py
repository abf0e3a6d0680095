"""What a budget admits: composition of runs whose settings may depend on what earlier runs showed.

Ordinary composition theorems add up mechanisms whose parameters were all fixed beforehand. Runs on one data set are not
like that: the second run's noise, length or very existence depends on the first one's result. A budget therefore goes
one of two ways, chosen by its first run, before any step has touched the data (a function of public facts only):

**Rényi filter** (`RenyiFilter`). One order a is fixed: that at which the first plan takes the smallest share of the
budget. The budget becomes an allowance R: the largest Rényi divergence of order a whose conversion to (epsilon, delta)
keeps the budget. Every step has a divergence known before it runs, and a plan is admitted only while the sum over all
steps that ran or may still run is at most R. The filter theorem of Feldman and Zrnic ('Individual privacy accounting
via a Rényi filter', NeurIPS 2021, arXiv 2008.11193) says that then the whole interaction has divergence at most R at
order a, however steps, their parameters and their number were chosen from earlier outputs; conversion gives
(epsilon, delta). Taking the best order afterwards would let the data choose the order, and is not covered: hence the
fixed one. (The best order for a plain Gaussian, 1 + sqrt(log(1/delta) / rho), is a poor one for subsampled noise, whose
divergence explodes above some order: at q = 0.01, sigma = 1 it would charge a run of epsilon 0.9 seven times a budget
of 2.)

**One mechanism** (`OneMechanism`). Where the first plan does not fit the filter, but its own epsilon by privacy loss
distributions does not exceed the budget, it is admitted by that, and the budget is from then on bound to this
mechanism (sampling rate q, noise multiplier sigma). Let N be the largest number of its steps whose composed epsilon
keeps the budget: a number fixed by public facts. All that may ever run are at most N steps, each of this mechanism or
one it dominates (no higher q, no less noise). Dominating pairs compose adaptively (Zhu, Dong and Wang, 'Optimal
accounting of differential privacy via characteristic function', AISTATS 2022), and a step that never runs is dominated
too, so stopping early, replaying steps after a crash or running again, for whatever reason, stays within N steps and
within the budget. A plan with any other mechanism is never admitted: in most cases nothing further is.

Going by either rule as it suits would not be sound (on some outcomes one rule holds, on others the other: delta would
count twice), so a budget never changes its way while anything counts against it.

What counts: a running or reserved plan in full, a finished run's steps, and of a released run the steps that were
durably announced, an upper bound on those that became visible. A released run cannot go on, hence the steps it never
took need not be counted: in the filter they were never charged by the theorem's sum, and in the other case they are
steps that never ran.

A run without a guarantee counts as infinity, for ever: nothing is admitted after it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from troth.accounting.mechanism import Mechanism, renyi_epsilon
from troth.accounting.pld import remembered_epsilon
from troth.errors import BudgetError

__all__ = [
    "Budget",
    "Charge",
    "OneMechanism",
    "RenyiFilter",
    "Way",
    "admit",
    "allowance",
    "choose_order",
    "fitting_runs",
    "keeps",
    "remaining_share",
    "spent_epsilon",
]

_SLACK = 1e-12  # relative, for rounding in sums; every divergence was rounded up by a thousand times more


@dataclass(frozen=True)
class Budget:
    """The privacy a data set may lose in all.

    Attributes:
        epsilon: above 0, in nats.
        delta: in (0, 1).
        unit: what neighbouring data sets differ in, "example" or "user".
    """

    epsilon: float
    delta: float
    unit: str


@dataclass(frozen=True)
class Charge:
    """What one run counts: `steps` steps of a mechanism, or infinity where `mechanism` is None."""

    run_name: str
    mechanism: Mechanism | None
    steps: int

    @property
    def infinite(self) -> bool:
        """Whether the run carries no guarantee at all."""
        return self.mechanism is None or (self.mechanism.noise_multiplier == 0 and self.steps > 0)

    def renyi(self, order: int) -> float:
        """Return the Rényi divergence of the whole charge."""
        if self.mechanism is None:
            return math.inf
        return self.steps * self.mechanism.renyi(order) if self.steps else 0.0


@dataclass(frozen=True)
class RenyiFilter:
    """The sum of divergences at one fixed order stays within the budget's allowance."""

    order: int


@dataclass(frozen=True)
class OneMechanism:
    """The number of steps, each of this mechanism or one it covers, keeps the budget."""

    mechanism: Mechanism


Way = RenyiFilter | OneMechanism


def allowance(order: int, epsilon: float, delta: float) -> float:
    """Return the largest divergence at `order` whose `renyi_epsilon` is at most `epsilon` (negative: none is)."""
    return epsilon - math.log1p(-1 / order) + math.log(delta * order) / (order - 1)


@lru_cache(maxsize=1024)
def choose_order(epsilon: float, delta: float, mechanism: Mechanism) -> int:
    """Return the Rényi order at which a step of `mechanism` takes the smallest share of the allowance.

    Integers from 2 to 16384, closely spaced. For q = 1 this is near the closed form of the Gaussian,
    1 + sqrt(log(1/delta) / rho), where rho is the zero-concentrated divergence that epsilon stands for.
    """
    orders: list[int] = sorted({round(2 * math.pow(8192, i / 160)) for i in range(161)})
    return max(orders, key=lambda order: allowance(order, epsilon, delta) / mechanism.renyi(order))


def total_renyi(charges: Sequence[Charge], order: int) -> float:
    """Return the divergence of all charges together at `order`."""
    return math.fsum(c.renyi(order) for c in charges)


def _within(budget: Budget, order: int, charges: Sequence[Charge]) -> bool:
    return total_renyi(charges, order) <= allowance(order, budget.epsilon, budget.delta) * (1 + _SLACK)


def bound_epsilon(budget: Budget, mechanism: Mechanism, charges: Sequence[Charge]) -> float:
    """Return the epsilon of the charges, each step counted as one of `mechanism`; infinity where it covers one not."""
    live = [c for c in charges if c.steps]
    if any(c.mechanism is None or not mechanism.covers(c.mechanism) for c in live):
        return math.inf
    return remembered_epsilon([(mechanism, sum(c.steps for c in live))], budget.delta)


def spent_epsilon(budget: Budget, way: Way | None, charges: Sequence[Charge]) -> float:
    """Return the epsilon that the charges stand for at the budget's delta, by the rule the budget goes by, in nats.

    Without a rule (the charges never kept the budget) it is the smaller of both rules' figures.
    """
    live = [c for c in charges if c.infinite or c.steps]
    if not live:
        return 0.0
    first = live[0].mechanism
    if first is None or any(c.infinite for c in live):
        return math.inf
    if isinstance(way, OneMechanism):
        return bound_epsilon(budget, way.mechanism, live)
    order = choose_order(budget.epsilon, budget.delta, first) if way is None else way.order
    filtered = renyi_epsilon(order, total_renyi(live, order), budget.delta)
    return filtered if way is not None else min(filtered, bound_epsilon(budget, first, live))


def remaining_share(budget: Budget, way: Way | None, charges: Sequence[Charge]) -> float:
    """Return the share of the budget that is left, in [0, 1]: of the filter's allowance, or of epsilon."""
    if any(c.infinite for c in charges):
        return 0.0
    if isinstance(way, RenyiFilter):
        allowed = allowance(way.order, budget.epsilon, budget.delta)
        return max(0.0, 1.0 - total_renyi(charges, way.order) / allowed)
    return max(0.0, 1.0 - spent_epsilon(budget, way, charges) / budget.epsilon)


def first_way(budget: Budget, charges: Sequence[Charge]) -> Way | None:
    """Return the rule under which the charges keep the budget, the filter first; None where neither holds.

    Order and mechanism are the oldest run's: fixed before any step touched the data, even where runs came before the
    budget.
    """
    first = next((c.mechanism for c in charges if c.steps), None)
    if first is None or any(c.infinite for c in charges):
        return None
    order = choose_order(budget.epsilon, budget.delta, first)
    if _within(budget, order, charges):
        return RenyiFilter(order)
    return OneMechanism(first) if bound_epsilon(budget, first, charges) <= budget.epsilon else None


def keeps(budget: Budget, way: Way | None, charges: Sequence[Charge]) -> Way | None:
    """Return the rule by which the charges keep the budget, which is `way` once there is one; None: they exceed it."""
    if way is None:
        return first_way(budget, charges)
    if any(c.infinite for c in charges):
        return None
    if isinstance(way, OneMechanism):
        return way if bound_epsilon(budget, way.mechanism, charges) <= budget.epsilon else None
    return way if _within(budget, way.order, charges) else None


def admit(dataset: str, budget: Budget, way: Way | None, charges: Sequence[Charge], new: Charge) -> Way:
    """Return the rule by which `new` fits beside the charges.

    Args:
        dataset: the data set's name, for the message.
        budget: what it may lose in all.
        way: the rule its first run chose; None where nothing counts yet.
        charges: what counts already, oldest first.
        new: what is asked for.

    Raises:
        BudgetError: it does not fit; one line that says what is spent, by whom, and the ways out.
    """
    found = keeps(budget, way, [*charges, new])
    if found is not None:
        return found
    raise BudgetError(f"{_refusal(dataset, budget, way, charges, new)}; {_WAYS_OUT}")


_WAYS_OUT = (
    "lower privacy.target_epsilon or epochs, release a run that will not go on, raise the budget "
    "(troth ledger set-budget), or void the guarantee with run.guarantee = 'none'"
)


def _refusal(dataset: str, budget: Budget, way: Way | None, charges: Sequence[Charge], new: Charge) -> str:
    infinite = [c.run_name for c in charges if c.infinite]
    of = f"data set {dataset}: its budget of epsilon {budget.epsilon:g} at delta {budget.delta:g}"
    if infinite:
        return f"{of} stands at infinity since run {infinite[0]}, which carries no guarantee"
    spent = spent_epsilon(budget, way, charges)
    by = names(charges)
    if isinstance(way, OneMechanism) and new.mechanism is not None:
        if not way.mechanism.covers(new.mechanism):
            return f"{of} was taken by {by} (epsilon {spent:.4g}) and is bound to its noise and sampling rate"
        of = f"{of}, each step counted as one of the first run's,"
        would = bound_epsilon(budget, way.mechanism, [*charges, new])
    else:
        would = spent_epsilon(budget, way, [*charges, new])
    return f"{of} has epsilon {spent:.4g} spent ({by}); with run {new.run_name} it would be {would:.4g}"


def names(charges: Sequence[Charge]) -> str:
    """Return the runs behind the charges, the first three by name."""
    live = [c.run_name for c in charges if c.infinite or c.steps]
    if not live:
        return "by no run"
    return "by " + ", ".join(live[:3]) + (f" and {len(live) - 3} more" if len(live) > 3 else "")


def fitting_runs(budget: Budget, way: Way | None, charges: Sequence[Charge], new: Charge) -> int:
    """Return how many more runs like `new` fit, one after the other, none of them replaying a step."""
    if any(c.infinite for c in [*charges, new]):
        return 0
    after = keeps(budget, way, [*charges, new])
    if after is None:
        return 0
    if isinstance(after, RenyiFilter):
        left = allowance(after.order, budget.epsilon, budget.delta) - total_renyi(charges, after.order)
        return max(1, int(left * (1 + _SLACK) / new.renyi(after.order)))
    count = 1
    while keeps(budget, after, [*charges, *[new] * (2 * count)]):
        count *= 2
    low, high = count, 2 * count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if keeps(budget, after, [*charges, *[new] * middle]) else (low, middle)
    return low
