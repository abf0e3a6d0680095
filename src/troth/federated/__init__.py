"""Federated learning: who holds which rows, who takes part, what clients and server do, and the simulation of it."""

from troth.federated.algorithm import Aggregate, Algorithm, ClientReply, DeviceMemory, LocalProblem, ServerState
from troth.federated.deletions import deletion_periods, read_deletions
from troth.federated.device_store import DeviceStore
from troth.federated.engine import LocalEngine, RoundOutcome
from troth.federated.fedavg import FedAvg, FedNova
from troth.federated.journal import FederatedOutcome
from troth.federated.local_optimizers import LocalTraining
from troth.federated.make_algorithm import make_algorithm
from troth.federated.participation import CohortSampler
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
from troth.federated.registry import Registry
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
    "Uniform",
    "by_user",
    "deletion_periods",
    "iid",
    "label_dirichlet",
    "label_dirichlet_per_label",
    "make_algorithm",
    "make_periods",
    "make_selection",
    "natural",
    "partition",
    "partition_inputs",
    "read_deletions",
    "simulate",
    "split_clients",
    "table_times",
    "with_minimum",
]
