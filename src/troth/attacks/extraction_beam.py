"""Beam search over the slots of a pattern: one slot after the other, then every slot again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from troth.errors import ConfigError
from troth.seeds import PublicSeeds

__all__ = ["BeamSettings", "beam_search"]

Integers = NDArray[np.int64]
Losses = Callable[[Integers], NDArray[np.float64]]


@dataclass(frozen=True)
class BeamSettings:
    """How wide the search is.

    Attributes:
        width: codes kept at each slot.
        completions: random endings over which the loss of a beginning is averaged, the same for all beginnings.
        sweeps: most rounds in which each slot of each kept code is tried with each value.

    Raises:
        ConfigError: a number below 1 (sweeps: below 0).
    """

    width: int = 64
    completions: int = 8
    sweeps: int = 4

    def __post_init__(self) -> None:
        if min(self.width, self.completions) < 1 or self.sweeps < 0:
            raise ConfigError("beam search: width and completions must be 1 or more, sweeps 0 or more")


def beam_search(
    losses: Losses, sizes: Sequence[int], *, seeds: PublicSeeds, settings: BeamSettings | None = None
) -> Integers:
    """Return up to `width` codes with low losses as digits [codes, slots], the lowest first.

    A beginning is rated by its mean loss over random endings: a model that reads in both directions has no loss of a
    beginning alone. Where the loss is a sum over slots the best code is found for certain.

    Args:
        losses: digits [codes, slots] -> losses [codes].
        sizes: values of each slot.
        seeds: public seed of the endings.
        settings: None for the defaults.
    """
    rule = settings or BeamSettings()
    generator = seeds.generator("beam", "completions")
    endings = np.stack([generator.integers(0, size, rule.completions) for size in sizes], axis=1)
    beam = np.zeros((1, 0), dtype=np.int64)
    for slot, size in enumerate(sizes):
        grown = np.concatenate([np.repeat(beam, size, 0), np.tile(np.arange(size), len(beam))[:, None]], axis=1)
        ends = np.unique(endings[:, slot + 1 :], axis=0) if slot + 1 < len(sizes) else np.zeros((1, 0), np.int64)
        whole = np.concatenate([np.repeat(grown, len(ends), 0), np.tile(ends, (len(grown), 1))], axis=1)
        rated = losses(whole).reshape(len(grown), len(ends)).mean(1)
        beam = grown[np.argsort(rated, kind="stable")[: rule.width]]
    for _ in range(rule.sweeps):
        near = _neighbours(beam, sizes)
        better = near[np.argsort(losses(near), kind="stable")[: rule.width]]
        if np.array_equal(better, beam):
            break
        beam = better
    return beam


def _neighbours(codes: Integers, sizes: Sequence[int]) -> Integers:
    """Return the codes and all that differ from one of them in one slot, each once."""
    found = [codes]
    for slot, size in enumerate(sizes):
        near = np.repeat(codes, size, axis=0)
        near[:, slot] = np.tile(np.arange(size), len(codes))
        found.append(near)
    return np.unique(np.concatenate(found), axis=0)
