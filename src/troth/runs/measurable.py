"""Which measurements a run file can give: a gate on any other would fail only after everything was trained.

Where a name may carry a parameter that this list does not know, it is let through: a gate that is wrongly let through
is not met later; one that is wrongly refused cannot be used at all.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from troth.config import AttackConfig, RunConfig
from troth.config_errors import LATER_KEYS, LATER_VALUES
from troth.runs.catalogue import MEASUREMENTS, METRICS

__all__ = ["why_never_measured"]

_FIELDS = ("value", "low", "high", "n")
_CATALOGUE = tuple(row[0] for row in MEASUREMENTS)
_QUALITY = ("test.", "validation.", "federated.round.")
_FAMILIES = tuple(dict.fromkeys(name.split(".")[0] for name in _CATALOGUE))
_SAME = 0.9  # of the letters of two names, from which one is taken for a slip of the other


def why_never_measured(name: str, config: RunConfig) -> str | None:
    """Return why a run of this file can never measure `name`, with the way out, or None where it may.

    Args:
        name: of a gate's rule: a measurement, with or without ``.value``, ``.low``, ``.high`` or ``.n``.
        config: the run file.
    """
    stem, _, last = name.rpartition(".")
    name = stem if last in _FIELDS and stem else name
    family = name.split(".")[0]
    if family == "plan":
        return "troth plan measures it, a run does not"
    if family not in _FAMILIES:
        near = _near(name, _CATALOGUE, cutoff=0.6)
        return f"no such measurement; {_or_list(near)}"
    return _absent(name, family, config) or _unknown(name, family, config)


def _absent(name: str, family: str, config: RunConfig) -> str | None:
    """Return which section or split is missing, or None."""
    sections = {"attack": config.attack, "fairness": config.fairness, "federated": config.federated}
    if family in sections and sections[family] is None:
        return f"the run file has no [{family}]; add it, or leave the rule out"
    if family == "attack" and config.attack is not None and name in _CATALOGUE and not _attacked(name, config.attack):
        part, which = name.split(".")[1:3]
        key = f"attack.membership does not list {which!r}" if part == "membership" else f"attack.{part} is not given"
        return f"{key}; add it, or leave the rule out"
    if config.data.builtin is not None:
        return None
    splits = {"test": config.data.test, "validation": config.data.validation}
    if family in splits and splits[family] is None:
        return f"the run file has no data.{family}; give it, or leave the rule out"
    if name.startswith("federated.round.") and not any(splits.values()):
        return "the run file has neither data.validation nor data.test; give one, or leave the rule out"
    return None


def _unknown(name: str, family: str, config: RunConfig) -> str | None:
    """Return that a name of a known family is none that this file gives, or None where it may be one."""
    for prefix in _QUALITY:
        if name.startswith(prefix):
            known = [prefix + metric for metric in METRICS[config.task.kind]]
            if any(name == k or name.startswith(f"{k}.") for k in known):
                return None
            near = _near(name, known, cutoff=0.8)
            return f"{config.task.kind} has no such measurement; {_or(near, known)}"
    known = [n for n in _CATALOGUE if n.startswith(f"{family}.")]
    if family == "attack" and config.attack is not None:
        known = [n for n in known if _attacked(n, config.attack)]
    if family == "privacy":
        return None if name in known else f"no such measurement; {_or(_near(name, known, cutoff=0.6), known)}"
    return _later(name) or _slip(name, known)


def _attacked(name: str, attack: AttackConfig) -> bool:
    """Whether a measurement of attacks is of one that the file names."""
    part, which = name.split(".")[1:3]
    if part == "membership":
        made = ("scores",) if attack.scores else (*attack.membership, *(("blind",) if attack.membership else ()))
        return which in made
    return {"audit": attack.audit, "canaries": attack.canaries}[part] is not None


def _later(name: str) -> str | None:
    """Return that a measurement belongs to what this version does not do, or None."""
    parts = name.split(".")
    section = ".".join(parts[:2])
    values = [*LATER_VALUES.get(section, ()), *LATER_VALUES.get(f"{parts[0]}.metrics", ())]
    if section in LATER_KEYS or any(part in values for part in parts):
        return "it is not part of this version yet; leave the rule out"
    return None


def _slip(name: str, known: Iterable[str]) -> str | None:
    """Return that a name is a slip of a known one; names that go on from a known one, or differ in a number, are not.

    >>> _slip("fairness.acuracy_gap", ["fairness.accuracy_gap"])
    'no such measurement; did you mean fairness.accuracy_gap?'
    >>> _slip("attack.membership.loss.tpr_at_fpr_0.001", ["attack.membership.loss.tpr_at_fpr_0.01"])
    """
    known = list(known)
    if any(name.startswith(n) for n in known):
        return None
    worded = {re.sub(r"[\d.]+$", "", n): n for n in known}
    bare = re.sub(r"[\d.]+$", "", name)
    near = None if bare in worded else _near(bare, worded, cutoff=_SAME)
    return None if near is None else f"no such measurement; did you mean {worded[near]}?"


def _near(name: str, known: Iterable[str], *, cutoff: float) -> str | None:
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)), None)


def _or(near: str | None, known: Iterable[str]) -> str:
    return f"did you mean {near}?" if near else f"known: {', '.join(known)}"


def _or_list(near: str | None) -> str:
    return f"did you mean {near}?" if near else "troth ls measurements lists them"
