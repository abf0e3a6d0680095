"""Checkpoints: safetensors and JSON in a folder that appears whole or not at all.

``checkpoints/checkpoint-N`` holds what was there after N steps: one safetensors file per group of tensors and
``checkpoint.json`` with everything else and the SHA-256 of each tensor file. There is no pickle in it and, by the
rule of the house, no generator state: a checkpoint may be handed on.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from troth.errors import ResumeError
from troth.files import failing_in_one_line, new_folder, sync
from troth.results import Json

__all__ = [
    "Checkpoint",
    "checkpoint_steps",
    "keep_latest",
    "latest_checkpoint",
    "load_checkpoint",
    "remove_checkpoints",
    "save_checkpoint",
]

_STATE = "checkpoint.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on from a step.

    Attributes:
        step: how many steps are done.
        tensors: group name -> tensor name -> tensor (``model``, ``optimizer``).
        state: everything else, as JSON values.
    """

    step: int
    tensors: Mapping[str, Mapping[str, torch.Tensor]]
    state: Mapping[str, Json] = field(default_factory=dict)


def _ready(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors as safetensors wants them: contiguous, each with storage of its own."""
    out: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach()
        owns = plain.is_contiguous() and plain.untyped_storage().nbytes() == plain.nbytes
        if not owns or plain.data_ptr() in seen:
            plain = plain.clone(memory_format=torch.contiguous_format)
        seen.add(plain.data_ptr())
        out[name] = plain
    return out


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint below `folder` and return its path; one of the same step gives way to it.

    Guarantees:
    - a kill at any moment leaves either no ``checkpoint-N`` or a complete one;
    - a failure leaves every earlier checkpoint as it was.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    final = folder / f"checkpoint-{checkpoint.step}"
    with failing_in_one_line(folder), new_folder(final, replace=True) as temporary:
        files: dict[str, Json] = {}
        for group, tensors in checkpoint.tensors.items():
            path = temporary / f"{group}.safetensors"
            save_file(_ready(tensors), path)
            files[path.name] = _digest(path)
        content = {"version": _VERSION, "step": checkpoint.step, "files": files, "state": dict(checkpoint.state)}
        (temporary / _STATE).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return final


def load_checkpoint(path: Path, device: str = "cpu") -> Checkpoint:
    """Return the checkpoint at `path`, its tensors on `device`.

    Raises:
        ResumeError: it is not a checkpoint, or it is damaged.
    """
    try:
        content = json.loads((path / _STATE).read_bytes())
        if content["version"] != _VERSION:
            raise ResumeError(f"{path}: is of version {content['version']}, this troth reads {_VERSION}")
        tensors = {}
        for name, digest in content["files"].items():
            if _digest(path / name) != digest:
                raise ResumeError(f"{path}: {name} is damaged; remove this checkpoint to go on from the one before it")
            tensors[name.removesuffix(".safetensors")] = load_file(path / name, device=device)
        return Checkpoint(int(content["step"]), tensors, content["state"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ResumeError(f"{path}: not a whole checkpoint ({type(error).__name__}); remove it to go on") from None


def checkpoint_steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints below `folder`, ascending, whole or not."""
    names = (_NAME.fullmatch(p.name) for p in folder.iterdir()) if folder.is_dir() else ()
    return sorted(int(m.group(1)) for m in names if m)


def latest_checkpoint(folder: Path, device: str = "cpu") -> Checkpoint | None:
    """Return the newest whole checkpoint below `folder`, or None; damaged and half-written ones are passed over."""
    for step in reversed(checkpoint_steps(folder)):
        try:
            return load_checkpoint(folder / f"checkpoint-{step}", device)
        except ResumeError:
            continue
    return None


def remove_checkpoints(folder: Path, steps: Sequence[int]) -> None:
    """Remove the checkpoints of `steps`.

    A checkpoint is renamed away before its files are removed, so that a kill leaves no damaged one under its name.

    Raises:
        RunError: the folder cannot be written.
    """
    with failing_in_one_line(folder):
        for step in steps:
            path = folder / f"checkpoint-{step}"
            aside = folder / f".{path.name}.writing-removed"
            shutil.rmtree(aside, ignore_errors=True)
            path.replace(aside)
            shutil.rmtree(aside)
        if steps:
            sync(folder)


def keep_latest(folder: Path, keep: int) -> list[int]:
    """Remove all but the newest `keep` checkpoints and return the steps that stay, ascending."""
    steps = checkpoint_steps(folder)
    remove_checkpoints(folder, steps[:-keep])
    return steps[-keep:]
