"""The sides of ``federated_clients.py``: the same rounds made by troth, a plain loop, pfl and Flower.

Each side lives in a process of an interpreter of its own and answers requests, one JSON line each: this file is run by
``federated_clients.py``, not by hand. At the top it imports what every environment has; the rest where it is used.
"""

# mypy: disable-error-code="import-not-found,no-untyped-call,untyped-decorator"
# pfl and flwr stand in environments of their own.

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

if TYPE_CHECKING:
    from troth.config_federated import FederatedConfig
    from troth.federated import FederatedData
    from troth.tasks import Classification, Encoded

VOCABULARY, WIDTH, LAYERS, HEADS, INNER, LABELS = 5000, 64, 2, 4, 128, 4
RATE, SEED = 0.1, 1
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Case:
    """A round: `clients` clients with two batches each, or (light) with 1 to 4 rows each, passed `epochs` times.

    Of these clients `cohort` are drawn for each round; 0 for all. `chunk`: clients stacked at a time; 0: as measured.
    """

    batch: int
    length: int
    clients: int
    epochs: int = 1
    light: bool = False
    cohort: int = 0
    chunk: int = 0

    @property
    def name(self) -> str:
        """Return the case in words."""
        if self.light:
            return f"{self.clients} clients of 1 to 4 rows, length {self.length}, {self.epochs} step(s)"
        return f"batch {self.batch} x length {self.length}"

    def counts(self) -> NDArray[np.int64]:
        """Return [clients] rows of each."""
        if self.light:
            return np.random.default_rng(SEED).integers(1, 5, self.clients)
        return np.full(self.clients, 2 * self.batch)

    def offsets(self) -> NDArray[np.int64]:
        """Return [clients + 1] where each client's rows begin."""
        return np.concatenate(([0], np.cumsum(self.counts()))).astype(np.int64)

    def table(self) -> Arrays:
        """Return token ids [rows, length], evenly drawn (hence the largest local vocabularies), and labels [rows]."""
        rng = np.random.default_rng([SEED, self.batch, self.length])
        rows = int(self.counts().sum())
        return {
            "ids": rng.integers(4, VOCABULARY, (rows, self.length)),
            "labels": rng.integers(LABELS, size=rows),
        }


# --- the model, as plain PyTorch; parameter names are those of troth's own class


