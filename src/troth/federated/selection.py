"""Which clients a round takes, and with which weight their updates enter: one object, for each alone misleads.

Selecting in proportion to the number of rows *and* weighting by the number of rows counts them twice: the federation
then descends an objective in which a device counts with the square of its data. Activity-based selection follows the
idea of Dupuy et al. (ICASSP 2022, arXiv 2202.03925); the law used here, p proportional to n^power without replacement,
is ours.

A rule says at which rate each client is met (`rates`); `participation` draws the cohort. A client without rows is never
drawn, by any rule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from troth.config_federated import SelectionConfig
from troth.errors import ConfigError, DataError
from troth.federated.inclusion import inclusion
from troth.federated.selection_activity import Activity, AgeWeights, PowerWeights, most_active
from troth.federated.weighted_index import EvenRates, MixedRates, Rates, WeightedIndex

__all__ = [
    "ByActivity",
    "Cohort",
    "Mixture",
    "PowerOfChoice",
    "Recency",
    "Selection",
    "TopActive",
    "Uniform",
    "WeightMode",
    "check_cohort",
    "make_selection",
]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
WeightMode = Literal["equal", "samples", "inverse_probability"]

_MOST_POWER = 4.0  # (2^32)^4 is still a finite number


@dataclass(frozen=True, eq=False)
class Cohort:
    """The clients of a round and the coefficients of their updates: the server applies sum(weights * updates).

    Attributes:
        clients: [cohort] int64 numbers, ascending, of the clients that reported and count; may be empty.
        weights: [cohort] coefficients.
        sums_to_one: whether the coefficients are a mean over this very cohort, so that they are scaled up again where
            an update has to be left out; inverse-probability weights are not, or they would not be unbiased.
        asked_clients: [asked] int64 numbers, ascending, of all that were asked to train, whatever came of it: who must
            rest now; by default `clients`.
        dropped: clients that were asked and did not report.
        surplus: clients that reported after `cohort_size` others, and do not count.
    """

    clients: Integers
    weights: Floats
    sums_to_one: bool
    asked_clients: Integers = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    dropped: int = 0
    surplus: int = 0

    def __post_init__(self) -> None:
        if not len(self.asked_clients):
            object.__setattr__(self, "asked_clients", self.clients)

    @property
    def asked(self) -> int:
        """How many clients were asked: those that count, dropped out and came too late."""
        return len(self.asked_clients)


class Selection(Protocol):
    """A rule of selection with its weight.

    Weights: ``equal`` counts the cohort's devices alike; ``samples`` weights by rows (FedAvg's own: the mean over the
    cohort's rows); ``inverse_probability`` makes the expected update the row-weighted mean over the whole population.
    """

    @property
    def weight(self) -> WeightMode:
        """What an update counts."""

    def rates(self, activity: Activity) -> Rates:
        """Return at which rate each client is met; made once for many rounds, as long as the counts stay the same."""

    def inclusion_probability(self, activity: Activity, cohort_size: int) -> Floats:
        """Return [clients] the chance of each to be asked where all are available; they sum to `cohort_size`."""


@dataclass(frozen=True)
class Uniform:
    """Every set of clients with rows is as likely as any other."""

    weight: WeightMode = "samples"

    def rates(self, activity: Activity) -> Rates:
        """Return the same rate for all clients with rows."""
        return _even(activity)

    def inclusion_probability(self, activity: Activity, cohort_size: int) -> Floats:
        """Return cohort_size / clients with rows, for each of these."""
        with_rows = activity.counts > 0
        check_cohort(int(with_rows.sum()), cohort_size)
        return np.where(with_rows, cohort_size / with_rows.sum(), 0.0)


@dataclass(frozen=True)
class ByActivity:
    """Clients drawn one after the other without replacement, each time with chances in proportion to rows^power.

    Guarantees:
    - weighting by rows on top of power > 0 is refused unless `allow_double_count`;
    - with `inverse_probability` the expected update is the row-weighted mean over the population, exactly.
    """

    power: float = 1.0
    weight: WeightMode = "equal"
    allow_double_count: bool = False

    def __post_init__(self) -> None:
        _check_power(self.power)
        _check_counted_once("activity", self.power > 0, self.weight, self.allow_double_count)

    def rates(self, activity: Activity) -> Rates:
        """Return rows^power."""
        return _by_power(activity, self.power)

    def inclusion_probability(self, activity: Activity, cohort_size: int) -> Floats:
        """Return each client's chance to be among the first of the race; exact for small sizes (`inclusion`)."""
        return _race(self, activity, cohort_size)


