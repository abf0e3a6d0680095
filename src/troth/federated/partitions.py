"""Partitions: clients made from a table that knows no users. Each returns the client number of every row.

All are vectorised, seeded, disjoint and exhaustive by construction (one number per row), and bounded: no loop waits for
luck. Minimum sizes are reached by moving rows, never by drawing again.

This module is the run file's entry; the partitions themselves lie beside it: `partitions_sizes` (iid, minimum sizes),
`partitions_label` (label Dirichlet in both conventions), `partitions_quantity`, `partitions_features`,
`partitions_shards` and `partitions_time`; the natural one is `population.natural`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from troth.config_federated import PartitionConfig
from troth.errors import ConfigError
from troth.federated.partitions_features import feature_clusters, text_embeddings
from troth.federated.partitions_label import label_dirichlet, label_dirichlet_per_label
from troth.federated.partitions_quantity import quantity_dirichlet, quantity_log_normal, quantity_zipf
from troth.federated.partitions_shards import shards
from troth.federated.partitions_sizes import check_size, iid, with_minimum
from troth.federated.partitions_time import time_slices
from troth.federated.population import Column, FederatedData, natural
from troth.seeds import PublicSeeds

if TYPE_CHECKING:
    from troth.data import Table

__all__ = [
    "PartitionInputs",
    "feature_clusters",
    "iid",
    "label_dirichlet",
    "label_dirichlet_per_label",
    "partition",
    "partition_inputs",
    "quantity_dirichlet",
    "quantity_log_normal",
    "quantity_zipf",
    "shards",
    "text_embeddings",
    "time_slices",
    "with_minimum",
]

Integers = NDArray[np.int64]
_NATURAL = ("user", "group", "label", "context", "source")


@dataclass(frozen=True)
class PartitionInputs:
    """What a partition may look at; a part is fetched only by a partition that needs it.

    Attributes:
        rows: how many rows the table has.
        labels: gives [rows] each row's label; None for a task without one label per row.
        texts: gives [rows] each row's text.
        embeddings: gives [rows, d] each row's embedding; None embeds `texts` (`text_embeddings`).
        times: gives [rows] each row's time, as `parse_times` reads it.
        keys: column name -> gives [rows] that column, for natural partitions.
        source: where the rows come from, for messages.
    """

    rows: int
    labels: Callable[[], Column] | None = None
    texts: Callable[[], Sequence[str]] | None = None
    embeddings: Callable[[], NDArray[np.floating]] | None = None
    times: Callable[[], Sequence[object] | NDArray[np.generic]] | None = None
    keys: Mapping[str, Callable[[], Column]] = field(default_factory=dict)
    source: str = "the table"


def partition_inputs(table: Table) -> PartitionInputs:
    """Return what a partition may look at in a table.

    A row's text is its text, its tokens joined by spaces, its question and context, or its source.
    """
    has = set(table.roles)
    return PartitionInputs(
        rows=len(table),
        labels=(lambda: table.arrow.column("label")) if "label" in has else None,
        texts=(lambda: _texts(table)) if has & {"text", "tokens", "context", "source"} else None,
        times=(lambda: table.column("time")) if "time" in has else None,
        keys={role: _column(table, role) for role in _NATURAL if role in has},
        source=table.source,
    )


def _column(table: Table, role: str) -> Callable[[], pa.ChunkedArray]:
    return lambda: table.arrow.column(role)


def _texts(table: Table) -> list[str]:
    if table.has("text"):
        return table.column("text")
    if table.has("tokens"):
        return [" ".join(tokens) for tokens in table.column("tokens")]
    if table.has("context"):
        questions = table.column("question") if table.has("question") else [""] * len(table)
        return [f"{q} {c}" for q, c in zip(questions, table.column("context"), strict=True)]
    return table.column("source")


def partition(config: PartitionConfig, inputs: PartitionInputs, *, seeds: PublicSeeds) -> FederatedData:
    """Return the population that a run file's ``federated.clients = { partition = ... }`` asks for.

    Clients are named by a natural partition only. With ``minimum = 0`` clients may get no row; they are dropped.

    Args:
        config: which partition, how many clients, how skewed.
        inputs: the table's parts; what is missing is None.
        seeds: public seeds.

    Raises:
        ConfigError: more clients than rows, or a partition by something that the table has not.
        DataError: a row without the label, key or time that the partition goes by.
    """
    if config.partition == "natural":
        return _by_key(config, inputs)
    clients = config.clients
    if clients is None:
        raise ConfigError(f"federated.clients: partition = {config.partition!r} needs clients = NUMBER; add it")
    check_size(inputs.rows, clients, max(config.minimum, 1))
    rng = seeds.generator("partition")
    assignment = _ASSIGN[config.partition](config, inputs, clients, rng)
    return FederatedData.from_assignment(with_minimum(assignment, clients, config.minimum, rng), clients)


def _by_key(config: PartitionConfig, inputs: PartitionInputs) -> FederatedData:
    key = config.by
    if key is None or key not in inputs.keys:
        there = f"by = {' or '.join(map(repr, inputs.keys))}" if inputs.keys else "another partition"
        raise ConfigError(
            f"federated.clients: partition = 'natural' with by = {key!r} needs that column, which the table has not; "
            f"name it under [data], or use {there}"
        )
    if config.minimum > 1:
        raise ConfigError(
            f"federated.clients: minimum = {config.minimum} would move rows from one {key} to another; leave it out "
            "with partition = 'natural'"
        )
    return natural(inputs.keys[key](), inputs.source, key)


def _by_chance(config: PartitionConfig, inputs: PartitionInputs, clients: int, rng: np.random.Generator) -> Integers:
    return iid(inputs.rows, clients, rng)


def _by_label(config: PartitionConfig, inputs: PartitionInputs, clients: int, rng: np.random.Generator) -> Integers:
    return _dirichlet(config, _labels(config, inputs), clients, rng)


def _by_features(config: PartitionConfig, inputs: PartitionInputs, clients: int, rng: np.random.Generator) -> Integers:
    if inputs.embeddings is not None:
        embeddings = inputs.embeddings()
    elif inputs.texts is not None:
        embeddings = text_embeddings(inputs.texts(), rng)
    else:
        raise ConfigError("federated.clients: partition = 'features' needs text, which the table has not; use 'iid'")
    return _dirichlet(config, feature_clusters(embeddings, config.clusters, rng), clients, rng)


def _by_shards(config: PartitionConfig, inputs: PartitionInputs, clients: int, rng: np.random.Generator) -> Integers:
    return shards(_labels(config, inputs), clients, config.labels_per_client, rng)


def _by_time(config: PartitionConfig, inputs: PartitionInputs, clients: int, rng: np.random.Generator) -> Integers:
    if inputs.times is None:
        raise ConfigError(
            "federated.clients: partition = 'time' needs data.time, which the table has not; name the column, or use "
            "another partition"
        )
    return time_slices(inputs.times(), clients, f"{inputs.source}: time")


def _by_quantity(config: PartitionConfig, inputs: PartitionInputs, clients: int, rng: np.random.Generator) -> Integers:
    if config.distribution == "zipf":
        return quantity_zipf(inputs.rows, clients, config.exponent, rng)
    if config.distribution == "log_normal":
        return quantity_log_normal(inputs.rows, clients, config.sigma, rng)
    return quantity_dirichlet(inputs.rows, clients, config.concentration, rng)


_ASSIGN: dict[str, Callable[[PartitionConfig, PartitionInputs, int, np.random.Generator], Integers]] = {
    "iid": _by_chance,
    "label_dirichlet": _by_label,
    "quantity": _by_quantity,
    "features": _by_features,
    "shards": _by_shards,
    "time": _by_time,
}


def _labels(config: PartitionConfig, inputs: PartitionInputs) -> Column:
    if inputs.labels is None:
        raise ConfigError(
            f"federated.clients: partition = {config.partition!r} needs one label per row, which this task has not; "
            "use 'features', 'quantity' or 'iid'"
        )
    return inputs.labels()


def _dirichlet(config: PartitionConfig, labels: Column, clients: int, rng: np.random.Generator) -> Integers:
    if config.convention == "per_client":
        return label_dirichlet(labels, clients, config.concentration, rng)
    return label_dirichlet_per_label(labels, clients, config.concentration, rng, minimum=config.minimum)
