"""Shadow heads on frozen features: the weaker game, in seconds.

The target's own encoder turns every row into features once; each shadow is a new head on them. Where the target was
trained whole, its encoder has seen the members, and the shadows inherit that: they say less about membership than
shadows that are trained as the target was. Where the target was trained in its head alone the game is the full one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from troth.attacks.scores import confidence
from troth.attacks.shadows import Pool, Shadows, inclusion
from troth.attacks.stacked_heads import HeadSettings, train_heads
from troth.config import TrainConfig
from troth.data import concatenated
from troth.errors import ConfigError
from troth.seeds import PublicSeeds
from troth.tasks import Task
from troth.tasks.task import evaluating, scoring_batches

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from troth.data import Table

__all__ = ["frozen_features", "train_head_shadows"]

_BATCH = 64


def frozen_features(task: Task, model: PreTrainedModel, table: Table) -> np.ndarray:
    """Return what the last linear layer of a classifier is given for each row, float32 [rows, width].

    Raises:
        ConfigError: not a classification task, or no linear layer with an output for each label.
    """
    head = _head(task, model)
    given: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    encoded = task.encode(table)
    found = np.empty((len(encoded), head.in_features), dtype=np.float32)
    try:
        with evaluating(model) as device:
            for rows in scoring_batches(encoded.lengths, _BATCH, None):
                batch = task.collate(encoded, rows)
                model(**{name: batch[name].to(device) for name in ("input_ids", "attention_mask")})
                found[rows] = given.pop().float().cpu().numpy()
    finally:
        handle.remove()
    return found


def _head(task: Task, model: PreTrainedModel) -> nn.Linear:
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == len(task.labels)]
    if task.kind != "classification" or not linear:
        raise ConfigError(
            "attack.shadow_training = 'frozen_features' wants a classifier that ends in a linear layer: use 'full'"
        )
    return linear[-1]


def train_head_shadows(
    task: Task,
    model: PreTrainedModel,
    pool: Pool,
    labels: np.ndarray,
    train: TrainConfig,
    *,
    count: int,
    seeds: PublicSeeds,
) -> Shadows:
    """Return what `count` new heads on the target's frozen features say about the pool.

    Args:
        task: of the target.
        model: the target.
        pool: the rows of the game.
        labels: number of each row's true class [pool].
        train: epochs, learning rate, batch size and weight decay of the heads, by AdamW.
        count: of shadows, even.
        seeds: public seeds of who sees what, and of the heads.

    Raises:
        ConfigError: the target is no classifier that ends in a linear layer.
    """
    inside = inclusion(len(pool.table), count, seeds)
    seen, numbers, table = inside, labels, pool.table
    if pool.common is not None:
        table = concatenated([pool.table, pool.common], pool.table.source)
        codes = {label: code for code, label in enumerate(task.labels)}
        numbers = np.append(labels, [codes[label] for label in pool.common.column("label")])
        seen = np.hstack([inside, np.ones((count, len(pool.common)), dtype=bool)])
    features = frozen_features(task, model, table)
    settings = HeadSettings(
        classes=len(task.labels),
        epochs=train.epochs,
        learning_rate=train.learning_rate,
        batch_size=train.expected_batch_size,
        weight_decay=train.weight_decay,
    )
    with torch.random.fork_rng(devices=[]):
        heads = train_heads(features, numbers, seen, settings, seeds=seeds)
    logs = heads.log_probabilities(features[: len(labels)])
    confidences = np.stack([confidence(own, labels) for own in logs])
    chosen = logs[:, np.arange(len(labels)), labels]
    return Shadows(inside, chosen, confidences, logs.astype(np.float32))
