"""The simulation: learns, records, resumes bit for bit, leaves the caller's state alone, refuses what cannot be."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from federated_fakes import Regression, RegressionTask, equal_clients
from torch import nn

from troth.config_federated import FederatedConfig
from troth.errors import ConfigError, DataError, ResumeError, RunError
from troth.federated import FederatedData, FederatedOutcome, Federation, simulate
from troth.results import Measurement, Record
from troth.seeds import PublicSeeds
from troth.training import SilentProgress

ROWS = 120
CLIENTS = FederatedData.from_assignment(np.minimum(np.random.default_rng(0).zipf(1.7, ROWS), 20) - 1, 20)


def config(**changes: object) -> FederatedConfig:
    base = {"rounds": 6, "cohort_size": 4, "evaluate_every": 2, "local": {"batch_size": 4, "learning_rate": 0.2}}
    return FederatedConfig(**{**base, **changes})


def run(
    settings: FederatedConfig,
    *,
    folder: Path | None = None,
    resume: bool = False,
    seed: int = 1,
    evaluate: Callable[[nn.Module], tuple[Measurement, ...]] | None = None,
    clients: FederatedData = CLIENTS,
    progress: SilentProgress | None = None,
    dropout: float = 0.3,
    rows: int = ROWS,
    spoilt: bool = False,
) -> tuple[FederatedOutcome, nn.Module]:
    model, task = Regression(dropout), RegressionTask(rows)
    task.features[:] *= np.nan if spoilt else 1
    outcome = simulate(
        Federation(task, model, task.encoded, clients, settings, PublicSeeds(seed)),
        evaluate=evaluate or task.accuracy,
        progress=progress,
        folder=folder,
        resume=resume,
    )
    return outcome, model


def without_seconds(outcome: FederatedOutcome) -> list[dict[str, object]]:
    rows = [row for name in sorted(outcome.series) for row in outcome.series[name]]
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]


def evaluated(outcome: FederatedOutcome) -> list[dict[str, object]]:
    return outcome.series["federated.round"]


def same(one: nn.Module, two: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_it_learns_and_says_what_it_cost() -> None:
    outcome, model = run(config(rounds=30, evaluate_every=10), dropout=0.0)
    assert [row["round"] for row in evaluated(outcome)] == [10, 20, 30]
    assert evaluated(outcome)[-1]["accuracy"] > 0.7
    assert evaluated(outcome)[-1]["loss"] < evaluated(outcome)[0]["loss"]
    assert (evaluated(outcome)[0]["low"], evaluated(outcome)[0]["high"]) == (0.0, 1.0)
    size = 8 * 23
    for row in evaluated(outcome):
        assert row["bytes_up"] == row["bytes_down"] == row["round"] * 4 * size
        assert row["bytes"] == 2 * row["bytes_up"] and row["cohort"] == 4
    found = {m.name: m for m in outcome.measurements}
    assert found["federated.round.accuracy"].value == evaluated(outcome)[-1]["accuracy"]
    assert found["federated.round.accuracy"].protocol["weight"] == "samples"
    assert found["federated.bytes_sent"].value == evaluated(outcome)[-1]["bytes"]
    assert found["federated.samples"].value == evaluated(outcome)[-1]["samples"] > 0
    assert found["federated.clients"].protocol["dropped_clients"] == CLIENTS.dropped
    assert outcome.rounds == 30 and outcome.work_seconds > 0
    assert not model.frozen.requires_grad and model.frozen.item() == 1.0
    record = Record("federate", "x", "now", "0", measurements=outcome.measurements, series=outcome.series)
    assert Record.from_json(record.to_json()).to_json() == record.to_json()


def test_dropped_clients_are_told() -> None:
    assert CLIENTS.dropped > 0
    assert any(f"{CLIENTS.dropped} clients without a row" in w for w in run(config())[0].warnings)


def test_last_round_is_evaluated_and_every_kth() -> None:
    assert [row["round"] for row in evaluated(run(config(rounds=5, evaluate_every=2))[0])] == [2, 4, 5]


@pytest.mark.parametrize("stop_after", [1, 2, 3, 5])
@pytest.mark.parametrize("every", [1, 2])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path: Path, stop_after: int, every: int) -> None:
    settings = config(checkpoint_every=every, selection={"by": "activity"})
    whole, model = run(settings)

    class Stopping(SilentProgress):
        def update(self, step: int, **values: float | None) -> None:
            if step == stop_after:
                raise KilledError

    with pytest.raises(KilledError):
        run(settings, folder=tmp_path, progress=Stopping())
    again, resumed = run(settings, folder=tmp_path, resume=True)
    assert same(model, resumed)
    assert without_seconds(again) == without_seconds(whole)
    assert again.measurements[0] == whole.measurements[0]


class KilledError(BaseException):
    """Stands for a kill between two rounds."""


def test_ctrl_c_saves_the_last_finished_round(tmp_path: Path) -> None:
    settings = config(checkpoint_every=100)
    whole, model = run(settings)

    class Interrupting(SilentProgress):
        def update(self, step: int, **values: float | None) -> None:
            if step == 3:
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(settings, folder=tmp_path, progress=Interrupting())
    assert signal.getsignal(signal.SIGINT) is before
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-3"]
    again, resumed = run(settings, folder=tmp_path, resume=True)
    assert same(model, resumed) and without_seconds(again) == without_seconds(whole)


def test_resuming_a_finished_run_measures_it_again(tmp_path: Path) -> None:
    whole, model = run(config(), folder=tmp_path)
    again, resumed = run(config(), folder=tmp_path, resume=True)
    assert same(model, resumed)
    assert again.series == whole.series
    assert again.measurements[0] == whole.measurements[0]


def test_a_new_run_does_not_touch_old_checkpoints(tmp_path: Path) -> None:
    run(config(), folder=tmp_path)
    with pytest.raises(RunError, match="checkpoints of an earlier run"):
        run(config(), folder=tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": config(cohort_size=5)}, "federated.cohort_size: changed"),
        ({"seed": 2}, "run.seed: changed"),
        ({"clients": equal_clients(ROWS, 20)}, "who holds which rows: changed"),
        ({"rows": ROWS + 1}, "the training rows: changed"),
    ],
)
def test_resume_under_other_circumstances_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    run(config(), folder=tmp_path)
    arguments = {"settings": config(), **changes}
    with pytest.raises(ResumeError, match=message):
        run(arguments.pop("settings"), folder=tmp_path, resume=True, **arguments)


def test_seeds_and_nothing_else_decide() -> None:
    (_, one), (_, two), (_, other) = run(config()), run(config()), run(config(), seed=2)
    torch.manual_seed(99)
    (_, three) = run(config())
    assert same(one, two) and same(one, three) and not same(one, other)


def test_every_round_and_every_seed_draws_a_cohort_of_its_own() -> None:
    """FedNLP seeds its choice with the round alone, so that all its runs draw the same cohorts."""
    drawn = []
    for seed in (1, 2):
        task = RegressionTask(ROWS)
        settings = config(rounds=12, cohort_size=1, local={"batch_size": ROWS}, execution="loop")
        clients = equal_clients(ROWS, 40)
        made = Federation(task, Regression(), task.encoded, clients, settings, PublicSeeds(seed))
        simulate(made, evaluate=task.accuracy)
        drawn.append([int(rows[0]) % 40 for rows in task.seen])
    assert len(set(drawn[0])) > 6 and len(set(drawn[1])) > 6
    assert drawn[0] != drawn[1]


def test_the_callers_state_is_left_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    model, task = Regression(0.3), RegressionTask(ROWS)
    model.train()
    model.dropout.eval()

    def evaluate(model: nn.Module) -> tuple[Measurement, ...]:
        torch.rand(3)
        return task.accuracy(model)

    simulate(Federation(task, model, task.encoded, CLIENTS, config(), PublicSeeds(0)), evaluate=evaluate)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.training and not model.dropout.training
    assert all(p.grad is None for p in model.parameters())


def test_updates_that_are_not_finite_are_counted_and_told() -> None:
    outcome, model = run(config(), spoilt=True)
    assert evaluated(outcome)[-1]["rejected"] == 24
    assert evaluated(outcome)[-1]["loss"] is None
    assert any("24 client updates were left out, for they were not finite" in w for w in outcome.warnings)
    assert same(model, Regression())


def test_an_error_leaves_the_model_at_the_last_finished_round() -> None:
    rounds: list[int] = []
    calls = [0]

    class Failing(RegressionTask):
        def collate(self, *args: object, **kwargs: object) -> dict[str, torch.Tensor]:
            if len(rounds) == 1 and len(self.seen) > calls[0] + 1:
                raise KilledError
            return super().collate(*args, **kwargs)

    task, model = Failing(ROWS), Regression()

    def evaluate(model: nn.Module) -> tuple[Measurement, ...]:
        rounds.append(1)
        calls[0] = len(task.seen)
        kept.update({n: p.detach().clone() for n, p in model.named_parameters()})
        return ()

    kept: dict[str, torch.Tensor] = {}
    with pytest.raises(KilledError):
        settings = config(evaluate_every=1, local={"batch_size": 1})  # the third batch is still the first client's
        clients = equal_clients(ROWS, 20)
        simulate(Federation(task, model, task.encoded, clients, settings, PublicSeeds(0)), evaluate=evaluate)
    assert kept and all(torch.equal(p, kept[n]) for n, p in model.named_parameters())


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"cohort_size = 50: the population has {len(CLIENTS)} clients"):
        run(config(cohort_size=50), folder=tmp_path)
    with pytest.raises(DataError, match="the encoded table has 60 rows"):
        run(config(), rows=60)
    assert not list(tmp_path.iterdir())
