"""The private loop: the ledger first, keys apart, the same noise never for another batch, nothing lost or hidden."""

from __future__ import annotations

import json
import math
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_world import (
    BATCH,
    ROWS,
    Draws,
    KillAt,
    Killed,
    config,
    hooked,
    inputs,
    plan_of,
    reserve,
    same,
    table,
    train,
    weights,
)

from troth.accounting import Ledger, PrivacyPlan, make_plan, troth_home
from troth.config import RunConfig, parse
from troth.data import Units
from troth.dp import PrivateEngine
from troth.errors import BudgetError, EngineStateError, PrivacyError, ResumeError, RunError, SelfCheckError
from troth.training import SilentProgress, fit
from troth.training import private as private_module

RUN = config(private=True)


def keys() -> Path:
    return troth_home() / "private"


def recorded(monkeypatch: pytest.MonkeyPatch) -> Draws:
    draws = Draws()
    monkeypatch.setattr(private_module, "PrivateEngine", draws.engine())
    return draws


def plan_with(**changes: Any) -> PrivacyPlan:
    plan = plan_of(RUN)
    assert plan is not None
    return replace(plan, **changes)


def test_the_outcome_says_what_the_plan_says(tmp_path: Path) -> None:
    given, plan = inputs(tmp_path, RUN), plan_with()
    before = weights(given)
    reservation = reserve(RUN, plan)
    outcome = train(given, reservation=reservation)
    assert not same(weights(given), before)
    assert outcome.steps == plan.steps == 15
    assert outcome.privacy is not None
    assert outcome.privacy.epsilon == plan.epsilon()
    assert outcome.privacy.steps == reservation.steps_spent == plan.steps
    assert outcome.privacy.guarantee == "differential_privacy"
    assert [(row["epoch"], row["step"]) for row in outcome.series] == [(1, 5), (2, 10), (3, 15)]
    assert all(row["outside_guarantee"] is True for row in outcome.series)
    assert outcome.series[-1]["epsilon"] == plan.epsilon()


def test_the_ledger_is_told_before_the_update_is_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, plan = inputs(tmp_path, RUN), plan_with()
    reservation, told = reserve(RUN, plan), []
    spend, last = reservation.spend, [weights(given)]

    def watched(step: int) -> None:
        assert same(weights(given), last[-1])
        spend(step)
        told.append(step)

    class Watch(SilentProgress):
        def update(self, step: int, **values: float | None) -> None:
            assert told[-1] == step - 1
            assert reservation.steps_spent >= step
            assert not same(weights(given), last[-1])
            last.append(weights(given))

    monkeypatch.setattr(reservation, "spend", watched)
    fit(given, plan=plan, reservation=reservation, resume=False, progress=Watch())
    assert told == list(range(15))


def test_a_refusal_of_the_ledger_stops_before_the_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, plan = inputs(tmp_path, RUN), plan_with()
    reservation, before = reserve(RUN, plan), weights(given)

    def refuse(step: int) -> None:
        raise BudgetError("spent")

    monkeypatch.setattr(reservation, "spend", refuse)
    with pytest.raises(BudgetError):
        fit(given, plan=plan, reservation=reservation, resume=False, progress=SilentProgress())
    assert same(weights(given), before)


def test_without_noise_and_clipping_a_step_over_all_rows_is_gradient_descent(tmp_path: Path) -> None:
    settings = {"epochs": 1, "optimizer": "sgd", "expected_batch_size": ROWS, "learning_rate": 0.5}
    run, plain = config(private=True, insecure=True, **settings), config(**settings)
    ours, theirs = inputs(tmp_path / "a", run), inputs(tmp_path / "b", plain)
    for given in (ours, theirs):
        for module in given.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    plan = PrivacyPlan(ROWS, ROWS, 1.0, 1, 0.0, 1e6, 1e-3)
    before = weights(ours)
    fit(ours, plan=plan, reservation=None, resume=False, progress=SilentProgress())
    train(theirs)
    assert not same(weights(ours), before)
    for name, tensor in weights(theirs).items():
        torch.testing.assert_close(weights(ours)[name], tensor, rtol=1e-5, atol=1e-7)


