"""What training is given and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from troth.config import RunConfig
from troth.results import Json, Privacy
from troth.seeds import PublicSeeds

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from troth.data import Units
    from troth.tasks import Encoded, Task

__all__ = ["TrainInputs", "TrainOutcome"]


@dataclass(frozen=True)
class TrainInputs:
    """All that training reads, and the folder it may write to.

    Attributes:
        task: collates batches and gives the per-example loss.
        model: trained in place; moved to `device`.
        train: the encoded training rows.
        config: the resolved run file; `run`, `model`, `data`, `task`, `train` and `privacy` decide the result.
        seeds: public randomness: the order of plain batches, dropout.
        folder: the run's folder; checkpoints go to ``checkpoints/`` below it.
        device: where to compute (`choose_device`).
        units: which rows make up what is protected (`troth.data.privacy_units`); None where every row stands alone.
    """

    task: Task
    model: PreTrainedModel
    train: Encoded
    config: RunConfig
    seeds: PublicSeeds
    folder: Path
    device: torch.device
    units: Units | None = None


@dataclass(frozen=True)
class TrainOutcome:
    """What training did; the model of the inputs holds the trained weights.

    Attributes:
        steps: optimizer steps that made these weights.
        series: one row per epoch: ``epoch`` (from 1), ``step``, ``loss`` (mean over the epoch's examples, nats),
            ``examples_per_second``, ``epsilon`` (None without privacy), ``outside_guarantee`` (True for a private run,
            whose training losses epsilon does not cover).
        privacy: what epsilon the weights carry, replayed steps counted; None without a plan.
        work_seconds: seconds in the loop, those of earlier parts of a resumed run included.
        warnings: what the user should know, one line each.
    """

    steps: int
    series: list[dict[str, Json]]
    privacy: Privacy | None
    work_seconds: float
    warnings: tuple[str, ...] = ()
