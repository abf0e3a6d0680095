"""A gate is met by a supported number alone."""

import math
from dataclasses import replace

import pytest

from troth.errors import ConfigError
from troth.results import Measurement, Privacy, Record
from troth.runs.gates import check, parse_rule

AUC = Measurement("attack.membership.loss.auc", 0.55, 0.5, 0.62, 0.95, "delong", 4000, "fraction", "lower", 0.5)
TPR = Measurement("attack.membership.loss.tpr_at_fpr_0.01", 0.02, 0.01, 0.03, 0.95, "clopper-pearson", 2000, "fraction")
PRIVACY = Privacy(
    7.9, 1e-5, 1.0, "non-cryptographic", "poisson", 0.1, 10, 0.1, "example", "add_remove", "pld", ("weights",),
    "differential_privacy",
)  # fmt: skip
RECORD = Record("run", "r", "x", "0", measurements=(AUC, TPR), privacy=PRIVACY)


@pytest.mark.parametrize(
    "rule,met",
    [
        ("attack.membership.loss.auc <= 0.60", True),
        ("attack.membership.loss.auc.value<=0.60", True),
        ("attack.membership.loss.auc.high <= 0.60", False),
        ("attack.membership.loss.auc.low >= 0.5", True),
        ("attack.membership.loss.auc.n > 3999", True),
        ("attack.membership.loss.tpr_at_fpr_0.01 < 0.05", True),
        ("attack.membership.loss.tpr_at_fpr_0.01.high < 0.05", True),
        ("attack.membership.loss.tpr_at_fpr_0.01 == 0.02", True),
        ("attack.membership.loss.tpr_at_fpr_0.01 != 0.02", False),
        ("privacy.epsilon <= 8", True),
        ("privacy.epsilon <= 4", False),
        ("privacy.delta <= 1e-5", True),
    ],
)
def test_rules_hold_against_the_named_end(rule: str, met: bool) -> None:
    (result,) = check(RECORD, [rule])
    assert result.met is met and result.actual is not None
    assert bool(result.reason) is not met


def test_missing_null_and_unsupported_never_meet() -> None:
    infinite = replace(AUC, value=math.inf)
    unsupported = replace(AUC, supported=False)
    for record, rule in [
        (RECORD, "test.accuracy >= 0"),
        (RECORD, "privacy.none <= 8"),
        (Record("run", "r", "x", "0"), "privacy.epsilon <= 8"),
        (replace(RECORD, privacy=replace(PRIVACY, guarantee="none")), "privacy.epsilon <= 8"),
        (replace(RECORD, privacy=replace(PRIVACY, epsilon=None)), "privacy.epsilon <= 8"),
        (replace(RECORD, measurements=(infinite,)), "attack.membership.loss.auc >= 0"),
        (replace(RECORD, measurements=(unsupported,)), "attack.membership.loss.auc <= 1"),
    ]:
        (result,) = check(record, [rule])
        assert not result.met and result.actual is None and result.reason


@pytest.mark.parametrize("rule", ["", "a b <= 1", "a <=", "a < b", "a ~ 3", "a <= nan", "a <= inf", "<= 3"])
def test_broken_rules_are_refused(rule: str) -> None:
    with pytest.raises(ConfigError, match=r"gate\.rules"):
        parse_rule(rule)
