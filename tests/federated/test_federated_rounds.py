"""Where cohorts come from: FedBuff's delays, a stream's periods; and resuming each kind of federation bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from federated_fakes import Regression, RegressionTask
from torch import Tensor, nn

from troth.config_federated import BufferConfig, FederatedConfig
from troth.errors import ConfigError, PrivacyError
from troth.federated import (
    Cohort,
    Events,
    FederatedData,
    FederatedOutcome,
    Federation,
    Stream,
    deletion_periods,
    make_periods,
    simulate,
)
from troth.federated.deletions import DeletionRequests
from troth.federated.fedbuff import InFlight
from troth.seeds import PublicSeeds
from troth.training import SilentProgress

ROWS = 120
CLIENTS = FederatedData.from_assignment(np.random.default_rng(0).integers(12, size=ROWS), 12)
TIMES = np.random.default_rng(1).uniform(0, 50, ROWS)


class KilledError(BaseException):
    """Stands for a kill between two rounds."""


class Stopping(SilentProgress):
    def __init__(self, after: int) -> None:
        self._after = after

    def update(self, step: int, **values: float | None) -> None:
        if step == self._after:
            raise KilledError


def settings(**changes: object) -> FederatedConfig:
    base = {"cohort_size": 4, "evaluate_every": 2, "local": {"batch_size": 4, "learning_rate": 0.2, "epochs": 2}}
    if "stream" not in changes:
        base["rounds"] = 6
    return FederatedConfig(**{**base, "chunk_size": 3, **changes})


def federation(
    config: FederatedConfig, task: RegressionTask | None = None, deletions: DeletionRequests | None = None
) -> tuple[Federation, RegressionTask]:
    task = task or RegressionTask(ROWS)
    stream = None
    if config.stream is not None:
        events = Events.of_population(CLIENTS, TIMES)
        periods = make_periods(config.stream, TIMES)
        users = [str(d) for d in events.devices]
        gone = None if deletions is None else deletion_periods(deletions, periods, ROWS, users=users)
        stream = Stream(events, config.stream, seeds=PublicSeeds(1), deletions=gone, periods=periods)
    made = Federation(
        task, Regression(0.3), task.encoded, CLIENTS, config, PublicSeeds(1), stream, head=frozenset({"bias"})
    )
    return made, task


def run(
    config: FederatedConfig, folder: Path | None = None, *, resume: bool = False, stop: int | None = None
) -> tuple[FederatedOutcome, nn.Module]:
    made, task = federation(config)
    progress = SilentProgress() if stop is None else Stopping(stop)
    outcome = simulate(made, evaluate=task.accuracy, progress=progress, folder=folder, resume=resume)
    return outcome, made.model


def rows_of(outcome: FederatedOutcome) -> list[dict[str, object]]:
    rows = [row for name in sorted(outcome.series) for row in outcome.series[name]]
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]


def same(one: nn.Module, two: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


KINDS: dict[str, dict[str, object]] = {
    "fedavgm": {"algorithm": "fedavgm"},
    "fedadam": {"algorithm": "fedadam", "server": {"learning_rate": 0.05}},
    "scaffold": {"algorithm": "scaffold"},
    "ditto": {"algorithm": "ditto"},
    "local_head": {"algorithm": "local_head"},
    "fedbuff": {"algorithm": "fedbuff", "buffer": {"concurrency": 7, "mean_delay": 2.0}},
    "resting": {"participation": {"minimum_separation": 1, "available": 0.8, "drop_out": 0.1, "over_selection": 1.3}},
    "power_of_choice": {"selection": {"by": "power_of_choice", "candidates": 8}},
    "stream": {"stream": {"periods": 3, "retention": 2, "rounds_per_period": 2, "replay": {"size": 2}}},
    "diverse": {
        "stream": {
            "periods": 3,
            "retention": 1,
            "rounds_per_period": 2,
            "replay": {"by": "gradient_diverse", "size": 2},
        }
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_goes_on_to_the_same_bits(kind: str, tmp_path: Path) -> None:
    config = settings(**KINDS[kind], checkpoint_every=1)
    whole, model = run(config)
    for stop in (1, 3, 5):
        folder = tmp_path / str(stop)
        with pytest.raises(KilledError):
            run(config, folder, stop=stop)
        again, resumed = run(config, folder, resume=True)
        assert same(model, resumed), stop
        assert rows_of(again) == rows_of(whole)


def test_fedbuff_without_delay_and_with_a_buffer_of_the_cohort_is_fedavg() -> None:
    buffered = settings(
        algorithm="fedbuff", buffer={"concurrency": 4, "mean_delay": 0.0}, selection={"weight": "equal"}
    )
    plain = settings(selection={"weight": "equal"}, participation={"minimum_separation": 1})
    one, two = run(buffered)[1], run(plain)[1]
    pairs = zip(one.parameters(), two.parameters(), strict=True)
    assert max(float((a - b).detach().abs().max()) for a, b in pairs) <= 1e-15


def test_fedbuff_takes_the_earliest_and_weighs_stale_updates_down() -> None:
    config = BufferConfig(mean_delay=1.0, staleness_power=0.5)
    work = InFlight()
    draws = np.random.default_rng(0).standard_exponential((2, 3))
    rng = np.random.default_rng(0)
    work.send(Cohort(np.array([1, 5, 9]), np.full(3, 1 / 3), sums_to_one=True), 0, config, rng)
    assert work.finish.tolist() == draws[0].tolist()
    first = work.arrive(1, 0, config)
    soonest = [1, 5, 9][int(draws[0].argmin())]
    assert first.cohorts[0].clients.tolist() == [soonest] and first.cohorts[0].weights.tolist() == [1.0]
    assert work.now == draws[0].min() and soonest not in work.clients
    work.finish = np.array([5.0, 6.0])
    work.send(Cohort(np.array([2, 3, 4]), np.full(3, 1 / 3), sums_to_one=True), 3, config, rng)
    work.finish[2:] = [1.0, 5.5, 9.0]
    then = work.arrive(3, 3, config)
    assert set(then.cohorts) == {0, 3} and then.staleness == 1.0
    assert then.cohorts[3].clients.tolist() == [2, 3] and then.cohorts[3].weights.tolist() == pytest.approx([1 / 3] * 2)
    assert then.cohorts[0].weights.tolist() == pytest.approx([1 / 3 * 4**-0.5])
    assert InFlight.from_dict(work.to_dict()).to_dict() == work.to_dict()


def test_fedbuff_reports_how_stale_updates_are_and_nobody_is_at_work_twice() -> None:
    outcome, _ = run(settings(**KINDS["fedbuff"]))
    rows = outcome.series["federated.participation"]
    assert rows[0]["staleness"] == 0 and rows[0]["asked"] == 7
    assert max(row["staleness"] for row in rows) > 0 and [r["time"] for r in rows] == sorted(r["time"] for r in rows)
    assert sum(row["selected"] for row in rows) == 24 and sum(row["asked"] for row in rows) == 24 + 3


class Poisoned(RegressionTask):
    """Knows which rows may be read, and raises for every other one."""

    allowed: np.ndarray | None = None

    def collate(self, encoded: object, indices: np.ndarray, *, draw: int = 0) -> dict[str, Tensor]:
        if self.allowed is not None:
            assert self.allowed[np.asarray(indices)].all(), "a row was read that must not be"
        return super().collate(encoded, indices, draw=draw)


@pytest.mark.parametrize("replay", [None, {"size": 2}, {"by": "gradient_diverse", "size": 1}])
def test_no_expired_or_deleted_row_is_ever_read(replay: dict[str, object] | None) -> None:
    stream = {"periods": 5, "retention": 2, "cap": 4, "rounds_per_period": 2, "replay": replay}
    config = settings(stream=stream, selection={"by": "power_of_choice", "candidates": 6}, execution="loop")
    requests = DeletionRequests(
        np.array([25.0, 45.0]), np.array(["3", "7"], dtype=object), np.array(["", ""], dtype=object)
    )
    made, task = federation(config, Poisoned(ROWS), requests)
    read: dict[int, set[int]] = {}
    real = made.stream.advance

    def advance(gradients: object = None) -> object:
        task.allowed = None  # gradients of rows that are about to expire may be taken, by the period that ends
        period = real(gradients)
        task.allowed = made.stream.allowed(period.index)
        task.seen.clear()
        read[period.index] = set()
        return period

    object.__setattr__(made, "stream", made.stream)
    made.stream.advance = advance
    before = RegressionTask.collate

    def noting(self: RegressionTask, encoded: object, indices: np.ndarray, *, draw: int = 0) -> dict[str, Tensor]:
        if read and self.allowed is not None:
            read[max(read)].update(np.asarray(indices).tolist())
        return before(self, encoded, indices, draw=draw)

    RegressionTask.collate = noting
    try:
        outcome = simulate(made, evaluate=lambda _: ())
    finally:
        RegressionTask.collate = before
    assert outcome.rounds == 10 and not outcome.series["federated.participation"][-1]["rejected"]
    owner = np.empty(ROWS, dtype=int)
    owner[CLIENTS.rows] = np.repeat(np.arange(12), CLIENTS.counts)
    arrived = make_periods(config.stream, TIMES).of(TIMES)
    for period, rows in read.items():
        assert rows, period
        for row in rows:
            assert arrived[row] <= period
            assert not (owner[row] == 3 and period >= 2) and not (owner[row] == 7 and period >= 4)
            assert replay is not None or arrived[row] > period - 2


def test_an_engine_that_asks_for_an_expired_row_is_stopped() -> None:
    config = settings(stream={"periods": 4, "retention": 1, "rounds_per_period": 1})
    made, task = federation(config)

    class Forgetful(Stream):
        def guard(self, rows: np.ndarray) -> None:
            super().guard(np.r_[rows, np.flatnonzero(TIMES < 12)[:1]])

    made.stream.__class__ = Forgetful
    with pytest.raises(PrivacyError, match="has expired"):
        simulate(made, evaluate=task.accuracy)


def test_counts_follow_the_window_and_small_windows_are_told() -> None:
    config = settings(stream={"periods": 10, "retention": 1, "rounds_per_period": 1}, cohort_size=11)
    outcome, _ = run(config)
    rows = outcome.series["federated.participation"]
    arrived = make_periods(config.stream, TIMES).of(TIMES)
    owner = np.empty(ROWS, dtype=int)
    owner[CLIENTS.rows] = np.repeat(np.arange(12), CLIENTS.counts)
    for row in rows:
        active = len(np.unique(owner[arrived == row["period"]]))
        assert row["active"] == active and row["selected"] == min(11, active)
    assert any("fewer clients than federated.cohort_size" in w for w in outcome.warnings)


def test_a_streams_rounds_are_its_own() -> None:
    with pytest.raises(ValueError, match="leave rounds out"):
        settings(stream={"periods": 3}, rounds=5)
    with pytest.raises(ValueError, match="would outlive their rows"):
        settings(stream={"periods": 3}, algorithm="fedbuff")


def test_over_selection_and_drop_outs_are_counted() -> None:
    config = settings(participation={"over_selection": 1.5, "drop_out": 0.3}, rounds=20)
    outcome, _ = run(config)
    rows = outcome.series["federated.participation"]
    assert all(row["asked"] == 6 for row in rows)
    assert all(row["asked"] == row["selected"] + row["dropped"] + row["surplus"] for row in rows)
    assert sum(row["dropped"] for row in rows) > 10 and sum(row["surplus"] for row in rows) > 0
    found = {m.name: m.value for m in outcome.measurements}
    assert found["federated.dropped_clients"] == sum(row["dropped"] for row in rows)
    size = 8 * 23
    assert outcome.series["federated.round"][-1]["bytes_down"] == 120 * size


def test_a_cohort_larger_than_the_population_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for algorithm in ("fedavg", "fedbuff"):
        with pytest.raises(ConfigError, match="cohort_size = 13"):
            run(settings(cohort_size=13, algorithm=algorithm), tmp_path)
    assert not list(tmp_path.iterdir())
