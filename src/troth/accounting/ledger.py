"""The privacy ledger: what each data set has lost, kept so that no crash, race or second file makes it smaller."""

from __future__ import annotations

import json
import math
import secrets
import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from troth.accounting import known_rows, records
from troth.accounting.filter import Budget, Charge, Way, admit, fitting_runs, keeps, names, spent_epsilon
from troth.accounting.home import key_folder, troth_home
from troth.accounting.plan import PrivacyPlan
from troth.accounting.records import DatasetRecord
from troth.accounting.reservation import Reservation
from troth.accounting.statement import statement
from troth.accounting.storage import LedgerStore
from troth.errors import BudgetError, ConfigError, PrivacyError, ResumeError
from troth.results import Json, now

__all__ = ["Ledger", "SpendRequest"]

Guarantee = Literal["differential_privacy", "none"]


@dataclass(frozen=True, eq=False)
class SpendRequest:
    """What a run asks of its data set.

    Attributes:
        dataset_id: the declared id; None to go by the rows.
        run_name: for the user to recognise it by.
        plan: None for a run without privacy (plain training, shadow models, a federation without it): infinity.
        guarantee: ``none`` where the user gave the guarantee up.
        row_hashes: [rows] uint64, from ``troth.data.row_hashes(table, ledger.key)``; needed without a declared id.
        config_hash: of the resolved configuration, to refuse a resumption under another one.
        kind: what sort of run, such as ``train``.
    """

    dataset_id: str | None
    run_name: str
    plan: PrivacyPlan | None
    guarantee: Guarantee
    row_hashes: np.ndarray | None
    config_hash: str
    kind: str = "train"


