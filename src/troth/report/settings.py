"""Runs that differ by their seed alone, as one setting, named by what sets it apart from the others."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from troth.report.reading import Run
from troth.results import Json

__all__ = ["Setting", "settings", "theoretical_epsilon"]

_ASIDE = ("run", "report", "gate", "grid", "fairness")  # sections that do not change what was trained and attacked
_LONGEST = 80  # characters of a name; beyond, the first run's label is shorter


@dataclass(frozen=True)
class Setting:
    """Runs of one configuration, their seeds aside.

    Attributes:
        name: what sets it apart, such as ``target_epsilon = 8``.
        epsilon: theoretical, in nats; infinity where no guarantee holds.
        runs: at least one.
    """

    name: str
    epsilon: float
    runs: tuple[Run, ...]


def theoretical_epsilon(run: Run) -> float:
    """Return the epsilon that a run's released weights carry, in nats; infinity where no guarantee holds."""
    privacy = run.record.privacy
    if privacy is None or privacy.epsilon is None or privacy.guarantee == "none":
        return math.inf
    return privacy.epsilon


def settings(runs: Sequence[Run]) -> list[Setting]:
    """Return the runs by setting, smallest theoretical epsilon first, infinity last."""
    groups: dict[tuple[str, float], list[Run]] = {}
    for run in runs:
        keys = {k: v for k, v in _flat(run.record.config).items() if k.split(".")[0] not in _ASIDE}
        epsilon = theoretical_epsilon(run)
        groups.setdefault((json.dumps(keys, sort_keys=True), float(f"{epsilon:.6g}")), []).append(run)
    found = sorted(groups.values(), key=lambda group: theoretical_epsilon(group[0]))
    names = _names([group[0] for group in found])
    return [Setting(n, theoretical_epsilon(g[0]), tuple(g)) for n, g in zip(names, found, strict=True)]


def _flat(data: Mapping[str, Json], prefix: str = "") -> dict[str, Json]:
    """Return a nested mapping with dotted keys; what is not set is left out."""
    out: dict[str, Json] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            out |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            out[f"{prefix}{key}"] = value
    return out


def _names(firsts: Sequence[Run]) -> list[str]:
    """Return a name for each setting: the keys whose values differ, and the sections that others have or lack.

    Where that is too long, as in a grid that varies one key at a time, a name says what is not as in most settings.
    """
    flat = [{k: v for k, v in _flat(r.record.config).items() if k.split(".")[0] not in _ASIDE} for r in firsts]
    values = {k: Counter(json.dumps(f[k]) for f in flat if k in f) for k in dict.fromkeys(k for f in flat for k in f)}
    differing = [k for k, found in values.items() if len(found) > 1]
    names = []
    for run, own in zip(firsts, flat, strict=True):
        sections = _sections(own, flat)
        said = [f"{k.rpartition('.')[2]} = {_value(own[k])}" for k in differing if k in own]
        rare = [
            f"{k.rpartition('.')[2]} = {_value(own[k])}"
            for k in differing
            if k in own and values[k].most_common(1)[0][0] != json.dumps(own[k])
        ]
        told = (", ".join([*sections, *part]) for part in (said, rare or ["as most are"]))
        names.append(next((name for name in told if 0 < len(name) <= _LONGEST), run.label))
    return [n if names.count(n) == 1 else run.label for n, run in zip(names, firsts, strict=True)]


def _sections(own: Mapping[str, Json], flat: Sequence[Mapping[str, Json]]) -> list[str]:
    """Return which sections of the run file a setting lacks and others have; else, of two kinds, which it has."""
    having = [{k.split(".")[0] for k in f} for f in flat]
    partly = sorted({s for h in having for s in h if not all(s in other for other in having)})
    mine = {k.split(".")[0] for k in own}
    without = [f"without [{s}]" for s in partly if s not in mine]
    return without or ([f"with [{s}]" for s in partly] if len(flat) == 2 else [])


def _value(value: Json) -> str:
    return value if isinstance(value, str) else json.dumps(value)
