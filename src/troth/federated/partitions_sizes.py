"""How many rows each client gets, and rows moved so that each holds a minimum."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from troth.errors import ConfigError
from troth.federated.population import rows_by_client

__all__ = ["apportioned", "check_size", "dealt_sizes", "equal_sizes", "iid", "rounded_shares", "with_minimum"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def check_size(rows: int, clients: int, minimum: int) -> None:
    """Refuse what no partition can give.

    Raises:
        ConfigError: no client, a minimum below 0, or fewer rows than the minimum of all clients.
    """
    if clients < 1 or minimum < 0:
        raise ConfigError(
            f"federated.clients: clients = {clients}, minimum = {minimum}: wants one client or more, and a minimum >= 0"
        )
    if rows < clients * minimum:
        raise ConfigError(
            f"federated.clients: {clients} clients of at least {minimum} rows need {clients * minimum} rows, "
            f"there are {rows}; ask for fewer clients"
        )


def equal_sizes(rows: int, clients: int, rng: np.random.Generator) -> Integers:
    """Return [clients] sizes that differ by one at most; who gets the odd row is drawn."""
    sizes = np.full(clients, rows // clients, dtype=np.int64)
    sizes[rng.permutation(clients)[: rows % clients]] += 1
    return sizes


def apportioned(rows: int, weights: Floats, rng: np.random.Generator) -> Integers:
    """Return [clients] sizes in proportion to weights, which sum to `rows` (largest remainders; ties are drawn).

    Args:
        rows: how many there are to give.
        weights: [clients] 0 or more, with a sum above 0.
        rng: public randomness, for ties.
    """
    exact = rows * (weights / weights.sum())
    sizes = np.floor(exact).astype(np.int64)
    order = rng.permutation(len(weights))
    remainder = (exact - sizes)[order]
    sizes[order[np.argsort(-remainder, kind="stable")[: rows - int(sizes.sum())]]] += 1
    return np.asarray(sizes)


def rounded_shares(shares: Floats, sizes: Integers, rng: np.random.Generator) -> Integers:
    """Return [n, k] whole numbers whose row i sums to ``sizes[i]``, each its exact share rounded up or down.

    Systematic rounding: the cumulative shares of a row are shifted by one uniform draw and cut off. Hence the expected
    value of every cell is exactly ``sizes[i] * shares[i, j]``, without the scatter of a multinomial draw.

    Args:
        shares: [n, k] rows that sum to one.
        sizes: [n].
        rng: public randomness.
    """
    edges = np.cumsum(shares, axis=1)
    edges *= sizes[:, None]
    edges += rng.random((len(sizes), 1))
    cut = np.minimum(edges.astype(np.int64), sizes[:, None])
    cut[:, -1] = sizes
    cut[:, 1:] -= cut[:, :-1].copy()
    return np.asarray(cut)


def dealt_sizes(sizes: Integers, rng: np.random.Generator) -> Integers:
    """Return [rows] client numbers: random rows, ``sizes[k]`` of them for client k."""
    owner = np.repeat(np.arange(len(sizes)), sizes)
    rng.shuffle(owner)
    return owner


def iid(rows: int, clients: int, rng: np.random.Generator) -> Integers:
    """Return [rows] client numbers: rows dealt out at random, sizes that differ by one at most.

    Raises:
        ConfigError: no client.
    """
    check_size(rows, clients, 0)
    return dealt_sizes(equal_sizes(rows, clients, rng), rng)


def with_minimum(assignment: Integers, clients: int, minimum: int, rng: np.random.Generator) -> Integers:
    """Return [rows] client numbers in which each client holds `minimum` rows or more.

    One pass: the largest clients are levelled down to a common size, which is the minimum or above, and give up random
    rows; rows that need not move stay. Who receives is served from one giver after the other, so that what he gets is
    as skewed as what the giver has. Nothing is drawn again.

    Args:
        assignment: [rows] client numbers in 0..clients - 1.
        clients: how many.
        minimum: rows each holds at least.
        rng: public randomness.

    Raises:
        ConfigError: there are too few rows.
    """
    check_size(len(assignment), clients, minimum)
    counts = np.bincount(assignment, minlength=clients)
    needed = np.maximum(minimum - counts, 0)
    if not needed.any():
        return assignment
    given = _levelled(np.maximum(counts - minimum, 0), int(needed.sum()))
    shuffled = rng.permutation(len(assignment))
    by_client = shuffled[rows_by_client(assignment[shuffled], clients)]
    place = np.arange(len(assignment)) - np.repeat(np.cumsum(counts) - counts, counts)  # position within its client
    moving = by_client[place < np.repeat(given, counts)]
    out = assignment.copy()
    out[moving] = np.repeat(np.arange(clients), needed)
    return out


def _levelled(spare: Integers, wanted: int) -> Integers:
    """Return [clients] how much each gives up: those with most to spare are cut down to one level, to within one.

    Args:
        spare: [clients] what each can give.
        wanted: above 0, and at most the sum of `spare`.
    """
    order = np.argsort(-spare, kind="stable")
    tall = spare[order]
    total = np.cumsum(tall)
    below = np.r_[tall[1:], 0]
    givers = int(np.argmax(total - np.arange(1, len(tall) + 1) * below >= wanted)) + 1
    level = (int(total[givers - 1]) - wanted) // givers
    given = np.zeros_like(spare)
    given[order[:givers]] = tall[:givers] - level
    given[order[: int(given.sum()) - wanted]] -= 1
    return given
