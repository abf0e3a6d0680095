"""Federated learning: who holds which rows, who takes part, what clients and server do, and the simulation of it."""

from troth.federated.algorithm import Aggregate, Algorithm, ClientReply, DeviceMemory, LocalProblem, ServerState, Traits
from troth.federated.deletions import deletion_periods, read_deletions
from troth.federated.device_store import DeviceStore
from troth.federated.engine import LocalEngine, RoundOutcome
from troth.federated.fedavg import FedAvg, FedNova
from troth.federated.journal import FederatedOutcome
from troth.federated.local_optimizers import LocalTraining
from troth.federated.make_algorithm import make_algorithm
from troth.federated.participation import CohortSampler, gini
from troth.federated.partition_files import IndexSet, index_set_names, open_index_set, save_index_set
from troth.federated.partition_report import label_divergence, partition_picture, partition_report
from troth.federated.partitions import (
    PartitionInputs,
    iid,
    label_dirichlet,
    label_dirichlet_per_label,
    partition,
    partition_inputs,
    with_minimum,
)
from troth.federated.personal import Ditto, LocalHead
from troth.federated.population import FederatedData, by_user, natural, split_clients
from troth.federated.population_files import open_population, save_population, verify_population
from troth.federated.registry import Registry, registry_of
from troth.federated.registry_parquet import registry_from_parquet
from troth.federated.scaffold import Scaffold
from troth.federated.selection import (
    ByActivity,
    Cohort,
    Mixture,
    PowerOfChoice,
    Recency,
    Selection,
    TopActive,
    Uniform,
    make_selection,
)
from troth.federated.selection_activity import Activity
from troth.federated.server_optimizers import AdaptiveServer, ServerSGD
from troth.federated.simulate import Federation, simulate
from troth.federated.stream import Period, Stream
from troth.federated.stream_events import Events, make_periods, table_times

__all__ = [
    "Activity",
    "AdaptiveServer",
    "Aggregate",
    "Algorithm",
    "ByActivity",
    "ClientReply",
    "Cohort",
    "CohortSampler",
    "DeviceMemory",
    "DeviceStore",
    "Ditto",
    "Events",
    "FedAvg",
    "FedNova",
    "FederatedData",
    "FederatedOutcome",
    "Federation",
    "IndexSet",
    "LocalEngine",
    "LocalHead",
    "LocalProblem",
    "LocalTraining",
    "Mixture",
    "PartitionInputs",
    "Period",
    "PowerOfChoice",
    "Recency",
    "Registry",
    "RoundOutcome",
    "Scaffold",
    "Selection",
    "ServerSGD",
    "ServerState",
    "Stream",
    "TopActive",
    "Traits",
    "Uniform",
    "by_user",
    "deletion_periods",
    "gini",
    "iid",
    "index_set_names",
    "label_dirichlet",
    "label_dirichlet_per_label",
    "label_divergence",
    "make_algorithm",
    "make_periods",
    "make_selection",
    "natural",
    "open_index_set",
    "open_population",
    "partition",
    "partition_inputs",
    "partition_picture",
    "partition_report",
    "read_deletions",
    "registry_from_parquet",
    "registry_of",
    "save_index_set",
    "save_population",
    "simulate",
    "split_clients",
    "table_times",
    "verify_population",
    "with_minimum",
]
