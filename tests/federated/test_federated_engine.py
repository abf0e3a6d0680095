"""FedAvg and the sequential engine: closed forms in float64, order of clients, bad updates, what is counted."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from federated_fakes import Regression, RegressionTask, equal_clients
from torch import Tensor, nn

from troth.config import LocalConfig
from troth.errors import ModelError
from troth.federated import ByActivity, Cohort, FedAvg, FederatedData, SequentialEngine, ServerState, Uniform
from troth.seeds import PublicSeeds

SEEDS = PublicSeeds(2)


def setting(
    rows: int, clients: FederatedData, model: nn.Module, seeds: PublicSeeds = SEEDS, **local: float
) -> tuple[SequentialEngine, RegressionTask]:
    task = RegressionTask(rows)
    config = LocalConfig(**{"epochs": 1, "batch_size": 8, "learning_rate": 0.1, **local})
    return SequentialEngine(task, model, task.encoded, clients, config, seeds), task


def one_round(engine: SequentialEngine, algorithm: FedAvg, cohort: Cohort, round_index: int = 0) -> dict[str, Tensor]:
    state = algorithm.init(engine.parameters())
    outcome = engine.run_round(algorithm, ServerState(state.parameters, round_index), cohort)
    return dict(algorithm.server_update(state, outcome.update).parameters)


def everyone(clients: FederatedData, rule: object = None) -> Cohort:
    return (rule or Uniform()).draw(clients.counts, len(clients), np.random.default_rng(0))


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name] - tensor).abs().max() <= tolerance, name


def central_step(task: RegressionTask, weights: Tensor, rate: float) -> dict[str, Tensor]:
    """A step of plain SGD on the weighted mean loss of all rows."""
    model = Regression()
    losses = task.per_example_loss(model, task.collate(task.encoded, np.arange(len(weights))))
    (losses * weights).sum().backward()
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    return {n: (p - rate * p.grad if p.grad is not None else p).detach() for n, p in parameters.items()}


def test_one_step_of_everyone_with_equal_sizes_is_centralised_sgd() -> None:
    clients = equal_clients(60, 12)
    engine, task = setting(60, clients, Regression(), batch_size=5)
    moved = one_round(engine, FedAvg(0.1), everyone(clients))
    assert_close(moved, central_step(task, torch.full((60,), 1 / 60, dtype=torch.float64), 0.1), 1e-12)


def test_one_step_of_everyone_weighted_by_samples_is_centralised_sgd_for_any_sizes() -> None:
    clients = FederatedData.from_assignment(np.repeat(np.arange(5), [1, 2, 4, 8, 15]), 5)
    engine, task = setting(30, clients, Regression(), batch_size=100)
    moved = one_round(engine, FedAvg(0.1), everyone(clients, Uniform("samples")))
    assert_close(moved, central_step(task, torch.full((30,), 1 / 30, dtype=torch.float64), 0.1), 1e-12)
    engine, _ = setting(30, clients, Regression(), batch_size=100)
    equal = one_round(engine, FedAvg(0.1), everyone(clients, Uniform("equal")))
    weights = torch.tensor(np.repeat(1 / np.array([1, 2, 4, 8, 15]) / 5, [1, 2, 4, 8, 15]))
    assert_close(equal, central_step(task, weights, 0.1), 1e-12)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_one_client_is_plain_training_and_the_update_is_local_minus_global(optimizer: str) -> None:
    clients = equal_clients(20, 1)
    model = Regression()
    engine, task = setting(20, clients, model, epochs=2, batch_size=6)
    algorithm = FedAvg(0.1, server_learning_rate=0.5, local_optimizer=optimizer)
    state = algorithm.init(engine.parameters())
    outcome = engine.run_round(algorithm, state, everyone(clients))
    other = Regression()
    trainable = [p for p in other.parameters() if p.requires_grad]
    plain = torch.optim.SGD(trainable, lr=0.1) if optimizer == "sgd" else torch.optim.Adam(trainable, lr=0.1)
    assert [len(rows) for rows in task.seen] == [6, 6, 6, 2] * 2
    for rows in task.seen[:8]:
        plain.zero_grad()
        task.per_example_loss(other, task.collate(task.encoded, rows)).mean().backward()
        plain.step()
    local = {n: p.detach() for n, p in other.named_parameters() if p.requires_grad}
    assert_close(dict(outcome.update), {n: p - state.parameters[n] for n, p in local.items()}, 1e-12)
    half = algorithm.server_update(state, outcome.update)
    assert half.round_index == 1
    assert_close(dict(half.parameters), {n: (p + state.parameters[n]) / 2 for n, p in local.items()}, 1e-12)


def test_running_sum_equals_the_mean_of_kept_models() -> None:
    clients = FederatedData.from_assignment(np.repeat(np.arange(4), [3, 9, 5, 13]), 4)
    engine, _ = setting(30, clients, Regression(), epochs=2, batch_size=4)
    algorithm = FedAvg(0.1)
    cohort = everyone(clients)
    start = algorithm.init(engine.parameters())
    alone = [
        engine.run_round(algorithm, start, Cohort(np.array([k]), np.ones(1), True)).update for k in range(len(clients))
    ]
    together = engine.run_round(algorithm, start, cohort).update
    expected = {n: sum(w * u[n] for w, u in zip(cohort.weights, alone, strict=True)) for n in together}
    assert_close(dict(together), expected, 1e-14)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_client_does_the_same_whoever_else_is_in_the_round(dropout: float) -> None:
    clients = equal_clients(40, 5)
    engine, _ = setting(40, clients, Regression(dropout), batch_size=3)
    algorithm = FedAvg(0.1)
    start = algorithm.init(engine.parameters())

    def update(order: list[int], weights: list[float]) -> Tensor:
        cohort = Cohort(np.array(order), np.array(weights), False)
        return engine.run_round(algorithm, start, cohort).update["weight"]

    alone = update([3], [1.0])
    assert torch.equal(update([0, 3, 1], [0.0, 1.0, 0.0]), alone)
    other_round = engine.run_round(algorithm, ServerState(start.parameters, 1), Cohort(np.array([3]), np.ones(1), True))
    assert not torch.equal(other_round.update["weight"], alone)  # batches and dropout are drawn anew


def test_dropout_is_seeded_by_round_and_client() -> None:
    clients = equal_clients(12, 3)
    seeds: list[int] = []

    class Noting(RegressionTask):
        def per_example_loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
            seeds.append(torch.initial_seed())
            return super().per_example_loss(model, batch)

    task = Noting(12)
    engine = SequentialEngine(task, Regression(0.5), task.encoded, clients, LocalConfig(), SEEDS)
    start = FedAvg(0.1).init(engine.parameters())
    for round_index in (0, 1, 0):
        engine.run_round(FedAvg(0.1), ServerState(start.parameters, round_index), everyone(clients))
    assert len(set(seeds[:6])) == 6
    assert seeds[6:] == seeds[:3]


def test_no_optimizer_state_outlives_a_turn() -> None:
    clients = equal_clients(24, 3)
    engine, _ = setting(24, clients, Regression(), epochs=3)
    algorithm = FedAvg(0.1, local_optimizer="adamw")
    start = algorithm.init(engine.parameters())
    alone = engine.run_round(algorithm, start, Cohort(np.array([2]), np.ones(1), False)).update
    after = engine.run_round(algorithm, start, Cohort(np.array([0, 2]), np.array([0.0, 1.0]), False)).update
    assert torch.equal(alone["weight"], after["weight"])


def test_what_is_counted() -> None:
    clients = FederatedData.from_assignment(np.repeat(np.arange(3), [4, 9, 2]), 3)
    engine, _ = setting(15, clients, Regression(), epochs=3, batch_size=4)
    outcome = engine.run_round(FedAvg(0.1), FedAvg(0.1).init(engine.parameters()), everyone(clients))
    assert (outcome.samples, outcome.steps, outcome.clients, outcome.rejected) == (45, 3 * (1 + 3 + 1), 3, 0)
    trainable = 8 * (3 * 6 + 3 + 2)  # float64; the frozen parameter is not sent
    assert outcome.bytes_up == outcome.bytes_down == 3 * trainable
    assert 0.5 < outcome.loss_sum / outcome.losses < 2


def test_an_update_that_is_not_finite_is_left_out_and_the_rest_scaled_up() -> None:
    clients = equal_clients(30, 3)
    engine, task = setting(30, clients, Regression(), batch_size=10)
    algorithm = FedAvg(0.1)
    start = algorithm.init(engine.parameters())
    good = engine.run_round(algorithm, start, Cohort(np.array([0, 2]), np.array([0.5, 0.5]), True)).update
    task.features[1, 0] = np.nan  # a row of client 1
    third = np.full(3, 1 / 3)
    outcome = engine.run_round(algorithm, start, Cohort(np.arange(3), third, True))
    assert outcome.rejected == 1 and outcome.losses == 20
    assert_close(dict(outcome.update), dict(good), 1e-14)
    unscaled = engine.run_round(algorithm, start, Cohort(np.arange(3), third, False))
    assert_close(dict(unscaled.update), {n: u * 2 / 3 for n, u in good.items()}, 1e-14)
    none = engine.run_round(algorithm, start, Cohort(np.array([1]), np.ones(1), True))
    assert none.update is None and none.rejected == 1


def test_memory_holds_the_sum_and_one_update_whatever_the_cohort() -> None:
    clients = equal_clients(80, 40)
    engine, _ = setting(80, clients, Regression())
    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    class Watching(FedAvg):
        def client_update(self, state: ServerState, problem: object) -> dict[str, Tensor]:
            alive.append(sum(r() is not None for r in made))
            update = super().client_update(state, problem)
            made.append(weakref.ref(update["weight"]))
            return update

    algorithm = Watching(0.1)
    engine.run_round(algorithm, algorithm.init(engine.parameters()), everyone(clients))
    assert len(alive) == 40 and max(alive) == 2


def frozen(model: nn.Module) -> nn.Module:
    for p in model.parameters():
        p.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: frozen(Regression()), "no parameter is trained"),
        (lambda: nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)), "1 is a BatchNorm layer"),
    ],
)
def test_models_that_cannot_be_federated_are_refused(model: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        setting(6, equal_clients(6, 2), model())


def test_activity_cohorts_run() -> None:
    clients = FederatedData.from_assignment(np.repeat(np.arange(4), [1, 2, 4, 23]), 4)
    engine, _ = setting(30, clients, Regression())
    cohort = ByActivity().draw(clients.counts, 2, np.random.default_rng(0))
    moved = one_round(engine, FedAvg(0.1), cohort)
    assert not torch.equal(moved["weight"], Regression().weight)
