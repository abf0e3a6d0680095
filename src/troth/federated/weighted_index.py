"""Clients drawn in proportion to a weight, out of millions: sums of blocks instead of one running total per client.

A draw looks up its block in the running totals of the block sums and its client inside the block, so the weights are
never written out: they are worked out from the registry's columns (which may be memory-mapped) for the blocks that a
draw touches. One block is 64 clients, so the index takes a quarter of a byte per client.

Rates are those of a Poisson process: client i is met at rate w_i, the whole population at rate W = sum of w_i.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from troth.errors import DataError
from troth.federated.mapped_columns import prefetch

__all__ = ["Columns", "EvenRates", "MixedRates", "Rates", "Weigh", "WeightedIndex"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Column = NDArray[np.integer[Any]]
Columns = Sequence[Column]
Weigh = Callable[..., NDArray[Any]]

_BLOCK = 64  # presence of a block's clients is one 64-bit word
_PIECE = 1 << 16  # clients that `pieces` gives at a time
_CHUNK = 2048  # blocks worked on at a time, so that what is made of them stays in the cache


class Rates(Protocol):
    """Clients with rates: who is met how often."""

    @property
    def listed(self) -> int:
        """How many clients `pieces` goes through."""

    @property
    def drawable(self) -> int:
        """How many clients have a rate above zero."""

    @property
    def total(self) -> float:
        """The sum of all rates."""

    def at(self, clients: Integers) -> Floats:
        """Return [k] the rates of some clients."""

    def pieces(self) -> Iterator[tuple[Integers, Floats]]:
        """Give all clients that can be drawn, and perhaps others, piece by piece: numbers, ascending, and rates."""

    def draw(self, draws: int, rng: np.random.Generator) -> Integers:
        """Return client numbers drawn independently, each with chance rate / total, in the order of drawing.

        There are `draws` of them, less any (about one in 1e15) that rounding sends to a client with rate zero.
        """


class WeightedIndex:
    """Two-level index over weights that are a function of the registry's columns.

    Guarantees:
    - a draw is the client in which the point u * W falls on the line of all weights, as with one running total per
      client; with integer weights up to 2^53 in all this is exact, otherwise to rounding;
    - `refresh` works on the blocks of the clients named; the running totals of the blocks are made again once, by the
      next draw.

    Args:
        columns: arrays [clients] of integers, of equal length; they are referred to, not copied.
        weigh: takes pieces of these columns and returns weights of the same shape, >= 0 and finite; the weight of a
            client whose first column is 0 is 0.

    Raises:
        DataError: no client has a weight above zero.
    """

    def __init__(self, columns: Columns, weigh: Weigh) -> None:
        self._columns = tuple(np.asarray(column) for column in columns)
        self._weigh = weigh
        self._clients = len(self._columns[0])
        blocks = -(-self._clients // _BLOCK)
        self._sums = np.zeros(blocks)
        self._present = np.zeros(blocks, dtype=np.uint8)
        self._ends = np.zeros(0)
        self._drawable = 0
        whole = self._clients // _BLOCK
        for start in range(0, whole, _CHUNK):
            stop = min(start + _CHUNK, whole)
            rows = [column[start * _BLOCK : stop * _BLOCK].reshape(-1, _BLOCK) for column in self._columns]
            self._sum_blocks(slice(start, stop), rows)
        if whole < blocks:
            last = np.array([whole])
            self._sum_blocks(last, self._rows(last))
        self._settle()

    @property
    def listed(self) -> int:
        """How many clients are numbered."""
        return self._clients

    @property
    def drawable(self) -> int:
        """How many clients have a weight above zero."""
        self._settle()
        return self._drawable

    @property
    def total(self) -> float:
        """The sum of all weights."""
        self._settle()
        return float(self._ends[-1])

    def at(self, clients: Integers) -> Floats:
        """Return [k] the weights of some clients."""
        return np.asarray(self._weigh(*(column[clients] for column in self._columns)), dtype=np.float64)

    def pieces(self) -> Iterator[tuple[Integers, Floats]]:
        """Give all clients piece by piece: numbers, ascending, and weights."""
        for start in range(0, self._clients, _PIECE):
            pieces = [column[start : start + _PIECE] for column in self._columns]
            weights = np.asarray(self._weigh(*pieces), dtype=np.float64)
            yield np.arange(start, start + len(weights)), weights

    def refresh(self, clients: Integers) -> None:
        """Take up that the columns have changed at these clients (any order, repeats allowed)."""
        blocks = np.unique(np.asarray(clients, dtype=np.int64) // _BLOCK)
        self._sum_blocks(blocks, self._rows(blocks))
        self._ends = np.zeros(0)

    def draw(self, draws: int, rng: np.random.Generator) -> Integers:
        """Return up to `draws` client numbers, independent, in proportion to their weights.

        Memory: 1 KB a draw; ask for large numbers in pieces.

        Raises:
            DataError: the columns were changed without `refresh`, or no weight is left.
        """
        self._settle()
        gaps = rng.standard_exponential(draws + 1).cumsum()
        points = gaps[:-1] * (self._ends[-1] / gaps[-1])  # uniform points, ascending: neighbours in memory
        blocks = np.minimum(np.searchsorted(self._ends, points, side="right"), len(self._ends) - 1)
        inside = points - (self._ends[blocks] - self._sums[blocks])
        weights = self._weigh(*self._rows(blocks)).ravel()
        kind = np.float64 if weights.dtype.kind == "f" else np.int64  # sums of integers are exact, and faster
        running = np.cumsum(weights, dtype=kind)
        ends = running[_BLOCK - 1 :: _BLOCK]
        before = np.concatenate((np.zeros(1, dtype=kind), ends))[:-1]
        self._check_sums(blocks, ends - before)
        first = np.arange(draws) * _BLOCK
        found = np.searchsorted(running, before + inside.astype(kind), side="right")
        found = np.clip(found, first, first + _BLOCK - 1)
        clients = np.where(weights[found] > 0, blocks * _BLOCK + found - first, -1)[rng.permutation(draws)]
        return clients[clients >= 0]

    def _rows(self, blocks: Integers) -> list[NDArray[Any]]:
        """Return each column's values [blocks, 64]; beyond the last client they are 0."""
        for column in self._columns:
            prefetch(column, blocks * _BLOCK, _BLOCK)
        return [_block_rows(column, blocks) for column in self._columns]

    def _check_sums(self, blocks: Integers, sums: NDArray[Any]) -> None:
        """Refuse to go on where the sums just found differ from those stored.

        Raises:
            DataError: they do, beyond rounding.
        """
        stored = self._sums[blocks]
        if np.any(np.abs(sums - stored) > 1e-9 * stored + 1e-12 * stored.sum()):
            raise DataError("the counts of clients changed under their index: refresh it at the clients that changed")

    def _sum_blocks(self, blocks: slice | Integers, rows: Columns) -> None:
        """Store sum and number of drawable clients of some blocks, whose values are `rows` [blocks, 64]."""
        weights = self._weigh(*rows)
        self._sums[blocks] = weights.sum(axis=1)
        self._present[blocks] = np.bitwise_count(np.packbits(weights > 0, axis=1).view(np.uint64))[:, 0]

    def _settle(self) -> None:
        """Make the running totals of the block sums where they are not up to date."""
        if len(self._ends):
            return
        ends = np.cumsum(self._sums)
        if not (len(ends) and ends[-1] > 0):
            raise DataError("no client holds a row: give the clients some data")
        self._ends, self._drawable = ends, int(self._present.sum(dtype=np.int64))


