"""Stacked clients, merged rounds and worker processes: the sums of one client after the other, to the last bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from federated_fakes import Regression, RegressionTask
from torch import Tensor, nn

from contracts.stock_checkpoints import save_bert, save_gpt2, save_t5
from contracts.task_tables import TABLES
from troth.config import parse
from troth.config_federated import FederatedConfig
from troth.errors import ModelError
from troth.federated import (
    AdaptiveServer,
    Algorithm,
    Cohort,
    DeviceStore,
    Ditto,
    FedAvg,
    FederatedData,
    FedNova,
    LocalEngine,
    LocalHead,
    LocalTraining,
    RoundOutcome,
    Scaffold,
    ServerState,
)
from troth.federated.calibration import stackable
from troth.federated.chunk_runner import ChunkRunner, Layout
from troth.federated.local_vocabulary import LocalRows
from troth.federated.round_plan import plan_chunks, round_work
from troth.federated.stacked_problem import StackedModel
from troth.seeds import PublicSeeds
from troth.tasks import make_model, make_task

SIZES = [1, 2, 4, 8, 15, 3, 3, 7, 17]
CLIENTS = FederatedData.from_assignment(np.repeat(np.arange(9), SIZES), 9)
COHORT = Cohort(np.array([3, 0, 8, 4, 1, 2, 7]), np.array([0.1, 0.2, 0.1, 0.1, 0.3, 0.1, 0.1]), sums_to_one=True)
SEEDS = PublicSeeds(2)
SGD = LocalTraining(0.1)
ALGORITHMS: dict[str, Algorithm] = {
    "fedavg": FedAvg(SGD),
    "momentum": FedAvg(LocalTraining(0.1, momentum=0.9)),
    "adamw": FedAvg(LocalTraining(0.01, "adamw")),
    "fedprox": FedAvg(SGD, proximal=0.5),
    "fednova": FedNova(LocalTraining(0.1, momentum=0.5)),
    "fedyogi": FedAvg(SGD, AdaptiveServer("yogi", 0.1)),
    "scaffold": Scaffold(SGD, 9),
    "ditto": Ditto(FedAvg(SGD), 0.3),
    "local_head": LocalHead(FedAvg(SGD), frozenset({"bias"})),
}


def rounds(
    algorithm: Algorithm, *, cohort: Cohort = COHORT, number: int = 3, dropout: float = 0.0, **settings: object
) -> tuple[ServerState, RoundOutcome, LocalEngine]:
    local = {"epochs": 2, "batch_size": 4, **settings.pop("local", {})}  # type: ignore[dict-item]
    config = FederatedConfig(local=local, **settings)
    task, model = RegressionTask(60), Regression(dropout)
    engine = LocalEngine(task, model, task.encoded, config, SEEDS)
    state = algorithm.init(engine.parameters())
    store = DeviceStore(algorithm, engine.parameters(), 9, None) if algorithm.traits.memory else None
    try:
        for _ in range(number):
            outcome = engine.run_round(algorithm, state, cohort, CLIENTS, store)
            state = algorithm.server_update(state, outcome.aggregate)
    finally:
        engine.close()
        if store is not None:
            store.close()
    return state, outcome, engine


def apart(one: ServerState, two: ServerState) -> float:
    trees = [(one.parameters, two.parameters), *((one.slots[k], two.slots[k]) for k in one.slots)]
    return max(float((a[n] - b[n]).abs().max()) for a, b in trees for n in a)


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_stacked_equals_the_loop_for_every_algorithm(name: str, chunk_size: int) -> None:
    plain, counted, _ = rounds(ALGORITHMS[name], execution="loop")
    stacked, also, engine = rounds(ALGORITHMS[name], execution="stacked", chunk_size=chunk_size)
    assert engine.layout == Layout(stacked=True, chunk_size=chunk_size)
    assert apart(plain, stacked) <= 1e-12
    assert (counted.samples, counted.steps, counted.losses) == (also.samples, also.steps, also.losses)
    assert counted.loss_sum == pytest.approx(also.loss_sum, abs=1e-10)
    assert also.unstacked == 0


@pytest.mark.parametrize("name", ["fedavg", "adamw", "scaffold"])
def test_the_order_of_clients_changes_no_bit(name: str) -> None:
    order = np.array([4, 2, 0, 6, 1, 5, 3])
    other = Cohort(COHORT.clients[order], COHORT.weights[order], sums_to_one=True)
    one, _, _ = rounds(ALGORITHMS[name], execution="stacked", chunk_size=3, dropout=0.4)
    two, _, _ = rounds(ALGORITHMS[name], execution="stacked", chunk_size=3, dropout=0.4, cohort=other)
    assert apart(one, two) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedavg", "scaffold"])
def test_the_number_of_workers_changes_no_bit(name: str) -> None:
    one, seen, _ = rounds(ALGORITHMS[name], execution="stacked", chunk_size=2, dropout=0.4)
    two, also, _ = rounds(ALGORITHMS[name], execution="stacked", chunk_size=2, dropout=0.4, workers=2)
    assert apart(one, two) == 0
    assert seen.loss_sum == also.loss_sum and seen.bytes_up == also.bytes_up


def test_a_round_of_single_steps_is_merged_and_equals_the_loop() -> None:
    small = {"epochs": 1, "batch_size": 32}
    for name in ("fedavg", "fedprox", "fedyogi"):
        plain, counted, _ = rounds(ALGORITHMS[name], execution="loop", local=small)
        merged, also, engine = rounds(ALGORITHMS[name], local=small)
        assert engine.layout is None, "no client was run on its own"
        assert apart(plain, merged) <= 1e-12
        assert (counted.samples, counted.steps) == (also.samples, also.steps)
        assert counted.loss_sum == pytest.approx(also.loss_sum, abs=1e-10)


def test_clients_of_one_step_are_merged_beside_others() -> None:
    mixed = {"epochs": 1, "batch_size": 4}
    plain, _, _ = rounds(ALGORITHMS["fedavg"], execution="loop", local=mixed)
    merged, outcome, engine = rounds(ALGORITHMS["fedavg"], execution="stacked", chunk_size=3, local=mixed)
    assert engine.layout is not None and apart(plain, merged) <= 1e-12
    assert outcome.aggregate is not None and outcome.aggregate.clients == len(COHORT.clients)


def test_float32_stays_within_1e_5_whatever_the_layout() -> None:
    found = []
    for settings in ({"execution": "loop"}, {"execution": "stacked", "chunk_size": 2}, {"chunk_size": 7}):
        task, model = RegressionTask(60), Regression(dtype=torch.float32)
        config = FederatedConfig(local={"epochs": 2, "batch_size": 4}, **settings)
        engine = LocalEngine(task, model, task.encoded, config, SEEDS)
        state = ALGORITHMS["fedavg"].init(engine.parameters())
        for _ in range(5):
            outcome = engine.run_round(ALGORITHMS["fedavg"], state, COHORT, CLIENTS, None)
            state = ALGORITHMS["fedavg"].server_update(state, outcome.aggregate)
        found.append(state)
    assert apart(found[0], found[1]) <= 1e-5 and apart(found[0], found[2]) <= 1e-5


SMALL = {"layers": 2, "width": 16, "heads": 2}
KINDS = {
    "classification": {"kind": "classification"},
    "tagging": {"kind": "tagging"},
    "question_answering": {"kind": "question_answering"},
    "seq2seq": {"kind": "seq2seq"},
    "causal": {"kind": "language_modeling", "objective": "causal"},
    "masked": {"kind": "language_modeling", "objective": "masked"},
}
FAMILIES = [
    ("classification", {"preset": "tiny-bert", **SMALL}, "as it is", True),
    ("tagging", {"preset": "tiny-bert", **SMALL}, "as it is", True),
    ("question_answering", {"preset": "tiny-bert", **SMALL}, "as it is", True),
    ("seq2seq", {"preset": "tiny-t5", **SMALL}, "additive", False),
    ("causal", {"preset": "tiny-gpt2", **SMALL}, "additive and causal", False),
    ("masked", {"preset": "tiny-bert", **SMALL}, "as it is", False),
    ("classification", save_bert, "additive", True),
    ("tagging", save_bert, "additive", True),
    ("classification", save_gpt2, "additive and causal", True),
    ("seq2seq", save_t5, "additive", False),
]


def made(kind: str, model: object, folder: Path, trainable: str = "all") -> tuple[LocalEngine, FederatedData]:
    model = {"checkpoint": str(model(folder / "made"))} if callable(model) else model
    config = parse(
        {
            "run": {"name": "x"},
            "model": {"max_length": 48, "trainable": trainable, **model},
            "data": {"train": "x"},
            "task": KINDS[kind],
            "federated": {"local": {"epochs": 2, "batch_size": 2, "learning_rate": 0.05}},
        }
    )
    table = TABLES[KINDS[kind]["kind"]]
    task = make_task(config, table, folder)
    net = make_model(config, task, SEEDS, folder).double()
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):  # T5's attention
            module.dropout = 0.0
    clients = FederatedData.from_assignment(np.repeat(np.arange(5), [1, 9, 2, 7, 5]), 5)
    return LocalEngine(task, net, task.encode(table), config.federated, SEEDS), clients


def round_of(
    engine: LocalEngine, clients: FederatedData, start: dict[str, Tensor], layout: Layout, algorithm: Algorithm
) -> dict[str, Tensor]:
    work = round_work(
        clients, np.arange(5), np.full(5, 0.2), engine.encoded.lengths, engine.config.local, 1, engine.seeds
    )
    state = ServerState(start, 1)
    names = list(engine.parameters())
    runner = ChunkRunner(engine.task, engine.model, engine.encoded, names, engine.config.aggregation, layout)
    total: dict[str, Tensor] = {}
    for chunk in plan_chunks(work, engine.config.local, layout.chunk_size):
        result = runner.run(algorithm, state, chunk, {})
        assert result.unstacked == 0 and result.update is not None
        for name, tensor in result.update.items():
            total[name] = total.get(name, 0) + tensor
    return total


@pytest.mark.parametrize(("kind", "model", "masks", "cut"), FAMILIES)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_stacked_equals_the_loop_for_every_task_and_family(
    kind: str, model: object, masks: str, cut: bool, optimizer: str, tmp_path: Path
) -> None:
    engine, clients = made(kind, model, tmp_path)
    algorithm = FedAvg(LocalTraining(0.05 if optimizer == "sgd" else 1e-3, optimizer))
    local = engine.config.local
    work = round_work(clients, np.arange(3), np.ones(3) / 3, engine.encoded.lengths, local, 0, SEEDS)
    state = algorithm.init(engine.parameters())
    start = dict(state.parameters)
    probe = plan_chunks(work, local, 2)[0]
    found, reason = stackable(engine.task, engine.model, engine.encoded, list(engine.parameters()), probe, state)
    assert (found, reason) == (masks, "")
    stacked = StackedModel(engine.task, engine.model, engine.encoded, list(engine.parameters()), found, cut=True)
    assert (stacked.table is not None) == cut
    plain = round_of(engine, clients, start, Layout(stacked=False, chunk_size=8), algorithm)
    fast = round_of(engine, clients, start, Layout(stacked=True, chunk_size=8, masks=found), algorithm)
    assert plain.keys() == fast.keys()
    for name, tensor in plain.items():
        # a moment that is a rounding error is divided by its own root in AdamW: what is 0 on paper may move
        tolerance = 1e-11 if optimizer == "sgd" else 1e-4
        assert float((fast[name] - tensor).abs().max()) <= tolerance, name


@pytest.mark.parametrize("trainable", ["head", {"freeze": ["*word_embeddings*"]}])
def test_frozen_parameters_are_shared_not_stacked(trainable: object, tmp_path: Path) -> None:
    engine, clients = made("classification", save_bert, tmp_path, trainable)
    layout = Layout(stacked=True, chunk_size=8, masks="additive")
    start = {n: p.detach().clone() for n, p in engine.parameters().items()}
    plain = round_of(engine, clients, start, Layout(stacked=False, chunk_size=8), FedAvg(SGD))
    fast = round_of(engine, clients, start, layout, FedAvg(SGD))
    assert set(fast) == set(engine.parameters()) and "bert.embeddings.word_embeddings.weight" not in fast
    assert max(float((fast[n] - t).abs().max()) for n, t in plain.items()) <= 1e-11


def test_a_model_that_cannot_be_stacked_says_why_and_runs_in_a_loop(tmp_path: Path) -> None:
    config = parse(
        {
            "run": {"name": "x"},
            "model": {"preset": "bilstm-crf", "max_length": 48},
            "data": {"train": "x"},
            "task": {"kind": "tagging"},
            "federated": {"local": {"batch_size": 2}},
        }
    )
    table = TABLES["tagging"]
    task = make_task(config, table, tmp_path)
    clients = FederatedData.from_assignment(np.arange(24) % 3, 3)
    for execution in ("auto", "stacked"):
        settings = config.federated.model_copy(update={"execution": execution})
        net = make_model(config, task, SEEDS, tmp_path)
        engine = LocalEngine(task, net, task.encode(table), settings, SEEDS)
        state = FedAvg(SGD).init(engine.parameters())
        everyone = Cohort(np.arange(3), np.ones(3) / 3, sums_to_one=True)
        if execution == "stacked":
            with pytest.raises(ModelError, match="cannot be stacked: RuntimeError"):
                engine.run_round(FedAvg(SGD), state, everyone, clients, None)
            continue
        outcome = engine.run_round(FedAvg(SGD), state, everyone, clients, None)
        assert engine.layout is not None and not engine.layout.stacked and "RuntimeError" in engine.layout.reason
        assert outcome.aggregate is not None and outcome.aggregate.clients == 3


def test_local_rows_gather_and_scatter_what_clients_look_up() -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(20, size=(4, 3, 5))
    rows = LocalRows.of(ids, 20)
    table = torch.from_numpy(rng.normal(size=(20, 2)))
    held = rows.gather(table, 4)
    assert held.shape == (4, max(len(np.unique(i)) for i in ids), 2)
    for k in range(4):
        assert torch.equal(held[k][rows.local_ids[k]], table[torch.from_numpy(ids[k])])
    update, weights = torch.from_numpy(rng.normal(size=held.shape)), torch.tensor([0.5, 0.0, 2.0, 1.0])
    expected = torch.zeros(20, 2, dtype=torch.float64)
    for k in range(4):
        for token in np.unique(ids[k]):
            place = rows.local_ids[k][torch.from_numpy(ids[k] == token)][0]
            expected[token] += weights[k] * update[k, place]
    assert torch.allclose(rows.scatter_sum(update, weights, 20), expected, atol=1e-15)


def test_uploads_count_the_token_rows_that_were_looked_up(tmp_path: Path) -> None:
    engine, clients = made("classification", {"preset": "tiny-bert", **SMALL}, tmp_path)
    config = engine.config.model_copy(update={"execution": "stacked", "chunk_size": 8})
    engine = LocalEngine(engine.task, engine.model, engine.encoded, config, SEEDS)
    state = FedAvg(SGD).init(engine.parameters())
    cohort = Cohort(np.arange(5), np.full(5, 0.2), sums_to_one=True)
    outcome = engine.run_round(FedAvg(SGD), state, cohort, clients, None)
    dense = 5 * sum(p.nbytes for p in engine.parameters().values())
    assert outcome.bytes_down == dense and outcome.bytes_up < dense / 3
    plain = config.model_copy(update={"execution": "loop"})
    loop = LocalEngine(engine.task, engine.model, engine.encoded, plain, SEEDS)
    assert loop.run_round(FedAvg(SGD), state, cohort, clients, None).bytes_up == outcome.bytes_up
    single = config.model_copy(update={"execution": "auto", "local": config.local.model_copy(update={"epochs": 1})})
    merged = LocalEngine(
        engine.task,
        engine.model,
        engine.encoded,
        single.model_copy(update={"local": single.local.model_copy(update={"batch_size": 32})}),
        SEEDS,
    )
    assert merged.run_round(FedAvg(SGD), state, cohort, clients, None).bytes_up == outcome.bytes_up
    assert merged.layout is None, "all clients were merged"
    ids = engine.encoded.ragged["input_ids"]
    touched = [len({int(t) for r in clients.rows_of(k) for t in ids.row(int(r))}) for k in range(5)]
    table = next(p for n, p in engine.parameters().items() if n.endswith("tokens.weight"))
    assert outcome.bytes_up == dense - 5 * table.nbytes + sum(touched) * (table[0].nbytes + 4)
    scaffold = Scaffold(SGD, 5)
    store = DeviceStore(scaffold, engine.parameters(), 5, None)
    whole = engine.run_round(scaffold, scaffold.init(engine.parameters()), cohort, clients, store)
    store.close()
    assert whole.bytes_up == whole.bytes_down == 2 * dense, "control variates travel both ways, and whole"
