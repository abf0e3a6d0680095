"""Private training in a loop of your own: a model that troth has never seen, three lines around it."""

import torch
from torch import nn

from troth.accounting import PrivacyPlan, calibrate_noise_multiplier
from troth.dp import PrivateEngine
from troth.seeds import PrivateRandomness


def main() -> None:
    n, batch, steps, delta = 2_000, 200, 40, 1e-5
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 16, generator=generator)
    y = (x[:, 0] > 0).long()
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2, weight_decay=0.0, fused=True)
    plan = PrivacyPlan(
        examples=n,
        expected_batch_size=batch,
        sampling_rate=batch / n,
        steps=steps,
        noise_multiplier=calibrate_noise_multiplier(4.0, delta, batch / n, steps),
        clipping_norm=0.5,
        delta=delta,
    )
    engine = PrivateEngine(model, optimizer, plan, PrivateRandomness.create())
    for _ in range(plan.steps):
        for rows in torch.from_numpy(engine.sample()).split(64):  # physical batches; the result is the same
            engine.backward(nn.functional.cross_entropy(model(x[rows]), y[rows], reduction="none"))
        engine.step()
    engine.detach()
    with torch.no_grad():
        accuracy = (model(x).argmax(1) == y).float().mean()
    privacy = engine.privacy()
    print(f"training accuracy {accuracy:.2f} at epsilon {privacy.epsilon:.2f}, delta {privacy.delta}")


if __name__ == "__main__":
    main()