def test_empty_batches_are_steps_of_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = recorded(monkeypatch)
    run = config(private=True, insecure=True, expected_batch_size=1, epochs=1, checkpoint_every=20)
    outcome = train(inputs(tmp_path, run))
    assert any(not rows for _, rows, _ in draws.steps)
    assert outcome.steps == ROWS
    assert len(draws.steps) == ROWS
    assert all(any(noise) for _, _, noise in draws.steps)


def test_live_epsilon_is_never_below_the_truth_and_ends_at_it(tmp_path: Path) -> None:
    shown: list[tuple[int, float]] = []

    class Watch(SilentProgress):
        def update(self, step: int, **values: float | None) -> None:
            epsilon = values["epsilon"]
            assert epsilon is not None
            shown.append((step, epsilon))

    train(inputs(tmp_path, RUN), progress=Watch())
    plan = plan_with()
    assert [step for step, _ in shown] == list(range(1, 16))
    assert all(shown[step - 1][1] >= plan.epsilon(step) - 1e-9 for step in (1, 8, 14))
    assert shown[-1][1] == plan.epsilon()
    assert [e for _, e in shown] == sorted(e for _, e in shown)


def test_keys_lie_apart_while_it_runs_and_nowhere_afterwards(tmp_path: Path) -> None:
    seen: list[bytes] = []

    class Watch(SilentProgress):
        def update(self, step: int, **values: float | None) -> None:
            files = sorted(keys().rglob("step-*"))
            kept = {int(p.name.removeprefix("checkpoint-")) for p in (tmp_path / "checkpoints").iterdir()}
            assert {int(p.name.removeprefix("step-")) for p in files} == kept
            for file in files:
                assert stat.S_IMODE(file.stat().st_mode) == 0o600
                seen.append(json.loads(file.read_bytes())["key"].encode())

    train(inputs(tmp_path, RUN), progress=Watch())
    assert len(set(seen)) == 4  # of steps 0, 4, 8 and 12
    assert not list(keys().iterdir())
    written = [p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()]
    assert written
    for key in set(seen):
        assert not any(key in content or bytes.fromhex(key.decode()) in content for content in written)


def test_a_digest_of_private_rows_does_not_enter_a_checkpoint(tmp_path: Path) -> None:
    train(inputs(tmp_path, RUN))
    content = json.loads((tmp_path / "checkpoints" / "checkpoint-15" / "checkpoint.json").read_bytes())
    assert content["state"]["identity"]["rows"] is None
    assert content["state"]["outside_guarantee"] == ["journal"]


def interrupted(folder: Path, at: int, run: RunConfig = RUN) -> str:
    """Kill a run when step `at` is done; return its ledger entry."""
    reservation = reserve(run, plan_of(run))
    with pytest.raises(Killed):
        train(inputs(folder, run), reservation=reservation, progress=KillAt(at))
    return str(reservation.id)


def test_a_resumed_run_repeats_samples_and_noise_and_counts_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws, plan = recorded(monkeypatch), plan_with()
    entry = interrupted(tmp_path, 7)
    again = Ledger().resume(entry)
    outcome = train(inputs(tmp_path, RUN), resume=True, reservation=again)
    assert [step for step, _, _ in draws.steps] == [*range(7), *range(4, 15)]
    assert draws.steps[4:7] == draws.steps[7:10]
    assert len({noise for _, _, noise in draws.steps}) == 15
    assert outcome.privacy is not None
    assert outcome.privacy.epsilon == plan.epsilon()
    assert again.steps_spent == plan.steps
    assert outcome.warnings == ()


def test_where_the_key_is_lost_noise_is_fresh_and_replayed_steps_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws, plan = recorded(monkeypatch), plan_with()
    entry = interrupted(tmp_path, 7)
    spent = Ledger().resume(entry).steps_spent
    assert spent >= 7
    shutil.rmtree(keys() / entry)
    again = Ledger().resume(entry)
    outcome = train(inputs(tmp_path, RUN), resume=True, reservation=again)
    assert len({noise for _, _, noise in draws.steps}) == 7 + 11  # no noise twice
    replayed = spent - 4
    assert again.steps_spent == plan.steps + replayed
    assert outcome.privacy is not None
    assert outcome.privacy.steps == plan.steps + replayed
    assert outcome.privacy.epsilon == plan.epsilon(plan.steps + replayed)
    assert outcome.privacy.epsilon > plan.epsilon()
    assert outcome.series[-1]["epsilon"] >= outcome.privacy.epsilon
    assert any(f"{replayed} steps drew fresh noise" in warning for warning in outcome.warnings)


