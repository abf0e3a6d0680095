"""The ledger: reservations, budgets, known rows, and every way it fails closed."""

from __future__ import annotations

import json
import sqlite3
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from troth.accounting import Ledger, PrivacyPlan, Reservation, SpendRequest, key_folder
from troth.errors import BudgetError, ConfigError, EngineStateError, PrivacyError, ResumeError, RunError

Ask = Callable[..., SpendRequest]


def hashes(start: int, stop: int) -> np.ndarray:
    return np.arange(start, stop, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def row(ledger: Ledger, dataset_id: str = "letters") -> dict[str, object]:
    (found,) = [r for r in ledger.show() if r["dataset_id"] == dataset_id]
    return found


def fitting(ledger: Ledger, plan: PrivacyPlan) -> int | None:
    found = ledger.forecast("letters", plan)["fitting_runs"]
    assert found is None or isinstance(found, int)
    return found


def run(ledger: Ledger, index: int = -1, dataset_id: str = "letters") -> dict[str, object]:
    return row(ledger, dataset_id)["runs"][index]


def complete(reservation: Reservation, steps: int) -> None:
    for step in range(steps):
        reservation.spend(step)
    reservation.finish()


class TestReserving:
    def test_the_whole_plan_counts_at_once(self, ledger: Ledger, ask: Ask, small: PrivacyPlan) -> None:
        ledger.set_budget("letters", 2.0, 1e-5, "example")
        fits = fitting(ledger, small)
        ledger.reserve(ask(small))
        assert fitting(ledger, small) == fits - 1
        shown = run(ledger)
        assert (shown["state"], shown["steps_reserved"], shown["steps_spent"]) == ("reserved", 200, 0)
        assert shown["epsilon"] == small.epsilon()

    def test_a_budget_runs_out(self, ledger: Ledger, ask: Ask, small: PrivacyPlan) -> None:
        ledger.set_budget("letters", 0.6, 1e-5, "example")
        fits = fitting(ledger, small)
        assert fits >= 2
        for _ in range(fits):
            complete(ledger.reserve(ask(small)), small.steps)
        with pytest.raises(BudgetError, match="data set letters: its budget of epsilon") as caught:
            ledger.reserve(ask(small, run_name="late"))
        assert "\n" not in str(caught.value)
        assert len(row(ledger)["runs"]) == fits  # the refused run left nothing behind
        assert row(ledger)["spent_epsilon"] <= 0.6

    def test_the_budgets_delta_decides_whatever_the_plans(self, ledger: Ledger, ask: Ask, small: PrivacyPlan) -> None:
        ledger.set_budget("letters", 0.3, 1e-9, "example")
        easy = replace(small, delta=9e-5)
        assert easy.epsilon() < 0.3 < easy.epsilon(delta=1e-9)
        with pytest.raises(BudgetError):
            ledger.reserve(ask(easy))

    def test_without_a_budget_everything_is_recorded(self, ledger: Ledger, ask: Ask, small: PrivacyPlan) -> None:
        complete(ledger.reserve(ask(small)), small.steps)
        ledger.reserve(ask(small))
        shown = row(ledger)
        assert shown["budget_epsilon"] is None
        assert shown["remaining_share"] is None
        assert shown["spent_epsilon"] == shown["reference_epsilon"] == small.epsilon(2 * small.steps)
        assert fitting(ledger, small) is None

    def test_noise_zero_is_no_privacy(self, ledger: Ledger, ask: Ask, small: PrivacyPlan) -> None:
        bare = replace(small, noise_multiplier=0.0)
        with pytest.raises(PrivacyError, match="noise_multiplier 0"):
            ledger.reserve(ask(bare))
        ledger.reserve(ask(bare, guarantee="none"))
        assert row(ledger)["spent_epsilon"] is None

    def test_a_data_set_without_id_goes_by_its_rows_in_any_order(
        self, ledger: Ledger, ask: Ask, small: PrivacyPlan
    ) -> None:
        rows = hashes(0, 100)
        first = ledger.reserve(ask(small, dataset_id=None, row_hashes=rows))
        second = ledger.reserve(ask(small, dataset_id=None, row_hashes=rows[::-1].copy()))
        third = ledger.reserve(ask(small, dataset_id=None, row_hashes=np.append(rows, rows[:1])))
        assert first.dataset_key == second.dataset_key != third.dataset_key
        assert first.dataset_key.startswith("rows:")
        assert row(ledger, first.dataset_key)["declared"] is False
        ledger.set_budget(first.dataset_key, 2.0, 1e-5, "example")
        assert row(ledger, first.dataset_key)["budget_epsilon"] == 2.0

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"dataset_id": None}, "dataset_id"),
            ({"dataset_id": None, "row_hashes": np.zeros(0, dtype=np.uint64)}, "dataset_id"),
            ({"row_hashes": np.zeros(3, dtype=np.int64)}, "row_hashes"),
            ({"row_hashes": np.zeros((3, 1), dtype=np.uint64)}, "row_hashes"),
            ({"dataset_id": "rows:0"}, "rows:"),
        ],
    )
    def test_what_cannot_be_known_again_is_refused(
        self, ledger: Ledger, ask: Ask, small: PrivacyPlan, changes: dict[str, object], named: str
    ) -> None:
        with pytest.raises(PrivacyError, match=named):
            ledger.reserve(ask(small, **changes))
        assert ledger.show() == []

    @pytest.mark.parametrize("name", ["", " x", "a\nb", "x" * 201])
    def test_a_bad_id_is_refused(self, ledger: Ledger, ask: Ask, small: PrivacyPlan, name: str) -> None:
        with pytest.raises(ConfigError) as caught:
            ledger.reserve(ask(small, dataset_id=name))
        assert "\n" not in str(caught.value)


