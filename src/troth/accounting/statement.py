"""A data set's account as ``troth ledger show`` prints it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from troth.accounting.filter import RenyiFilter, remaining_share, spent_epsilon
from troth.accounting.pld import remembered_epsilon
from troth.accounting.records import DatasetRecord, ReservationRecord
from troth.results import Json

__all__ = ["statement"]


def statement(known: DatasetRecord, runs: Sequence[ReservationRecord], rows: int) -> dict[str, Json]:
    """Return the account of a data set as plain JSON values.

    Keys:
        dataset_id, declared, unit, neighboring_relation, rows: what it is; `rows` counts different known rows.
        budget_epsilon, budget_delta: null without a budget.
        spent_epsilon, spent_delta: what counts, in nats; null epsilon is infinity. With a budget, by the rule it goes
            by, at its delta; without, the reference figure.
        spent_method: how `spent_epsilon` was found.
        reference_epsilon: all that counts, composed by privacy loss distributions as if every setting had been fixed
            beforehand; null is infinity. What earlier results made a user choose is not covered by it.
        guarantee: ``none`` where a run without a guarantee counts, else ``differential_privacy``.
        remaining_share: of the budget, in [0, 1]; null without one.
        runs: id, name, kind, plan (in words), epsilon (of what the run counts, alone, at its own delta),
            steps_reserved, steps_spent, steps_replayed, state, guarantee, created.
    """
    charges = [r.charge for r in runs]
    deltas = [r.plan.delta for r in runs if r.plan is not None]
    delta = known.budget.delta if known.budget is not None else min(deltas, default=None)
    infinite = any(c.infinite for c in charges)
    parts = [(c.mechanism, c.steps) for c in charges if c.mechanism is not None]
    reference = math.inf if infinite else 0.0 if delta is None else remembered_epsilon(parts, delta)
    spent, method, share = reference, "pld, settings taken as fixed beforehand", None
    if known.budget is not None:
        spent = spent_epsilon(known.budget, known.way, charges)
        share = remaining_share(known.budget, known.way, charges)
        method = "nothing counts yet" if known.way is None else "pld, one mechanism"
        if isinstance(known.way, RenyiFilter):
            method = f"renyi filter at order {known.way.order}"
    if infinite:
        method = "a run without a guarantee"
    return {
        "dataset_id": known.id,
        "declared": known.declared,
        "unit": known.unit,
        "neighboring_relation": known.neighboring_relation,
        "rows": rows,
        "budget_epsilon": None if known.budget is None else known.budget.epsilon,
        "budget_delta": None if known.budget is None else known.budget.delta,
        "spent_epsilon": _finite(spent),
        "spent_delta": delta,
        "spent_method": method,
        "reference_epsilon": _finite(reference),
        "guarantee": "none" if infinite else "differential_privacy",
        "remaining_share": share,
        "runs": [_run(r) for r in runs],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _run(record: ReservationRecord) -> Json:
    charge = record.charge
    epsilon = math.inf
    if record.plan is not None and charge.mechanism is not None:
        epsilon = remembered_epsilon([(charge.mechanism, charge.steps)], record.plan.delta)
    return {
        "id": record.id,
        "name": record.run_name,
        "kind": record.kind,
        "plan": "no privacy" if record.plan is None else record.plan.summary(),
        "epsilon": _finite(epsilon),
        "steps_reserved": record.steps_reserved,
        "steps_spent": record.steps_spent,
        "steps_replayed": record.steps_replayed,
        "state": record.state,
        "guarantee": record.guarantee,
        "created": record.created,
    }