def test_the_fresh_key_is_kept_so_that_a_second_kill_counts_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws, plan = recorded(monkeypatch), plan_with()
    entry = interrupted(tmp_path, 7)
    replayed = Ledger().resume(entry).steps_spent - 4
    shutil.rmtree(keys() / entry)
    with pytest.raises(Killed):
        train(inputs(tmp_path, RUN), resume=True, reservation=Ledger().resume(entry), progress=KillAt(6))
    again = Ledger().resume(entry)
    train(inputs(tmp_path, RUN), resume=True, reservation=again)
    assert again.steps_spent == plan.steps + replayed
    by_noise: dict[tuple[float, ...], set[tuple[int, tuple[int, ...]]]] = {}
    for step, rows, noise in draws.steps:
        by_noise.setdefault(noise, set()).add((step, rows))
    assert all(len(uses) == 1 for uses in by_noise.values())


def test_lost_checkpoints_count_every_step_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key without its checkpoint proves nothing about the weights, so it is not used."""
    draws, plan = recorded(monkeypatch), plan_with()
    entry = interrupted(tmp_path, 7)
    spent = Ledger().resume(entry).steps_spent
    shutil.rmtree(tmp_path / "checkpoints")
    again = Ledger().resume(entry)
    train(inputs(tmp_path, RUN), resume=True, reservation=again)
    assert again.steps_spent == plan.steps + spent
    assert len({noise for _, _, noise in draws.steps}) == 7 + 15


def test_a_kill_before_the_first_step_counts_nothing(tmp_path: Path) -> None:
    entry = interrupted(tmp_path, 1)
    shutil.rmtree(tmp_path / "checkpoints")
    fresh = reserve(RUN, plan_with())
    train(inputs(tmp_path, RUN), resume=True, reservation=fresh)
    assert fresh.steps_spent == plan_with().steps
    assert fresh.id != entry


def test_a_replay_that_the_budget_does_not_cover_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws, plan = recorded(monkeypatch), plan_with()
    Ledger().set_budget("world", plan.epsilon() * 1.0001, plan.delta, "example")
    entry = interrupted(tmp_path, 7)
    shutil.rmtree(keys() / entry)
    given = inputs(tmp_path, RUN)
    with pytest.raises(BudgetError):
        train(given, resume=True, reservation=Ledger().resume(entry))
    assert len(draws.steps) == 7
    assert not list(keys().rglob("step-*"))


def test_another_physical_batch_is_other_gradients_so_it_draws_fresh_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = recorded(monkeypatch)
    entry = interrupted(tmp_path, 7)
    other = config(private=True, physical_batch_size=3)
    again = Ledger().resume(entry)
    train(inputs(tmp_path, other), resume=True, reservation=again)
    assert again.steps_spent > plan_with().steps
    assert len({noise for _, _, noise in draws.steps}) == 7 + 11


def test_other_rows_are_refused(tmp_path: Path) -> None:
    entry = interrupted(tmp_path, 7)
    with pytest.raises(ResumeError, match="training rows have changed"):
        train(inputs(tmp_path, RUN, table(seed=1)), resume=True, reservation=Ledger().resume(entry))


def test_another_plan_is_refused(tmp_path: Path) -> None:
    entry, other = interrupted(tmp_path, 7), plan_with(noise_multiplier=5.0)
    for reservation, error, text in (
        (Ledger().resume(entry), PrivacyError, "not the one reserved"),
        (reserve(RUN, other), ResumeError, "privacy plan"),
    ):
        with pytest.raises(error, match=text):
            fit(inputs(tmp_path, RUN), plan=other, reservation=reservation, resume=True, progress=SilentProgress())


def test_another_ledger_entry_is_refused(tmp_path: Path) -> None:
    interrupted(tmp_path, 7)
    with pytest.raises(ResumeError, match="belongs to ledger entry"):
        train(inputs(tmp_path, RUN), resume=True, reservation=reserve(RUN, plan_with()))


def test_an_entry_that_was_trained_under_is_not_started_anew(tmp_path: Path) -> None:
    entry = interrupted(tmp_path / "a", 7)
    with pytest.raises(PrivacyError, match="trained under before"):
        train(inputs(tmp_path / "b", RUN), reservation=Ledger().resume(entry))


def test_an_interrupt_in_the_last_step_leaves_nothing_to_spend(tmp_path: Path) -> None:
    reservation = reserve(RUN, plan_with())
    with pytest.raises(KeyboardInterrupt):
        train(inputs(tmp_path, RUN), reservation=reservation, progress=KillAt(15, KeyboardInterrupt))
    assert not list(keys().rglob("step-*"))
    assert reservation.steps_spent == 15


def test_killed_between_the_last_checkpoint_and_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reservation = reserve(RUN, plan_with())

    def kill(self: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(private_module.PrivateSteps, "finish", kill)
        train(inputs(tmp_path, RUN), reservation=reservation)
    again = Ledger().resume(reservation.id)
    outcome = train(inputs(tmp_path, RUN), resume=True, reservation=again)
    assert again.steps_spent == plan_with().steps
    assert outcome.privacy is not None
    assert outcome.privacy.epsilon == plan_with().epsilon()
    assert not list(keys().rglob("step-*"))


def test_an_insecure_seed_gives_no_guarantee_and_keeps_no_key(tmp_path: Path) -> None:
    class Watch(SilentProgress):
        def update(self, step: int, **values: float | None) -> None:
            assert values["epsilon"] == math.inf
            assert not keys().exists()

    run = config(private=True, insecure=True)
    first, second = inputs(tmp_path / "a", run), inputs(tmp_path / "b", run)
    outcome = train(first, progress=Watch())
    assert outcome.privacy is not None
    assert (outcome.privacy.guarantee, outcome.privacy.epsilon) == ("none", None)
    assert all(row["epsilon"] is None for row in outcome.series)
    train(second)
    assert same(weights(first), weights(second))


def test_two_secure_runs_differ(tmp_path: Path) -> None:
    first, second = inputs(tmp_path / "a", RUN), inputs(tmp_path / "b", RUN)
    train(first)
    train(second)
    assert not same(weights(first), weights(second))


def test_a_guarantee_given_up_in_the_run_file_is_given_up_in_the_outcome(tmp_path: Path) -> None:
    run = parse({**RUN.to_dict(), "run": {"name": "world", "guarantee": "none"}})
    outcome = train(inputs(tmp_path, run))
    assert outcome.privacy is not None
    assert (outcome.privacy.guarantee, outcome.privacy.epsilon) == ("none", None)


def test_private_training_needs_a_ledger_entry(tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match="entry in the ledger"):
        fit(inputs(tmp_path, RUN), plan=plan_with(), reservation=None, resume=False, progress=SilentProgress())


@pytest.mark.parametrize(
    "plan", [PrivacyPlan(50, BATCH, BATCH / 50, 15, 1, 1, 1e-3), PrivacyPlan(ROWS, 10, 0.25, 15, 1, 1, 1e-3)]
)
def test_a_plan_for_something_else_is_refused(tmp_path: Path, plan: PrivacyPlan) -> None:
    with pytest.raises(PrivacyError, match="make a new plan"):
        fit(inputs(tmp_path, RUN), plan=plan, reservation=reserve(RUN, plan), resume=False, progress=SilentProgress())


def test_a_tensor_that_does_not_move_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opacus issue 820: stale parameters, fine-looking loss, no training."""
    given = inputs(tmp_path, RUN)
    stuck, parameter = list(given.model.named_parameters())[-1]

    class Stale(PrivateEngine):
        def __init__(self, model: object, optimizer: torch.optim.Optimizer, *args: object, **kwargs: object) -> None:
            super().__init__(model, optimizer, *args, **kwargs)
            kept = parameter.detach().clone()
            optimizer.register_step_post_hook(lambda *_: parameter.data.copy_(kept))

    monkeypatch.setattr(private_module, "PrivateEngine", Stale)
    with pytest.raises(EngineStateError, match=f"parameter {stuck} did not move"):
        train(given)


