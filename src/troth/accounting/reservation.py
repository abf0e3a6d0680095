"""A run's hold on its data set's privacy: announced durably before a step becomes visible."""

from __future__ import annotations

import sqlite3
from dataclasses import replace

from troth.accounting import records
from troth.accounting.filter import admit
from troth.accounting.plan import PrivacyPlan
from troth.accounting.records import ReservationRecord
from troth.accounting.storage import LedgerStore
from troth.errors import EngineStateError, ResumeError

__all__ = ["Reservation"]


class Reservation:
    """The whole plan of one run, reserved; made by `Ledger.reserve` and `Ledger.resume`.

    Attributes:
        id: names the reservation; keep it with the run's checkpoints.
        dataset_key: the data set's declared id, or ``rows:...``.
        warnings: what the user should be told, one line each (rows that another data set has too).
        plan: None for a run without privacy.
        config_hash: of the configuration that reserved it.
        guarantee: ``none`` where the run counts as infinity.

    Guarantees:
        - `steps_spent` is never below the number of steps that became visible, whenever the process dies: `spend` is on
          disk before it returns, in blocks, so that most calls touch no disk;
        - only the process that reserved or resumed it last can go on: one that was overtaken, or whose run was
          released, is stopped by an error before a step that is not counted;
        - no step beyond the plan (and its counted replays) is ever let through.
    """

    def __init__(self, store: LedgerStore, record: ReservationRecord, block_steps: int, warnings: tuple[str, ...] = ()):
        self._store = store
        self._block_steps = block_steps
        self._owner = record.owner
        self._spent = record.steps_spent
        self._replayed = record.steps_replayed
        self._planned = record.steps_planned
        self.id = record.id
        self.dataset_key = record.dataset
        self.warnings = warnings
        self.plan: PrivacyPlan | None = record.plan
        self.config_hash = record.config_hash
        self.guarantee = record.guarantee

    @property
    def steps_spent(self) -> int:
        """Steps counted durably, those counted twice included: never below the truth."""
        return self._spent

    @property
    def position(self) -> int:
        """Steps of the plan that may have become visible (an upper bound): where a run without its state stands."""
        return self._spent - self._replayed

    def spend(self, step: int) -> None:
        """Count step `step` (0-based, position in the plan) durably, before its update becomes visible.

        Writes at most once in `block_steps` calls. A step below `position` is counted already: it is either the same
        release again (resumed with the generator's state) or was counted by `replay`.

        Raises:
            EngineStateError: the step lies outside of the plan, or another process took the run over.
            RunError: the ledger cannot be written; the step must not become visible.
        """
        if step < 0 or (self.plan is not None and step >= self._planned):
            raise EngineStateError(f"step {step}: the plan in the ledger has {self._planned} steps")
        if step < self.position:
            return
        reached = step + self._block_steps
        if self.plan is not None:
            reached = min(reached, self._planned)
        with self._store.write() as database:
            self._own(database)
            spent = reached + self._replayed
            database.execute(
                "UPDATE reservations SET steps_spent = ?, state = 'running' WHERE id = ?", (spent, self.id)
            )
        self._spent = spent

    def replay(self, steps: int) -> None:
        """Count `steps` steps once more, durably: they may run again with fresh noise.

        For a run that continues from an earlier checkpoint without its generator state: ``position - checkpoint``
        steps, as `replay_from` gives them. Fewer would under-count.

        Raises:
            BudgetError: the data set's budget has no room for them; the run cannot go on from there.
            EngineStateError: `steps` is negative, or another process took the run over.
        """
        if steps < 0:
            raise EngineStateError(f"replay of {steps} steps: give 0 or more")
        if steps == 0:
            return
        with self._store.write() as database:
            record = self._own(database)
            longer = replace(
                record, steps_replayed=record.steps_replayed + steps, steps_spent=record.steps_spent + steps
            )
            dataset = records.dataset(database, self.dataset_key)
            if dataset is not None and dataset.budget is not None and self.guarantee != "none":
                others = records.charges(database, self.dataset_key, without=self.id)
                admit(self.dataset_key, dataset.budget, dataset.way, others, longer.charge)
            database.execute(
                "UPDATE reservations SET steps_replayed = ?, steps_spent = ?, state = 'running' WHERE id = ?",
                (longer.steps_replayed, longer.steps_spent, self.id),
            )
        self._replayed, self._spent = longer.steps_replayed, longer.steps_spent

    def replay_from(self, step: int) -> int:
        """Count again all steps from `step` (the checkpoint's) to `position`, and return how many these are.

        Raises:
            BudgetError: as `replay`.
        """
        again = max(0, self.position - step)
        self.replay(again)
        return again

    def finish(self) -> None:
        """Close the run: all its steps are done and counted, none can follow.

        Raises:
            EngineStateError: steps of the plan are missing, or another process took the run over.
        """
        if self.plan is not None and self.position != self._planned:
            raise EngineStateError(
                f"finished after {self.position} of {self._planned} planned steps: release the reservation {self.id} "
                "instead, which counts what was spent"
            )
        with self._store.write() as database:
            self._own(database)
            database.execute("UPDATE reservations SET state = 'finished' WHERE id = ?", (self.id,))

    def _own(self, database: sqlite3.Connection) -> ReservationRecord:
        """Return the reservation's row, or refuse to go on where it is closed or in other hands."""
        record = records.reservation(database, self.id)
        if record is None:
            raise ResumeError(f"reservation {self.id}: not in the ledger {self._store.path}")
        if not record.open:
            raise EngineStateError(
                f"run {record.run_name}: its reservation {self.id} is {record.state}; start a new run"
            )
        if record.owner != self._owner:
            raise EngineStateError(f"run {record.run_name}: another process resumed it; this one must stop")
        return record