class TestRunsWithoutGuarantee:
    def test_a_plain_run_on_a_budget_is_refused_unless_the_guarantee_is_given_up(
        self, ledger: Ledger, ask: Ask
    ) -> None:
        ledger.set_budget("letters", 2.0, 1e-5, "example")
        with pytest.raises(BudgetError, match=r"guarantee = 'none'"):
            ledger.reserve(ask(None, kind="shadow"))
        assert (row(ledger)["spent_epsilon"], row(ledger)["spent_method"]) == (0.0, "nothing counts yet")
        ledger.reserve(ask(None, guarantee="none"))
        shown = json.loads(json.dumps(ledger.show(), allow_nan=False))[0]
        assert shown["spent_epsilon"] is None
        assert shown["spent_method"] == "a run without a guarantee"
        assert shown["guarantee"] == "none"
        assert shown["remaining_share"] == 0.0

    def test_an_insecure_run_counts_as_infinite_and_nothing_follows(
        self, ledger: Ledger, ask: Ask, small: PrivacyPlan
    ) -> None:
        ledger.set_budget("letters", 2.0, 1e-5, "example")
        reservation = ledger.reserve(ask(small, guarantee="none", run_name="seeded"))
        assert row(ledger)["spent_epsilon"] is None
        for _ in range(2):
            with pytest.raises(BudgetError, match="infinity since run seeded"):
                ledger.reserve(ask(small))
            if run(ledger)["state"] == "reserved":
                ledger.release(reservation.id)  # no way back
        assert fitting(ledger, small) == 0

    def test_a_plain_run_without_budget_is_recorded_as_infinite(self, ledger: Ledger, ask: Ask) -> None:
        reservation = ledger.reserve(ask(None))
        complete(reservation, 40)
        assert run(ledger)["guarantee"] == "none"
        assert run(ledger)["state"] == "finished"
        with pytest.raises(BudgetError, match="spent already: infinity by first"):
            ledger.set_budget("letters", 5.0, 1e-5, "example")

    def test_a_plain_run_is_held_against_budgets_without_a_record(
        self, ledger: Ledger, ask: Ask, small: PrivacyPlan
    ) -> None:
        plain = ask(None, dataset_id="copy", row_hashes=hashes(0, 100))
        ledger.reserve(ask(small, row_hashes=hashes(0, 50)))
        assert ledger.check_plain(plain) == ()
        assert ledger.check_plain(replace(plain, dataset_id="letters")) == ()
        ledger.set_budget("letters", 2.0, 1e-5, "example")
        (warning,) = ledger.check_plain(plain)
        assert "50 of 100 rows (50.0%)" in warning
        with pytest.raises(BudgetError, match="data set letters has a privacy budget"):
            ledger.check_plain(replace(plain, dataset_id="letters"))
        assert ledger.check_plain(replace(plain, dataset_id="letters", guarantee="none")) == ()
        assert [len(r["runs"]) for r in ledger.show()] == [1]

    def test_a_forecast_tells_what_the_account_tells(self, ledger: Ledger, ask: Ask, small: PrivacyPlan) -> None:
        unknown = ledger.forecast("nobody", small)
        assert (unknown["fitting_runs"], unknown["budget_epsilon"]) == (None, None)
        ledger.set_budget("letters", 2.0, 1e-5, "example")
        ledger.reserve(ask(small))
        told, shown = ledger.forecast("letters", small), row(ledger)
        assert told["epsilon"] == small.epsilon()
        for name in ("budget_epsilon", "budget_delta", "spent_epsilon", "remaining_share"):
            assert told[name] == shown[name]