@dataclass(frozen=True)
class Mixture:
    """Each draw is uniform with chance `uniform_share`, otherwise in proportion to rows^power; repeats are skipped.

    That is a draw with rates uniform_share / clients + (1 - uniform_share) * rows^power / sum of rows^power.
    """

    power: float = 1.0
    uniform_share: float = 0.5
    weight: WeightMode = "equal"
    allow_double_count: bool = False

    def __post_init__(self) -> None:
        _check_power(self.power)
        if not 0 <= self.uniform_share <= 1:
            raise ConfigError(f"federated.selection.uniform_share = {self.uniform_share}: must be a number from 0 to 1")
        skewed = self.power > 0 and self.uniform_share < 1
        _check_counted_once("mixture", skewed, self.weight, self.allow_double_count)

    def rates(self, activity: Activity) -> Rates:
        """Return the mixed rates."""
        if self.uniform_share == 1 or self.power == 0:
            return _even(activity)
        by_power = _by_power(activity, self.power)
        return MixedRates(_even(activity), by_power, self.uniform_share) if self.uniform_share else by_power

    def inclusion_probability(self, activity: Activity, cohort_size: int) -> Floats:
        """Return each client's chance to be among the first of the race; exact for small sizes (`inclusion`)."""
        return _race(self, activity, cohort_size)


@dataclass(frozen=True)
class TopActive:
    """Uniform among the clients with the most rows; where rows are equal at the border, the lower number is in.

    The others are never drawn, so no weights make it stand for the population: `inverse_probability` is refused.

    Attributes:
        top: how many clients; None: the share `top_fraction`, in (0, 1], of those with rows, rounded up.
    """

    top: int | None = None
    top_fraction: float | None = None
    weight: WeightMode = "samples"

    def __post_init__(self) -> None:
        if (self.top is None) == (self.top_fraction is None):
            raise ConfigError("federated.selection: by = 'top_active' wants exactly one of top and top_fraction")
        if self.top is not None and self.top < 1:
            raise ConfigError(f"federated.selection.top = {self.top}: must be at least 1")
        if self.top_fraction is not None and not 0 < self.top_fraction <= 1:
            raise ConfigError(f"federated.selection.top_fraction = {self.top_fraction}: must be above 0 and at most 1")
        if self.weight == "inverse_probability":
            raise ConfigError(
                "federated.selection: by = 'top_active' never draws the less active, so weight = 'inverse_probability' "
                "has no chances to divide by; use weight = 'samples' or 'equal'"
            )

    def rates(self, activity: Activity) -> Rates:
        """Return rate 1 for the most active clients.

        Raises:
            ConfigError: `top` is larger than the population.
        """
        return EvenRates(len(activity), most_active(activity.counts, self.top, self.top_fraction))

    def inclusion_probability(self, activity: Activity, cohort_size: int) -> Floats:
        """Return cohort_size / top for the most active clients, 0 for the others."""
        members = most_active(activity.counts, self.top, self.top_fraction)
        check_cohort(len(members), cohort_size)
        chances = np.zeros(len(activity))
        chances[members] = cohort_size / len(members)
        return chances


@dataclass(frozen=True)
class Recency:
    """Clients that had new data lately first: the rate halves with every `half_life` days (periods) since then.

    A client whose time is unknown counts as the oldest there can be. No rate falls below 2^-50 of the newest.
    """

    half_life: float = 1.0
    weight: WeightMode = "samples"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.half_life) and self.half_life > 0):
            raise ConfigError(f"federated.selection.half_life = {self.half_life}: must be a number above 0")

    def rates(self, activity: Activity) -> Rates:
        """Return 2^(-age / half_life).

        Raises:
            ConfigError: the registry knows no times.
            DataError: a time after `activity.now`.
        """
        if activity.last_seen is None:
            raise ConfigError(
                "federated.selection: by = 'recency' wants times, and the data have none; use another rule"
            )
        latest = int(activity.last_seen.max())
        if latest > activity.now:
            raise DataError(
                f"now = {activity.now}, and a client was last seen in period {latest}; give the latest period"
            )
        return WeightedIndex((activity.counts, activity.last_seen), AgeWeights(self.half_life, activity.now))

    def inclusion_probability(self, activity: Activity, cohort_size: int) -> Floats:
        """Return each client's chance to be among the first of the race; exact for small sizes (`inclusion`)."""
        return _race(self, activity, cohort_size)


