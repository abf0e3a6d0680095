"""Twins: models made as the target was, on other rows. What attacks train is looked at and thrown away.

Shadow models, the twin of a hold-out game and the twins that see canaries are all made here, by the training stage, so
that they differ from the target in their rows alone. The noise of a private twin comes from a key of its own, which is
drawn from the operating system and never stored (reproducible with ``run.insecure_seed``): the law of the noise is the
target's, and nothing is released.
"""

from __future__ import annotations

import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from troth.accounting import PrivacyPlan, make_plan
from troth.config import RunConfig
from troth.data import Table, privacy_units
from troth.seeds import PublicSeeds
from troth.tasks import Task, make_model
from troth.training import Progress, SilentProgress, TrainInputs, fit

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Recipe", "Twin", "train_twin"]

_ONLY_AT_THE_END = 10**9  # steps between checkpoints


@dataclass(frozen=True, eq=False)
class Recipe:
    """How the target was made.

    Attributes:
        config: its run file; a federated target's twins are trained centrally, by [train].
        base: folder that the run file's relative paths start from.
        task: the target's, hence with its labels.
        device: where to compute.
    """

    config: RunConfig
    base: Path
    task: Task
    device: torch.device


@dataclass(frozen=True, eq=False)
class Twin:
    """A model made like the target.

    Attributes:
        model: trained, in evaluation mode.
        plan: what it was trained under; None without [privacy].
    """

    model: PreTrainedModel
    plan: PrivacyPlan | None


def train_twin(
    recipe: Recipe, table: Table, *, seeds: PublicSeeds, folder: Path, progress: Progress | None = None
) -> Twin:
    """Return a model trained on `table` as the recipe says, from an initialisation of its own.

    Args:
        recipe: how the target was made.
        table: what the twin is trained on.
        seeds: public seeds of its initialisation, its batches and dropout.
        folder: for checkpoints while it trains; nothing is left there.
        progress: where to say how far it is.

    Raises:
        TrothError: what calibration, the model or training refuses.
    """
    config = _own(recipe.config, seeds)
    plan = units = None
    if config.privacy is not None:
        units = privacy_units(table, config.privacy.unit)
        plan = make_plan(config.privacy, config.train, len(units))
    model = make_model(config, recipe.task, seeds, recipe.base)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".twin-") as place:
        inputs = TrainInputs(
            task=recipe.task,
            model=model,
            train=recipe.task.encode(table),
            config=config,
            seeds=seeds,
            folder=Path(place),
            device=recipe.device,
            units=units,
        )
        fit(inputs, plan=plan, reservation=None, resume=False, progress=progress or SilentProgress())
    model.train(mode=False)
    return Twin(model, plan)


def _own(config: RunConfig, seeds: PublicSeeds) -> RunConfig:
    """Return the run file of a twin: its own seed and noise key, no ledger entry, no checkpoint on the way."""
    given, insecure = config.run.insecure_seed, None
    if config.privacy is not None:
        insecure = secrets.randbits(62) if given is None else PublicSeeds(given).integer("twin", seeds.root)
    run = config.run.model_copy(update={"seed": seeds.root, "insecure_seed": insecure, "guarantee": "none"})
    train = config.train.model_copy(update={"checkpoint_every": _ONLY_AT_THE_END})
    return config.model_copy(update={"run": run, "train": train, "federated": None})
