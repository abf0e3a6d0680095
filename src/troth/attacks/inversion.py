"""Gradient inversion: the values of slots found by descending a relaxed loss from many starts at once.

In the setting of ModIvA (Parikh, Dupuy and Gupta, ACL 2022, arXiv 2203.13920): each slot's values get logits, the
model reads the mixture of the values' embeddings under their softmax, and the loss of the known labels is descended by
Adam while the softmax's temperature falls; what is read out is each slot's largest logit. The schedule, the restarts
and the stopping rule are ours, and this is not the authors' code: their numbers are not reproduced by it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from troth.errors import ConfigError
from troth.seeds import PublicSeeds
from troth.tasks.relaxed_inputs import RelaxedInputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from troth.attacks.canary_candidates import Candidates

__all__ = ["Inversion", "InversionSettings", "invert", "relaxed_candidates"]

RelaxedLoss = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class InversionSettings:
    """How the relaxed loss is descended.

    The defaults were chosen on five small taggers with one planted code of four digits each: in all of them the best of
    16 starts reached the lowest loss of all 10,000 codes, as did most other settings tried.

    Attributes:
        restarts: starts, all in one batch.
        most_steps: after which every start is read out.
        learning_rate: of Adam.
        temperatures: of the softmax at the first and at the last step; in between it falls geometrically.
        patience: a start is read out after so many steps without a change of its largest logits, once the temperature
            is below 1/2.

    Raises:
        ConfigError: a number out of range.
    """

    restarts: int = 16
    most_steps: int = 100
    learning_rate: float = 0.3
    temperatures: tuple[float, float] = (2.0, 0.2)
    patience: int = 30

    def __post_init__(self) -> None:
        first, last = self.temperatures
        if min(self.restarts, self.most_steps, self.patience) < 1:
            raise ConfigError("gradient inversion: restarts, most_steps and patience must be 1 or more")
        if not self.learning_rate > 0 or not 0 < last <= first:
            raise ConfigError(
                "gradient inversion: learning_rate must be above 0, and temperatures fall from one number above 0 to "
                "another"
            )

    def temperature(self, step: int) -> float:
        """Return the temperature of a step, from 0."""
        first, last = self.temperatures
        return float(first * (last / first) ** (step / max(1, self.most_steps - 1)))


@dataclass(frozen=True, eq=False)
class Inversion:
    """What was read out.

    Attributes:
        digits: int64 [restarts, slots].
        steps: int64 [restarts], after which each start was read out.
        relaxed_losses: float64 [restarts], nats, at the last step that was made.
    """

    digits: NDArray[np.int64]
    steps: NDArray[np.int64]
    relaxed_losses: NDArray[np.float64]


def invert(
    losses: RelaxedLoss,
    sizes: Sequence[int],
    *,
    seeds: PublicSeeds,
    settings: InversionSettings | None = None,
    first_restart: int = 0,
    like: Tensor | None = None,
) -> Inversion:
    """Return what descending a relaxed loss from `settings.restarts` starts leads to.

    Guarantees:
    - start number r depends on the seed and r alone: one batch of 16 goes where 16 batches of one go.

    Args:
        losses: shares [restarts, slots, most values] -> losses [restarts], each of its own row's shares alone.
        sizes: values of each slot.
        seeds: public seed of the starting logits, which are standard normal.
        settings: None for the defaults.
        first_restart: number of the first start, to make some of them apart from the others.
        like: a tensor whose type and device the logits have; None for float32 on the CPU.
    """
    rule = settings or InversionSettings()
    logits = _starts(sizes, seeds, rule.restarts, first_restart, like).requires_grad_(True)
    missing = torch.arange(max(sizes), device=logits.device) >= torch.tensor(sizes, device=logits.device)[:, None]
    optimizer = torch.optim.Adam([logits], lr=rule.learning_rate)
    best = logits.detach().masked_fill(missing, -torch.inf).argmax(2)
    unchanged = torch.zeros(rule.restarts, dtype=torch.long, device=logits.device)
    running = torch.ones(rule.restarts, dtype=torch.bool, device=logits.device)
    steps = torch.zeros_like(unchanged)
    found = torch.zeros(rule.restarts, dtype=torch.float64, device=logits.device)
    for step in range(rule.most_steps):
        temperature = rule.temperature(step)
        relaxed = losses(torch.softmax(logits.masked_fill(missing, -torch.inf) / temperature, 2))
        (logits.grad,) = torch.autograd.grad(relaxed.sum(), logits)
        optimizer.step()
        now = logits.detach().masked_fill(missing, -torch.inf).argmax(2)
        unchanged = torch.where((now == best).all(1), unchanged + 1, 0)
        # What has been read out stays as it was: others in the batch may go on.
        best = torch.where(running[:, None], now, best)
        found, steps = torch.where(running, relaxed.detach().double(), found), steps + running
        running = running & ~((unchanged >= rule.patience) & (temperature < 0.5))
        if not bool(running.any()):
            break
    return Inversion(best.cpu().numpy(), steps.cpu().numpy(), found.cpu().numpy())


def relaxed_candidates(candidates: Candidates, model: PreTrainedModel) -> RelaxedInputs:
    """Return the relaxed loss of a plan's texts under a model, which should be `troth.tasks.relaxed_inputs.frozen`.

    Raises:
        ModelError: values of a slot have different numbers of tokens, or the model reads no mixtures.
    """
    for slot in range(len(candidates.plan.parsed.slots)):
        candidates.places(slot)
    encoded = candidates.encode(candidates.variants())
    device = next(model.parameters()).device
    batch = candidates.task.collate(encoded, np.arange(len(encoded)))
    batch = {name: values.to(device) for name, values in batch.items()}
    return RelaxedInputs(candidates.task, model, batch, candidates.plan.parsed.sizes)


def _starts(sizes: Sequence[int], seeds: PublicSeeds, restarts: int, first: int, like: Tensor | None) -> Tensor:
    shape = (len(sizes), max(sizes))
    rows = [seeds.generator("inversion", first + i).standard_normal(shape) for i in range(restarts)]
    made = torch.from_numpy(np.stack(rows))
    return made.float() if like is None else made.to(like.device, like.dtype)