class Ledger:
    """The ledger in a home folder: budgets, reservations and known rows of all data sets.

    A data set is known by its declared id, so that a new file with one row more does not reset its budget; without one,
    by a keyed hash of its rows. Keyed hashes of the rows of every data set are kept, and rows that another data set
    has too are told. How budgets compose is written in `troth.accounting.filter`.

    Guarantees:
        - a run's whole plan is reserved before its first step, in one exclusive transaction: two processes cannot both
          take the last of a budget;
        - an interrupted run keeps its whole reservation until it is resumed or released;
        - what is counted is never below what became visible, whenever a process is killed;
        - a data set is accounted for in one unit and one neighbouring relation;
        - what cannot be read or written raises; nothing goes on uncounted.

    Args:
        home: the ledger's folder; default `troth_home`.
        block_steps: how many steps a durable write announces at once; a crash over-counts by less than that.
        busy_seconds: how long to wait for another process.

    Raises:
        RunError: the home cannot be used, or the ledger is damaged.
    """

    def __init__(self, home: Path | None = None, *, block_steps: int = 16, busy_seconds: float = 30.0) -> None:
        if block_steps < 1:
            raise ConfigError(f"block_steps = {block_steps}: give at least 1")
        self._store = LedgerStore(troth_home() if home is None else Path(home).absolute(), busy_seconds)
        self._block_steps = block_steps

    @property
    def home(self) -> Path:
        """The ledger's folder."""
        return self._store.home

    @property
    def key(self) -> bytes:
        """The secret that row hashes are keyed with: without it, nobody can test whether a text is in a data set."""
        return self._store.key

    def set_budget(self, dataset_id: str, epsilon: float, delta: float, unit: str) -> None:
        """Give a data set a budget, or change it.

        A budget is a public decision: choose it from what is at stake, never from what earlier runs on the data showed.
        Runs made before count against it. While anything counts, a change keeps the Rényi order and the rule by which
        runs compose (see `troth.accounting.filter`).

        Raises:
            ConfigError: a value is out of range.
            PrivacyError: runs on the data set were accounted for in another unit.
            BudgetError: more is spent already than the budget allows; the text says how much, and by whom.
        """
        _check_budget(dataset_id, epsilon, delta, unit)
        with self._store.write() as database:
            known = records.dataset(database, dataset_id)
            if known is None and dataset_id.startswith("rows:"):
                raise ConfigError(f"data set {dataset_id}: not in the ledger; see troth ledger show")
            if known is not None and known.unit not in (None, unit):
                raise PrivacyError(
                    f"data set {dataset_id}: accounted for by {known.unit}, not by {unit}; keep its unit"
                )
            charges = records.charges(database, dataset_id)
            live = [c for c in charges if c.infinite or c.steps]
            budget, held = Budget(epsilon, delta, unit), None if known is None else known.way
            way = keeps(budget, held, live) if live else None
            if live and way is None:
                raise BudgetError(_too_strict(dataset_id, budget, held, live))
            _ensure_dataset(database, dataset_id, declared=True)
            database.execute(
                "UPDATE datasets SET budget_epsilon = ?, budget_delta = ?, unit = ? WHERE id = ?",
                (epsilon, delta, unit, dataset_id),
            )
            records.set_way(database, dataset_id, way)

    def reserve(self, request: SpendRequest) -> Reservation:
        """Reserve a run's whole plan, durably, before its first step.

        Raises:
            BudgetError: the data set's budget does not cover it, or it has a budget and the run has no privacy.
            PrivacyError: the unit or neighbouring relation differs from what the data set is accounted for in, the
                plan has no noise, or the data set has neither id nor row hashes.
            RunError: the ledger cannot be read or written.
        """
        key = self._dataset_key(request)
        unique = None if request.row_hashes is None else known_rows.checked(request.row_hashes)
        with self._store.write() as database:
            known = _ensure_dataset(database, key, declared=request.dataset_id is not None)
            way = _admitted(database, known, request)
            warnings = () if unique is None else known_rows.overlaps(database, key, unique)
            reservation_id = _insert(database, key, request)
            if request.plan is not None:
                database.execute(
                    "UPDATE datasets SET unit = ?, neighboring_relation = ? WHERE id = ?",
                    (request.plan.unit, request.plan.neighboring_relation, key),
                )
            if way is not None:
                records.set_way(database, key, way)
            if unique is not None:
                known_rows.merge(database, key, unique)
            record = records.reservation(database, reservation_id)
        if record is None:
            raise PrivacyError(f"run {request.run_name}: its reservation was not written")
        return Reservation(self._store, record, self._block_steps, warnings)

    def check_plain(self, request: SpendRequest) -> tuple[str, ...]:
        """Hold a run without privacy against the budgets, and record nothing.

        A data set without a budget has nothing to keep: plain runs on it are not recorded. Where there is a budget, the
        run must give its guarantee up, and `reserve` then records infinity.

        Returns:
            One warning for each other data set with a budget that shares rows with this one.

        Raises:
            BudgetError: the data set has a budget, and the request does not give up the guarantee.
            PrivacyError: the data set has neither id nor row hashes.
            RunError: the ledger cannot be read.
        """
        key = self._dataset_key(request)
        with self._store.read() as database:
            known = records.dataset(database, key)
            if known is not None:
                _admitted(database, known, request)
            if request.row_hashes is None:
                return ()
            return known_rows.overlaps(database, key, known_rows.checked(request.row_hashes), with_budget=True)

    def resume(self, reservation_id: str, config_hash: str | None = None) -> Reservation:
        """Return the reservation of an interrupted run; from now on only its holder can go on.

        Raises:
            ResumeError: no such reservation, it is finished or released, or `config_hash` is another one.
        """
        with self._store.write() as database:
            record = _open_reservation(database, reservation_id)
            if config_hash is not None and config_hash != record.config_hash:
                raise ResumeError(f"run {record.run_name}: reserved under another configuration; restore its run file")
            owner = secrets.token_hex(8)
            database.execute("UPDATE reservations SET owner = ? WHERE id = ?", (owner, reservation_id))
            record = _open_reservation(database, reservation_id)
        return Reservation(self._store, record, self._block_steps)

    def release(self, reservation_id: str) -> None:
        """Give back what an interrupted run will not use: from now on its durably counted steps alone count.

        Sound, since those are an upper bound on the steps that became visible, and the run can never go on: a process
        that still runs it is stopped before its next uncounted step. A run without a guarantee stays infinite. The
        run's keys, from which its noise could be computed, are erased.

        Raises:
            ResumeError: no such reservation, or it is finished or released.
        """
        with self._store.write() as database:
            record = _open_reservation(database, reservation_id)
            database.execute("UPDATE reservations SET state = 'released' WHERE id = ?", (reservation_id,))
            if not any(c.infinite or c.steps for c in records.charges(database, record.dataset)):
                records.set_way(database, record.dataset, None)  # no step has touched the data: choose anew
        shutil.rmtree(key_folder(reservation_id), ignore_errors=True)

    def show(self) -> list[dict[str, Json]]:
        """Return one row for each data set, with its runs, as plain JSON values (`troth.accounting.statement`)."""
        with self._store.read() as database:
            entries = [
                (known, records.reservations(database, known.id), known_rows.count(database, known.id))
                for known in records.datasets(database)
            ]
        return [statement(known, runs, rows) for known, runs, rows in entries]

    def forecast(self, dataset_id: str, plan: PrivacyPlan) -> dict[str, Json]:
        """Return how many more runs of `plan` fit the data set's budget, as plain JSON values.

        Keys: dataset_id; plan (in words); epsilon (the plan's alone, at its own delta); fitting_runs (null without a
        budget: nothing bounds them); budget_epsilon, budget_delta, spent_epsilon, remaining_share as in `show`.

        Raises:
            PrivacyError: the plan's unit or neighbouring relation is not the data set's.
        """
        with self._store.read() as database:
            known = records.dataset(database, dataset_id)
            runs = records.reservations(database, dataset_id)
        fits: int | None = None
        if known is not None:
            _check_unit(known, plan)
            if known.budget is not None:
                charge = Charge("forecast", plan.mechanism, plan.steps)
                fits = fitting_runs(known.budget, known.way, [r.charge for r in runs], charge)
        account = {} if known is None else statement(known, runs, 0)
        kept = ("budget_epsilon", "budget_delta", "spent_epsilon", "remaining_share")
        return {
            "dataset_id": dataset_id,
            "plan": plan.summary(),
            "epsilon": plan.epsilon(),
            "fitting_runs": fits,
            **{name: account.get(name) for name in kept},
        }

    def _dataset_key(self, request: SpendRequest) -> str:
        if request.dataset_id is not None:
            _check_id(request.dataset_id)
            if request.dataset_id.startswith("rows:"):
                raise PrivacyError(f"data.dataset_id = '{request.dataset_id}': names that begin with rows: are taken")
            return request.dataset_id
        if request.row_hashes is None or not request.row_hashes.size:
            raise PrivacyError("the ledger knows neither id nor rows of the data set: set data.dataset_id")
        known_rows.checked(request.row_hashes)
        return known_rows.rows_key(request.row_hashes, self.key)