def with_holes(first: int) -> Callable[[object, torch.Tensor], torch.Tensor]:
    """Losses of which the first few of each physical batch are not finite."""
    return lambda model, losses: torch.cat([losses[:first] * float("nan"), losses[first:]])


def test_an_example_without_a_finite_loss_contributes_nothing_and_is_told(tmp_path: Path) -> None:
    given = hooked(inputs(tmp_path, RUN), with_holes(1))
    outcome = train(given)
    assert all(torch.isfinite(tensor).all() for tensor in weights(given).values())
    assert any("were not finite" in warning for warning in outcome.warnings)
    for row in outcome.series:
        assert isinstance(row["loss"], float)
        assert math.isfinite(row["loss"])


def test_no_finite_loss_at_all_is_an_error(tmp_path: Path) -> None:
    given = hooked(inputs(tmp_path, RUN), with_holes(1000))
    with pytest.raises(RunError, match=r"no example has a finite training loss; lower train\.learning_rate"):
        train(given)


def test_the_model_is_left_as_it_was_found(tmp_path: Path) -> None:
    given = inputs(tmp_path, RUN)
    before = {name: vars(module).get("forward") for name, module in given.model.named_modules()}
    kind = type(given.model)
    train(given)
    assert type(given.model) is kind
    assert {name: vars(module).get("forward") for name, module in given.model.named_modules()} == before
    assert all(p.grad is None for p in given.model.parameters())
    with pytest.raises(Killed):
        train(inputs(tmp_path / "b", RUN), progress=KillAt(3))


