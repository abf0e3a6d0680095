"""A gate on what a file can never measure is told before anything is trained; when in doubt it is let through."""

from __future__ import annotations

import json

import pytest

from contracts.task_tables import TABLES
from troth.config import RunConfig, parse
from troth.runs.catalogue import MEASUREMENTS, METRICS
from troth.runs.measurable import why_never_measured


def config(kind: str = "classification", **sections: dict | None) -> RunConfig:
    base = {
        "run": {"name": "x"},
        "model": {"preset": "tiny-bert"},
        "data": {"train": "t.jsonl", "test": "e.jsonl"},
        "task": {"kind": kind},
    }
    return parse({**base, **{k: v for k, v in sections.items() if v is not None}})


FULL = {"attack": {}, "fairness": {}}
WRONG = {
    "slip": ("test.acuracy", "did you mean test.accuracy?"),
    "slip with its end": ("test.acuracy.low", "did you mean test.accuracy?"),
    "slip in the first word": ("tset.accuracy", "did you mean test.accuracy?"),
    "no family": ("accuracy", "did you mean"),
    "of another task": ("test.span_f1", "classification has no such measurement"),
    "no validation split": ("validation.accuracy", "no data.validation"),
    "slip in a method": ("attack.membership.los.auc", "did you mean attack.membership.loss.auc?"),
    "slip at the end": ("attack.membership.loss.acu", "did you mean attack.membership.loss.auc?"),
    "slip before a number": ("attack.membership.loss.tpr_at_fbr_0.01", "did you mean"),
    "no such attack": ("attack.membership.twin.auc", "no such measurement"),
    "attack not listed": ("attack.membership.rmia.auc", "attack.membership does not list 'rmia'"),
    "audit not asked for": ("attack.audit.epsilon_lower_bound", "attack.audit is not given"),
    "metric of later": ("fairness.prediction_sensitivity", "not part of this version yet"),
    "slip in a gap": ("fairness.accurcy_gap.high", "did you mean fairness.accuracy_gap?"),
    "slip in privacy": ("privacy.epsilonn", "did you mean privacy.epsilon?"),
    "no federation": ("federated.round.accuracy", "no [federated]"),
    "a plan's": ("plan.seconds", "troth plan measures it"),
    "nothing like it": ("no.such", "troth ls measurements"),
}
RIGHT = (
    "test.accuracy",
    "test.macro_f1.high",
    "attack.membership.loss.auc.high",
    "attack.membership.loss.tpr_at_fpr_0.001",
    "attack.membership.loss.tpr_at_fpr_0.001.high",
    "attack.membership.loss.auc.seed_3",
    "fairness.accuracy_gap.p_value",
    "fairness.equalized_odds",
    "privacy.epsilon",
    "data.train.truncated_rows",
)


@pytest.mark.parametrize("name,expected", WRONG.values(), ids=WRONG.keys())
def test_what_can_never_be_measured_is_named(name: str, expected: str) -> None:
    why = why_never_measured(name, config(**FULL))
    assert why is not None and expected in why


@pytest.mark.parametrize("name", RIGHT)
def test_what_may_be_measured_is_let_through(name: str) -> None:
    assert why_never_measured(name, config(**FULL)) is None


@pytest.mark.parametrize("name", ["attack.membership.loss.auc", "fairness.accuracy_gap", "federated.clients"])
def test_a_section_that_is_not_there_measures_nothing(name: str) -> None:
    assert "add it, or leave the rule out" in str(why_never_measured(name, config()))


def test_epsilon_of_a_plain_run_is_infinite_not_unknown() -> None:
    assert why_never_measured("privacy.epsilon", config()) is None


def test_splits_that_are_not_given() -> None:
    alone = {"data": {"train": "t.jsonl"}, "federated": {}}
    assert "no data.test" in str(why_never_measured("test.accuracy", config(**alone)))
    assert "neither data.validation nor data.test" in str(why_never_measured("federated.round.loss", config(**alone)))
    built_in = config(data={"builtin": {}}, federated={})
    for name in ("test.accuracy", "validation.accuracy", "federated.round.accuracy"):
        assert why_never_measured(name, built_in) is None


@pytest.mark.parametrize("kind", TABLES)
def test_each_task_has_its_metrics(kind: str) -> None:
    for row in MEASUREMENTS:
        family, _, metric = row[0].partition(".")
        if family == "test":
            assert (why_never_measured(row[0], config(kind)) is None) is (metric in METRICS[kind]), json.dumps(row)
