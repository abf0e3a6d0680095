"""What the running loop really did: counters that the engine keeps, and a way to look at noise and norms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["EngineCounters", "Observer"]


@dataclass
class EngineCounters:
    """What the running loop really did, counted where it happened.

    Realised batch sizes are private (they are drawn): never show them beside a guarantee.

    Attributes:
        steps: updates made.
        noise_draws: times the whole buffer was filled with noise.
        batch_sizes: units (examples, or users) that joined each step.
        silenced: clipped gradients whose norm was not finite, so that they added nothing.
    """

    steps: int = 0
    noise_draws: int = 0
    batch_sizes: list[int] = field(default_factory=list)
    silenced: int = 0

    @property
    def examples(self) -> int:
        """Units that joined all steps made together, repeats counted."""
        return sum(self.batch_sizes)


@dataclass(frozen=True)
class Observer:
    """Called while the engine runs; what it sees is private: for tests and studies, never beside a guarantee.

    Attributes:
        noise: called with the flat buffer [elements] right after the step's noise was written.
        norms: called with the squared gradient norms [batch] of each physical batch by block.
    """

    noise: Callable[[Tensor], None] | None = None
    norms: Callable[[Mapping[str, Tensor]], None] | None = None