class TestSpending:
    def test_each_step_is_on_disk_before_it_is_visible_and_few_writes_do(
        self, ledger: Ledger, ask: Ask, small: PrivacyPlan, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reservation = ledger.reserve(ask(small))
        writes: list[int] = []
        real = reservation._store.write

        def counted() -> object:
            writes.append(1)
            return real()

        monkeypatch.setattr(reservation._store, "write", counted)
        other = Ledger(ledger.home)
        for step in range(small.steps):
            reservation.spend(step)
            if step % 37 == 0:
                assert run(other)["steps_spent"] == reservation.steps_spent
            assert step + 1 <= reservation.steps_spent < step + 1 + 16
        assert len(writes) == -(-small.steps // 16)
        assert reservation.steps_spent == small.steps

    def test_a_finished_run_spent_exactly_its_plan(self, ledger: Ledger, ask: Ask, small: PrivacyPlan) -> None:
        complete(ledger.reserve(ask(small)), small.steps)
        shown = run(ledger)
        assert (shown["state"], shown["steps_spent"], shown["steps_reserved"]) == ("finished", 200, 200)

    @pytest.mark.parametrize("step", [-1, 200, 1000])
    def test_a_step_outside_of_the_plan_is_refused(
        self, ledger: Ledger, ask: Ask, small: PrivacyPlan, step: int
    ) -> None:
        with pytest.raises(EngineStateError, match="200 steps"):
            ledger.reserve(ask(small)).spend(step)

    def test_finishing_early_is_refused(self, ledger: Ledger, ask: Ask, small: PrivacyPlan) -> None:
        reservation = ledger.reserve(ask(small))
        reservation.spend(20)
        with pytest.raises(EngineStateError, match="36 of 200"):
            reservation.finish()
        assert run(ledger)["state"] == "running"

    def test_blocks_of_one_are_exact(self, tmp_path: Path, ask: Ask, small: PrivacyPlan) -> None:
        reservation = Ledger(tmp_path / "other", block_steps=1).reserve(ask(small))
        reservation.spend(0)
        assert reservation.steps_spent == 1
        with pytest.raises(ConfigError, match="block_steps"):
            Ledger(tmp_path / "other", block_steps=0)


class TestResuming:
    def test_an_interrupted_run_stays_reserved_and_goes_on(self, ledger: Ledger, ask: Ask, small: PrivacyPlan) -> None:
        reservation = ledger.reserve(ask(small))
        reservation.spend(17)
        again = Ledger(ledger.home).resume(reservation.id)
        assert again.plan == small
        assert (again.dataset_key, again.config_hash) == ("letters", "c0ffee")
        assert again.steps_spent == again.position == 33
        complete(again, small.steps)
        assert run(ledger)["steps_spent"] == 200

    def test_a_replay_counts_steps_twice(self, ledger: Ledger, ask: Ask, small: PrivacyPlan) -> None:
        reservation = ledger.reserve(ask(small))
        reservation.spend(30)  # durable up to 46
        again = ledger.resume(reservation.id)
        assert again.replay_from(20) == 26
        assert again.steps_spent == 46 + 26
        assert again.position == 46
        for step in range(20, 200):
            again.spend(step)
            assert again.steps_spent >= 46 + (step - 20 + 1)  # what ran before the crash, and what ran since
        again.finish()
        shown = run(ledger)
        assert (shown["steps_spent"], shown["steps_reserved"], shown["steps_replayed"]) == (226, 226, 26)
        assert shown["epsilon"] == small.epsilon(226)

    def test_a_replay_beyond_the_budget_is_refused_and_counts_nothing(
        self, ledger: Ledger, ask: Ask, small: PrivacyPlan
    ) -> None:
        ledger.set_budget("letters", 0.6, 1e-5, "example")
        for _ in range(fitting(ledger, small)):
            reservation = ledger.reserve(ask(small))
        reservation.spend(100)
        with pytest.raises(BudgetError):
            reservation.replay(10_000)
        assert run(ledger)["steps_reserved"] == 200
        assert reservation.steps_spent == 116
        with pytest.raises(EngineStateError, match="-1"):
            reservation.replay(-1)

    def test_a_replay_within_one_mechanism_is_held_to_the_budget(
        self, ledger: Ledger, ask: Ask, large: PrivacyPlan
    ) -> None:
        ledger.set_budget("letters", 1.85, 1e-5, "example")
        reservation = ledger.reserve(ask(large))
        assert row(ledger)["spent_method"] == "pld, one mechanism"
        reservation.replay(2)
        with pytest.raises(BudgetError):
            reservation.replay(60)
        assert row(ledger)["spent_epsilon"] == large.epsilon(202)

    def test_whoever_resumed_last_goes_on_alone(self, ledger: Ledger, ask: Ask, small: PrivacyPlan) -> None:
        first = ledger.reserve(ask(small))
        first.spend(0)
        second = ledger.resume(first.id)
        first.spend(15)  # counted before it was overtaken
        with pytest.raises(EngineStateError, match="another process"):
            first.spend(16)
        with pytest.raises(EngineStateError, match="another process"):
            first.replay(1)
        second.spend(16)

    def test_what_cannot_be_resumed(self, ledger: Ledger, ask: Ask, small: PrivacyPlan) -> None:
        reservation = ledger.reserve(ask(small))
        with pytest.raises(ResumeError, match="another configuration"):
            ledger.resume(reservation.id, config_hash="decaf")
        complete(reservation, 200)
        with pytest.raises(ResumeError, match="finished"):
            ledger.resume(reservation.id)
        with pytest.raises(ResumeError, match="not in the ledger"):
            ledger.resume("nothing")


class TestReleasing:
    def test_only_the_durable_steps_count_from_then_on(self, ledger: Ledger, ask: Ask, small: PrivacyPlan) -> None:
        ledger.set_budget("letters", 0.6, 1e-5, "example")
        reservation = ledger.reserve(ask(small))
        reservation.spend(40)
        before = row(ledger)["spent_epsilon"]
        ledger.release(reservation.id)
        shown = run(ledger)
        assert (shown["state"], shown["steps_spent"]) == ("released", 56)
        assert shown["epsilon"] == small.epsilon(56)
        assert 0 < row(ledger)["spent_epsilon"] < before

    def test_a_released_run_cannot_go_on(self, ledger: Ledger, ask: Ask, small: PrivacyPlan) -> None:
        reservation = ledger.reserve(ask(small))
        reservation.spend(0)
        keys = key_folder(reservation.id)
        keys.mkdir(parents=True)
        (keys / "step-1").write_text("a key")
        ledger.release(reservation.id)
        assert not keys.exists()
        for call in (lambda: reservation.spend(16), lambda: reservation.replay(1)):
            with pytest.raises(EngineStateError, match="released"):
                call()
        with pytest.raises(ResumeError, match="released"):
            ledger.resume(reservation.id)
        with pytest.raises(ResumeError, match="released"):
            ledger.release(reservation.id)

    def test_a_run_that_took_no_step_leaves_the_choice_of_rule_open(
        self, ledger: Ledger, ask: Ask, small: PrivacyPlan, large: PrivacyPlan
    ) -> None:
        ledger.set_budget("letters", 2.0, 1e-5, "example")
        reservation = ledger.reserve(ask(large))
        with pytest.raises(BudgetError, match="bound to its noise"):
            ledger.reserve(ask(replace(large, noise_multiplier=0.79, steps=1)))
        ledger.release(reservation.id)
        assert row(ledger)["spent_epsilon"] == 0.0
        ledger.reserve(ask(small))
        assert row(ledger)["spent_method"].startswith("renyi filter")

    def test_a_run_that_took_a_step_does_not(
        self, ledger: Ledger, ask: Ask, small: PrivacyPlan, large: PrivacyPlan
    ) -> None:
        ledger.set_budget("letters", 2.0, 1e-5, "example")
        reservation = ledger.reserve(ask(large))
        reservation.spend(0)
        ledger.release(reservation.id)
        assert row(ledger)["spent_method"] == "pld, one mechanism"
        with pytest.raises(BudgetError, match="bound to its noise"):
            ledger.reserve(ask(replace(large, noise_multiplier=0.79, steps=1)))


class TestBudgets:
    def test_a_stricter_budget_than_what_is_spent_is_refused_and_says_what_is(
        self, ledger: Ledger, ask: Ask, small: PrivacyPlan
    ) -> None:
        ledger.set_budget("letters", 2.0, 1e-5, "example")
        ledger.reserve(ask(small, run_name="taker"))
        spent = row(ledger)["spent_epsilon"]
        with pytest.raises(BudgetError, match=rf"spent already: epsilon {spent:.4g} at delta 1e-05 by taker"):
            ledger.set_budget("letters", 0.9 * spent, 1e-5, "example")
        assert row(ledger)["budget_epsilon"] == 2.0
        ledger.set_budget("letters", 1.1 * spent, 1e-5, "example")
        assert row(ledger)["budget_epsilon"] == 1.1 * spent

    def test_runs_before_the_budget_count(self, ledger: Ledger, ask: Ask, small: PrivacyPlan) -> None:
        ledger.reserve(ask(small))
        with pytest.raises(BudgetError, match="stricter"):
            ledger.set_budget("letters", 0.2, 1e-5, "example")
        ledger.set_budget("letters", 2.0, 1e-5, "example")
        assert row(ledger)["spent_epsilon"] >= small.epsilon()

    def test_a_larger_budget_keeps_the_order_while_anything_counts(
        self, ledger: Ledger, ask: Ask, small: PrivacyPlan
    ) -> None:
        ledger.set_budget("letters", 0.5, 1e-5, "example")
        ledger.reserve(ask(small))
        method = row(ledger)["spent_method"]
        ledger.set_budget("letters", 9.0, 1e-6, "example")
        assert row(ledger)["spent_method"] == method

    def test_mixed_units_and_relations_are_refused(self, ledger: Ledger, ask: Ask, small: PrivacyPlan) -> None:
        ledger.set_budget("letters", 2.0, 1e-5, "user")
        with pytest.raises(PrivacyError, match="unit user, the plan has example"):
            ledger.reserve(ask(small))
        with pytest.raises(PrivacyError, match="unit user"):
            fitting(ledger, small)
        ledger.reserve(ask(small, dataset_id="notes"))
        with pytest.raises(PrivacyError, match="by example, not by user"):
            ledger.set_budget("notes", 2.0, 1e-5, "user")
        with sqlite3.connect(ledger.home / "ledger.sqlite3") as database:
            database.execute("UPDATE datasets SET neighboring_relation = 'zero_out' WHERE id = 'notes'")
        database.close()
        with pytest.raises(PrivacyError, match="neighbouring relation zero_out, the plan has add_remove"):
            ledger.reserve(ask(small, dataset_id="notes"))

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            (("letters", 0.0, 1e-5, "example"), "epsilon = 0"),
            (("letters", float("nan"), 1e-5, "example"), "epsilon"),
            (("letters", 1.0, 0.0, "example"), "delta"),
            (("letters", 1.0, 0.5, "example"), "delta"),
            (("letters", 1.0, 1e-5, "sentence"), "unit"),
            (("", 1.0, 1e-5, "example"), "data set id"),
            (("rows:abc", 1.0, 1e-5, "example"), "not in the ledger"),
        ],
    )
    def test_a_bad_budget_is_refused(
        self, ledger: Ledger, arguments: tuple[str, float, float, str], named: str
    ) -> None:
        with pytest.raises(ConfigError, match=named) as caught:
            ledger.set_budget(*arguments)
        assert "\n" not in str(caught.value)
        assert ledger.show() == []


