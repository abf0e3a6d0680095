"""Batches of several clients at once: tensors [clients, batch, ...], and what each row counts."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from troth.tasks import Encoded, Task

__all__ = ["collate_clients", "row_weights"]

Integers = NDArray[np.int64]


def collate_clients(task: Task, encoded: Encoded, rows: Integers, draws: Integers) -> dict[str, Tensor]:
    """Return the batches of `clients` clients as tensors [clients, batch, ...], padded to the longest row of all.

    Args:
        task: collates.
        encoded: the table.
        rows: [clients, batch]; -1 where a client's batch is smaller: its first row stands there, to be given weight 0.
        draws: [clients] which draw of a task that draws at random when collating.
    """
    filled = np.where(rows < 0, rows[:, :1], rows).ravel()
    kinds = np.unique(draws)
    batch = task.collate(encoded, filled, draw=int(kinds[0]))
    for draw in kinds[1:].tolist():  # a draw changes values, never shapes
        mine = torch.from_numpy(np.repeat(draws == draw, rows.shape[1]))
        other = task.collate(encoded, filled, draw=draw)
        batch = {n: torch.where(mine.view(-1, *[1] * (v.dim() - 1)), other[n], v) for n, v in batch.items()}
    return {name: values.view(*rows.shape, *values.shape[1:]) for name, values in batch.items()}


def row_weights(rows: Integers, dtype: torch.dtype) -> Tensor:
    """Return [clients, batch]: 1 / (the client's rows) at its rows and 0 at padding, so that a sum is a mean."""
    real = rows >= 0
    return torch.from_numpy(real / np.maximum(real.sum(axis=1, keepdims=True), 1)).to(dtype)
