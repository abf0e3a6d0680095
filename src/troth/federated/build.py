"""From a run file's ``federated.clients`` to a population."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from troth.config import PartitionConfig
from troth.errors import ConfigError
from troth.federated.partitions import partition
from troth.federated.population import FederatedData, by_user
from troth.seeds import PublicSeeds

if TYPE_CHECKING:
    from troth.data import Table

__all__ = ["make_population"]


def make_population(table: Table, clients: Literal["user"] | PartitionConfig, *, seeds: PublicSeeds) -> FederatedData:
    """Return who holds which rows of the training table.

    Args:
        table: the training rows.
        clients: ``"user"`` for the natural population of the user role, or a partition.
        seeds: public seeds of the partition.

    Raises:
        ConfigError: no user role, more clients than rows, or a label partition of a table without labels.
        DataError: a row without a user.
    """
    if isinstance(clients, PartitionConfig):
        labels = table.column("label") if table.has("label") else None
        return partition(clients, len(table), labels, seeds=seeds)
    if not table.has("user"):
        raise ConfigError(
            f"federated.clients = 'user' needs a user per row and {table.source} has none: name the column in "
            "data.user, or make clients by { partition = 'iid', clients = 100 }"
        )
    return by_user(table.column("user"), table.source)
