"""Label skew by Dirichlet draws. Two conventions go by this name, and their results differ.

- **per client** (`label_dirichlet`; Hsu et al. 2019, arXiv 1909.06335; FedNLP, arXiv 2104.08815): client k draws its
  own label distribution p_k ~ Dir(concentration * prior), and all clients hold the same number of rows, to within one.
  Label skew alone; this is the default.
- **per label** (`label_dirichlet_per_label`; Li et al. 2021, arXiv 2102.02079, 'NIID-bench'): each label draws how its
  rows fall on the clients, Dir(concentration) over clients. Sizes differ as well, and at small concentrations many
  clients get nothing.

In Hsu et al. the rows are drawn with replacement; here every row is used exactly once, hence labels run out. Where the
clients ask for more rows of a label than there are, clients are served in random order (FedNLP serves them in a fixed
order, so that the last ones get leftovers), and what a client did not get it asks for again by its own distribution
over the labels that are left. Each such pass uses up a label, so there are at most as many passes as labels. Shares
become whole rows by systematic rounding (`rounded_shares`), where Hsu et al. draw row by row; each client's expected
numbers are the same.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from troth.errors import ConfigError, DataError
from troth.federated.partitions_sizes import check_size, equal_sizes, rounded_shares, with_minimum
from troth.federated.population import Column

__all__ = ["dealt_by_label", "label_dirichlet", "label_dirichlet_per_label", "label_numbers", "log_dirichlet"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def label_dirichlet(labels: Column, clients: int, concentration: float, rng: np.random.Generator) -> Integers:
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
        DataError: a row without a label.
    """
    check_size(len(labels), clients, 0)
    kinds, names = label_numbers(labels)
    totals = np.bincount(kinds, minlength=len(names))
    log_shares = log_dirichlet(concentration, totals / max(totals.sum(), 1), clients, rng)
    return dealt_by_label(kinds, _served(log_shares, equal_sizes(len(labels), clients, rng), totals, rng), rng)


def label_dirichlet_per_label(
    labels: Column, clients: int, concentration: float, rng: np.random.Generator, *, minimum: int = 1
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
        DataError: a row without a label.
    """
    check_size(len(labels), clients, minimum)
    kinds, names = label_numbers(labels)
    shares = _normalised(log_dirichlet(concentration, np.ones(clients), len(names), rng))
    counts = rounded_shares(shares, np.bincount(kinds, minlength=len(names)), rng)
    return with_minimum(dealt_by_label(kinds, counts.T, rng), clients, minimum, rng)


def label_numbers(labels: Column) -> tuple[Integers, list[object]]:
    """Return [rows] label numbers, and the labels in ascending order.

    Raises:
        DataError: a row without a label; names the first.
    """
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "iu" and len(labels):
        low, high = int(labels.min()), int(labels.max())
        if high - low < 4 * len(labels):  # a table is faster than a hash
            shifted = labels.astype(np.int64) - low
            present = np.bincount(shifted, minlength=high - low + 1) > 0
            numbers: list[object] = list((np.flatnonzero(present) + low).tolist())
            return (np.cumsum(present) - 1)[shifted], numbers
    kinds, names = _factorised(labels)
    if len(kinds) and kinds.min() < 0:
        missing = np.flatnonzero(kinds < 0)
        raise DataError(
            f"row {missing[0]} has no label ({len(missing)} such rows); give it one, or partition by something else"
        )
    return kinds, names


def _factorised(labels: Column) -> tuple[Integers, list[object]]:
    """Return label numbers, -1 where one is missing, and the labels in ascending order."""
    try:
        arrow = isinstance(labels, pa.Array | pa.ChunkedArray)
        texts = labels if arrow else pa.array(labels, type=pa.string(), from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        kinds, found = pd.factorize(np.asarray(labels), sort=True)
        return kinds.astype(np.int64), list(found)
    encoded = pc.dictionary_encode(texts)
    encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    rank = np.empty(len(order) + 1, dtype=np.int64)
    rank[order] = np.arange(len(order))
    rank[-1] = -1
    numbers = pc.fill_null(encoded.indices, -1).to_numpy()
    return rank[numbers], encoded.dictionary.take(pa.array(order)).to_pylist()


def dealt_by_label(kinds: Integers, counts: Integers, rng: np.random.Generator) -> Integers:
    """Return [rows] client numbers in which client k gets ``counts[k, l]`` random rows of label l.

    Args:
        kinds: [rows] label numbers.
        counts: [clients, labels]; column l sums to the number of rows of label l.
        rng: public randomness.
    """
    clients, labels = counts.shape
    owner = np.repeat(np.tile(np.arange(clients), labels), counts.T.ravel())
    totals = counts.sum(axis=0)
    ends = np.cumsum(totals)
    for start, end in zip((ends - totals).tolist(), ends.tolist(), strict=True):
        rng.shuffle(owner[start:end])
    out = np.empty(len(kinds), dtype=np.int64)
    out[_by_kind(kinds, labels)] = owner
    return out


def _by_kind(kinds: Integers, labels: int) -> Integers:
    """Return [rows] row numbers, label after label."""
    return np.argsort(kinds.astype(np.uint16) if labels <= 1 << 16 else kinds, kind="stable")


def log_dirichlet(concentration: float, base: Floats, draws: int, rng: np.random.Generator) -> Floats:
    """Return [draws, k] the logarithms of draws of Dir(concentration * base), shifted so that each row's largest is 0.

    A gamma variate of shape a is one of shape a + 1 times U^(1/a) (Marsaglia and Tsang 2000, section 6): in logarithms
    it does not underflow, however small a is. -log U is drawn as an exponential.

    Raises:
        ConfigError: a concentration that is not above 0.
    """
    if not (np.isfinite(concentration) and concentration > 0):
        raise ConfigError(f"federated.clients: concentration = {concentration}: must be a number above 0")
    shape = concentration * base
    logs = rng.standard_gamma(shape + 1, size=(draws, len(base)))
    np.log(logs, out=logs)
    less = rng.standard_exponential((draws, len(base)))
    less /= shape
    logs -= less
    logs -= logs.max(axis=1, keepdims=True, initial=-np.inf)
    return np.asarray(logs)


def _normalised(logs: Floats) -> Floats:
    """Return shares that sum to one in each row, in place of the logarithms."""
    np.exp(logs, out=logs)
    logs /= logs.sum(axis=1, keepdims=True)
    return logs


def _served(log_shares: Floats, sizes: Integers, totals: Integers, rng: np.random.Generator) -> Integers:
    """Return [clients, labels] row counts with exactly these row and column sums, guided by the clients' shares."""
    counts = np.zeros(log_shares.shape, dtype=np.int64)
    left, missing = totals.copy(), sizes.copy()
    while missing.any():  # each pass but the last uses up a label or more
        waiting, there = rng.permutation(np.flatnonzero(missing)), np.flatnonzero(left)
        place = np.ix_(waiting, there)
        logs = log_shares[place]
        logs -= logs.max(axis=1, keepdims=True)
        asked = rounded_shares(_normalised(logs), missing[waiting], rng)
        room = left[there] - np.cumsum(asked, axis=0)
        room += asked  # what is left of a label when a client's turn comes
        granted = np.clip(room, 0, asked, out=room)
        counts[place] += granted
        missing[waiting] -= granted.sum(axis=1)
        left[there] -= granted.sum(axis=0)
    return counts
