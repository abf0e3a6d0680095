"""The ledger's rows as values: data sets with their budget, and reservations with what they count."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import Literal

from troth.accounting.filter import Budget, Charge, OneMechanism, RenyiFilter, Way
from troth.accounting.mechanism import Mechanism
from troth.accounting.plan import PrivacyPlan

__all__ = ["DatasetRecord", "ReservationRecord", "charges", "dataset", "datasets", "reservation", "reservations"]

State = Literal["reserved", "running", "finished", "released"]


@dataclass(frozen=True)
class DatasetRecord:
    """A data set the ledger knows: `declared` says whether its id was given by the user or made from its rows."""

    id: str
    declared: bool
    unit: str | None
    neighboring_relation: str | None
    budget: Budget | None
    way: Way | None


@dataclass(frozen=True)
class ReservationRecord:
    """A run's entry. `steps_spent` includes `steps_replayed`; `owner` is the process that may go on with it."""

    id: str
    dataset: str
    run_name: str
    kind: str
    config_hash: str
    guarantee: str
    plan: PrivacyPlan | None
    steps_planned: int
    steps_replayed: int
    steps_spent: int
    state: State
    owner: str
    created: str

    @property
    def open(self) -> bool:
        """Whether the run may still go on."""
        return self.state in ("reserved", "running")

    @property
    def steps_reserved(self) -> int:
        """Steps the run may take in all, those taken twice included."""
        return self.steps_planned + self.steps_replayed

    @property
    def position(self) -> int:
        """Steps of the plan that may have become visible: an upper bound."""
        return self.steps_spent - self.steps_replayed

    @property
    def charge(self) -> Charge:
        """What the run counts against a budget: in full while it may go on, then what it spent."""
        if self.plan is None or self.guarantee == "none":
            return Charge(self.run_name, None, max(1, self.steps_reserved))
        return Charge(self.run_name, self.plan.mechanism, self.steps_reserved if self.open else self.steps_spent)


def _dataset(row: sqlite3.Row) -> DatasetRecord:
    budget: Budget | None = None
    way: Way | None = None
    if row["budget_epsilon"] is not None:
        budget = Budget(row["budget_epsilon"], row["budget_delta"], row["unit"])
    if row["rule_order"] is not None:
        way = RenyiFilter(row["rule_order"])
    elif row["rule_sampling_rate"] is not None:
        way = OneMechanism(
            Mechanism(
                row["rule_sampling_rate"], row["rule_noise_multiplier"], row["rule_max_batch_size"], row["rule_units"]
            )
        )
    return DatasetRecord(row["id"], bool(row["declared"]), row["unit"], row["neighboring_relation"], budget, way)


def datasets(database: sqlite3.Connection) -> list[DatasetRecord]:
    """Return all data sets, oldest first."""
    return [_dataset(row) for row in database.execute("SELECT * FROM datasets ORDER BY created, id")]


def dataset(database: sqlite3.Connection, key: str) -> DatasetRecord | None:
    """Return the data set of that key, or None."""
    row = database.execute("SELECT * FROM datasets WHERE id = ?", (key,)).fetchone()
    return None if row is None else _dataset(row)


def set_way(database: sqlite3.Connection, key: str, way: Way | None) -> None:
    """Write the rule a budget goes by, or that it has none yet."""
    order = way.order if isinstance(way, RenyiFilter) else None
    mechanism = way.mechanism if isinstance(way, OneMechanism) else None
    rule: tuple[float | None, ...] = (None,) * 4
    if mechanism is not None:
        rule = (mechanism.sampling_rate, mechanism.noise_multiplier, mechanism.max_batch_size, mechanism.units)
    database.execute(
        "UPDATE datasets SET rule_order = ?, rule_sampling_rate = ?, rule_noise_multiplier = ?, "
        "rule_max_batch_size = ?, rule_units = ? WHERE id = ?",
        (order, *rule, key),
    )


def _reservation(row: sqlite3.Row) -> ReservationRecord:
    return ReservationRecord(
        id=row["id"],
        dataset=row["dataset"],
        run_name=row["run_name"],
        kind=row["kind"],
        config_hash=row["config_hash"],
        guarantee=row["guarantee"],
        plan=None if row["plan"] is None else PrivacyPlan.from_dict(json.loads(row["plan"])),
        steps_planned=row["steps_planned"],
        steps_replayed=row["steps_replayed"],
        steps_spent=row["steps_spent"],
        state=row["state"],
        owner=row["owner"],
        created=row["created"],
    )


def reservations(database: sqlite3.Connection, key: str) -> list[ReservationRecord]:
    """Return a data set's reservations, oldest first."""
    rows = database.execute("SELECT * FROM reservations WHERE dataset = ? ORDER BY sequence", (key,))
    return [_reservation(row) for row in rows]


def reservation(database: sqlite3.Connection, reservation_id: str) -> ReservationRecord | None:
    """Return the reservation of that id, or None."""
    row = database.execute("SELECT * FROM reservations WHERE id = ?", (reservation_id,)).fetchone()
    return None if row is None else _reservation(row)


def charges(database: sqlite3.Connection, key: str, *, without: str = "") -> list[Charge]:
    """Return what a data set's reservations count, oldest first, without the one named."""
    return [r.charge for r in reservations(database, key) if r.id != without]
