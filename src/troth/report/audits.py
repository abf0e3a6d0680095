"""The section on audits: what was proved, what could have been proved at most, and what was claimed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from troth.report.attack_names import AUDIT
from troth.report.reading import Run
from troth.report.section import DETAILED_RUNS, Fold, Section
from troth.report.settings import theoretical_epsilon
from troth.report.tables import UNSUPPORTED, Cell, Table, interval, names_of, number, percent, side_by_side, text
from troth.results import Json, Measurement

__all__ = ["BOUND", "audits", "claimed_epsilon"]

BOUND = f"{AUDIT}epsilon_lower_bound"
_VERDICTS = {
    "consistent": "the bound does not exceed the claim, which does not show that the claim holds",
    "violation": "more was proved than was claimed",
    "underpowered": "not even perfect guesses about so many canaries could have exceeded the claim",
}


def claimed_epsilon(run: Run, m: Measurement) -> float:
    """Return the theoretical epsilon of what an audit attacked: its protocol's, else the run's own; in nats."""
    found = m.protocol.get("theoretical_epsilon")
    return float(found) if isinstance(found, int | float) else theoretical_epsilon(run)


def audits(runs: Sequence[Run]) -> Section | None:
    """Return the section, or None where no run was audited."""
    having = [r for r in runs if r.named(AUDIT)]
    if not having:
        return None
    bounds = [(r, m) for r in having if (m := r.measurement(BOUND)) is not None]
    tables: tuple[Table, ...] = ()
    more: tuple[Table, ...] = ()
    if bounds:
        head = ("run", "proved: epsilon is at least", "largest provable", "theoretical epsilon", "verdict", "unit")
        caption = "The audited lower bound on epsilon beside the claim"
        tables += (Table(caption, head, tuple(_bound(r, m) for r, m in bounds), measured=True),)
        made = ("run", "rule", "how the threshold or the number of guesses was chosen", "delta", "what must be so")
        more += (Table("How the bound was made", made, tuple(_made(r, m) for r, m in bounds)),)
    others = [n for n in names_of(having, AUDIT) if n != BOUND]
    more += side_by_side("What the audit rests on", having, others, method=True)
    folds = (Fold("How the bounds were made, and what they rest on", more),) if len(having) > DETAILED_RUNS else ()
    shown = tables if folds else tables + more
    title = "What an audit proves about epsilon"
    return Section("audit", title, _paragraphs(bounds), shown, notes=_notes(bounds), folds=folds)


def _paragraphs(bounds: Sequence[tuple[Run, Measurement]]) -> tuple[str, ...]:
    """Return how the numbers are to be read."""
    said: tuple[str, ...] = (
        "An audit guesses from the model which canaries were in its training data, and turns right guesses into a "
        "number that epsilon cannot be below, at the confidence given. A low bound means that no leak was found by "
        "this attack with so many canaries, and no more: compare it with the largest bound that perfect guesses "
        "could have proved.",
    )
    found = {m.protocol.get("verdict") for _, m in bounds}
    meant = [f"{verdict}: {meaning}" for verdict, meaning in _VERDICTS.items() if verdict in found]
    if None in found:
        meant.append("none: no epsilon was claimed, or the interval is a credible one")
    return (*said, f"Verdicts. {'; '.join(meant).capitalize()}.") if meant else said


def _bound(run: Run, m: Measurement) -> tuple[Cell, ...]:
    verdict = m.protocol.get("verdict")
    facts = f"n = {m.n:,} canaries, {percent(m.confidence)}"
    proved = Cell(
        number(m.value),
        "" if m.value is None else interval(m.low, m.high),
        facts,
        "" if m.supported else UNSUPPORTED,
        "number" if m.value is not None else "text",
    )
    claim = claimed_epsilon(run, m)
    return (
        text(run.label),
        proved,
        text(_number(m.protocol.get("largest_provable_epsilon"))),
        text("infinity (no guarantee)" if math.isinf(claim) else number(claim)),
        text(str(verdict) if verdict in _VERDICTS else "none"),
        text("nats" if m.unit == "nats" else m.unit),
    )


def _number(value: Json) -> str:
    return number(value) if isinstance(value, int | float) else "not in the record"


def _made(run: Run, m: Measurement) -> tuple[Cell, ...]:
    facts = m.protocol
    rule = facts.get("method")
    return (
        text(run.label),
        text(str(rule) if isinstance(rule, str) else m.interval_method),
        text(_chosen(m)),
        text(_number(facts.get("delta"))),
        text(str(facts.get("assumes") or "not in the record")),
    )


def _chosen(m: Measurement) -> str:
    """Return how an audit chose its guesses: a rule, and how many of how many were right."""
    facts = m.protocol
    rule = next((facts[k] for k in ("threshold_rule", "selection") if isinstance(facts.get(k), str)), None)
    said = str(rule) if rule is not None else "not in the record"
    guesses, correct = facts.get("guesses"), facts.get("correct")
    if isinstance(guesses, int) and isinstance(correct, int):
        said += f"; {correct:,} of {guesses:,} guesses right"
    return said


def _notes(bounds: Sequence[tuple[Run, Measurement]]) -> tuple[str, ...]:
    """Return a note for each violation: it says what may be wrong."""
    return tuple(
        f"{run.label}: epsilon is at least {number(m.value)} at {percent(m.confidence)} confidence (n = {m.n:,} "
        f"canaries), above the {number(claimed_epsilon(run, m))} that was claimed: the claim is wrong, or what the "
        "audit assumes is; chance alone does this in at most "
        f"{percent(round(1 - m.confidence, 12))} of audits."
        for run, m in bounds
        if m.protocol.get("verdict") == "violation"
    )
