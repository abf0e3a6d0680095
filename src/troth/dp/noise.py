"""Gaussian noise, written straight into the flat gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

from troth.seeds import PrivateRandomness

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["write_noise"]


def write_noise(flat: Tensor, standard_deviation: float, randomness: PrivateRandomness) -> None:
    """Overwrite `flat` [elements] with independent N(0, standard_deviation²) draws made from the step's key.

    The draws come from torch's generator on the tensor's device, which is not cryptographic: `Privacy.noise` says so.
    The same key gives the same noise; the engine ratchets the key after each step.
    """
    if standard_deviation == 0:
        flat.zero_()
        return
    generator = randomness.torch_generator("noise", device=str(flat.device))
    flat.normal_(0.0, standard_deviation, generator=generator)