class Layer(nn.Module):
    """A pre-LayerNorm block: attention, then a GELU feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.value, self.output = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.expand, self.contract = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return [batch, time, width]."""
        x = self.attention_norm(hidden)
        q, k, v = (
            part(x).unflatten(2, (HEADS, WIDTH // HEADS)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        hidden = hidden + self.output(seen.transpose(1, 2).flatten(2))
        return hidden + cast(Tensor, self.contract(F.gelu(self.expand(self.feed_forward_norm(hidden)))))


class Embeddings(nn.Module):
    """Token and position rows, summed."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(length, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        """Return [batch, time, width]."""
        return cast(Tensor, self.tokens(ids) + self.positions(torch.arange(ids.shape[1]).expand_as(ids)))


class Encoder(nn.Module):
    """Mean over tokens of the last layer, then LayerNorm."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.embeddings = Embeddings(length)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return [batch, width]."""
        hidden, seen = self.embeddings(ids), mask[:, None, None, :].bool()
        for layer in self.layers:
            hidden = layer(hidden, seen)
        real = mask[:, :, None].to(hidden.dtype)
        return cast(Tensor, self.norm((hidden * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)))


class Classifier(nn.Module):
    """The peers' model; `loss` and `metrics` are what pfl asks for."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.encoder, self.classifier = Encoder(length), nn.Linear(WIDTH, LABELS)
        self.load_state_dict({name: torch.from_numpy(a) for name, a in start(self).items()})

    def loss(self, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy."""
        return F.cross_entropy(self.classifier(self.encoder(ids, mask)), labels)

    def metrics(self, ids: Tensor, mask: Tensor, labels: Tensor) -> Mapping[str, object]:
        """Return the loss as pfl wants it; asked for in the warm-up only."""
        from pfl.metrics import Weighted

        return {"loss": Weighted(float(self.loss(ids, mask, labels).detach()) * len(ids), len(ids))}


def start(model: nn.Module) -> Arrays:
    """Return the parameters that every side starts from, by name."""
    out: Arrays = {}
    for place, (name, p) in enumerate(sorted(model.named_parameters())):
        drawn = np.random.default_rng([SEED, place]).normal(0, 0.05, tuple(p.shape))
        out[name] = (drawn + 1 if "norm.weight" in name else drawn).astype(np.float32)
    return out


def parameter_count(length: int) -> int:
    return sum(p.numel() for p in Classifier(length).parameters())


# --- the sides: each makes the same round in its own way


class Side(Protocol):
    """A way to make rounds."""

    def prepare(self, case: Case, data: Path) -> None:
        """Take up a case; `data` holds its rows in the order in which troth takes them in round 0."""

    def round(self) -> None:
        """Make the next round."""

    def update(self) -> Arrays:
        """Return what round 0 adds to the global parameters, from the common start."""

    def note(self) -> str:
        """Return what there is to say about how rounds are made."""


@lru_cache(maxsize=4)
def clients_of(data: str) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return each client's token ids, mask and labels."""
    with np.load(data, allow_pickle=False) as file:
        ids, labels, offsets = (torch.from_numpy(file[name]) for name in ("ids", "labels", "offsets"))
    bounds = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    return [(ids[a:b], torch.ones_like(ids[a:b]), labels[a:b]) for a, b in bounds]


def descend(case: Case, batch_loss: Callable[..., Tensor], optimizer: torch.optim.Optimizer, rows: object) -> None:
    """Train on one client's rows: ids, mask and labels."""
    tensors = cast("tuple[Tensor, Tensor, Tensor]", rows)
    for _ in range(case.epochs):
        for batch in zip(*(t.split(case.batch) for t in tensors), strict=True):
            batch_loss(*batch).backward()
            optimizer.step()
            optimizer.zero_grad()


def troth_task(length: int) -> tuple[Classification, nn.Module]:
    """Return troth's task and model of this size."""
    from types import SimpleNamespace

    from troth.tasks import Classification
    from troth.tasks.modeling_bert import TrothBertConfig, TrothBertForSequenceClassification

    config = TrothBertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=INNER,
        hidden_dropout_prob=0.0,
        max_position_embeddings=length,
        num_labels=LABELS,  # type: ignore[call-arg]
    )
    model = TrothBertForSequenceClassification(config)
    model.load_state_dict({name: torch.from_numpy(a) for name, a in start(model).items()})
    labels = tuple(str(k) for k in range(LABELS))
    return Classification(SimpleNamespace(pad_token_id=0), labels, length), model.train()  # type: ignore[arg-type]


def troth_rows(case: Case) -> Encoded:
    """Return a case's rows as troth's tasks encode them."""
    from troth.tasks import Encoded, Ragged

    table = case.table()
    rows, length = table["ids"].shape
    ragged = Ragged(table["ids"].ravel(), np.arange(rows + 1, dtype=np.int64) * length)
    return Encoded({"input_ids": ragged}, {"labels": table["labels"]}, ragged.lengths, 0)


def population_of(case: Case) -> FederatedData:
    """Return a case's clients."""
    from troth.federated import FederatedData

    offsets = case.offsets()
    return FederatedData(np.arange(offsets[-1]), offsets)


def settings(case: Case, execution: str, by: str = "uniform") -> FederatedConfig:
    """Return the configuration of a federation of a case's clients."""
    from troth.config_federated import FederatedConfig

    return FederatedConfig.model_validate(
        {
            "selection": {"by": by, "weight": "equal"},
            "cohort_size": case.cohort or case.clients,
            "local": {"epochs": case.epochs, "batch_size": case.batch, "learning_rate": RATE},
            "execution": execution,
            "chunk_size": case.chunk or None,
        }
    )


def in_order_of_round_0(case: Case, path: Path) -> None:
    """Write a case's rows client after client, in the order in which troth's clients take them in round 0."""
    from troth.federated.round_plan import plan_chunks, round_work
    from troth.seeds import PublicSeeds

    config, lengths = settings(case, "loop"), np.full(int(case.counts().sum()), case.length)
    everyone, equal = np.arange(case.clients), np.ones(case.clients)
    work = round_work(population_of(case), everyone, equal, lengths, config.local, 0, PublicSeeds(SEED))
    order = np.zeros(len(lengths), dtype=np.int64)
    for chunk in plan_chunks(work, config.local, case.clients):
        for client, rows in zip(chunk.clients.tolist(), chunk.rows, strict=True):
            begin, end = case.offsets()[client : client + 2]
            order[begin:end] = rows[rows >= 0][: end - begin]  # of several epochs the first
    ordered = {name: column[order] for name, column in case.table().items()}
    np.savez(path, allow_pickle=False, offsets=case.offsets(), **ordered)


class Troth:
    """troth's engine."""

    def __init__(self, execution: str) -> None:
        self._execution = execution

    def prepare(self, case: Case, data: Path) -> None:
        """Make engine, population and algorithm; rows are in the table's own order, and shuffled by the engine."""
        self.take(case, population_of(case), troth_rows(case))

    def take(self, case: Case, population: FederatedData, encoded: Encoded, by: str = "uniform") -> None:
        """Take up any population."""
        from troth.federated import FedAvg, LocalEngine, LocalTraining
        from troth.federated.rounds import FixedRounds
        from troth.seeds import PublicSeeds

        task, model = troth_task(case.length)
        config, seeds = settings(case, self._execution, by), PublicSeeds(SEED)
        self.population, self.config, self.seeds = population, config, seeds
        self.engine = LocalEngine(task, model, encoded, config, seeds)
        self.rounds = FixedRounds(config, population, seeds, None)
        self.algorithm = FedAvg(LocalTraining(RATE))
        self.state = self._first = self.algorithm.init(self.engine.parameters())

    def round(self) -> None:
        """Draw the cohort, run its clients, move the server."""
        index = self.state.round_index
        cohort = self.rounds.next(index, lambda k: np.zeros(len(k))).parts[index]
        outcome = self.engine.run_round(self.algorithm, self.state, cohort, self.population, None)
        if outcome.aggregate is None or outcome.rejected:
            raise SystemExit(f"updates were rejected: {outcome.rejected}")
        self.state = self.algorithm.server_update(self.state, outcome.aggregate)

    def update(self) -> Arrays:
        """Return the first round's update."""
        self.state = self._first
        self.round()
        moved, first = self.state.parameters, self._first.parameters
        return {name: (p - first[name]).numpy() for name, p in moved.items()}

    def note(self) -> str:
        """Return the layout and what was measured to choose it."""
        layout = self.engine.layout
        if layout is None:
            return "merged"
        way = f"stacked by {layout.chunk_size}" if layout.stacked else "one by one"
        return "; ".join(part for part in (way, layout.reason, layout.measured) if part)


class PlainLoop:
    """Copy, SGD, difference: bare PyTorch on troth's model, rows collated outside of the clock."""

    def prepare(self, case: Case, data: Path) -> None:
        """Make the model and the clients' rows."""
        self._case, self._clients = case, clients_of(str(data))
        self._task, self._model = troth_task(case.length)
        self._live = dict(self._model.named_parameters())
        self._first = {name: p.detach().clone() for name, p in self._live.items()}
        self._global = dict(self._first)

    def _loss(self, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return self._task.per_example_loss(self._model, batch).mean()  # type: ignore[arg-type]

    def _sum(self) -> dict[str, Tensor]:
        total = {name: torch.zeros_like(p) for name, p in self._live.items()}
        for rows in self._clients:
            with torch.no_grad():
                for name, place in self._live.items():
                    place.copy_(self._global[name])
            descend(self._case, self._loss, torch.optim.SGD(self._live.values(), lr=RATE), rows)
            with torch.no_grad():
                for name, place in self._live.items():
                    total[name].add_(place - self._global[name], alpha=1 / len(self._clients))
        return total

    def round(self) -> None:
        """Move the global parameters by the mean update."""
        update = self._sum()
        self._global = {name: p + update[name] for name, p in self._global.items()}

    def update(self) -> Arrays:
        """Return the first round's update."""
        self._global = dict(self._first)
        return {name: u.detach().numpy() for name, u in self._sum().items()}

    def note(self) -> str:
        """Return the version of PyTorch."""
        return f"torch {version('torch')}"


class Pfl:
    """pfl's SimulatedBackend with PyTorchModel and FederatedAveraging; its users' data sets are made beforehand."""

    def prepare(self, case: Case, data: Path) -> None:
        """Make model, backend and parameters; no evaluation but in the first, unmeasured round."""
        from pfl.aggregate.simulate import SimulatedBackend
        from pfl.algorithm.base import NNAlgorithmParams
        from pfl.data.federated_dataset import FederatedDataset
        from pfl.data.pytorch import PyTorchTensorDataset
        from pfl.data.sampling import get_user_sampler
        from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams

        users = [PyTorchTensorDataset(rows, user_id=str(k)) for k, rows in enumerate(clients_of(str(data)))]
        sampler = get_user_sampler("minimize_reuse", list(range(len(users))))
        federated = FederatedDataset(users.__getitem__, sampler)
        self._backend = SimulatedBackend(training_data=federated, val_data=federated)
        self._train = NNTrainHyperParams(
            local_batch_size=case.batch, local_num_epochs=case.epochs, local_learning_rate=RATE
        )
        self._evaluate = NNEvalHyperParams(local_batch_size=None)
        self._parameters = NNAlgorithmParams(
            central_num_iterations=10**9, evaluation_frequency=10**9, train_cohort_size=case.clients, val_cohort_size=0
        )
        self._length = case.length
        self._begin()

    def _begin(self) -> None:
        from pfl.algorithm.federated_averaging import FederatedAveraging
        from pfl.model.pytorch import PyTorchModel

        self._module = Classifier(self._length)
        central = torch.optim.SGD(self._module.parameters(), lr=1.0)
        self._model = PyTorchModel(self._module, local_optimizer_create=torch.optim.SGD, central_optimizer=central)
        self._algorithm = FederatedAveraging()

    def round(self) -> None:
        """Make one central iteration."""
        from pfl.callback.base import TrainingProcessCallback
        from pfl.metrics import Metrics

        class OneIteration(TrainingProcessCallback):  # type: ignore[misc]
            def after_central_iteration(self, *_: object, **__: object) -> tuple[bool, Metrics]:
                return True, Metrics()

        self._algorithm.run(
            self._parameters,
            self._backend,
            self._model,
            self._train,
            self._evaluate,
            [OneIteration()],
            send_metrics_to_platform=False,
        )

    def update(self) -> Arrays:
        """Return the first round's update; all users are taken once in every round."""
        self._begin()
        self.round()
        first = start(self._module)
        return {name: p.detach().numpy() - first[name] for name, p in self._module.named_parameters()}

    def note(self) -> str:
        """Return the versions."""
        return f"pfl {version('pfl')}, torch {version('torch')}"


class Flower:
    """Flower's simulation on Ray: FedAvg, one node per client; lives inside of a ServerApp."""

    def __init__(self, grid: object) -> None:
        self._grid = cast(Any, grid)

    def prepare(self, case: Case, data: Path) -> None:
        """Make strategy and parameters; the nodes read the clients' rows once."""
        from flwr.app import ArrayRecord, ConfigRecord
        from flwr.serverapp.strategy import FedAvg

        everyone = {"min_train_nodes": case.clients, "min_available_nodes": case.clients}
        self._strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, **everyone)
        self._config = ConfigRecord({"case": json.dumps(asdict(case)), "data": str(data)})
        self._start = Classifier(case.length).state_dict()
        self._arrays = ArrayRecord(self._start)

    def round(self) -> None:
        """Do what the strategy's own loop does in a round of training."""
        messages = self._strategy.configure_train(1, self._arrays, self._config, self._grid)
        replies = self._grid.send_and_receive(messages=messages, timeout=600)
        arrays, _ = self._strategy.aggregate_train(1, replies)
        if arrays is None or any(reply.has_error() for reply in replies):
            raise SystemExit("a Flower client failed")
        self._arrays = arrays

    def update(self) -> Arrays:
        """Return the first round's update."""
        from flwr.app import ArrayRecord

        self._arrays = ArrayRecord(self._start)
        self.round()
        found = self._arrays.to_torch_state_dict()
        return {name: (p - self._start[name]).numpy() for name, p in found.items()}

    def note(self) -> str:
        """Return the versions."""
        return f"flwr {version('flwr')}, ray {version('ray')}, torch {version('torch')}"


@lru_cache(maxsize=2)
def flower_model(length: int) -> Classifier:
    """Return an actor's model, made once."""
    torch.set_num_threads(1)
    return Classifier(length)


def flower_train(message: Any, context: Any) -> Any:  # noqa: ANN401
    """Train one client; runs in a Ray actor."""
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

    config = message.content["config"]
    case = Case(**json.loads(config["case"]))
    model = flower_model(case.length)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    rows = clients_of(config["data"])[context.node_config["partition-id"]]
    descend(case, model.loss, torch.optim.SGD(model.parameters(), lr=RATE), rows)
    metrics = MetricRecord({"num-examples": len(rows[0])})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)


# --- processes: a worker answers one JSON line with one JSON line


def serve(sides: Mapping[str, Side], requests: TextIO, replies: TextIO) -> None:
    """Answer requests until there are no more."""
    for line in requests:
        ask = json.loads(line)
        side = sides[ask["side"]]
        answer: dict[str, object] = {}
        if ask["do"] == "prepare":
            side.prepare(Case(**ask["case"]), Path(ask["data"]))
        elif ask["do"] == "update":
            np.savez(ask["path"], allow_pickle=False, **side.update())
        elif ask["do"] == "time":
            wall, cpu = time.perf_counter(), time.process_time()
            side.round()
            answer = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        elif ask["do"] == "memory":
            answer = dict(peak_memory(side, ask["rounds"]))
        else:
            answer = {"note": side.note()}
        replies.write(json.dumps(answer) + "\n")
        replies.flush()


def peak_memory(side: Side, rounds: int) -> dict[str, float]:
    """Return the resident memory before some rounds and its peak during them, in bytes (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
    before = resident("VmRSS")
    for _ in range(rounds):
        side.round()
    return {"before": before, "peak": resident("VmHWM")}


def resident(name: str) -> float:
    """Return a size of this process in bytes, as the system counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def work(name: str, nodes: int) -> None:
    """Be a worker: only answers go to standard output, whatever a library prints."""
    torch.set_num_threads(1)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if name == "troth":
        engines = {execution: Troth(execution) for execution in ("auto", "stacked", "loop")}
        serve({**engines, "plain": PlainLoop()}, sys.stdin, replies)
    elif name == "pfl":
        serve({"pfl": Pfl()}, sys.stdin, replies)
    else:
        serve_flower(replies, nodes)


def serve_flower(replies: TextIO, nodes: int) -> None:
    """Answer requests from within a simulation that stays alive."""
    import federated_clients_sides as importable  # what Ray sends by name it need not send by value
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation

    client, server = ClientApp(), ServerApp()
    client.train()(importable.flower_train)

    @server.main()
    def main(grid: object, context: object) -> None:
        serve({"flower": Flower(grid)}, sys.stdin, replies)

    resources = {"init_args": {"num_cpus": 2}, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server, client, num_supernodes=nodes, backend_config=resources)


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]))
