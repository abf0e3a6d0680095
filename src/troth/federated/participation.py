"""Who takes part in a round: who can be reached, who rests, who is asked, who reports, and what an update counts."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from troth.config_federated import ParticipationConfig
from troth.errors import ConfigError, DataError
from troth.federated.mapped_columns import prefetch
from troth.federated.selection import Cohort, PowerOfChoice, Selection, TopActive, check_cohort
from troth.federated.selection_activity import Activity
from troth.federated.selection_draws import Arrivals, Eligible, first_arrivals
from troth.federated.weighted_index import Rates, WeightedIndex
from troth.seeds import PublicSeeds

__all__ = ["CohortSampler", "Losses", "gini", "keyed_uniforms"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Losses = Callable[[Integers], Floats]


class CohortSampler:
    """Draws the cohort of a round: rule and weight, availability, rest, over-selection and drop-outs.

    A round asks ceil(over_selection * cohort_size) clients, drawn by the rule from those that have rows, can be reached
    and do not rest. Of those asked each drops out by chance; of those that report, in random order, the first
    `cohort_size` count.

    Guarantees:
    - a cohort depends on the seed, the round, the rule and the registry only; who is drawn does not depend on the
      weight. Who can be reached, drops out or reports first depends on the seed, the round and the client alone;
    - with `inverse_probability` the expectation of sum(weights * values) is the row-weighted mean of the values over
      the population, exactly. The chances used are those given the arrival time T of the first client *not* taken
      (rank conditioning; Cohen and Kaplan, 'Tighter estimation using bottom k sketches', VLDB 2008),
      1 - exp(-rate * T), times the chances to be reachable and to report;
    - nobody is drawn that has no rows, cannot be reached, or rests.

    Args:
        selection: the rule and its weight.
        activity: what the registry knows. Its arrays are read at each draw, so that setting `next_allowed` between
            rounds is enough; after a change of `counts` call `refresh`, in a new period make a new sampler.
        participation: ``federated.participation``.

    Raises:
        ConfigError: the rule cannot be used with this registry, or `inverse_probability` cannot be unbiased with these
            settings.
        DataError: no client holds a row.
    """

    def __init__(
        self, selection: Selection, activity: Activity, participation: ParticipationConfig | None = None
    ) -> None:
        self._selection, self._activity = selection, activity
        self._settings = participation or ParticipationConfig()
        _check_unbiased(selection, self._settings)
        if self._settings.minimum_separation and activity.next_allowed is None:
            raise DataError("federated.participation.minimum_separation: the registry has no next_allowed column")
        self._rates = selection.rates(activity)
        self._rows = self._count_rows()

    @property
    def rates(self) -> Rates:
        """At which rate each client is met."""
        return self._rates

    def refresh(self, clients: Integers) -> None:
        """Take up that the rows of these clients changed in place in `activity`."""
        if isinstance(self._rates, WeightedIndex):
            self._rates.refresh(clients)
        else:
            self._rates = self._selection.rates(self._activity)
        self._rows = self._count_rows()

    def draw(self, cohort_size: int, round_index: int, seeds: PublicSeeds, losses: Losses | None = None) -> Cohort:
        """Return the cohort of a round; smaller than `cohort_size`, or empty, where too few report.

        The caller sets ``next_allowed[cohort.asked_clients] = round_index + 1 + minimum_separation``.

        Args:
            cohort_size: how many updates are to count.
            round_index: from 0.
            seeds: public randomness.
            losses: for power_of_choice: takes client numbers [k] and returns the mean loss [k] of each on its rows;
                called once a round.

        Raises:
            ConfigError: the cohort is larger than the population, than `top` or than `candidates`, or losses are wanted
                and not given.
            DataError: `losses` returns another number of values.
        """
        asked = min(_asked(cohort_size, self._settings.over_selection), self._check(cohort_size))
        eligible = self._eligible(round_index, seeds)
        wanted = self._selection.candidates if isinstance(self._selection, PowerOfChoice) else asked
        arrivals = first_arrivals(self._rates, wanted, eligible, seeds.generator("cohort", round_index))
        asked_clients = np.sort(self._chosen(arrivals, asked, losses))
        reporting = asked_clients
        if self._settings.drop_out:
            lot = keyed_uniforms(seeds, "drop-out", round_index, asked_clients)
            reporting = asked_clients[lot >= self._settings.drop_out]
        clients = reporting
        if len(reporting) > cohort_size:
            order = np.argsort(keyed_uniforms(seeds, "report", round_index, reporting), kind="stable")
            clients = np.sort(reporting[order[:cohort_size]])
        return Cohort(
            clients,
            self._coefficients(clients, arrivals.next_time),
            self._selection.weight != "inverse_probability",
            asked_clients,
            dropped=len(asked_clients) - len(reporting),
            surplus=len(reporting) - len(clients),
        )

    def _count_rows(self) -> int:
        """Return the rows of all clients where the weights need them."""
        wanted = self._selection.weight == "inverse_probability"
        return int(self._activity.counts.sum(dtype=np.int64)) if wanted else 0

    def _check(self, cohort_size: int) -> int:
        """Return how many clients the rule can draw.

        Raises:
            ConfigError: the cohort does not fit the population or the rule.
        """
        drawable, rule = self._rates.drawable, self._selection
        if isinstance(rule, TopActive) and drawable < cohort_size:
            key = "top" if rule.top is not None else "top_fraction"
            raise ConfigError(
                f"federated.selection.{key}: {drawable} clients, fewer than federated.cohort_size = {cohort_size}; "
                "raise the one or lower the other"
            )
        check_cohort(drawable, cohort_size)
        if isinstance(rule, PowerOfChoice):
            asked = min(_asked(cohort_size, self._settings.over_selection), drawable)
            if not asked <= rule.candidates <= drawable:
                raise ConfigError(
                    f"federated.selection.candidates = {rule.candidates}: must be from {asked}, the clients a round "
                    f"asks, to {drawable}, the clients with data"
                )
        return drawable

    def _eligible(self, round_index: int, seeds: PublicSeeds) -> Eligible:
        """Return the predicate on client numbers: can be reached in this round, and does not rest."""
        available, rest = self._settings.available, self._settings.minimum_separation
        allowed = self._activity.next_allowed

        def eligible(clients: Integers) -> NDArray[np.bool_]:
            good = np.ones(len(clients), dtype=np.bool_)
            if available < 1:
                good &= keyed_uniforms(seeds, "available", round_index, clients) < available
            if rest and allowed is not None:
                prefetch(allowed, clients)
                good &= allowed[clients] <= round_index
            return good

        return eligible

    def _chosen(self, arrivals: Arrivals, asked: int, losses: Losses | None) -> Integers:
        """Return who is asked of those that arrived: all, or those with the highest loss (NaN counts as the lowest).

        Raises:
            ConfigError: losses are wanted and not given.
            DataError: not one loss a candidate.
        """
        if not isinstance(self._selection, PowerOfChoice):
            return arrivals.clients
        if losses is None:
            raise ConfigError(
                "federated.selection: by = 'power_of_choice' wants the losses of its candidates, and nothing here "
                "computes them; use by = 'activity'"
            )
        candidates = np.sort(arrivals.clients)
        found = np.asarray(losses(candidates), dtype=np.float64)
        if found.shape != candidates.shape:
            raise DataError(f"losses of {len(candidates)} candidates: {found.size} values came back; give one for each")
        height = np.where(np.isnan(found), -np.inf, found)
        return candidates[np.argsort(-height, kind="stable")[:asked]]

    def _coefficients(self, clients: Integers, next_time: float) -> Floats:
        """Return [cohort] what the updates count."""
        held = self._activity.counts[clients].astype(np.float64)
        if self._selection.weight == "equal":
            return np.full(len(clients), 1 / max(1, len(clients)))
        if self._selection.weight == "samples":
            return np.asarray(held / max(1.0, held.sum()))
        drawn = -np.expm1(-self._rates.at(clients) * next_time)
        return np.asarray(held / self._rows / (drawn * self._settings.available * (1 - self._settings.drop_out)))


def keyed_uniforms(seeds: PublicSeeds, purpose: str, round_index: int, clients: Integers) -> Floats:
    """Return [k] numbers in [0, 1) that depend on seed, purpose, round and client only: the same however often asked.

    A keyed hash: the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014; constants of Stafford's variant 13)
    twice, each time with 64 bits of key that belong to seed, purpose and round. For simulation: it keeps no secrets.
    """
    key = seeds.generator(purpose, round_index).integers(0, 2**64, size=(2, 1), dtype=np.uint64)
    mixed = _mix(_mix(clients.astype(np.uint64) + key[0]) ^ key[1])
    return np.asarray((mixed >> np.uint64(11)) * 2.0**-53)


def gini(participations: NDArray[np.integer], clients: int) -> float:
    """Return the Gini coefficient of participation over a population.

    Half the mean absolute difference of two clients, over the mean. 0: all took part equally often, or nobody did;
    1 - 1 / clients: one client did it all.

    Args:
        participations: [k] how often each of k clients took part; the others took part never.
        clients: the population, k or more.

    >>> gini(np.array([4]), 4), gini(np.array([3, 3, 3]), 3)
    (0.75, 0.0)
    """
    times, holders = np.unique(participations, return_counts=True)
    held, total = times.astype(np.float64) * holders, float((times.astype(np.float64) * holders).sum())
    if not total:
        return 0.0
    below = clients - len(participations) + np.cumsum(holders) - holders
    ranks = below + (holders + 1) / 2  # mean rank, from 1, of the clients with so many participations
    return float(2 * (held * ranks).sum() / (clients * total) - (clients + 1) / clients)


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _asked(cohort_size: int, over_selection: float) -> int:
    """Return the clients a round asks: ceil(cohort_size * over_selection), where 10 * 1.1 is 11."""
    return math.ceil(round(cohort_size * over_selection, 6))


def _check_unbiased(selection: Selection, settings: ParticipationConfig) -> None:
    """Refuse inverse-probability weights where they would not be unbiased.

    Raises:
        ConfigError: names both keys.
    """
    if selection.weight != "inverse_probability":
        return
    if settings.minimum_separation:
        raise ConfigError(
            "federated.selection.weight = 'inverse_probability' and federated.participation.minimum_separation = "
            f"{settings.minimum_separation}: a client that rests has no chance to divide by; drop one of them"
        )
    if settings.over_selection > 1:
        raise ConfigError(
            "federated.selection.weight = 'inverse_probability' and federated.participation.over_selection = "
            f"{settings.over_selection:g}: who reports first is not drawn by the server, the chance of it is unknown; "
            "drop one of them"
        )
