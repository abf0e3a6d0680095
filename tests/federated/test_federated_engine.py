"""FedAvg and the engine, one client after the other: closed forms in float64, order, bad updates, what is counted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from federated_fakes import Regression, RegressionTask, equal_clients
from torch import Tensor, nn

from troth.config_federated import AggregationConfig, FederatedConfig
from troth.errors import ModelError
from troth.federated import (
    Activity,
    ByActivity,
    Cohort,
    CohortSampler,
    FedAvg,
    FederatedData,
    LocalEngine,
    LocalTraining,
    RoundOutcome,
    ServerSGD,
    ServerState,
    Uniform,
)
from troth.seeds import PublicSeeds

SEEDS = PublicSeeds(2)
SGD = FedAvg(LocalTraining(0.1))


class Setting:
    """An engine with its clients."""

    def __init__(self, clients: FederatedData, engine: LocalEngine) -> None:
        self.clients, self.engine = clients, engine

    def parameters(self) -> dict[str, Tensor]:
        return dict(self.engine.parameters())

    def run_round(self, algorithm: FedAvg, state: ServerState, cohort: Cohort) -> RoundOutcome:
        return self.engine.run_round(algorithm, state, cohort, self.clients, None)


def setting(
    rows: int,
    clients: FederatedData,
    model: nn.Module,
    seeds: PublicSeeds = SEEDS,
    rules: AggregationConfig | None = None,
    execution: str = "loop",
    **local: float,
) -> tuple[Setting, RegressionTask]:
    task = RegressionTask(rows)
    settings = FederatedConfig(
        local={"epochs": 1, "batch_size": 8, "learning_rate": 0.1, **local},
        execution=execution,
        aggregation=rules or AggregationConfig(),
    )
    return Setting(clients, LocalEngine(task, model, task.encoded, settings, seeds)), task


def update_of(outcome: RoundOutcome) -> dict[str, Tensor]:
    assert outcome.aggregate is not None
    return dict(outcome.aggregate.update)


def one_round(engine: Setting, algorithm: FedAvg, cohort: Cohort, round_index: int = 0) -> dict[str, Tensor]:
    state = algorithm.init(engine.parameters())
    outcome = engine.run_round(algorithm, ServerState(state.parameters, round_index), cohort)
    return dict(algorithm.server_update(state, outcome.aggregate).parameters)


def everyone(clients: FederatedData, rule: object = None) -> Cohort:
    sampler = CohortSampler(rule or Uniform(), Activity(clients.counts))
    return sampler.draw(len(clients), 0, SEEDS)


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
    moved = one_round(engine, SGD, everyone(clients))
    assert_close(moved, central_step(task, torch.full((60,), 1 / 60, dtype=torch.float64), 0.1), 1e-12)


def test_one_step_of_everyone_weighted_by_samples_is_centralised_sgd_for_any_sizes() -> None:
    clients = FederatedData.from_assignment(np.repeat(np.arange(5), [1, 2, 4, 8, 15]), 5)
    engine, task = setting(30, clients, Regression(), batch_size=100)
    moved = one_round(engine, SGD, everyone(clients, Uniform("samples")))
    assert_close(moved, central_step(task, torch.full((30,), 1 / 30, dtype=torch.float64), 0.1), 1e-12)
    engine, _ = setting(30, clients, Regression(), batch_size=100)
    equal = one_round(engine, SGD, everyone(clients, Uniform("equal")))
    weights = torch.tensor(np.repeat(1 / np.array([1, 2, 4, 8, 15]) / 5, [1, 2, 4, 8, 15]))
    assert_close(equal, central_step(task, weights, 0.1), 1e-12)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_one_client_is_plain_training_and_the_update_is_local_minus_global(optimizer: str) -> None:
    clients = equal_clients(20, 1)
    model = Regression()
    engine, task = setting(20, clients, model, epochs=2, batch_size=6)
    algorithm = FedAvg(LocalTraining(0.1, optimizer), ServerSGD(0.5))
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
    assert_close(update_of(outcome), {n: p - state.parameters[n] for n, p in local.items()}, 1e-12)
    half = algorithm.server_update(state, outcome.aggregate)
    assert half.round_index == 1
    assert_close(dict(half.parameters), {n: (p + state.parameters[n]) / 2 for n, p in local.items()}, 1e-12)


def test_running_sum_equals_the_mean_of_kept_models() -> None:
    clients = FederatedData.from_assignment(np.repeat(np.arange(4), [3, 9, 5, 13]), 4)
    engine, _ = setting(30, clients, Regression(), epochs=2, batch_size=4)
    algorithm = SGD
    cohort = everyone(clients)
    start = algorithm.init(engine.parameters())
    alone = [
        update_of(engine.run_round(algorithm, start, Cohort(np.array([k]), np.ones(1), True)))
        for k in range(len(clients))
    ]
    together = update_of(engine.run_round(algorithm, start, cohort))
    expected = {n: sum(w * u[n] for w, u in zip(cohort.weights, alone, strict=True)) for n in together}
    assert_close(dict(together), expected, 1e-14)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_client_does_the_same_whoever_else_is_in_the_round(dropout: float) -> None:
    clients = equal_clients(40, 5)
    engine, _ = setting(40, clients, Regression(dropout), batch_size=3)
    algorithm = SGD
    start = algorithm.init(engine.parameters())

    def update(order: list[int], weights: list[float]) -> Tensor:
        cohort = Cohort(np.array(order), np.array(weights), False)
        return update_of(engine.run_round(algorithm, start, cohort))["weight"]

    alone = update([3], [1.0])
    assert torch.equal(update([0, 3, 1], [0.0, 1.0, 0.0]), alone)
    other_round = engine.run_round(algorithm, ServerState(start.parameters, 1), Cohort(np.array([3]), np.ones(1), True))
    assert not torch.equal(update_of(other_round)["weight"], alone)  # batches and dropout are drawn anew


def test_dropout_is_seeded_by_round_and_client() -> None:
    clients = equal_clients(12, 3)
    seeds: list[int] = []

    class Noting(RegressionTask):
        def per_example_loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
            seeds.append(torch.initial_seed())
            return super().per_example_loss(model, batch)

    task = Noting(12)
    engine = Setting(
        clients, LocalEngine(task, Regression(0.5), task.encoded, FederatedConfig(execution="loop"), SEEDS)
    )
    start = SGD.init(engine.parameters())
    for round_index in (0, 1, 0):
        engine.run_round(SGD, ServerState(start.parameters, round_index), everyone(clients))
    assert len(set(seeds[:6])) == 6
    assert seeds[6:] == seeds[:3]


def test_no_optimizer_state_outlives_a_turn() -> None:
    clients = equal_clients(24, 3)
    engine, _ = setting(24, clients, Regression(), epochs=3)
    algorithm = FedAvg(LocalTraining(0.1, "adamw"))
    start = algorithm.init(engine.parameters())
    alone = update_of(engine.run_round(algorithm, start, Cohort(np.array([2]), np.ones(1), False)))
    after = update_of(engine.run_round(algorithm, start, Cohort(np.array([0, 2]), np.array([0.0, 1.0]), False)))
    assert torch.equal(alone["weight"], after["weight"])


def test_what_is_counted() -> None:
    clients = FederatedData.from_assignment(np.repeat(np.arange(3), [4, 9, 2]), 3)
    engine, _ = setting(15, clients, Regression(), epochs=3, batch_size=4)
    outcome = engine.run_round(SGD, SGD.init(engine.parameters()), everyone(clients))
    assert (outcome.samples, outcome.steps, outcome.clients, outcome.rejected) == (45, 3 * (1 + 3 + 1), 3, {})
    trainable = 8 * (3 * 6 + 3 + 2)  # float64; the frozen parameter is not sent
    assert outcome.bytes_up == outcome.bytes_down == 3 * trainable
    assert 0.5 < outcome.loss_sum / outcome.losses < 2


def test_an_update_that_is_not_finite_is_left_out_and_the_rest_scaled_up() -> None:
    clients = equal_clients(30, 3)
    engine, task = setting(30, clients, Regression(), batch_size=10)
    algorithm = SGD
    start = algorithm.init(engine.parameters())
    good = update_of(engine.run_round(algorithm, start, Cohort(np.array([0, 2]), np.array([0.5, 0.5]), True)))
    task.features[1, 0] = np.nan  # a row of client 1
    third = np.full(3, 1 / 3)
    outcome = engine.run_round(algorithm, start, Cohort(np.arange(3), third, True))
    assert outcome.rejected == {"not_finite": 1} and outcome.losses == 20
    assert_close(update_of(outcome), dict(good), 1e-14)
    unscaled = engine.run_round(algorithm, start, Cohort(np.arange(3), third, False))
    assert_close(update_of(unscaled), {n: u * 2 / 3 for n, u in good.items()}, 1e-14)
    none = engine.run_round(algorithm, start, Cohort(np.array([1]), np.ones(1), True))
    assert none.aggregate is None and none.rejected == {"not_finite": 1}


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
    cohort = CohortSampler(ByActivity(), Activity(clients.counts)).draw(2, 0, SEEDS)
    moved = one_round(engine, SGD, cohort)
    assert not torch.equal(moved["weight"], Regression().weight)
