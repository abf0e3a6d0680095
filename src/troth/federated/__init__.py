"""Federated learning: who holds which rows, who takes part, what clients and server do, and the simulation of it."""

from troth.federated.engine import Engine, RoundOutcome, SequentialEngine
from troth.federated.fedavg import Algorithm, FedAvg, LocalProblem, ServerState
from troth.federated.journal import FederatedOutcome
from troth.federated.partitions import iid, label_dirichlet, label_dirichlet_per_label, partition, with_minimum
from troth.federated.population import FederatedData, by_user
from troth.federated.selection import ByActivity, Cohort, Selection, Uniform, make_selection
from troth.federated.simulate import simulate

__all__ = [
    "Algorithm",
    "ByActivity",
    "Cohort",
    "Engine",
    "FedAvg",
    "FederatedData",
    "FederatedOutcome",
    "LocalProblem",
    "RoundOutcome",
    "Selection",
    "SequentialEngine",
    "ServerState",
    "Uniform",
    "by_user",
    "iid",
    "label_dirichlet",
    "label_dirichlet_per_label",
    "make_selection",
    "partition",
    "simulate",
    "with_minimum",
]
