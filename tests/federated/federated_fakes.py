"""A task and a model small enough to be checked by hand: softmax regression on fixed features, float64."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from troth.federated import FederatedData
from troth.results import Measurement
from troth.tasks import Encoded

FEATURES, CLASSES = 6, 3


class Regression(nn.Module):
    """Logits of a row; dropout makes the random state matter where it is asked for."""

    def __init__(self, dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(CLASSES, FEATURES, generator=generator, dtype=dtype) * 0.1)
        self.bias = nn.Parameter(torch.zeros(CLASSES, dtype=dtype))
        self.unused = nn.Parameter(torch.ones(2, dtype=dtype))
        self.frozen = nn.Parameter(torch.ones(1, dtype=dtype), requires_grad=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        return self.dropout(features) @ self.weight.T * self.frozen + self.bias


class RegressionTask:
    """Collates rows of features and gives cross-entropy per example."""

    def __init__(self, rows: int, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.labels = generator.integers(CLASSES, size=rows)
        self.features = generator.normal(size=(rows, FEATURES)) + self.labels[:, None]
        self.encoded = Encoded({}, {"labels": self.labels}, np.ones(rows, dtype=np.int64), 0)
        self.seen: list[np.ndarray] = []

    def collate(self, encoded: Encoded, indices: np.ndarray, *, draw: int = 0) -> dict[str, Tensor]:
        self.seen.append(indices)
        return {"x": torch.from_numpy(self.features[indices]), "labels": torch.from_numpy(self.labels[indices])}

    def per_example_loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        features = batch["x"].to(next(model.parameters()).dtype)
        return nn.functional.cross_entropy(model(features), batch["labels"], reduction="none")

    def accuracy(self, model: nn.Module) -> tuple[Measurement, ...]:
        assert not model.training
        with torch.no_grad():
            right = (model(torch.from_numpy(self.features)).argmax(1).numpy() == self.labels).mean()
        return (Measurement("test.accuracy", float(right), 0.0, 1.0, 0.95, "clopper-pearson", 9, "fraction"),)


def equal_clients(rows: int, clients: int) -> FederatedData:
    return FederatedData.from_assignment(np.arange(rows) % clients, clients)