class TestKnownRows:
    def test_an_overlap_with_another_data_set_is_told_with_its_share(
        self, ledger: Ledger, ask: Ask, small: PrivacyPlan
    ) -> None:
        first = ledger.reserve(ask(small, row_hashes=hashes(0, 1000)))
        assert first.warnings == ()
        second = ledger.reserve(ask(small, dataset_id="copy", row_hashes=hashes(750, 1250)))
        (warning,) = second.warnings
        assert "250 of 500 rows (50.0%)" in warning
        assert "data set letters" in warning
        assert "\n" not in warning
        third = ledger.reserve(ask(small, dataset_id=None, row_hashes=hashes(900, 1100)))
        assert [w.split("(")[1].split(")")[0] for w in third.warnings] == ["100.0%", "50.0%"]

    def test_rows_of_a_declared_data_set_are_added_up_and_do_not_warn_of_themselves(
        self, ledger: Ledger, ask: Ask, small: PrivacyPlan
    ) -> None:
        ledger.reserve(ask(small, row_hashes=hashes(0, 100)))
        again = ledger.reserve(ask(small, row_hashes=hashes(50, 101)))
        assert again.warnings == ()
        assert row(ledger)["rows"] == 101
        assert len(row(ledger)["runs"]) == 2

    def test_a_refused_run_leaves_no_rows(self, ledger: Ledger, ask: Ask, small: PrivacyPlan) -> None:
        ledger.set_budget("letters", 0.1, 1e-5, "example")
        with pytest.raises(BudgetError):
            ledger.reserve(ask(small, row_hashes=hashes(0, 100)))
        assert row(ledger)["rows"] == 0


