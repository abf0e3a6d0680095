"""Truncated Poisson sampling: epsilon against the library's own accountant, the cap, the ledger's way with it."""

from __future__ import annotations

import math
import sqlite3
from dataclasses import replace

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant

from troth.accounting import Ledger, Mechanism, PrivacyPlan, SpendRequest, make_plan
from troth.accounting.filter import Budget, Charge, OneMechanism, RenyiFilter, keeps
from troth.accounting.truncation import choose_max_batch_size
from troth.config import PrivacyConfig, TrainConfig
from troth.errors import BudgetError, PrivacyError
from troth.seeds import PrivateRandomness

UNITS, BATCH, STEPS, DELTA = 2_000, 100, 40, 1e-5  # at sigma 1 epsilon is about 2
RATE = BATCH / UNITS


def plan(cap: int = 160, sigma: float = 1.0, **fields: object) -> PrivacyPlan:
    return PrivacyPlan(
        UNITS,
        BATCH,
        RATE,
        STEPS,
        sigma,
        0.1,
        DELTA,
        neighboring_relation="zero_out",
        sampler="truncated_poisson",
        max_batch_size=cap,
        **fields,
    )


@pytest.mark.parametrize("cap", [105, 160])
def test_epsilon_is_the_librarys(cap: int) -> None:
    """Its accountant composes the same event; ours may be rounded up a little more."""
    accountant = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(plan(cap).event())
    theirs = accountant.get_epsilon(DELTA)
    assert theirs * (1 - 1e-6) <= plan(cap).epsilon() <= theirs * 1.002


def test_a_tighter_cap_costs_more_and_a_wide_one_nothing() -> None:
    plain = PrivacyPlan(UNITS, BATCH, RATE, STEPS, 1.0, 0.1, DELTA).epsilon()
    epsilons = [plan(cap).epsilon() for cap in (105, 160, UNITS)]
    assert epsilons == sorted(epsilons, reverse=True)
    assert epsilons[0] > 1.2 * plain
    assert epsilons[-1] == pytest.approx(plain, rel=1e-6)


def test_the_chosen_cap_costs_a_thousandth_of_epsilon() -> None:
    cap = choose_max_batch_size(Mechanism(RATE, 1.0), UNITS, STEPS, DELTA)
    plain = PrivacyPlan(UNITS, BATCH, RATE, STEPS, 1.0, 0.1, DELTA).epsilon()
    assert plain < plan(cap).epsilon() <= 1.002 * plain
    assert BATCH + 3 * math.sqrt(BATCH) <= cap <= BATCH + 7 * math.sqrt(BATCH)


def test_make_plan_chooses_cap_and_noise_together() -> None:
    privacy = PrivacyConfig(target_epsilon=2.0, target_delta=DELTA, sampler="truncated_poisson")
    made = make_plan(privacy, TrainConfig(epochs=2, expected_batch_size=BATCH), UNITS)
    assert made.neighboring_relation == "zero_out"
    assert made.max_batch_size is not None
    assert 1.99 <= made.epsilon() <= 2.0
    with pytest.raises(PrivacyError, match="max_batch_size = 50"):
        make_plan(privacy.model_copy(update={"max_batch_size": 50}), TrainConfig(expected_batch_size=BATCH), UNITS)


@pytest.mark.parametrize(
    "change",
    [
        {"neighboring_relation": "add_remove"},
        {"max_batch_size": None},
        {"max_batch_size": BATCH - 1},
        {"max_batch_size": UNITS + 1},
        {"sampler": "poisson"},
    ],
)
def test_fields_that_contradict_each_other_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(PrivacyError):
        replace(plan(), **change)


def test_batches_never_exceed_the_cap_and_keep_their_uniform_choice() -> None:
    """Every unit is kept with the same chance; chi-square with a false alarm once in a million runs."""
    from scipy.stats import chi2

    from troth.dp.sampling import sample_units

    tight, key, counts, sizes = plan(100), PrivateRandomness(), np.zeros(UNITS), []
    for _ in range(400):
        rows = sample_units(tight, key)
        counts[rows] += 1
        sizes.append(len(rows))
        key = key.advance()
    assert max(sizes) == 100
    assert sizes.count(100) > 150  # about half of all samples are larger
    mean = counts.mean()
    statistic = float(((counts - mean) ** 2).sum() / (mean * (1 - mean / 400)))
    assert chi2.ppf(5e-7, UNITS - 1) < statistic < chi2.isf(5e-7, UNITS - 1)


# The ledger


def test_a_budget_admits_it_by_its_own_mechanism_only() -> None:
    budget = Budget(10.0, DELTA, "example")
    made = plan()
    way = keeps(budget, None, [Charge("a", made.mechanism, STEPS)])
    assert way == OneMechanism(made.mechanism)
    assert keeps(budget, way, [Charge("a", made.mechanism, STEPS), Charge("b", plan(120).mechanism, 1)]) is None
    assert keeps(budget, RenyiFilter(8), [Charge("a", made.mechanism, 1)]) is None


def test_the_ledger_remembers_the_cap() -> None:
    ledger = Ledger()
    made = plan()
    ledger.set_budget("d", 1.2 * made.epsilon(), DELTA, "example")

    def ask(what: PrivacyPlan, name: str) -> SpendRequest:
        return SpendRequest("d", name, what, "differential_privacy", None, "0")

    ledger.reserve(ask(made, "first"))
    again = Ledger()
    with pytest.raises(BudgetError, match="with run third it would be"):
        again.reserve(ask(made, "third"))
    with pytest.raises((BudgetError, PrivacyError)):
        again.reserve(ask(PrivacyPlan(UNITS, BATCH, RATE, 1, 5.0, 0.1, DELTA), "plain"))
    assert Ledger().show()[0]["neighboring_relation"] == "zero_out"


def test_a_ledger_of_the_first_version_is_brought_up_to_date() -> None:
    ledger = Ledger()
    ledger.set_budget("d", 3.0, DELTA, "example")
    path = ledger.home / "ledger.sqlite3"
    with sqlite3.connect(path) as database:
        for column in ("rule_max_batch_size", "rule_units"):
            database.execute(f"ALTER TABLE datasets DROP COLUMN {column}")
        database.execute("PRAGMA user_version = 1")
    database.close()
    again = Ledger()
    assert again.show()[0]["dataset_id"] == "d"
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (2,)
    database.close()
