"""How each number was made: the facts of a measurement, what all runs share said once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from troth.report.attack_names import OF_DEVICES, family, is_secret
from troth.report.reading import Run
from troth.report.tables import UNSUPPORTED, names_of, number, percent
from troth.results import Measurement

__all__ = ["Fact", "Method", "method_groups", "methods"]

_FEW = 3  # measurements of an attack; more are folded away together


@dataclass(frozen=True)
class Fact:
    """One thing to say about a measurement: a key, and values, each with the runs it holds for.

    `values` pairs the labels of runs with a text; the labels are empty where it holds for all runs.
    """

    key: str
    values: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Method:
    """A measurement's name and its facts, in reading order."""

    name: str
    facts: tuple[Fact, ...]


def _facts(m: Measurement) -> dict[str, str]:
    """Return what is to be said about one measurement of one run; empty lists have nothing to say."""
    exact = m.interval_method == "exact"
    facts = {
        "interval": "none, exact" if exact else f"{m.interval_method}, {percent(m.confidence)}",
        "n": f"{m.n:,}",
        "unit": m.unit,
    }
    if m.direction != "neutral":
        facts["better"] = m.direction
    if m.neutral is not None:
        facts["no effect"] = number(m.neutral)
    if not m.supported:
        facts["supported"] = f"no: {UNSUPPORTED}"
    if m.outside_guarantee:
        facts["privacy"] = "private rows were read, outside of the guarantee"
    open_keys = {k: v for k, v in m.protocol.items() if not is_secret(m.name, k, v)}
    told = {k.replace("_", " "): number(v) for k, v in open_keys.items() if v not in ([], {}, "")}
    return facts | {k: v for k, v in told.items() if k not in facts}


def _shared(key: str, found: Sequence[tuple[str, dict[str, str]]]) -> Fact:
    """Return one fact over the runs that state it, runs that agree together."""
    texts = dict.fromkeys(facts[key] for _, facts in found if key in facts)
    if len(texts) == 1 and all(key in facts for _, facts in found):
        return Fact(key, (("", next(iter(texts))),))
    return Fact(key, tuple((", ".join(label for label, f in found if f.get(key) == text), text) for text in texts))


def methods(runs: Sequence[Run]) -> tuple[Method, ...]:
    """Return how each measurement was made; exact numbers without a protocol explain themselves and are left out."""
    told = []
    for name in names_of(runs):
        having = [(r.label, m) for r in runs if (m := r.measurement(name)) is not None]
        if all(m.interval_method == "exact" and not m.protocol for _, m in having):
            continue
        found = [(label, _facts(m)) for label, m in having]
        keys = dict.fromkeys(key for _, facts in found for key in facts)
        told.append(Method(name, tuple(_shared(key, found) for key in keys)))
    return tuple(told)


def method_groups(told: Sequence[Method]) -> dict[str, tuple[Method, ...]]:
    """Return the methods of attacks and of devices with many measurements; the others stand for themselves."""
    groups: dict[str, list[Method]] = {}
    for method in told:
        if method.name.startswith("attack."):
            groups.setdefault(family(method.name), []).append(method)
        elif method.name.startswith(OF_DEVICES):
            groups.setdefault(".".join(method.name.split(".")[:2]), []).append(method)
    return {title: tuple(group) for title, group in groups.items() if len(group) > _FEW}