# Units, sampling and clipping beyond the default


def private_run(train: dict[str, Any] | None = None, **privacy: Any) -> RunConfig:
    data = config(private=True, **(train or {})).to_dict()
    data["privacy"] |= privacy
    return parse(data)


VARIANTS: dict[str, dict[str, Any]] = {
    "automatic": {"clipping": "automatic"},
    "adaptive": {"clipping": "adaptive", "quantile": 0.4},
    "per layer": {"clipping": "per_layer"},
    "micro-batches": {"clip_unit": "microbatch", "microbatch_size": 4},
    "truncated": {"sampler": "truncated_poisson", "max_batch_size": 10},
    "noise of torch": {"secure_noise": False},
}


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_run_resumed_repeats_the_uninterrupted_one(tmp_path: Path, fields: dict[str, Any]) -> None:
    """Same keys, hence the same samples, micro-batches, noise and, where it adapts, the same clipping norm."""
    data = private_run(**fields).to_dict()
    data["run"] |= {"insecure_seed": 5, "guarantee": "none"}
    run = parse(data)
    whole = inputs(tmp_path / "whole", run)
    train(whole)
    plan = plan_of(run)
    entry = reserve(run, plan)
    with pytest.raises(Killed):
        train(inputs(tmp_path / "killed", run), reservation=entry, progress=KillAt(6))
    again = inputs(tmp_path / "killed", run)
    train(again, reservation=entry, resume=True)
    assert same(weights(whole), weights(again))


def test_the_outcome_of_a_run_by_user_speaks_of_users(tmp_path: Path) -> None:
    rows = table()
    units = Units.of([i // 4 for i in range(len(rows))])
    run = private_run({"expected_batch_size": 3}, unit="user", examples_per_user=2)
    assert run.privacy is not None
    plan = make_plan(run.privacy, run.train, len(units))
    given = replace(inputs(tmp_path, run, rows), units=units)
    outcome = fit(given, plan=plan, reservation=reserve(run, plan), resume=False, progress=SilentProgress())
    assert outcome.privacy is not None
    assert (outcome.privacy.unit, outcome.privacy.sampling_rate) == ("user", 0.3)
    assert outcome.steps == 3 * math.ceil(10 / 3)


def test_a_plan_by_user_wants_rows_by_user(tmp_path: Path) -> None:
    run = private_run({"expected_batch_size": 3}, unit="user")
    assert run.privacy is not None
    plan = make_plan(run.privacy, run.train, 10)
    with pytest.raises(PrivacyError, match=r"the plan is for 10 users, data\.train has 40"):
        fit(inputs(tmp_path, run), plan=plan, reservation=reserve(run, plan), resume=False, progress=SilentProgress())


def test_a_loss_that_looks_at_the_batch_stops_the_run(tmp_path: Path) -> None:
    given = hooked(inputs(tmp_path, RUN), lambda model, losses: losses / len(losses))
    with pytest.raises(SelfCheckError, match="the loss of an example changes with the other examples"):
        train(given)
