"""Loss gradients of single rows, made short: what replay by gradient diversity compares rows by."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from troth.seeds import PublicSeeds
from troth.tasks import Encoded, Task

__all__ = ["row_gradients"]

_WIDTH = 64


def row_gradients(
    task: Task, model: nn.Module, encoded: Encoded, rows: NDArray[np.int64], seeds: PublicSeeds
) -> NDArray[np.float32]:
    """Return [rows, 64]: each row's loss gradient under the model as it is, dropout off, randomly projected.

    The projection is a count sketch (Charikar et al., ICALP 2002): each number is added, with a random sign, to one of
    64 places. Inner products are kept in expectation, with a standard error of about 1 / 8 of the product of norms.

    Args:
        task: gives the per-example loss.
        model: in place; modes are given back.
        encoded: the table.
        rows: [rows] row numbers.
        seeds: public seeds of the projection.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    signs = {name: _signs(p.numel(), seeds, name) for name, p in trained.items()}
    modes = [(module, module.training) for module in model.modules()]
    model.train(mode=False)
    out = np.zeros((len(rows), _WIDTH), dtype=np.float32)
    try:
        for i, row in enumerate(rows.tolist()):
            batch = task.collate(encoded, np.array([row]))
            with torch.enable_grad():
                loss = task.per_example_loss(model, batch)[0]  # type: ignore[arg-type]
            found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
            for name, g in zip(trained, found, strict=True):
                if g is not None:
                    out[i] += _projected(g.flatten().float(), signs[name]).numpy()
    finally:
        for module, mode in modes:
            module.training = mode
    return out


def _signs(numbers: int, seeds: PublicSeeds, name: str) -> torch.Tensor:
    """Return [numbers] int64: the place each number is added to, with its sign in the lowest bit."""
    drawn = seeds.generator("replay projection", name).integers(0, 2 * _WIDTH, size=numbers)
    return torch.from_numpy(drawn)


def _projected(gradient: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
    """Return [64] the sum of the signed numbers at their places of a count sketch."""
    signed = torch.where((signs & 1).bool(), gradient, -gradient)
    return torch.zeros(_WIDTH).index_add_(0, signs >> 1, signed)