@dataclass(frozen=True)
class PowerOfChoice:
    """`candidates` clients are drawn in proportion to rows; of them those with the highest local loss are asked.

    After Cho, Wang and Joshi (arXiv 2010.01243). All candidates have to evaluate the global model on their rows.
    """

    candidates: int
    weight: WeightMode = "equal"
    allow_double_count: bool = False

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise ConfigError(f"federated.selection.candidates = {self.candidates}: must be at least 1")
        if self.weight == "inverse_probability":
            raise ConfigError(
                "federated.selection: by = 'power_of_choice' has no inclusion probabilities: use weight = 'equal'"
            )
        _check_counted_once("power_of_choice", True, self.weight, self.allow_double_count)

    def rates(self, activity: Activity) -> Rates:
        """Return the rates at which candidates are drawn: rows."""
        return _by_power(activity, 1.0)

    def inclusion_probability(self, activity: Activity, cohort_size: int) -> Floats:
        """Refuse: who is taken depends on losses that only the clients know, and that change every round.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "federated.selection: by = 'power_of_choice' has no inclusion probabilities: they depend on the clients' "
            "losses in each round; use by = 'activity' where you need them"
        )


def make_selection(config: SelectionConfig) -> Selection:
    """Return the rule and weight of ``federated.selection``.

    The default weight is samples for uniform, recency and top_active, else equal.

    Raises:
        ConfigError: rows would be counted twice, or a key is missing or has no meaning with the rule.
    """
    weight: WeightMode = config.weight or ("samples" if config.by in ("uniform", "recency", "top_active") else "equal")
    if config.by == "uniform":
        return Uniform(weight)
    if config.by == "activity":
        return ByActivity(config.power, weight, config.allow_double_count)
    if config.by == "mixture":
        return Mixture(config.power, config.uniform_share, weight, config.allow_double_count)
    if config.by == "top_active":
        return TopActive(config.top, config.top_fraction, weight)
    if config.by == "recency":
        return Recency(config.half_life, weight)
    if config.candidates is None:
        raise ConfigError("federated.selection: by = 'power_of_choice' wants candidates = NUMBER, at least cohort_size")
    return PowerOfChoice(config.candidates, weight, config.allow_double_count)


def check_cohort(clients: int, cohort_size: int) -> None:
    """Refuse a cohort that is empty or larger than the population.

    Args:
        clients: clients with data.
        cohort_size: how many updates a round is to use.

    Raises:
        ConfigError: names both.
    """
    if not 1 <= cohort_size <= clients:
        raise ConfigError(
            f"federated.cohort_size = {cohort_size}: the population has {clients} clients with data; "
            "lower it, or make more clients"
        )


def _check_power(power: float) -> None:
    """Refuse a power that is no number from 0 to 4.

    Raises:
        ConfigError: names the key.
    """
    if not 0 <= power <= _MOST_POWER:
        raise ConfigError(f"federated.selection.power = {power}: must be a number from 0 to {_MOST_POWER:g}")


def _check_counted_once(by: str, skewed: bool, weight: WeightMode, allowed: bool) -> None:
    """Refuse a weight by rows on top of a draw by rows, unless that is meant.

    Raises:
        ConfigError: names both keys.
    """
    if skewed and weight == "samples" and not allowed:
        raise ConfigError(
            f"federated.selection: by = '{by}' with weight = 'samples' counts each client's rows twice; use "
            "weight = 'equal' or 'inverse_probability', or write allow_double_count = true if that is meant"
        )


def _even(activity: Activity) -> Rates:
    """Return the same rate for all clients with rows; without an index where all have some."""
    if np.count_nonzero(activity.counts) == len(activity):
        return EvenRates(len(activity))
    return WeightedIndex((activity.counts,), PowerWeights(0.0))


def _by_power(activity: Activity, power: float) -> Rates:
    return WeightedIndex((activity.counts,), PowerWeights(power)) if power else _even(activity)


def _race(rule: Selection, activity: Activity, cohort_size: int) -> Floats:
    """Return [clients] inclusion probabilities of the race with a rule's rates."""
    rates = rule.rates(activity)
    check_cohort(rates.drawable, cohort_size)
    return inclusion(np.concatenate([some for _, some in rates.pieces()]), cohort_size)