class TestFiles:
    def test_ledger_and_key_are_the_owners_alone(self, ledger: Ledger) -> None:
        for name in ("ledger.sqlite3", "ledger.key"):
            assert stat.S_IMODE((ledger.home / name).stat().st_mode) == 0o600
        (ledger.home / "ledger.key").chmod(0o644)
        Ledger(ledger.home)
        assert stat.S_IMODE((ledger.home / "ledger.key").stat().st_mode) == 0o600
        assert stat.S_IMODE(ledger.home.stat().st_mode) == 0o700

    def test_the_key_is_secret_and_stays(self, ledger: Ledger, tmp_path: Path) -> None:
        assert len(ledger.key) == 32
        assert Ledger(ledger.home).key == ledger.key
        assert Ledger(tmp_path / "other").key != ledger.key

    def test_the_default_home_is_troth_home(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("TROTH_HOME", str(tmp_path / "mine"))
        assert Ledger().home == tmp_path / "mine"
        assert (tmp_path / "mine" / "ledger.sqlite3").exists()

    @pytest.mark.parametrize("name", ["ledger.sqlite3", "ledger.key"])
    def test_one_file_without_the_other_is_an_error(self, ledger: Ledger, name: str) -> None:
        (ledger.home / name).unlink()
        with pytest.raises(RunError, match="missing") as caught:
            Ledger(ledger.home)
        assert "\n" not in str(caught.value)

    def test_another_ledgers_key_is_refused(self, ledger: Ledger, tmp_path: Path) -> None:
        other = Ledger(tmp_path / "other")
        (other.home / "ledger.key").write_bytes(ledger.key)
        with pytest.raises(RunError, match="not its key"):
            Ledger(other.home)

    @pytest.mark.parametrize("crash", ["after the key", "after the database", "during the database"])
    def test_a_crash_while_the_files_were_made_is_mended(self, ledger: Ledger, crash: str) -> None:
        home, key = ledger.home, ledger.key
        (home / "ledger.key").rename(home / "ledger.key.new")
        if crash != "after the database":
            (home / "ledger.sqlite3").unlink()
        if crash == "during the database":
            (home / "ledger.sqlite3.new").write_bytes(b"half")
        again = Ledger(home)
        assert (again.key == key) == (crash == "after the database")
        assert again.show() == []

    @pytest.mark.parametrize("damage", ["empty", "text", "header", "middle", "foreign", "newer"])
    def test_a_damaged_ledger_is_refused_in_one_line(
        self, ledger: Ledger, ask: Ask, small: PrivacyPlan, damage: str
    ) -> None:
        ledger.reserve(ask(small, row_hashes=hashes(0, 5000)))
        path = ledger.home / "ledger.sqlite3"
        content = path.read_bytes()
        if damage == "empty":
            path.write_bytes(b"")
        elif damage == "text":
            path.write_text("not a database " * 100)
        elif damage == "header":
            path.write_bytes(b"\0" * 100 + content[100:])
        elif damage == "middle":
            path.write_bytes(content[:4096] + b"\xff" * 8192 + content[12288:])
        else:
            path.unlink() if damage == "foreign" else None
            with sqlite3.connect(path) as database:
                database.execute("PRAGMA user_version = 99" if damage == "newer" else "CREATE TABLE other (x)")
            database.close()
        with pytest.raises(RunError, match="privacy ledger") as caught:
            Ledger(ledger.home)
        assert "\n" not in str(caught.value)

    def test_damage_while_running_stops_the_run(self, ledger: Ledger, ask: Ask, small: PrivacyPlan) -> None:
        reservation = ledger.reserve(ask(small))
        (ledger.home / "ledger.sqlite3").write_bytes(b"gone")
        with pytest.raises(RunError, match="damaged"):
            reservation.spend(0)

    def test_a_deleted_ledger_is_not_made_anew_while_running(
        self, ledger: Ledger, ask: Ask, small: PrivacyPlan
    ) -> None:
        reservation = ledger.reserve(ask(small))
        (ledger.home / "ledger.sqlite3").unlink()
        with pytest.raises(RunError, match="cannot be opened"):
            reservation.spend(0)
        assert not (ledger.home / "ledger.sqlite3").exists()

    def test_a_locked_ledger_is_refused_in_one_line(self, ledger: Ledger, ask: Ask, small: PrivacyPlan) -> None:
        hasty = Ledger(ledger.home, busy_seconds=0.05)
        reservation = hasty.reserve(ask(small))
        holder = sqlite3.connect(ledger.home / "ledger.sqlite3", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(RunError, match="another process holds it") as caught:
            reservation.spend(0)
        holder.close()
        assert "\n" not in str(caught.value)
        assert reservation.steps_spent == 0
        reservation.spend(0)

    def test_a_home_that_cannot_be_made_is_refused_in_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(RunError, match="set TROTH_HOME") as caught:
            Ledger(tmp_path / "file" / "home")
        assert "\n" not in str(caught.value)

    def test_what_was_spent_cannot_be_taken_back(self, ledger: Ledger, ask: Ask, small: PrivacyPlan) -> None:
        ledger.reserve(ask(small)).spend(0)
        database = sqlite3.connect(ledger.home / "ledger.sqlite3", isolation_level=None)
        for statement in (
            "UPDATE reservations SET steps_spent = 1",
            "DELETE FROM reservations",
            "UPDATE reservations SET steps_spent = 201",
        ):
            with pytest.raises(sqlite3.IntegrityError):
                database.execute(statement)
        database.execute("UPDATE reservations SET state = 'released'")
        with pytest.raises(sqlite3.IntegrityError, match="cannot change"):
            database.execute("UPDATE reservations SET state = 'running'")
        database.close()

    def test_writes_are_synced_with_their_folder(self, ledger: Ledger) -> None:
        with ledger._store.write() as database:
            assert database.execute("PRAGMA synchronous").fetchone()[0] == 3  # EXTRA
            assert database.execute("PRAGMA journal_mode").fetchone()[0] == "delete"
