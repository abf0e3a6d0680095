"""What a checkpoint belongs to: the configuration, the rows and the frozen weights that decide how a run goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from troth.config import RunConfig
from troth.errors import ResumeError
from troth.results import Json

if TYPE_CHECKING:
    from troth.tasks import Encoded

__all__ = ["Identity", "config_hash", "identity", "rows_digest"]

_SECTIONS = ("run", "model", "data", "task", "train", "privacy")
_NO_MATTER = (  # names, places and pure performance
    "run.name",
    "run.out",
    "run.device",
    "train.physical_batch_size",
    "train.checkpoint_every",
    "train.keep_checkpoints",
)
_SHOWN = 60


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Json]:
    out: dict[str, Json] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            out |= _flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value
    return out


def _deciding(config: RunConfig) -> dict[str, Json]:
    """Return the dotted keys of the run file that decide the trained weights."""
    flat = _flat(config.to_dict())
    return {k: v for k, v in flat.items() if k.split(".")[0] in _SECTIONS and k not in _NO_MATTER}


def config_hash(config: RunConfig) -> str:
    """Return the SHA-256 of what decides the trained weights: without names, places and pure performance keys."""
    return hashlib.sha256(json.dumps(_deciding(config), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Identity:
    """What must be the same where a run goes on.

    Attributes:
        config: dotted keys of the run file that decide the weights.
        config_hash: SHA-256 of `config`.
        rows: SHA-256 of the encoded training rows, order included; None where it must not be handed on (a digest
            without a key lets anyone confirm a guess at private rows), see `PrivateState`.
        frozen: SHA-256 of the weights that are not trained.
        plan: fingerprint of a private run's plan.
        reservation: the ledger entry of a private run.
    """

    config: dict[str, Json]
    config_hash: str
    rows: str | None
    frozen: str
    plan: str | None
    reservation: str | None

    def to_dict(self) -> dict[str, Json]:
        """Return the JSON form."""
        return asdict(self)

    def check(self, stored: Mapping[str, Any]) -> None:
        """Refuse to go on from what belongs to something else.

        Raises:
            ResumeError: names the changed keys, or what else has changed.
        """
        again = "restore it, or start a new run without --resume"
        if stored.get("config_hash") != self.config_hash:
            raise ResumeError(f"the configuration has changed since the checkpoint: {self._changes(stored)}; {again}")
        if stored.get("rows") != self.rows:
            raise ResumeError(f"data.train: the training rows have changed since the checkpoint; {again}")
        if stored.get("frozen") != self.frozen:
            raise ResumeError(f"model: the weights that are not trained have changed since the checkpoint; {again}")
        if stored.get("plan") != self.plan:
            raise ResumeError(
                f"the privacy plan (noise, steps, sampling rate) has changed since the checkpoint; {again}"
            )
        if stored.get("reservation") != self.reservation:
            before = stored.get("reservation")
            raise ResumeError(f"the checkpoint belongs to ledger entry {before}, not to {self.reservation}; {again}")

    def _changes(self, stored: Mapping[str, Any]) -> str:
        before, after = stored.get("config", {}), self.config
        changed = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
        return ", ".join(f"{k} was {_shown(before, k)}, is {_shown(after, k)}" for k in changed) or "its form"


def _shown(config: Mapping[str, Json], key: str) -> str:
    text = json.dumps(config[key]) if key in config else "not set"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _array(hasher: hashlib._Hash, name: str, array: np.ndarray[Any, Any]) -> None:
    hasher.update(f"{name}:{array.dtype.str}:{array.shape}\n".encode())
    hasher.update(np.ascontiguousarray(array).data)


def rows_digest(encoded: Encoded) -> str:
    """Return the SHA-256 of the encoded rows, order included."""
    hasher = hashlib.sha256()
    for name, ragged in sorted(encoded.ragged.items()):
        _array(hasher, f"{name}.values", ragged.values)
        _array(hasher, f"{name}.offsets", ragged.offsets)
    for name, scalars in sorted(encoded.scalars.items()):
        _array(hasher, name, scalars)
    return hasher.hexdigest()


def frozen_digest(model: nn.Module) -> str:
    """Return the SHA-256 of the parameters that are not trained."""
    hasher = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            bits = parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            _array(hasher, f"{name}:{parameter.dtype}", bits.numpy())
    return hasher.hexdigest()


def identity(
    config: RunConfig,
    model: nn.Module,
    *,
    rows: str | None = None,
    plan: str | None = None,
    reservation: str | None = None,
) -> Identity:
    """Return the identity of a run that is about to train."""
    return Identity(_deciding(config), config_hash(config), rows, frozen_digest(model), plan, reservation)