class EvenRates:
    """Clients that are all met at rate 1: everybody, or the members of a list.

    Args:
        clients: how many clients are numbered.
        members: [members] ascending client numbers; None: all of them.
    """

    def __init__(self, clients: int, members: Integers | None = None) -> None:
        self.listed = self.drawable = clients if members is None else len(members)
        self._members = members

    @property
    def total(self) -> float:
        """The number of clients that can be drawn."""
        return float(self.drawable)

    def at(self, clients: Integers) -> Floats:
        """Return [k] ones, and zeros for clients that are not listed."""
        if self._members is None:
            return np.ones(len(clients))
        place = np.minimum(np.searchsorted(self._members, clients), len(self._members) - 1)
        return np.asarray(self._members[place] == clients, dtype=np.float64)

    def pieces(self) -> Iterator[tuple[Integers, Floats]]:
        """Give the clients that can be drawn piece by piece: numbers, ascending, and ones."""
        for start in range(0, self.listed, _PIECE):
            places = np.arange(start, min(start + _PIECE, self.listed))
            yield places if self._members is None else self._members[places], np.ones(len(places))

    def draw(self, draws: int, rng: np.random.Generator) -> Integers:
        """Return `draws` client numbers, independent, all equally likely."""
        drawn = rng.integers(self.drawable, size=draws)
        return drawn if self._members is None else self._members[drawn]


class MixedRates:
    """A mixture: a draw comes from one of two sets of rates, by chance; the rates sum to 1.

    Args:
        first: where a draw comes from with chance `share`.
        second: where it comes from otherwise; lists the same clients, and the same ones can be drawn.
        share: in (0, 1).
    """

    def __init__(self, first: Rates, second: Rates, share: float) -> None:
        self._first, self._second, self._share = first, second, share
        self.total = 1.0

    @property
    def listed(self) -> int:
        """How many clients `pieces` goes through."""
        return self._first.listed

    @property
    def drawable(self) -> int:
        """How many clients have a rate above zero."""
        return self._first.drawable

    def at(self, clients: Integers) -> Floats:
        """Return [k] rates: share * first / total of first + (1 - share) * second / total of second."""
        return self._mixed(self._first.at(clients), self._second.at(clients))

    def pieces(self) -> Iterator[tuple[Integers, Floats]]:
        """Give all clients piece by piece: numbers, ascending, and rates."""
        for (clients, first), (_, second) in zip(self._first.pieces(), self._second.pieces(), strict=True):
            yield clients, self._mixed(first, second)

    def _mixed(self, first: Floats, second: Floats) -> Floats:
        return self._share * first / self._first.total + (1 - self._share) * second / self._second.total

    def draw(self, draws: int, rng: np.random.Generator) -> Integers:
        """Return client numbers, independent, in proportion to the mixed rates."""
        from_first = rng.random(draws) < self._share
        drawn = np.full(draws, -1, dtype=np.int64)
        for rates, chosen in ((self._first, from_first), (self._second, ~from_first)):
            some = rates.draw(int(chosen.sum()), rng)
            drawn[np.flatnonzero(chosen)[: len(some)]] = some
        return drawn[drawn >= 0]


def _block_rows(column: Column, blocks: Integers) -> NDArray[Any]:
    """Return the values [blocks, 64] of a column, 0 beyond its end."""
    whole = len(column) // _BLOCK
    table = column[: whole * _BLOCK].reshape(-1, _BLOCK)
    if not len(blocks) or blocks.max() < whole:
        return np.asarray(table[blocks])
    rows = np.zeros((len(blocks), _BLOCK), dtype=column.dtype)
    inner = blocks < whole
    rows[inner] = table[blocks[inner]]
    rows[~inner, : len(column) - whole * _BLOCK] = column[whole * _BLOCK :]
    return rows
