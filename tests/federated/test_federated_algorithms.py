"""Algorithms against their formulas, written out by hand in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from federated_fakes import Regression, RegressionTask
from torch import Tensor

from troth.config_federated import AggregationConfig, FederatedConfig
from troth.errors import ConfigError
from troth.federated import (
    AdaptiveServer,
    Aggregate,
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
    Scaffold,
    ServerSGD,
    ServerState,
    make_algorithm,
)
from troth.federated.aggregation import robust, screen
from troth.seeds import PublicSeeds

SGD = LocalTraining(0.1)
SIZES = [2, 5, 9, 4]
CLIENTS = FederatedData.from_assignment(np.repeat(np.arange(4), SIZES), 4)
EVERYONE = Cohort(np.arange(4), np.array([0.4, 0.3, 0.2, 0.1]), sums_to_one=True)


class World:
    """An engine over four clients; `play` makes rounds."""

    def __init__(self, algorithm: Algorithm, epochs: int = 1, batch_size: int = 3, **settings: object) -> None:
        self.task, self.model, self.algorithm = RegressionTask(20), Regression(), algorithm
        config = FederatedConfig(local={"epochs": epochs, "batch_size": batch_size}, execution="loop", **settings)
        self.engine = LocalEngine(self.task, self.model, self.task.encoded, config, PublicSeeds(3))
        self.state = algorithm.init(self.engine.parameters())
        parameters = self.engine.parameters()
        self.store = DeviceStore(algorithm, parameters, 4, None) if algorithm.traits.memory else None

    def play(self, rounds: int, cohort: Cohort = EVERYONE) -> list[ServerState]:
        states = [self.state]
        for _ in range(rounds):
            outcome = self.engine.run_round(self.algorithm, self.state, cohort, CLIENTS, self.store)
            self.state = self.algorithm.server_update(self.state, outcome.aggregate)
            states.append(self.state)
        return states

    def close(self) -> None:
        if self.store is not None:
            self.store.close()


def play(algorithm: Algorithm, rounds: int = 2, cohort: Cohort = EVERYONE, **settings: object) -> list[ServerState]:
    world = World(algorithm, **settings)
    states = world.play(rounds, cohort)
    world.close()
    return states


def apart(one: ServerState, two: ServerState) -> float:
    return max(float((one.parameters[n] - two.parameters[n]).abs().max()) for n in one.parameters)


def mean_update(before: ServerState, after: ServerState) -> dict[str, Tensor]:
    return {n: after.parameters[n] - before.parameters[n] for n in before.parameters}


def test_fedprox_with_mu_0_is_fedavg_and_with_a_large_mu_stays_at_the_global_model() -> None:
    plain, zero = play(FedAvg(SGD), epochs=3), play(FedAvg(SGD, proximal=0.0), epochs=3)
    assert apart(plain[-1], zero[-1]) == 0
    free = FedAvg(LocalTraining(0.001))
    held = FedAvg(LocalTraining(0.001), proximal=999.0)  # learning rate x mu just below 1: the pull undoes each step
    far, near = play(free, 1, epochs=20), play(held, 1, epochs=20)
    assert apart(near[0], near[1]) < 0.1 * apart(far[0], far[1])


def test_fedprox_adds_the_gradient_of_its_term() -> None:
    world = World(FedAvg(SGD, proximal=0.7), epochs=1, batch_size=2)
    one = Cohort(np.array([3]), np.ones(1), sums_to_one=True)
    found = world.play(1, one)[-1]
    model, task = Regression(), RegressionTask(20)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    for rows in world.task.seen:
        loss = task.per_example_loss(model, task.collate(task.encoded, rows)).mean()
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for name, p in model.named_parameters():
                if p.grad is not None:
                    p.sub_(0.1 * (p.grad + 0.7 * (p - start[name])))
    assert float((found.parameters["weight"] - model.weight.detach()).abs().max()) <= 1e-14


def test_server_sgd_with_momentum_is_the_recursion() -> None:
    plain = play(FedAvg(SGD), 1)
    first = mean_update(plain[0], plain[1])
    states = play(FedAvg(SGD, ServerSGD(0.5, 0.9)), 3)
    velocity = {n: torch.zeros_like(u) for n, u in first.items()}
    for before, after in itertools.pairwise(states):
        world = World(FedAvg(SGD))
        outcome = world.engine.run_round(FedAvg(SGD), before, EVERYONE, CLIENTS, None)
        velocity = {n: 0.9 * velocity[n] + outcome.aggregate.update[n] for n in velocity}
        for name, p in after.parameters.items():
            assert float((p - before.parameters[name] - 0.5 * velocity[name]).abs().max()) <= 1e-14


@pytest.mark.parametrize("kind", ["adagrad", "adam", "yogi"])
def test_adaptive_servers_are_the_recursions_of_algorithm_2(kind: str) -> None:
    server = AdaptiveServer(kind, 0.05, beta1=0.8, beta2=0.9, adaptivity=0.01)
    rng = np.random.default_rng(0)
    updates = [rng.normal(size=5) * 10.0 ** rng.integers(-3, 1, 5) for _ in range(6)]
    state = ServerState({"w": torch.zeros(5, dtype=torch.float64)})
    x, m, v = np.zeros(5), np.zeros(5), np.full(5, 0.01**2)
    for u in updates:
        state = server.step(state, {"w": torch.from_numpy(u)})
        m = 0.8 * m + 0.2 * u
        if kind == "adagrad":
            v = v + u**2
        elif kind == "adam":
            v = 0.9 * v + 0.1 * u**2
        else:
            v = v - 0.1 * u**2 * np.sign(v - u**2)
        x = x + 0.05 * m / (np.sqrt(v) + 0.01)
        assert np.abs(state.parameters["w"].numpy() - x).max() <= 1e-14


def test_a_server_leaves_parameters_without_an_update_where_they_are() -> None:
    state = ServerState({"a": torch.ones(2), "b": torch.ones(2)})
    for server in (ServerSGD(1.0, 0.9), AdaptiveServer("adam", 0.1)):
        moved = server.step(state, {"a": torch.ones(2)})
        assert torch.equal(moved.parameters["b"], torch.ones(2))
        assert not torch.equal(moved.parameters["a"], torch.ones(2))


def test_scaffold_with_zero_variates_and_one_step_is_fedavg() -> None:
    scaffold, plain = play(Scaffold(SGD, 4), 1, batch_size=50), play(FedAvg(SGD), 1, batch_size=50)
    assert apart(scaffold[-1], plain[-1]) <= 1e-15


def test_scaffold_is_algorithm_1_option_2() -> None:
    """Two rounds of clients 1 and 3 of four, by hand: drift corrected by c - c_k, c moved by the mean over all four."""
    world = World(Scaffold(SGD, 4), epochs=2, batch_size=3)
    cohort = Cohort(np.array([1, 3]), np.array([0.5, 0.5]), sums_to_one=True)
    found = world.play(2, cohort)[-1]
    seen = iter(world.task.seen)
    world.close()
    task = RegressionTask(20)
    names = list(found.parameters)
    x = {n: p.detach().clone() for n, p in Regression().named_parameters() if n in names}
    c = {n: torch.zeros_like(p) for n, p in x.items()}
    own = {k: {n: torch.zeros_like(p) for n, p in x.items()} for k in (1, 3)}
    for _ in range(2):
        updates, changes = [], []
        for k in (3, 1) if SIZES[3] > SIZES[1] else (1, 3):
            model = Regression()
            steps = 2 * -(-SIZES[k] // 3)
            with torch.no_grad():
                for n, p in model.named_parameters():
                    if n in x:
                        p.copy_(x[n])
            for _ in range(steps):
                model.zero_grad()
                task.per_example_loss(model, task.collate(task.encoded, next(seen))).mean().backward()
                with torch.no_grad():
                    for n, p in model.named_parameters():
                        if n in x:
                            p.sub_(0.1 * ((p.grad if p.grad is not None else 0) - own[k][n] + c[n]))
            y = dict(model.named_parameters())
            new = {n: own[k][n] - c[n] + (x[n] - y[n].detach()) / (steps * 0.1) for n in x}
            updates.append({n: y[n].detach() - x[n] for n in x})
            changes.append({n: new[n] - own[k][n] for n in x})
            own[k] = new
        x = {n: x[n] + sum(u[n] for u in updates) / 2 for n in x}
        c = {n: c[n] + sum(d[n] for d in changes) / 4 for n in x}
    for name in names:
        assert float((found.parameters[name] - x[name]).abs().max()) <= 1e-13, name
        assert float((found.slots["control"][name] - c[name]).abs().max()) <= 1e-12, name


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_fednova_divides_by_effective_steps(momentum: float) -> None:
    training = LocalTraining(0.1, momentum=momentum)
    found = play(FedNova(training), 1)
    plain = World(FedAvg(training))
    steps = np.array([-(-n // 3) for n in SIZES], dtype=np.float64)
    if momentum:
        steps = np.array([sum((1 - momentum ** (s - j)) / (1 - momentum) for j in range(int(s))) for s in steps])
    weights, expected = EVERYONE.weights, {n: torch.zeros_like(p) for n, p in found[0].parameters.items()}
    for k in range(4):
        alone = Cohort(np.array([k]), np.ones(1), sums_to_one=True)
        update = plain.engine.run_round(FedAvg(training), found[0], alone, CLIENTS, None).aggregate.update
        for name, u in update.items():
            expected[name] += weights[k] * u / steps[k] * float(weights @ steps)
    for name, u in mean_update(found[0], found[1]).items():
        assert float((u - expected[name]).abs().max()) <= 1e-14


def test_fednova_with_equal_steps_is_fedavg() -> None:
    assert apart(play(FedNova(SGD), 1, batch_size=50)[-1], play(FedAvg(SGD), 1, batch_size=50)[-1]) <= 1e-15


def test_ditto_trains_the_global_model_as_fedavg_and_keeps_a_personal_one() -> None:
    world = World(Ditto(FedAvg(SGD), strength=0.0), epochs=2)
    states = world.play(2)
    assert apart(states[-1], play(FedAvg(SGD), 2, epochs=2)[-1]) <= 1e-15
    kept = world.store.read(states[-1], np.array([2]))["personal"]
    world.close()
    alone = play(FedAvg(SGD), 2, Cohort(np.array([2]), np.ones(1), sums_to_one=True), epochs=2)[-1]
    assert float((kept["weight"][0] - alone.parameters["weight"]).abs().max()) <= 1e-14, "strength 0 is training alone"
    near = World(Ditto(FedAvg(LocalTraining(0.01)), strength=90.0), epochs=5)
    last = near.play(3)[-1]
    personal = near.store.read(last, np.array([2]))["personal"]["weight"][0]
    near.close()
    assert float((personal - last.parameters["weight"]).abs().max()) < 0.05


def test_a_local_head_is_neither_sent_nor_shared() -> None:
    world = World(LocalHead(FedAvg(SGD), frozenset({"bias"})), epochs=2)
    states = world.play(2)
    assert torch.equal(states[-1].parameters["bias"], states[0].parameters["bias"])
    assert not torch.equal(states[-1].parameters["weight"], states[0].parameters["weight"])
    heads = world.store.read(states[-1], np.arange(4))["personal"]["bias"]
    assert len({tuple(h.tolist()) for h in heads}) == 4
    outcome = world.engine.run_round(world.algorithm, states[-1], EVERYONE, CLIENTS, world.store)
    world.close()
    assert outcome.bytes_up == outcome.bytes_down == 4 * 8 * (18 + 2)


def updates(*rows: list[float]) -> dict[str, Tensor]:
    return {"w": torch.tensor(rows, dtype=torch.float64)}


def test_bad_updates_are_screened_by_reason() -> None:
    start = {"w": torch.zeros(1, 2, dtype=torch.float64)}
    sent = updates([3.0, 4.0], [float("nan"), 0.0], [0.0, float("inf")], [0.3, 0.4])
    sound = screen(sent, start, 4, AggregationConfig())
    assert sound.taken.tolist() == [True, False, False, True] and sound.rejected == {"not_finite": 2}
    strict = screen(sent, start, 4, AggregationConfig(reject_above=1.0))
    assert strict.taken.tolist() == [False, False, False, True] and strict.rejected == {"not_finite": 2, "norm": 1}
    bounded = screen(sent, start, 4, AggregationConfig(norm_bound=1.0))
    assert bounded.scale.tolist() == pytest.approx([0.2, 0.0, 0.0, 1.0])
    assert screen({"w": torch.zeros(4, 3)}, start, 4, AggregationConfig()).rejected == {"shape": 4}
    assert screen({"other": torch.zeros(4, 2)}, start, 4, AggregationConfig()).rejected == {"shape": 4}


def test_robust_rules_are_those_of_numpy_and_scipy() -> None:
    from scipy.stats import trim_mean

    rng = np.random.default_rng(1)
    parts = [rng.normal(size=(k, 7)) for k in (4, 1, 6)]
    whole = np.concatenate(parts)
    chunks = [{"w": torch.from_numpy(p)} for p in parts]
    median = robust(chunks, AggregationConfig(rule="median"))["w"].numpy()
    assert np.abs(median - np.median(whole, axis=0)).max() <= 1e-15
    trimmed = robust(chunks, AggregationConfig(rule="trimmed_mean", trim=0.2))["w"].numpy()
    assert np.abs(trimmed - trim_mean(whole, 0.2, axis=0)).max() <= 1e-15
    even = robust([*chunks[:2], {"w": chunks[2]["w"][:5]}], AggregationConfig(rule="median"))["w"].numpy()
    assert np.abs(even - np.median(whole[:10], axis=0)).max() <= 1e-15


@pytest.mark.parametrize("rule", ["trimmed_mean", "median"])
def test_one_wild_client_does_not_move_a_robust_federation_far(rule: str) -> None:
    class Wild(RegressionTask):
        def per_example_loss(self, model: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
            losses = super().per_example_loss(model, batch)
            return losses * (1e6 if self.features[self.seen[-1]].max() > 50 else 1.0)

    moved = {}
    for name, settings in {"mean": {}, rule: {"aggregation": AggregationConfig(rule=rule, **_trim(rule))}}.items():
        world = World(FedAvg(SGD), **settings)
        world.task.features[0, 0] = 60.0  # a row of client 0
        before, after = world.play(1)
        moved[name] = apart(before, after)
    assert moved[rule] < 0.1 * moved["mean"]


def _trim(rule: str) -> dict[str, float]:
    return {"trim": 0.25} if rule == "trimmed_mean" else {}


def test_a_norm_bound_scales_updates_down() -> None:
    free = play(FedAvg(SGD), 1)
    size = mean_update(*free)["weight"].norm()
    bounded = play(FedAvg(SGD), 1, aggregation=AggregationConfig(norm_bound=0.01))
    total = sum(float(u.square().sum()) for u in mean_update(*bounded).values()) ** 0.5
    assert total <= 0.01 + 1e-12 < size


def test_a_client_whose_data_raise_is_counted_and_the_round_goes_on() -> None:
    class Broken(RegressionTask):
        def collate(self, encoded: object, indices: np.ndarray, *, draw: int = 0) -> dict[str, Tensor]:
            if (np.asarray(indices) < 2).any():  # rows of client 0
                raise ValueError("a text that must not be shown")
            return super().collate(encoded, indices, draw=draw)

    for execution in ("loop", "auto"):
        task, model = Broken(20), Regression()
        config = FederatedConfig(local={"batch_size": 3}, execution=execution, chunk_size=4)
        engine = LocalEngine(task, model, task.encoded, config, PublicSeeds(3))
        state = FedAvg(SGD).init(engine.parameters())
        if execution == "auto":  # what is stackable is found out on clients that are whole
            few = Cohort(np.array([1, 2, 3]), np.full(3, 1 / 3), sums_to_one=True)
            engine.run_round(FedAvg(SGD), state, few, CLIENTS, None)
        outcome = engine.run_round(FedAvg(SGD), state, EVERYONE, CLIENTS, None)
        assert outcome.rejected == {"data": 1} and outcome.aggregate.clients == 3
        rest = Cohort(np.array([1, 2, 3]), np.array([0.3, 0.2, 0.1]) / 0.6, sums_to_one=True)
        clean = play(FedAvg(SGD), 1, rest)
        assert float((outcome.aggregate.update["weight"] - mean_update(*clean)["weight"]).abs().max()) <= 1e-14


def test_the_run_file_names_every_algorithm() -> None:
    def of(**keys: object) -> Algorithm:
        return make_algorithm(FederatedConfig(**keys), 7, {"bias"})

    assert of(algorithm="fedprox") == FedAvg(SGD, proximal=0.01)
    assert of(algorithm="fedprox", local={"proximal": 0.5}).proximal == 0.5
    assert of(algorithm="fedavgm").server == ServerSGD(1.0, 0.9)
    assert of(algorithm="fedadam", server={"learning_rate": 0.01}).server == AdaptiveServer("adam", 0.01)
    assert of(algorithm="fedadagrad").server.beta1 == 0.0 and of(algorithm="fedyogi").server.kind == "yogi"
    assert of(algorithm="fedavg", server={"optimizer": "adam"}).server.kind == "adam"
    assert of(algorithm="scaffold") == Scaffold(SGD, 7)
    assert of(algorithm="ditto").strength == 0.1 and of(algorithm="local_head").head == {"bias"}
    with pytest.raises(ConfigError, match="no trained head"):
        make_algorithm(FederatedConfig(algorithm="local_head"), 7)


def test_an_aggregate_of_nothing_is_no_update() -> None:
    world = World(FedAvg(SGD))
    nobody = Cohort(np.zeros(0, dtype=np.int64), np.zeros(0), sums_to_one=True)
    assert world.engine.run_round(FedAvg(SGD), world.state, nobody, CLIENTS, None).aggregate is None
    assert Aggregate({}).clients == 0
