"""The audit of a whole run: canaries of every task, scores, the rule that fits the plan, and what a run proves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from troth.accounting import PrivacyPlan
from troth.attacks.audit_twin import audit_twin, canary_scores, make_audit_canaries
from troth.config import parse
from troth.data import from_rows, load, privacy_units
from troth.errors import DataError
from troth.seeds import PrivateRandomness
from troth.tasks import make_task

KEY = PrivateRandomness.create(5)
KINDS = ("classification", "tagging", "question_answering", "seq2seq", "language_modeling")
PRESETS = {"seq2seq": "tiny-t5", "language_modeling": "tiny-gpt2"}


@pytest.mark.parametrize("kind", KINDS)
def test_canaries_join_the_rows_of_every_task(kind: str) -> None:
    file = {
        "run": {"name": "x"},
        "model": {"preset": PRESETS.get(kind, "tiny-bert"), "max_length": 64},
        "data": {"builtin": {"name": "home", "rows": 200}},
        "task": {"kind": kind},
    }
    config = parse(file)
    train = load(config.data, config.task, Path()).train
    task = make_task(config, train, Path())
    canaries = make_audit_canaries(train, kind, task.labels, 40, KEY)
    rows = canaries.training_rows(train)
    assert rows.roles == train.roles
    assert len(rows) == len(train) + canaries.included.sum()
    assert len(privacy_units(rows, "user")) == len(privacy_units(train, "user")) + canaries.included.sum()
    assert len(privacy_units(rows, "example")) == len(privacy_units(train, "example")) + canaries.included.sum()
    encoded = task.encode(canaries.table)
    assert len(encoded) == 40
    distinct = {tuple(encoded.ragged["input_ids"].row(i).tolist()) for i in range(40)}
    assert len(distinct) == 40


def test_coins_are_fair_and_secret() -> None:
    train = from_rows([{"text": "a", "label": "x"}], "rows")
    canaries = make_audit_canaries(train, "classification", ("x", "y"), 4000, PrivateRandomness())
    assert abs(canaries.included.mean() - 0.5) < 4 * 0.5 / 4000**0.5
    other = make_audit_canaries(train, "classification", ("x", "y"), 4000, PrivateRandomness())
    assert (canaries.included != other.included).any()
    assert set(canaries.table.column("text")).isdisjoint(other.table.column("text"))
    with pytest.raises(DataError, match="no rows"):
        make_audit_canaries(train.take([]), "classification", ("x",), 10, KEY)


def test_scores_are_losses_below_those_of_the_same_answer() -> None:
    losses, answers = np.array([1.0, 3.0, 10.0, 20.0]), np.array([0, 0, 1, 1])
    assert canary_scores(losses, answers).tolist() == [1.0, -1.0, 5.0, -5.0]
    with pytest.raises(DataError, match="canary 1 has no finite loss"):
        canary_scores(np.array([1.0, np.nan]), np.array([0, 0]))


def _canaries(count: int = 1000):
    train = from_rows([{"text": "a", "label": "x"}], "rows")
    return make_audit_canaries(train, "classification", ("x",), count, KEY)


def test_a_model_that_remembers_is_found_out() -> None:
    canaries = _canaries()
    losses = np.where(canaries.included, 0.1, 5.0) + np.random.default_rng(0).normal(0, 0.1, 1000)
    bound, found = audit_twin(canaries, losses, None, training_rows=5000, confidence=0.95)
    assert 3.5 < bound.epsilon_lower_bound < bound.largest_provable_epsilon  # not just half of the coins fell so
    assert bound.verdict is None
    named = {m.name: m for m in found}
    assert named["attack.audit.canary_auc"].value == 1.0
    made = named["attack.audit.epsilon_lower_bound"]
    assert made.interval_method == "one-run" and made.protocol["canary_share"] == canaries.included.sum() / 5000


def test_a_model_that_does_not_remember_proves_nothing() -> None:
    losses = np.random.default_rng(1).normal(3, 1, 1000)
    bound, _ = audit_twin(_canaries(), losses, None, training_rows=5000, confidence=0.95)
    assert bound.epsilon_lower_bound < 0.3


def test_the_rule_is_that_of_the_plan() -> None:
    plan = PrivacyPlan(1000, 100, 0.1, 10, 1.0, 0.1, 1e-5)
    canaries = _canaries(100)
    losses = np.where(canaries.included, 0.1, 5.0)
    bound, _ = audit_twin(canaries, losses, plan, training_rows=5000, confidence=0.95)
    assert (bound.method, bound.claim.epsilon) == ("f-dp-one-run", plan.epsilon())
    assert bound.verdict == "violation"  # every coin is known, which this plan does not allow
    groups = PrivacyPlan(1000, 100, 0.1, 10, 1.0, 0.1, 1e-5, clip_unit="microbatch", microbatch_size=8)
    other, _ = audit_twin(canaries, losses, groups, training_rows=5000, confidence=0.95)
    assert other.method == "one-run"
