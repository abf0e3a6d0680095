"""Results of slow accounting kept on disk, so that planning the same run twice costs nothing.

A cached number is a convenience, never a source of truth: it is used only if its inputs, the versions of the
libraries that made it and its checksum all agree; anything else (corrupt, foreign, unreadable) is computed anew. A
folder that cannot be written means no cache, not an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from troth import __version__
from troth.accounting.home import troth_home
from troth.files import write_bytes
from troth.results import Json

__all__ = ["remembered"]

T = TypeVar("T", float, list[float])
_SCHEME = 1  # raise when the method behind a cached number changes


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _read(path: Path, key: Mapping[str, Json]) -> Json:
    """Return the value stored under `key`, or None where the file is missing, corrupt or about something else."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["key"] == key and stored["check"] == _digest([stored["key"], stored["value"]]):
            return stored["value"]  # type: ignore[no-any-return]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _write(path: Path, key: Mapping[str, Json], value: Json) -> None:
    text = json.dumps({"key": key, "value": value, "check": _digest([key, value])}, allow_nan=False)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_bytes(path, text.encode(), mode=0o600)


def _finite(value: Json) -> bool:
    if isinstance(value, list):
        return all(_finite(v) for v in value)
    return isinstance(value, int | float) and math.isfinite(value)


def remembered(kind: str, inputs: Mapping[str, Json], compute: Callable[[], T]) -> T:
    """Return ``compute()``, or what it returned earlier for the same inputs and library versions.

    Args:
        kind: what is computed, such as ``noise-multiplier``.
        inputs: everything the result depends on besides the code, as plain JSON values.
        compute: the slow function; returns a number or a list of numbers. Results that are not finite are not kept.
    """
    from importlib.metadata import version

    key: dict[str, Json] = {
        "kind": kind,
        "inputs": dict(inputs),
        "troth": __version__,
        "dp_accounting": version("dp-accounting"),
        "scheme": _SCHEME,
    }
    path = troth_home() / "cache" / f"{kind}-{_digest(key)[:32]}.json"
    stored = _read(path, key)
    if stored is not None and _finite(stored):
        return stored  # type: ignore[return-value]
    result = compute()
    if _finite(result):  # type: ignore[arg-type]
        _write(path, key, result)  # type: ignore[arg-type]
    return result
