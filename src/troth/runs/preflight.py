"""What is refused before any work is done: what the run file alone shows, its places, and its data."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from troth.accounting import check_plan, troth_home
from troth.config import AttackConfig, RunConfig
from troth.errors import ConfigError
from troth.runs.folders import DISK_ERRORS
from troth.runs.gates import parse_rule
from troth.runs.grid import expand
from troth.runs.measurable import why_never_measured

if TYPE_CHECKING:
    from troth.runs.stages import Prepared

__all__ = ["check_data", "check_file", "check_home", "check_writable", "gated"]

_SPLITS = ("test", "validation")
_KINDS = {
    "modified_entropy": ("classification",),
    "shokri": ("classification",),
    "margin": ("tagging",),
    "zlib": ("language_modeling", "seq2seq"),
    "min_k": ("language_modeling", "seq2seq"),
    "min_k_plus_plus": ("language_modeling", "seq2seq"),
}
_PRETRAINED = ("language_modeling", "seq2seq")
_FEWEST_FOR_MOMENTS = 4  # shadows: two of each example's on a side


def check_file(config: RunConfig, verb: str) -> None:
    """Refuse what a run file shows by itself: its grid, its gates, and sections that lack what they measure on.

    Args:
        config: the run file.
        verb: what is to be done with it; ``run`` stands for all of it.

    Raises:
        ConfigError: a grid that gives no valid run, a missing section or split, a rule of [gate] that is malformed or
            names what this file can never measure.
    """
    if config.grid is not None:
        for point in expand(config):
            check_file(point.config, verb)
        return
    sections = {"federate": config.federated, "attack": config.attack, "fairness": config.fairness}
    if verb in sections and sections[verb] is None:
        section = "federated" if verb == "federate" else verb
        way_out = ", or use troth train" if verb == "federate" else ""
        raise ConfigError(f"the run file has no [{section}]; add it{way_out}")
    if verb in ("run", "attack") and config.attack is not None:
        _check_attack(config, config.attack)
        elsewhere = [key for key in ("scores", "members") if getattr(config.attack, key) is not None]
        if verb == "run" and elsewhere:
            raise ConfigError(
                f"attack.{elsewhere[0]} speaks of what was made elsewhere, and a run attacks the model that it makes: "
                "use troth attack"
            )
    if verb in ("run", "fairness") and config.fairness is not None and not _has("test", config):
        raise ConfigError("data.test is not given, and [fairness] measures on it")
    _check_gate(config, verb)


def _has(split: str, config: RunConfig) -> bool:
    data = config.data
    return data.builtin is not None or {"test": data.test, "validation": data.validation}[split] is not None


def _check_attack(config: RunConfig, attack: AttackConfig) -> None:
    """Refuse attacks that the task does not allow, and sources of rows that the file does not give."""
    if attack.scores is not None:
        return
    wanted = attack.nonmembers
    if isinstance(wanted, str) and wanted in _SPLITS and not _has(wanted, config):
        raise ConfigError(
            f"data.{wanted} is not given, and attack.nonmembers = {wanted!r} needs it: rows that were never trained on"
        )
    kind = config.task.kind
    for name in attack.membership:
        if kind not in _KINDS.get(name, (kind,)):
            raise ConfigError(f"attack.membership: {name!r} is for {' and '.join(_KINDS[name])}, not for {kind}")
        if name in ("lira", "student_t") and attack.shadows < _FEWEST_FOR_MOMENTS:
            raise ConfigError(f"attack.membership: {name!r} needs attack.shadows = {_FEWEST_FOR_MOMENTS} or more")
    has_base = kind in _PRETRAINED and config.model.checkpoint is not None
    if "reference" in attack.membership and attack.reference is None and not has_base:
        raise ConfigError(
            "attack.membership: 'reference' needs attack.reference, the folder of a model of the same task that never "
            "saw the members"
        )
    if attack.members is not None and config.model.checkpoint is None:
        raise ConfigError("attack.members speaks of a model trained elsewhere: name its folder as model.checkpoint")


def gated(config: RunConfig, verb: str) -> list[str]:
    """Return the rules of [gate] that a verb is held to: all of a run's, those of its own numbers of a verb alone.

    Raises:
        ConfigError: a rule is malformed, whatever the verb.
    """
    rules = config.gate.rules if config.gate else []
    names = [parse_rule(rule).name for rule in rules]
    if verb == "run":
        return list(rules)
    if verb not in ("attack", "fairness"):
        return []
    return [rule for rule, name in zip(rules, names, strict=True) if name.startswith((f"{verb}.", "privacy."))]


def _check_gate(config: RunConfig, verb: str) -> None:
    for rule in gated(config, verb):
        why = why_never_measured(parse_rule(rule).name, config)
        if why is not None:
            raise ConfigError(f"gate.rules {rule!r}: {why}")


def check_writable(folder: Path, what: str) -> None:
    """Refuse a folder that cannot be written, or made where it is missing, naming the key or option that gave it.

    What is missing is not made: its nearest folder that is there is tried.

    Raises:
        ConfigError: it is a file, or may not be written; `what` is the thing to change.
    """
    place = folder.absolute()
    while not place.exists() and not place.is_symlink() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        if error.errno in DISK_ERRORS:
            return  # told where it strikes
        reason = "is a file" if place.is_file() else f"cannot be written: {error.strerror}"
        raise ConfigError(f"{what}: {place} {reason}; choose a folder of your own") from None


def check_home() -> None:
    """Refuse a home of the ledger that cannot be written.

    Raises:
        ConfigError: it is a file, or may not be written.
    """
    check_writable(troth_home(), "TROTH_HOME (the privacy ledger's folder)")


def check_data(prepared: Prepared, verb: str) -> None:
    """Refuse what the data show once they are read, before anything is encoded, calibrated or trained.

    Raises:
        ConfigError: batches larger than the data, users or groups without their column.
        PrivacyError: delta is not below 1/n.
    """
    from troth.data import privacy_units

    config, splits = prepared.config, prepared.splits
    if config.privacy is not None and verb in ("run", "train", "plan"):
        check_plan(config.privacy, config.train, len(privacy_units(splits.train, config.privacy.unit)))
    measures = config.fairness is not None and verb in ("run", "fairness")
    if measures and splits.test is not None and not splits.test.has("group"):
        raise ConfigError("[fairness] needs data.group: name the column that holds each row's group")
