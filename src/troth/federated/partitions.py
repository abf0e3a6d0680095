"""Partitions: clients made from a table that knows no users. Each returns the client number of every row.

All are vectorised, seeded, disjoint and exhaustive by construction (one number per row), and bounded: no loop waits for
luck. Minimum sizes are reached by moving rows, never by drawing again.

Two conventions go by the name 'label Dirichlet', and their results differ:

- **per client** (`label_dirichlet`; Hsu et al. 2019, arXiv 1909.06335; FedNLP, arXiv 2104.08815): client k draws its
  own label distribution p_k ~ Dir(concentration * prior), and all clients hold the same number of rows, to within one.
  Label skew alone; this is the default.
- **per label** (`label_dirichlet_per_label`; Li et al. 2021, arXiv 2102.02079, 'NIID-bench'): each label draws how its
  rows fall on the clients, Dir(concentration) over clients. Sizes differ as well, and at small concentrations many
  clients get nothing.

In Hsu et al. the rows are drawn with replacement; here every row is used exactly once, hence labels run out. Where the
clients ask for more rows of a label than there are, clients are served in random order (FedNLP serves them in a fixed
order, so that the last ones get leftovers), and what a client did not get it draws again from its own distribution over
the labels that are left. Each such pass uses up a label, so there are at most as many passes as labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from troth.config import PartitionConfig
from troth.errors import ConfigError
from troth.federated.population import FederatedData
from troth.seeds import PublicSeeds

__all__ = ["iid", "label_dirichlet", "label_dirichlet_per_label", "partition", "with_minimum"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def partition(
    config: PartitionConfig, rows: int, labels: Sequence[object] | None, *, seeds: PublicSeeds
) -> FederatedData:
    """Return the population that a run file's ``federated.clients = { partition = ... }`` asks for.

    Args:
        config: which partition, how many clients, how skewed.
        rows: how many rows the table has.
        labels: [rows] each row's label; None for a task without one label per row.
        seeds: public seeds.

    Raises:
        ConfigError: more clients than rows, or a label partition of a task without labels.
    """
    rng = seeds.generator("partition")
    _check_size(rows, config.clients, 1)
    if config.partition == "iid":
        return FederatedData.from_assignment(iid(rows, config.clients, rng), config.clients)
    if labels is None:
        raise ConfigError(
            f"federated.clients: partition = {config.partition!r} needs one label per row, which this task has not; "
            "use 'iid', or clients = 'user'"
        )
    split = label_dirichlet if config.convention == "per_client" else label_dirichlet_per_label
    return FederatedData.from_assignment(split(labels, config.clients, config.concentration, rng), config.clients)


def _check_size(rows: int, clients: int, minimum: int) -> None:
    if clients < 1 or minimum < 0:
        raise ConfigError(f"clients = {clients}, minimum = {minimum}: wants at least one client and a minimum >= 0")
    if rows < clients * minimum:
        raise ConfigError(
            f"federated.clients: {clients} clients of at least {minimum} rows need {clients * minimum} rows, "
            f"there are {rows}; ask for fewer clients"
        )


def _equal_sizes(rows: int, clients: int, rng: np.random.Generator) -> Integers:
    """Return [clients] sizes that differ by one at most; who gets the odd row is drawn."""
    sizes = np.full(clients, rows // clients, dtype=np.int64)
    sizes[rng.permutation(clients)[: rows % clients]] += 1
    return sizes


def iid(rows: int, clients: int, rng: np.random.Generator) -> Integers:
    """Return [rows] client numbers: rows dealt out at random, sizes that differ by one at most."""
    _check_size(rows, clients, 0)
    owner = np.repeat(np.arange(clients), _equal_sizes(rows, clients, rng))
    return np.asarray(rng.permutation(owner))


def label_dirichlet(
    labels: Sequence[object] | NDArray[np.generic], clients: int, concentration: float, rng: np.random.Generator
) -> Integers:
    """Return [rows] client numbers: each client's own Dirichlet over labels, equal sizes (the per-client convention).

    As `concentration` grows every client looks like the whole table; as it falls to 0 a client holds one label, as far
    as the labels go round.

    Args:
        labels: [rows].
        clients: how many.
        concentration: above 0; multiplies the overall label shares, as in FedNLP.
        rng: public randomness.

    Raises:
        ConfigError: no client, or a concentration that is not above 0.
    """
    _check_size(len(labels), clients, 0)
    kinds, totals = _labels(labels)
    log_shares = _log_dirichlet(np.broadcast_to(concentration * totals / totals.sum(), (clients, len(totals))), rng)
    return _dealt(kinds, _served(log_shares, _equal_sizes(len(labels), clients, rng), totals, rng), rng)


def label_dirichlet_per_label(
    labels: Sequence[object] | NDArray[np.generic],
    clients: int,
    concentration: float,
    rng: np.random.Generator,
    *,
    minimum: int = 1,
) -> Integers:
    """Return [rows] client numbers: each label spread by its own Dirichlet over clients (the per-label convention).

    Args:
        labels: [rows].
        clients: how many.
        concentration: above 0, the same for every client.
        rng: public randomness.
        minimum: rows each client holds at least, reached by `with_minimum`; 0 leaves clients empty.

    Raises:
        ConfigError: no client, a concentration that is not above 0, or too few rows for the minimum.
    """
    _check_size(len(labels), clients, minimum)
    kinds, totals = _labels(labels)
    shares = np.exp(_log_dirichlet(np.full((len(totals), clients), concentration), rng))
    counts = rng.multinomial(totals, shares / shares.sum(axis=1, keepdims=True)).T
    return with_minimum(_dealt(kinds, counts, rng), clients, minimum, rng)


def with_minimum(assignment: Integers, clients: int, minimum: int, rng: np.random.Generator) -> Integers:
    """Return [rows] client numbers in which each client holds `minimum` rows or more.

    One pass: clients above the minimum give up random rows, those with most to spare first, and never fall below it;
    rows that need not move stay. Nothing is drawn again.

    Raises:
        ConfigError: there are too few rows.
    """
    _check_size(len(assignment), clients, minimum)
    counts = np.bincount(assignment, minlength=clients)
    needed = np.maximum(minimum - counts, 0)
    spare = np.maximum(counts - minimum, 0)
    order = np.argsort(-spare, kind="stable")
    before = np.r_[0, np.cumsum(spare[order])[:-1]]
    given = np.zeros(clients, dtype=np.int64)
    given[order] = np.clip(needed.sum() - before, 0, spare[order])
    shuffled = rng.permutation(len(assignment))
    by_client = shuffled[np.argsort(assignment[shuffled], kind="stable")]
    place = np.arange(len(assignment)) - np.repeat(np.cumsum(counts) - counts, counts)  # position within its client
    moving = by_client[place < np.repeat(given, counts)]
    out = assignment.copy()
    out[moving] = np.repeat(np.arange(clients), needed)
    return out


def _labels(labels: Sequence[object] | NDArray[np.generic]) -> tuple[Integers, Integers]:
    """Return [rows] label numbers and [labels] how many rows each has."""
    kinds, names = pd.factorize(np.asarray(labels), sort=True)
    return kinds.astype(np.int64), np.bincount(kinds, minlength=len(names)).astype(np.int64)


def _log_dirichlet(concentrations: Floats, rng: np.random.Generator) -> Floats:
    """Return the logarithms of Dirichlet draws, one a row, up to a constant per row.

    A gamma variate of shape a is one of shape a + 1 times U^(1/a) (Marsaglia and Tsang 2000, section 6): in logarithms
    it does not underflow, however small a is.
    """
    if not (concentrations > 0).all():
        raise ConfigError(f"federated.clients: concentration = {float(concentrations.min())}: must be above 0")
    gamma = np.log(rng.standard_gamma(concentrations + 1))
    logs = gamma + np.log1p(-rng.random(concentrations.shape)) / concentrations
    return np.asarray(logs - logs.max(axis=1, keepdims=True))


def _served(log_shares: Floats, sizes: Integers, totals: Integers, rng: np.random.Generator) -> Integers:
    """Return [clients, labels] row counts with exactly these row and column sums, guided by the clients' shares."""
    counts = np.zeros(log_shares.shape, dtype=np.int64)
    left, missing = totals.copy(), sizes.copy()
    while missing.any():  # each pass but the last uses up a label or more
        waiting = rng.permutation(np.flatnonzero(missing))
        logs = np.where(left > 0, log_shares[waiting], -np.inf)
        shares = np.exp(logs - logs.max(axis=1, keepdims=True))
        asked = rng.multinomial(missing[waiting], shares / shares.sum(axis=1, keepdims=True))
        before = np.cumsum(asked, axis=0) - asked
        granted = np.clip(left - before, 0, asked)
        counts[waiting] += granted
        missing[waiting] -= granted.sum(axis=1)
        left -= granted.sum(axis=0)
    return counts


def _dealt(kinds: Integers, counts: Integers, rng: np.random.Generator) -> Integers:
    """Return [rows] client numbers in which client k gets ``counts[k, l]`` random rows of label l."""
    shuffled = rng.permutation(len(kinds))
    by_label = shuffled[np.argsort(kinds[shuffled], kind="stable")]
    clients, labels = counts.shape
    out = np.empty(len(kinds), dtype=np.int64)
    out[by_label] = np.repeat(np.tile(np.arange(clients), labels), counts.T.ravel())
    return out
