"""What a partition came out as: sizes, how far labels differ between clients, and rows to draw a picture of."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from troth.federated.partitions_label import label_numbers
from troth.federated.population import Column, FederatedData
from troth.results import Json

__all__ = ["PartitionReport", "label_divergence", "partition_picture", "partition_report"]

Floats = NDArray[np.float64]
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_SHOWN_CLIENTS = 30
_SHOWN_LABELS = 40
_CURVE_POINTS = 200


@dataclass(frozen=True, eq=False)
class PartitionReport:
    """Figures of a partition.

    Attributes:
        clients: how many hold a row or more.
        empty: clients without a row, dropped ones included.
        rows: how many rows they hold together.
        smallest: rows of the smallest client that holds any.
        largest: rows of the largest.
        quantiles: share of clients -> rows, over clients that hold any.
        skew: E[n^2] / E[n]^2 over these clients: 1 where all hold as much; times the mean size, it is the mean number
            of rows of a client drawn in proportion to its rows.
        divergence: mean over these clients of `client_divergence`; None without labels.
        client_divergence: [clients of the population] Jensen-Shannon divergence, in bits, of a client's label
            distribution from that of all rows: 0 where they are the same, 1 where they have no label in common; NaN for
            an empty client. A client of few rows has some by chance alone: compare with an IID partition of the same
            sizes.
    """

    clients: int
    empty: int
    rows: int
    smallest: int
    largest: int
    quantiles: dict[float, float]
    skew: float
    divergence: float | None = None
    client_divergence: Floats | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Json]:
        """Return the JSON form, without the values per client."""
        return {
            "clients": self.clients,
            "empty": self.empty,
            "rows": self.rows,
            "smallest": self.smallest,
            "largest": self.largest,
            "quantiles": {f"{share:g}": rows for share, rows in self.quantiles.items()},
            "skew": self.skew,
            "label_divergence": self.divergence,
        }


def partition_report(data: FederatedData, labels: Column | None = None) -> PartitionReport:
    """Return the figures of a partition.

    Args:
        data: the population that came out.
        labels: [rows of the table] a label (or a cluster) each; None leaves divergence out.

    Raises:
        DataError: a row without a label.
    """
    filled = data.counts[data.counts > 0].astype(np.float64)
    found = None if labels is None else label_divergence(data, labels)
    return PartitionReport(
        clients=len(filled),
        empty=len(data) - len(filled) + data.dropped,
        rows=len(data.rows),
        smallest=int(filled.min()),
        largest=int(filled.max()),
        quantiles={share: float(rows) for share, rows in zip(_QUANTILES, np.quantile(filled, _QUANTILES), strict=True)},
        skew=float((filled**2).mean() / filled.mean() ** 2),
        divergence=None if found is None else float(np.nanmean(found)),
        client_divergence=found,
    )


def label_divergence(data: FederatedData, labels: Column) -> Floats:
    """Return [clients] the Jensen-Shannon divergence, in bits, of each client's labels from those of all its rows.

    With p a client's label distribution, q that of the population and m their mean, it is (KL(p, m) + KL(q, m)) / 2
    with logarithms to base 2 (Lin 1991, IEEE Transactions on Information Theory 37(1), equation 4.1 with equal
    weights). Only the labels that a client holds are visited: each other label l adds q_l / 2.

    Args:
        data: the population.
        labels: [rows of the table].

    Raises:
        DataError: a row without a label.
    """
    kinds, names = label_numbers(labels)
    cells, rows = np.unique(_owners(data) * len(names) + kinds[data.rows], return_counts=True)
    owner, kind = np.divmod(cells, len(names))
    overall = np.bincount(kinds[data.rows], minlength=len(names)) / len(data.rows)
    p, q = rows / data.counts[owner], overall[kind]
    both = (p * np.log2(2 * p / (p + q)) + q * np.log2(2 * q / (p + q)) - q) / 2
    found = np.bincount(owner, weights=both, minlength=len(data)) + 0.5
    return np.where(data.counts > 0, np.clip(found, 0, 1), np.nan)


def _owners(data: FederatedData) -> NDArray[np.int64]:
    """Return [rows] the client of each entry of ``data.rows``."""
    return np.repeat(np.arange(len(data)), data.counts)


def partition_picture(
    data: FederatedData, labels: Column | None = None, *, clients: int = _SHOWN_CLIENTS
) -> dict[str, list[dict[str, Json]]]:
    """Return rows to draw a partition from, in the form of a record's series.

    Args:
        data: the population.
        labels: [rows of the table]; None leaves the heat map out.
        clients: how many clients the heat map shows, from the first on.

    Returns:
        ``sizes``: rows ``{"rank", "rows"}``, the sizes of clients in descending order, at most 200 of them, evenly
        spread over the ranks in logarithm, first and last included. ``labels``: rows ``{"client", "label", "rows"}``,
        every combination of a client shown and a label; labels beyond the 40 most frequent are summed up as
        ``(other labels)``.

    Raises:
        DataError: a row without a label.
    """
    sizes = np.sort(data.counts)[::-1]
    ranks = np.unique(np.geomspace(1, len(sizes), _CURVE_POINTS).round().astype(np.int64))
    curve: list[dict[str, Json]] = [{"rank": int(rank), "rows": int(sizes[rank - 1])} for rank in ranks]
    if labels is None:
        return {"sizes": curve}
    return {"sizes": curve, "labels": _heat_map(data, labels, min(clients, len(data)))}


def _heat_map(data: FederatedData, labels: Column, clients: int) -> list[dict[str, Json]]:
    """Return the rows of each label at each of the first clients."""
    kinds, names = label_numbers(labels)
    frequent = np.argsort(-np.bincount(kinds[data.rows], minlength=len(names)), kind="stable")
    column = np.full(len(names), _SHOWN_LABELS)
    column[frequent[:_SHOWN_LABELS]] = np.arange(min(len(names), _SHOWN_LABELS))
    called = [str(names[kind]) for kind in frequent[:_SHOWN_LABELS]]
    if len(names) > _SHOWN_LABELS:
        called.append("(other labels)")
    rows, offsets = data.gather(np.arange(clients))
    owner = np.repeat(np.arange(clients), np.diff(offsets))
    cells = np.bincount(owner * len(called) + column[kinds[rows]], minlength=clients * len(called))
    grid = cells.reshape(clients, len(called)).tolist()
    return [{"client": k, "label": name, "rows": grid[k][at]} for k in range(clients) for at, name in enumerate(called)]
