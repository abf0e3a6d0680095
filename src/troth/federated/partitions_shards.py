"""Pathological shards: each client holds a few labels and nothing else.

After McMahan et al. 2017 (arXiv 1602.05629), who sort the rows by label, cut them into shards and deal each client two.
A shard there may straddle two labels. Here a shard is of one label, and no client gets two shards of the same label, so
that `labels_per_client` is kept exactly; each label is cut into shards in proportion to its rows, so that shards are
about equal.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from troth.errors import ConfigError
from troth.federated.partitions_label import dealt_by_label, label_numbers
from troth.federated.partitions_sizes import check_size
from troth.federated.population import Column

__all__ = ["shards"]

Integers = NDArray[np.int64]


def shards(labels: Column, clients: int, labels_per_client: int, rng: np.random.Generator) -> Integers:
    """Return [rows] client numbers: each client holds rows of `labels_per_client` labels.

    It holds fewer where labels have fewer rows than shards are wanted of them.

    Args:
        labels: [rows].
        clients: how many.
        labels_per_client: at least 1, at most as many as there are labels.
        rng: public randomness: who holds which labels, and which rows of them.

    Raises:
        ConfigError: no client, more labels per client than exist, or so few that some label would be nobody's.
        DataError: a row without a label.
    """
    check_size(len(labels), clients, 0)
    kinds, names = label_numbers(labels)
    if not 1 <= labels_per_client <= len(names):
        raise ConfigError(
            f"federated.clients: labels_per_client = {labels_per_client}, and the table has {len(names)} labels; "
            f"ask for 1 to {len(names)}"
        )
    if clients * labels_per_client < len(names):
        raise ConfigError(
            f"federated.clients: {clients} clients x labels_per_client = {labels_per_client} leave some of the "
            f"{len(names)} labels to nobody; ask for more clients or more labels per client"
        )
    totals = np.bincount(kinds, minlength=len(names))
    pieces = _pieces(totals, clients, labels_per_client)
    held = _traded(_round_the_table(pieces, clients, labels_per_client, rng), rng)
    return dealt_by_label(kinds, _cut(held, totals, pieces, rng), rng)


def _pieces(totals: Integers, clients: int, labels_per_client: int) -> Integers:
    """Return [labels] how many clients hold a label: about in proportion to its rows, 1 or more, at most one a row.

    They sum to ``clients * labels_per_client``, or to the most there can be where that is less.
    """
    most = np.minimum(totals, clients)
    wanted = min(clients * labels_per_client, int(most.sum()))
    low, high = 0.0, float(clients)  # pieces a row; at the upper end every label has its most
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(middle * totals, 1, most).sum() < wanted else (low, middle)
    exact = np.clip(high * totals, 1, most)
    pieces = np.floor(exact).astype(np.int64)
    while (short := wanted - int(pieces.sum())) > 0:  # each pass fills up a label, or is the last
        open_to = np.flatnonzero(pieces < most)
        open_to = open_to[np.argsort((pieces - exact)[open_to], kind="stable")]
        pieces[open_to[:short]] += 1
    return np.asarray(pieces)


def _round_the_table(pieces: Integers, clients: int, labels_per_client: int, rng: np.random.Generator) -> Integers:
    """Return [clients, labels_per_client] different labels for each client; label l stands there ``pieces[l]`` times.

    Where there are too few pieces, numbers from ``len(pieces)`` on fill up: labels that nobody has rows of.
    """
    short = clients * labels_per_client - int(pieces.sum())
    filling = [clients] * (short // clients) + [short % clients]
    dealt = np.repeat(np.arange(len(pieces) + len(filling)), np.r_[pieces, filling])
    return dealt.reshape(labels_per_client, clients).T[rng.permutation(clients)]  # a label's pieces: all in a row


def _traded(held: Integers, rng: np.random.Generator) -> Integers:
    """Return who holds which labels after random trades; labels keep their holders' number, clients theirs.

    Clients trade in random pairs: what one of the two holds and the other does not is pooled and dealt anew
    (Curveball; Strona et al. 2014, Nature Communications 5:4114). The number of rounds is fixed: enough for what a
    client held to reach every other, and some more.
    """
    clients, each = held.shape
    held = held.copy()
    for _ in range(8 + math.ceil(math.log2(clients + 1))):
        first, second = rng.permutation(clients)[: clients // 2 * 2].reshape(2, -1)
        pool = np.sort(np.concatenate([held[first], held[second]], axis=1), axis=1)
        keys = rng.random(pool.shape)
        both = pool[:, 1:] == pool[:, :-1]  # one copy stays with each
        keys[:, :-1][both] = -1
        keys[:, 1:][both] = 2
        dealt = np.take_along_axis(pool, np.argsort(keys, axis=1), axis=1)
        held[first], held[second] = dealt[:, :each], dealt[:, each:]
    return held


def _cut(held: Integers, totals: Integers, pieces: Integers, rng: np.random.Generator) -> Integers:
    """Return [clients, labels] rows: each label's rows in equal parts, to within one, among those who hold it."""
    order = rng.permutation(held.size)  # who gets the odd rows
    order = order[np.argsort(held.ravel()[order], kind="stable")]
    labels, owners = held.ravel()[order], order // held.shape[1]
    real = labels < len(totals)
    labels, owners = labels[real], owners[real]
    rank = np.arange(len(labels)) - (np.cumsum(pieces) - pieces)[labels]
    counts = np.zeros((len(held), len(totals)), dtype=np.int64)
    counts[owners, labels] = (totals // pieces)[labels] + (rank < (totals % pieces)[labels])
    return counts
