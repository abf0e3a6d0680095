"""Clients with one step, merged: the weighted sum of their updates is one gradient of a weighted loss.

With SGD a single step moves a client by the gradient of its mean loss; nothing of its own is needed but the rows'
weights. Rows of many clients go through the model as ordinary batches of like length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from troth.federated.algorithm import Parameters
from troth.federated.round_plan import RoundWork
from troth.tasks import Encoded, Task

__all__ = ["MergedBatch", "merged_gradient", "plan_merged"]

_TOKENS = 4096  # in a forward pass: enough to drown the overhead, small enough for the cache


@dataclass(frozen=True, eq=False)
class MergedBatch:
    """Rows of clients that make one step each.

    Attributes:
        rows: [rows] row numbers.
        weights: [rows] the client's weight over its number of rows.
        draw: which draw of a task that draws when collating.
        seed: of dropout.
    """

    rows: NDArray[np.int64]
    weights: NDArray[np.float64]
    draw: int
    seed: int


def plan_merged(work: RoundWork, chosen: NDArray[np.bool_], lengths: NDArray[np.int64], draw: int) -> list[MergedBatch]:
    """Return the batches of the chosen clients [clients], rows of like length together."""
    counts = work.counts
    mine = np.repeat(chosen, counts)
    rows = work.rows[mine]
    weights = np.repeat(work.weights / np.maximum(counts, 1), counts)[mine]
    order = np.lexsort((rows, lengths[rows]))
    rows, weights = rows[order], weights[order]
    long = np.maximum(lengths[rows], 1)
    batches, start = [], 0
    while start < len(rows):
        stop = start + max(1, int(_TOKENS // long[start]))
        while stop > start + 1 and (stop - start) * long[min(stop, len(rows)) - 1] > _TOKENS:
            stop = start + max(1, int(_TOKENS // long[min(stop, len(rows)) - 1]))
        stop = min(stop, len(rows))
        batches.append(MergedBatch(rows[start:stop], weights[start:stop], draw, (work.key + start) & (2**63 - 1)))
        start = stop
    return batches


@torch.enable_grad()
def merged_gradient(
    task: Task, model: nn.Module, encoded: Encoded, batch: MergedBatch, trained: Parameters
) -> tuple[dict[str, Tensor], float]:
    """Return the gradient of the weighted sum of losses, and the plain sum of losses in nats.

    Args:
        task: gives the per-example loss.
        model: holds the global parameters.
        encoded: the table.
        batch: rows and weights.
        trained: the model's live trained parameters.
    """
    torch.manual_seed(batch.seed)
    device = next(iter(trained.values())).device
    tensors = {n: v.to(device) for n, v in task.collate(encoded, batch.rows, draw=batch.draw).items()}
    losses = task.per_example_loss(model, tensors)  # type: ignore[arg-type]
    weights = torch.from_numpy(batch.weights).to(losses)
    found = torch.autograd.grad((losses * weights).sum(), list(trained.values()), allow_unused=True)
    total = float(losses.detach().double().sum())
    return {n: g for n, g in zip(trained, found, strict=True) if g is not None}, total
