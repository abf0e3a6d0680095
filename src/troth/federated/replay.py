"""Rows that have expired and that a device keeps and trains on again: a few, chosen at random or to differ.

Both memories hold at most `size` rows a device and are offered the rows that expire by age, period after period. Rows
that a cap pushed out are not offered, and a row that was deleted leaves at once and never comes back.

**reservoir**: every row that ever expired has a random key of its own, a function of the seed, the device and the row's
place among the device's rows in order of time; a device keeps the rows with the smallest keys ('bottom k'; Cohen and
Kaplan, 'Summarizing data using bottom-k sketches', PODC 2007). All subsets of that size are as likely, whatever the
periods, and no row is needed again once it was dropped. A deleted row leaves its place empty behind its key, so that
what remains is a uniform sample of the expired rows that were not deleted, given how many it has; new rows with smaller
keys take such places in time.

**gradient_diverse**: the idea of 'Coordinated Replay Sample Selection for Continual Federated Learning' (arXiv
2310.15054; abstract read, not the algorithm) to keep rows whose loss gradients differ. What is done here is ours:
`most_diverse` on each device by itself, without coordination between devices, over what it holds and what expires now.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from troth.errors import ModelError

__all__ = ["Gradients", "ReplayMemory", "forget", "gradient_diverse", "most_diverse", "reservoir", "reservoir_keys"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Gradients = Callable[[Integers], NDArray[np.float32]]
"""Row numbers [k] of one device in, their loss gradients [k, d] float32 out; any fixed projection of them will do."""

_WEYL = np.uint64(0x9E3779B97F4A7C15)
_EXCHANGES_PER_ROW = 100
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class ReplayMemory:
    """What all devices keep, as columns sorted by device.

    Attributes:
        rows: [places] int64 row numbers; -1 where a deleted row stood.
        devices: [places] int64, ascending.
        keys: [places] int64, not negative: the reservoir's random keys; 0 where there are none.
    """

    rows: Integers
    devices: Integers
    keys: Integers

    @classmethod
    def empty(cls) -> ReplayMemory:
        """Return a memory without rows."""
        return cls(*(np.zeros(0, dtype=np.int64) for _ in range(3)))

    def kept(self) -> ReplayMemory:
        """Return the places that hold a row."""
        return self._at(self.rows >= 0)

    def _at(self, places: NDArray[np.generic]) -> ReplayMemory:
        return ReplayMemory(self.rows[places], self.devices[places], self.keys[places])


def forget(memory: ReplayMemory, gone: NDArray[np.bool_]) -> ReplayMemory:
    """Return the memory without the rows of the places [places] that are gone; the places stay, empty."""
    return ReplayMemory(np.where(gone, -1, memory.rows), memory.devices, memory.keys)


def reservoir(memory: ReplayMemory, offered: ReplayMemory, size: int) -> ReplayMemory:
    """Return the `size` places of each device with the smallest keys, of those it had and those offered.

    Guarantees:
    - after any sequence of offers, the places of a device are a uniform choice among all that were ever offered to it;
    - devices do not influence one another, nor does the cut of time into periods.
    """
    both = _joined(memory, offered)
    return both._at(_first(both, np.lexsort((both.keys, both.devices)), size))


def reservoir_keys(seed: int, devices: Integers, places: Integers) -> Integers:
    """Return [rows] int64 keys, uniform on 0..2^63 - 1: a hash of seed, device and place alone.

    The hash is the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), once for the device and once for the
    place.

    Args:
        seed: a 63-bit integer.
        devices: [rows] device numbers.
        places: [rows] the row's place among the device's rows in order of time, from 0.
    """
    state = np.uint64(seed) + _WEYL * (devices.astype(np.uint64) + np.uint64(1))
    state = _mixed(state) + _WEYL * (places.astype(np.uint64) + np.uint64(1))
    return (_mixed(state) >> np.uint64(1)).astype(np.int64)


def gradient_diverse(memory: ReplayMemory, offered: ReplayMemory, size: int, gradients: Gradients) -> ReplayMemory:
    """Return `size` rows of each device chosen by `most_diverse`; a device with no more than that keeps all.

    Args:
        memory: what devices keep.
        offered: what expires now.
        size: rows a device keeps.
        gradients: called once for each device that has to choose, with its rows.

    Raises:
        ModelError: gradients of another shape, or not finite.
    """
    both = _joined(memory.kept(), offered)
    both = both._at(np.argsort(both.devices, kind="stable"))
    starts = np.flatnonzero(np.r_[True, both.devices[1:] != both.devices[:-1]]) if len(both.rows) else np.zeros(0, int)
    sizes = np.diff(np.r_[starts, len(both.rows)])
    keep = np.ones(len(both.rows), dtype=bool)
    for start, count in zip(starts[sizes > size].tolist(), sizes[sizes > size].tolist(), strict=True):
        found = np.asarray(gradients(both.rows[start : start + count]))
        if found.ndim != 2 or len(found) != count:
            raise ModelError(
                f"replay by gradients: {list(found.shape)} numbers for {count} rows; wants one vector for each row"
            )
        keep[start : start + count] = False
        keep[start + most_diverse(found, size)] = True
    return both._at(keep)


def most_diverse(gradients: NDArray[np.floating], size: int) -> Integers:
    """Return [size] numbers of the rows whose gradients differ the most, ascending; all rows where there are no more.

    Diversity is sum of |u|^2 / |sum of u|^2 (Yin et al., arXiv 1706.05699), here of gradients scaled to length 1: to
    maximise it at a fixed size is to minimise |sum of u|, hence the sum of the cosines of all pairs, the objective of
    Aljundi et al. (NeurIPS 2019, arXiv 1903.08671). The search is ours: the row least aligned with the mean of all is
    taken first, then one after the other the row that leaves |sum of u| the smallest, then single rows are exchanged,
    best first, while that lowers it. Rows with gradient zero teach nothing and come last, in order.

    Guarantees:
    - no exchange of one chosen row for another one would raise the diversity (after at most 100 exchanges per row
      chosen); hence the best set of all is found for sizes of 1, and of one less than there are rows;
    - the choice depends on the directions of the gradients only, not on their lengths.

    Args:
        gradients: [rows, d] float32 or float64.
        size: how many rows, at least 1.

    Raises:
        ModelError: a gradient that is not finite.

    >>> most_diverse(np.array([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [0.9, 0.0]]), 2)
    array([0, 2])
    """
    found = np.asarray(gradients, dtype=np.float64)
    bad = ~np.isfinite(found).all(axis=1)
    if bad.any():
        raise ModelError(
            f"replay by gradients: {int(bad.sum())} of {len(found)} rows have a gradient that is not finite"
        )
    if len(found) <= size:
        return np.arange(len(found))
    lengths = np.sqrt((found**2).sum(axis=1))
    some = np.flatnonzero(lengths > 0)
    if len(some) <= size:
        return np.sort(np.r_[some, np.flatnonzero(lengths == 0)[: size - len(some)]])
    units = found[some] / lengths[some, None]
    return np.sort(some[_exchanged(units, _grown(units, size))])


def _grown(units: Floats, size: int) -> Integers:
    """Return [size] rows of unit vectors [rows, d], each the one that leaves the length of the sum the smallest."""
    taken = np.zeros(len(units), dtype=bool)
    towards = units @ units.sum(axis=0)
    total = np.zeros(units.shape[1])
    for _ in range(size):
        row = int(np.argmin(np.where(taken, np.inf, towards)))
        taken[row] = True
        total += units[row]
        towards = units @ total
    return np.flatnonzero(taken)


def _exchanged(units: Floats, chosen: Integers) -> Integers:
    """Return the chosen rows after the exchanges that lower the length of their sum.

    |v - u_i + u_j|^2 - |v|^2 = 2 (u_j.v - u_i.v + 1 - u_i.u_j) for unit vectors and their sum v.
    """
    inside = chosen.copy()
    others = np.setdiff1d(np.arange(len(units)), inside)
    between = units[inside] @ units[others].T
    for _ in range(_EXCHANGES_PER_ROW * len(inside)):
        total = units[inside].sum(axis=0)
        change = (units[others] @ total)[None, :] - (units[inside] @ total)[:, None] + 1 - between
        i, j = np.unravel_index(int(np.argmin(change)), change.shape)
        if change[i, j] >= -_ROUNDING:
            break
        inside[i], others[j] = others[j], inside[i]
        between[i] = units[inside[i]] @ units[others].T
        between[:, j] = units[inside] @ units[others[j]]
    return inside


def _joined(one: ReplayMemory, other: ReplayMemory) -> ReplayMemory:
    return ReplayMemory(
        np.concatenate([one.rows, other.rows]),
        np.concatenate([one.devices, other.devices]),
        np.concatenate([one.keys, other.keys]),
    )


def _first(memory: ReplayMemory, order: Integers, size: int) -> Integers:
    """Return the places of `order` (sorted by device) that are among the first `size` of their device."""
    owner = memory.devices[order]
    if not len(owner):
        return order
    starts = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])
    rank = np.arange(len(owner)) - np.repeat(starts, np.diff(np.r_[starts, len(owner)]))
    return order[rank < size]


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
