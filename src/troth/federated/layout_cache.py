"""Layouts that were measured before on this machine, so that the same federation is run the same way again.

Which layout is fastest is measured, hence may differ from one measurement to the next, and with it the last bits of
every sum. A federation of the same model, task and local settings takes the layout that was measured first.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from troth.accounting.home import troth_home
from troth.config_federated import FederatedConfig
from troth.federated.chunk_runner import Layout
from troth.files import write_text

__all__ = ["known_layout", "layout_key", "remember_layout"]

_KEPT = 500


def layout_key(model: nn.Module, trained: Mapping[str, torch.Tensor], config: FederatedConfig, cohort: int) -> str:
    """Return a digest of what decides how fast a layout is.

    Args:
        model: its class and the shapes of its parameters count.
        trained: the trained parameters.
        config: the algorithm and the local settings count.
        cohort: clients of a round, up to the next power of two.
    """
    facts = {
        "model": type(model).__name__,
        "shapes": {name: [list(p.shape), str(p.dtype)] for name, p in model.named_parameters()},
        "trained": sorted(trained),
        "local": config.local.model_dump(mode="json"),
        "algorithm": config.algorithm,
        "rule": config.aggregation.rule,
        "execution": config.execution,
        "chunk_size": config.chunk_size,
        "cohort": max(cohort - 1, 0).bit_length(),
        "torch": torch.__version__,
        "machine": [platform.machine(), platform.processor()],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _file() -> Path:
    return troth_home() / "cache" / "federated-layouts.json"


def _entries() -> dict[str, dict[str, object]]:
    try:
        found = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def known_layout(key: str) -> Layout | None:
    """Return the layout measured under this key; None where there is none that can be read."""
    try:
        return Layout(**_entries()[key])  # type: ignore[arg-type]
    except (KeyError, TypeError):
        return None


def remember_layout(key: str, layout: Layout) -> None:
    """Keep a measured layout; where the folder cannot be written nothing is kept, and it is measured again."""
    entries = _entries()
    entries[key] = asdict(layout)
    kept = dict(list(entries.items())[-_KEPT:])
    with suppress(OSError):
        _file().parent.mkdir(parents=True, exist_ok=True)
        write_text(_file(), json.dumps(kept, indent=1))
