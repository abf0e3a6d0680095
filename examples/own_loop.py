"""Private training in a loop of your own: a model that troth has never seen, three lines around it."""

import numpy as np
import torch
from torch import nn

from troth.accounting import plan_for
from troth.dp import PrivateEngine
from troth.seeds import PrivateRandomness


def main() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2_000, 16, generator=generator)
    y = (x[:, 0] > 0).long()
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2, weight_decay=0.0, fused=True)

    def losses_of(rows: np.ndarray) -> torch.Tensor:
        return nn.functional.cross_entropy(model(x[rows]), y[rows], reduction="none")

    plan = plan_for(examples=len(x), expected_batch_size=200, epochs=4, epsilon=4.0, delta=1e-5, clipping_norm=0.5)
    engine = PrivateEngine(model, optimizer, plan, PrivateRandomness.create())
    engine.check_losses(losses_of, np.arange(4))
    for batch in engine.batches(physical_batch_size=64):  # what fits in memory; the result is the same
        for rows in batch:
            engine.backward(losses_of(rows))
        engine.step()
    engine.detach()
    with torch.no_grad():
        accuracy = (model(x).argmax(1) == y).float().mean()
    privacy = engine.privacy()
    print(f"training accuracy {accuracy:.2f} at epsilon {privacy.epsilon:.2f}, delta {privacy.delta}")


if __name__ == "__main__":
    main()
