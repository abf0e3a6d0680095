"""What is wrong with a run file, in one line: the key, the fault, the way out."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel

__all__ = ["LATER_KEYS", "LATER_VALUES", "explain"]

LATER_KEYS = frozenset(
    {
        "distill",
        "mitigate",
        "privatize",
        "data.counterfactuals",
        "privacy.preset",
        "privacy.mechanism",
        "federated.labels",
        "federated.secure_aggregation",
        "fairness.suite",
        "fairness.models",
        "fairness.lexicon",
    }
)
"""Sections and keys that run files will have, and this version does not do yet."""

LATER_VALUES: Mapping[str, tuple[str, ...]] = {
    "fairness.metrics": ("prediction_sensitivity",),
    "federated.engine": ("flower",),
}
"""Values that keys will take, and this version does not do yet."""

_REQUIRED = {
    "run": "run.name",
    "model": "model.preset (or model.checkpoint)",
    "data": "data.train (or data.builtin)",
    "task": "task.kind",
}
_TYPES = {
    "dict_type": "input should be a table { ... }",
    "model_type": "input should be a table { ... }",
    "mapping_type": "input should be a table { ... }",
}
_KINDS = frozenset({"str", "int", "float", "constrained-int", "constrained-float", "constrained-str"})

Fault = Mapping[str, Any]
"""One error of pydantic."""


def explain(faults: Sequence[Fault], model: type[BaseModel]) -> str:
    """Return one line for the errors of a run file: the first fault, and how many other keys have one.

    What is missing comes first, all of it. A value that may be of several kinds gives one fault, that of the kind which
    was meant: of the keys of a table where a table was given.

    Args:
        faults: what pydantic found.
        model: of the whole run file.
    """
    by_key: dict[str, list[Fault]] = {}
    for fault in _meant(faults):
        by_key.setdefault(_key(fault), []).append(fault)
    lines = []
    missing = [key for key, found in by_key.items() if found[0]["type"] == "missing"]
    if missing:
        lines.append(_missing([_REQUIRED.get(key, key) for key in missing]))
    lines += [_line(key, found, model) for key, found in by_key.items() if key not in missing]
    more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
    return lines[0] + more


def _missing(wanted: Sequence[str]) -> str:
    return f"{wanted[0]} is required" if len(wanted) == 1 else f"required: {', '.join(wanted)}"


def _path(fault: Fault) -> list[str | int]:
    """Return the keys on the way to a fault, without the names pydantic gives to the kinds a value may be of."""
    return [p for p in fault["loc"] if isinstance(p, int) or not (p.endswith("Config") or "[" in p or p in _KINDS)]


def _key(fault: Fault) -> str:
    """Return the dotted key of a fault; of an element of a list, that of the list."""
    return ".".join(str(p) for p in _path(fault) if not isinstance(p, int))


def _meant(faults: Sequence[Fault]) -> list[Fault]:
    """Leave out faults of a kind that was not meant: 'should be a word' where a table was given, with faults inside."""
    keys = [_key(fault) for fault in faults]
    return [
        fault
        for fault, key in zip(faults, keys, strict=True)
        if not (isinstance(fault["input"], Mapping) and any(other.startswith(f"{key}.") for other in keys))
    ]


def _line(key: str, found: Sequence[Fault], model: type[BaseModel]) -> str:
    """Return one line for the faults of one key: one, or one for each kind its value may be of."""
    fault = found[0]
    value = fault["input"]
    inside = [f"{key}.{name}" for name in value] if isinstance(value, Mapping) else []
    later = next((k for k in (key, *inside) if k in LATER_KEYS), None)
    if later is not None:
        return f"{later if '.' in later else f'[{later}]'} is not part of this version yet: leave it out"
    if fault["type"] == "extra_forbidden":
        return f"unknown key {key}: {_hint(key, model)}"
    if isinstance(value, str) and value in LATER_VALUES.get(key, ()):
        return f"{key}: {value!r} is not part of this version yet; known: {fault.get('ctx', {}).get('expected', '')}"
    messages = [_TYPES.get(f["type"], str(f["msg"]).removeprefix("Value error, ").split(", unable")[0]) for f in found]
    if not key:
        return messages[0]
    if fault["type"] == "value_error":
        return f"{key}: {messages[0]}"
    text = " or ".join(dict.fromkeys(f"{m[:1].lower()}{m[1:]}" for m in messages))
    text = text.replace(" or input should be ", " or ")
    shown = repr(value)
    return f"{key}: {text}" if len(shown) > 60 else f"{key} = {shown}: {text}"


def _hint(key: str, model: type[BaseModel]) -> str:
    *sections, last = key.split(".")
    known = _known_keys(sections, model)
    near = difflib.get_close_matches(last, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"


def _known_keys(path: Sequence[str], model: type[BaseModel]) -> list[str]:
    """Return the keys allowed in the section at `path`."""
    for part in path:
        if part not in model.model_fields:
            continue
        annotation = model.model_fields[part].annotation
        options = [annotation, *get_args(annotation)]
        model = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), model)
    return list(model.model_fields)