def _check_id(dataset_id: str) -> None:
    if not (0 < len(dataset_id) <= 200 and dataset_id.isprintable() and dataset_id == dataset_id.strip()):
        raise ConfigError(f"data set id {dataset_id[:80]!r}: give 1 to 200 printable characters without outer blanks")


def _check_budget(dataset_id: str, epsilon: float, delta: float, unit: str) -> None:
    _check_id(dataset_id)
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise ConfigError(f"epsilon = {epsilon}: give a finite number above 0")
    if not 0 < delta <= 0.1:
        raise ConfigError(f"delta = {delta}: give a number far below 1/n, such as 1e-5")
    if unit not in ("example", "user"):
        raise ConfigError(f"unit = '{unit}': give example or user")


def _check_unit(known: DatasetRecord, plan: PrivacyPlan) -> None:
    for name, held, asked in (
        ("unit", known.unit, plan.unit),
        ("neighbouring relation", known.neighboring_relation, plan.neighboring_relation),
    ):
        if held not in (None, asked):
            raise PrivacyError(
                f"data set {known.id}: accounted for with {name} {held}, the plan has {asked}; the two do not add up: "
                f"keep {held}, or use another data set"
            )


def _admitted(database: sqlite3.Connection, known: DatasetRecord, request: SpendRequest) -> Way | None:
    """Return the rule the budget goes by once the request is in; None without a budget, or without a guarantee."""
    plan = request.plan
    if plan is not None:
        _check_unit(known, plan)
    if request.guarantee == "none":
        return None
    if plan is None:
        if known.budget is None:
            return None
        raise BudgetError(
            f"data set {known.id} has a privacy budget (epsilon {known.budget.epsilon:g}), and {request.kind} run "
            f"{request.run_name} is not private: add [privacy], or write run.guarantee = 'none' (the ledger then "
            "shows infinity)"
        )
    if plan.noise_multiplier == 0:
        raise PrivacyError(f"run {request.run_name}: noise_multiplier 0 is no privacy; write run.guarantee = 'none'")
    if known.budget is None:
        return None
    charge = Charge(request.run_name, plan.mechanism, plan.steps)
    return admit(known.id, known.budget, known.way, records.charges(database, known.id), charge)


def _ensure_dataset(database: sqlite3.Connection, key: str, *, declared: bool) -> DatasetRecord:
    database.execute(
        "INSERT OR IGNORE INTO datasets (id, declared, created) VALUES (?, ?, ?)",
        (key, declared and not key.startswith("rows:"), now()),
    )
    known = records.dataset(database, key)
    if known is None:
        raise PrivacyError(f"data set {key}: was not written to the ledger")
    return known


def _insert(database: sqlite3.Connection, key: str, request: SpendRequest) -> str:
    plan = request.plan
    reservation_id = secrets.token_hex(8)
    database.execute(
        "INSERT INTO reservations (id, dataset, run_name, kind, config_hash, guarantee, plan, steps_planned, owner, "
        "created) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            reservation_id,
            key,
            request.run_name,
            request.kind,
            request.config_hash,
            "none" if plan is None else request.guarantee,
            None if plan is None else json.dumps(plan.to_dict()),
            0 if plan is None else plan.steps,
            secrets.token_hex(8),
            now(),
        ),
    )
    return reservation_id


def _open_reservation(database: sqlite3.Connection, reservation_id: str) -> records.ReservationRecord:
    record = records.reservation(database, reservation_id)
    if record is None:
        raise ResumeError(f"reservation {reservation_id}: not in the ledger; see troth ledger show")
    if not record.open:
        raise ResumeError(f"run {record.run_name}: its reservation {reservation_id} is {record.state}; start a new run")
    return record


def _too_strict(dataset_id: str, budget: Budget, way: Way | None, live: list[Charge]) -> str:
    spent = spent_epsilon(budget, way, live)
    shown = f"epsilon {spent:.4g} at delta {budget.delta:g}" if math.isfinite(spent) else "infinity"
    return (
        f"data set {dataset_id}: a budget of epsilon {budget.epsilon:g} is stricter than what is spent already: "
        f"{shown} {names(live)}; give a larger budget, or release runs that will not go on"
    )
