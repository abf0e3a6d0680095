"""Gates: rules a record must meet, such as ``attack.membership.loss.auc.high <= 0.60``."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from troth.errors import ConfigError
from troth.results import Json, Record

__all__ = ["GateResult", "check", "parse_rule"]

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "==": operator.eq,
    "!=": operator.ne,
}
_FIELDS = ("value", "low", "high", "n")
_RULE = re.compile(r"^\s*(?P<name>[A-Za-z0-9_.@-]+?)\s*(?P<op><=|>=|==|!=|<|>)\s*(?P<number>\S+)\s*$")


@dataclass(frozen=True)
class Rule:
    """One parsed rule: a dotted name, a comparison and a number."""

    text: str
    name: str
    op: str
    number: float


@dataclass(frozen=True)
class GateResult:
    """Whether a rule holds, the number it was held against, and why not."""

    rule: str
    met: bool
    actual: float | None
    reason: str

    def row(self) -> dict[str, Json]:
        """Return the row that the record's ``gate`` series holds."""
        return {"rule": self.rule, "met": self.met, "actual": self.actual, "reason": self.reason}


def parse_rule(text: str) -> Rule:
    """Return the rule of a text ``NAME[.value|.low|.high|.n] OP NUMBER``.

    Raises:
        ConfigError: the text is not of that form.
    """
    match = _RULE.match(text)
    try:
        number = float(match["number"]) if match else math.nan
    except ValueError:
        number = math.nan
    if match is None or not math.isfinite(number):
        raise ConfigError(
            f"gate.rules {text!r}: write NAME[.value|.low|.high|.n] OP NUMBER with OP one of {' '.join(_OPERATORS)}"
        )
    return Rule(text, match["name"], match["op"], number)


def _lookup(record: Record, name: str) -> tuple[float | None, str]:
    """Return the number a name stands for, and a reason where there is none."""
    stem, _, last = name.rpartition(".")
    fields = (name, "value"), (stem, last)
    for candidate, field in fields:
        measurement = record.measurement(candidate)
        if measurement is not None and field in _FIELDS:
            if not measurement.supported:
                return None, "unsupported: too few examples for this claim"
            number = {"value": measurement.value, "low": measurement.low, "high": measurement.high, "n": measurement.n}
            return number[field], "null"
    if stem == "privacy" or name.startswith("privacy."):
        if record.privacy is None or record.privacy.guarantee == "none":
            return None, "no privacy guarantee holds"
        value = record.privacy.to_dict().get(name.removeprefix("privacy."))
        return (float(value), "") if isinstance(value, int | float) else (None, "no such number")
    return None, "not measured"


def check(record: Record, rules: Sequence[str]) -> tuple[GateResult, ...]:
    """Return one result a rule; a missing, null or unsupported number never meets a rule."""
    results = []
    for rule in map(parse_rule, rules):
        actual, reason = _lookup(record, rule.name)
        if actual is None or not math.isfinite(actual):
            results.append(GateResult(rule.text, False, None, reason))
            continue
        met = _OPERATORS[rule.op](float(actual), rule.number)
        results.append(
            GateResult(rule.text, met, float(actual), "" if met else f"{actual:.6g} is not {rule.op} {rule.number:g}")
        )
    return tuple(results)
