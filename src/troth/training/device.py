"""Where and in which number format to compute: the only place that asks what the machine has."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from troth.errors import ConfigError

__all__ = ["Autocast", "autocast", "choose_device"]

Autocast = Callable[[], AbstractContextManager[object]]


def choose_device(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """Return the device of ``run.device``: with ``auto`` CUDA where there is one, else the CPU.

    Raises:
        ConfigError: CUDA was asked for and there is none.
    """
    present = torch.cuda.is_available()
    if name == "cuda" and not present:
        raise ConfigError("run.device = 'cuda': this machine or this torch build has no CUDA; use 'auto' or 'cpu'")
    return torch.device("cuda" if name != "cpu" and present else "cpu")


def has_bfloat16(device: torch.device) -> bool:
    """Return whether the device computes in bfloat16 in hardware; a CPU is taken to gain nothing from it."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def autocast(device: torch.device, precision: Literal["auto", "float32", "bfloat16"]) -> Autocast:
    """Return what makes the context of each forward pass: bfloat16 autocast or nothing.

    With ``auto`` it is bfloat16 only where the device has it in hardware. Weights, their gradients, clipping norms and
    noise stay in float32 in every case.

    Raises:
        ConfigError: bfloat16 was asked for on a CUDA device that has none.
    """
    if precision == "bfloat16" and device.type == "cuda" and not has_bfloat16(device):
        raise ConfigError("train.precision = 'bfloat16': this CUDA device has none; use 'auto' or 'float32'")
    if precision == "bfloat16" or (precision == "auto" and has_bfloat16(device)):
        return lambda: torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext
