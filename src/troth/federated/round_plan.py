"""A round's work as chunks: clients of like size together, each with its shuffled batches, as arrays.

Who stands in which chunk, and the order of a client's rows, depend on the cohort, the seed, the round and the client
only: neither the order in which clients were drawn nor the number of workers changes them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from troth.config_federated import LocalConfig
from troth.federated.population import FederatedData
from troth.seeds import PublicSeeds
from troth.tasks import Ragged

__all__ = ["Chunk", "RoundWork", "plan_chunks", "round_work"]

Integers = NDArray[np.int64]
Unsigned = NDArray[np.uint64]

_SPARE_TOKENS = 4096  # padding that a chunk may always hold: less work than the overhead of a chunk of its own
_CHOICE = -2  # in place of an epoch: the draw of the rows a client trains on
_FULL = 1.5  # padded over real work beyond which a chunk is closed


@dataclass(frozen=True, eq=False)
class RoundWork:
    """The clients of a round and their rows.

    Attributes:
        clients: [clients] numbers, ascending, each with a row or more.
        weights: [clients] what their updates count.
        rows: [rows] row numbers, client after client.
        offsets: [clients + 1].
        steps: [clients] gradient steps.
        longest: [clients] tokens of the longest row.
        touched: [clients] rows of the token table that a client looks up; 0 where that is not counted.
        key: randomness of this round's shuffles.
        round_index: the round.
    """

    clients: Integers
    weights: NDArray[np.float64]
    rows: Integers
    offsets: Integers
    steps: Integers
    longest: Integers
    touched: Integers
    key: int
    round_index: int

    @property
    def counts(self) -> Integers:
        """[clients] rows each client holds."""
        return np.diff(self.offsets)

    def part(self, places: Integers) -> RoundWork:
        """Return the work of the clients at these places, ascending."""
        if len(places) == len(self.clients):
            return self
        counts = self.counts
        mine = np.zeros(len(counts), dtype=bool)
        mine[places] = True
        offsets = np.r_[0, np.cumsum(counts[places])].astype(np.int64)
        return RoundWork(
            self.clients[places],
            self.weights[places],
            self.rows[np.repeat(mine, counts)],
            offsets,
            self.steps[places],
            self.longest[places],
            self.touched[places],
            self.key,
            self.round_index,
        )


@dataclass(frozen=True, eq=False)
class Chunk:
    """Clients that are worked on together, in descending order of steps.

    Attributes:
        clients: [clients] numbers.
        weights: [clients].
        steps: [clients].
        touched: [clients] rows of the token table that a client looks up; 0 where that is not counted.
        rows: [clients, most steps, batch] row numbers; -1 where a batch is smaller or a client has no more steps.
        draws: [clients, most steps] which draw of a task that draws when collating: rounds and epochs, counted on.
        seeds: [clients] of dropout, each by round and client alone; clients that are stacked share the first one's.
    """

    clients: Integers
    weights: NDArray[np.float64]
    steps: Integers
    touched: Integers
    rows: Integers
    draws: Integers
    seeds: Integers

    def __len__(self) -> int:
        return len(self.clients)

    @property
    def samples(self) -> Integers:
        """[clients] examples processed, each epoch counted."""
        return np.asarray((self.rows >= 0).sum(axis=(1, 2)))

    def one(self, index: int) -> Chunk:
        """Return the chunk of a single client, cut to its own steps."""
        pick, steps = slice(index, index + 1), int(self.steps[index])
        rows = self.rows[pick, :steps]
        wide = max(1, int((rows >= 0).sum(axis=2).max(initial=0)))
        return Chunk(
            self.clients[pick],
            self.weights[pick],
            self.steps[pick],
            self.touched[pick],
            rows[:, :, :wide],
            self.draws[pick, :steps],
            self.seeds[pick],
        )


def round_work(
    data: FederatedData,
    clients: Integers,
    weights: NDArray[np.float64],
    lengths: Integers,
    local: LocalConfig,
    round_index: int,
    seeds: PublicSeeds,
    ids: Ragged | None = None,
) -> RoundWork:
    """Return what the clients of a round have to do; clients without a row are left out.

    Args:
        data: the population.
        clients: [clients] different numbers, any order.
        weights: [clients].
        lengths: [rows of the table] tokens.
        local: epochs, batch size, most examples.
        round_index: the round.
        seeds: public seeds.
        ids: the token ids of each row, where the rows of the token table that a client looks up are to be counted.
    """
    order = np.argsort(clients, kind="stable")
    order = order[data.counts[clients[order]] > 0]
    chosen = clients[order]
    rows, offsets = data.gather(chosen)
    key = seeds.integer("local batches", round_index)
    if local.maximum_examples is not None:
        rows, offsets = _some_rows(chosen, rows, offsets, local.maximum_examples, key)
    counts = np.diff(offsets)
    steps = local.epochs * -(-counts // local.batch_size)
    longest = np.maximum.reduceat(lengths[rows], offsets[:-1]) if len(rows) else np.zeros(0, dtype=np.int64)
    touched = np.zeros(len(chosen), dtype=np.int64) if ids is None else _touched(ids, rows, offsets)
    return RoundWork(chosen, weights[order], rows, offsets, steps, longest, touched, key, round_index)


def _touched(ids: Ragged, rows: Integers, offsets: Integers) -> Integers:
    """Return [clients] how many different token ids stand in each client's rows."""
    tokens = ids.take(rows)
    owner = np.repeat(np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)), tokens.lengths)
    width = int(tokens.values.max(initial=0)) + 1
    pairs = np.unique(owner * width + tokens.values)
    return np.bincount(pairs // width, minlength=len(offsets) - 1).astype(np.int64)


def _some_rows(clients: Integers, rows: Integers, offsets: Integers, most: int, key: int) -> tuple[Integers, Integers]:
    """Return at most `most` rows of each client, any of them as likely, and their offsets."""
    counts = np.diff(offsets)
    owner = np.repeat(np.arange(len(clients)), counts)
    place = np.arange(len(rows)) - offsets[owner]
    order = np.lexsort((_hash(key, clients[owner], _CHOICE, place), owner))
    kept = np.sort(order[place < most])
    return rows[kept], np.r_[0, np.cumsum(np.minimum(counts, most))].astype(np.int64)


def plan_chunks(work: RoundWork, local: LocalConfig, limit: int) -> list[Chunk]:
    """Return the round's chunks of at most `limit` clients.

    Clients are sorted by powers of two of steps, batch and length, then by number. A chunk is closed where padding
    would exceed half of the real work, and more than a chunk's own overhead is worth.
    """
    batch = np.minimum(work.counts, local.batch_size)
    order = np.lexsort((work.clients, _power(work.longest), _power(batch), _power(work.steps)))
    tokens = work.steps * batch * work.longest
    chunks: list[Chunk] = []
    start, most, real, steps = 0, (0, 0), 0, 0
    for i, k in enumerate(order.tolist()):
        wide = (max(most[0], int(batch[k])), max(most[1], int(work.longest[k])))
        padded = (steps + int(work.steps[k])) * wide[0] * wide[1]
        wasted = padded - (real + int(tokens[k]))
        if i > start and (i - start >= limit or (wasted > _SPARE_TOKENS and padded > _FULL * (real + int(tokens[k])))):
            chunks.append(_chunk(work, order[start:i], local))
            start, real, steps = i, 0, 0
            wide = (int(batch[k]), int(work.longest[k]))
        most, real, steps = wide, real + int(tokens[k]), steps + int(work.steps[k])
    if len(order):
        chunks.append(_chunk(work, order[start:], local))
    return chunks


def _power(values: Integers) -> Integers:
    """Return the exponent of the power of two at or above each value."""
    return np.ceil(np.log2(np.maximum(values, 1))).astype(np.int64)


def _chunk(work: RoundWork, picked: Integers, local: LocalConfig) -> Chunk:
    """Return the chunk of the clients at these places of `work`, their rows shuffled anew in each epoch."""
    picked = picked[np.lexsort((work.clients[picked], -work.steps[picked]))]
    counts, steps, size = work.counts[picked], work.steps[picked], local.batch_size
    wide = int(min(size, counts.max()))
    out = np.full((len(picked), int(steps.max()), wide), -1, dtype=np.int64)
    draws = np.zeros(out.shape[:2], dtype=np.int64)
    owner = np.repeat(np.arange(len(picked)), counts)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = work.rows[np.repeat(work.offsets[picked], counts) + place]
    per_epoch = steps // local.epochs
    for epoch in range(local.epochs):
        keys = _hash(work.key, work.clients[picked][owner], epoch, place)
        shuffled = rows[np.lexsort((keys, owner))]
        out[owner, epoch * per_epoch[owner] + place // size, place % size] = shuffled
        for step in range(int(per_epoch.max())):
            has = step < per_epoch
            draws[np.flatnonzero(has), (epoch * per_epoch + step)[has]] = work.round_index * local.epochs + epoch
    seeds = _hash(work.key, work.clients[picked], -1, np.zeros(len(picked), dtype=np.int64)) >> np.uint64(1)
    touched = work.touched[picked]
    return Chunk(work.clients[picked], work.weights[picked], steps, touched, out, draws, seeds.astype(np.int64))


def _hash(key: int, clients: Integers, epoch: int, places: Integers) -> Unsigned:
    """Return 64 well-mixed bits for each (client, epoch, place): sorting by them shuffles (splitmix64's finaliser)."""
    state = _mixed(clients.astype(np.uint64) + np.uint64(key))
    return _mixed(_mixed(state + np.uint64((epoch + 3) & 0xFFFFFFFF)) + places.astype(np.uint64))


def _mixed(state: Unsigned) -> Unsigned:
    """Return the output function of splitmix64 (Steele, Lea and Flood, OOPSLA 2014) after one increment."""
    z = state + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))
