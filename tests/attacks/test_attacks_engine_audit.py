"""A white-box audit of the private engine: each canary owns a coordinate of the gradient, and the update is read.

The strongest attack there is: with every canary in every batch, what the engine releases is a Gaussian mechanism on
each canary's own coordinate with noise of its own, hence trials that are independent, and the Gaussian curve is theirs.
Broken engines must be called a violation, the right one almost never.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import troth.dp.clipping
import troth.dp.engine
from troth.accounting import PrivacyPlan
from troth.attacks import Claim, EpsilonBound, audit_one_run, audit_rates, gaussian_curve
from troth.dp import PrivateEngine
from troth.seeds import PrivateRandomness

CANARIES, DELTA, CONFIDENCE = 4000, 1e-5, 0.999
NOISE, NORM, SIZE = 1.0, 0.1, 10.0  # a canary's gradient is SIZE long before it is clipped to NORM
Patch = pytest.MonkeyPatch
Trials = tuple[np.ndarray, np.ndarray]


class TwoTensors(nn.Module):
    """Canary i's gradient is SIZE, at a coordinate of its own of one of two tables; row 0 of each is nobody's."""

    def __init__(self, canaries: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(canaries // 2 + 1, 1, padding_idx=0) for _ in range(2))
        for table in self.tables:
            nn.init.zeros_(table.weight)  # type: ignore[arg-type]

    def forward(self, ids: Tensor) -> Tensor:
        return SIZE * sum(table(ids[:, place]) for place, table in enumerate(self.tables))


def _trials(seed: int, steps: int = 1, canaries: int = CANARIES) -> tuple[Trials, Trials]:
    """Train on the canaries whose coin fell so, all of them in each batch; return each table's scores and coins."""
    included = np.random.default_rng(seed).random(canaries) < 0.5
    ids = torch.zeros(canaries, 2, dtype=torch.int64)
    ids[: canaries // 2, 0] = ids[canaries // 2 :, 1] = torch.arange(1, canaries // 2 + 1)
    rows = ids[torch.from_numpy(included)]
    model = TwoTensors(canaries)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    n = len(rows)
    plan = PrivacyPlan(n, n, 1.0, steps, NOISE, NORM, DELTA)
    engine = PrivateEngine(model, optimizer, plan, PrivateRandomness())

    def losses_of(part: np.ndarray) -> Tensor:
        return model(rows[torch.from_numpy(part)])[:, 0]

    engine.check_losses(losses_of, np.arange(4))
    for batch in engine.batches(physical_batch_size=n):
        for part in batch:
            engine.backward(losses_of(part))
        engine.step()
    scores = [-table.weight.detach()[1:, 0].numpy() * n / NORM for table in model.tables]  # type: ignore[operator, index]
    first, second = np.split(included, 2)
    return (scores[0], first), (scores[1], second)


def _rates(trials: Trials, claim: Claim, threshold: float, *, gaussian: bool) -> EpsilonBound:
    scores, included = trials
    family = gaussian_curve if gaussian else None
    return audit_rates(scores[included], scores[~included], claim, family=family, thresholds=[threshold])


def _audit(seed: int) -> list[EpsilonBound]:
    """Audit each tensor by itself, at half of the significance each."""
    claim = Claim(DELTA, gaussian_curve(NOISE).epsilon(DELTA), 1 - (1 - CONFIDENCE) / 2)
    return [_rates(trials, claim, 0.5, gaussian=True) for trials in _trials(seed)]


def _accused(found: list[EpsilonBound]) -> bool:
    return any(f.verdict == "violation" for f in found)


def no_clipping(patch: Patch) -> None:
    patch.setattr(troth.dp.clipping, "clip_factors", lambda squared, c, e: torch.ones_like(squared) / e)


def noise_divided_by_the_batch(patch: Patch) -> None:
    right = troth.dp.engine.write_noise
    patch.setattr(
        troth.dp.engine, "write_noise", lambda flat, std, *args, **kwargs: right(flat, std / 500, *args, **kwargs)
    )


def clip_after_averaging(patch: Patch) -> None:
    """The mean gradient is clipped to C; the canaries' gradients are orthogonal, so that its norm is known."""

    def wrong(squared: Tensor, c: float, e: int) -> Tensor:
        mean = squared.sum().sqrt() / len(squared)
        return torch.full_like(squared, float((c / mean).clamp(max=1)) / e)

    patch.setattr(troth.dp.clipping, "clip_factors", wrong)


def noise_missing_on_one_tensor(patch: Patch) -> None:
    right = troth.dp.engine.write_noise

    def wrong(flat: Tensor, *args: object, **kwargs: object) -> None:
        right(flat, *args, **kwargs)
        flat[len(flat) // 2 :] *= 1e-3  # not 0: the engine itself notices a tensor that does not move

    patch.setattr(troth.dp.engine, "write_noise", wrong)


def half_the_noise(patch: Patch) -> None:
    right = troth.dp.engine.write_noise
    patch.setattr(
        troth.dp.engine, "write_noise", lambda flat, std, *args, **kwargs: right(flat, std / 2, *args, **kwargs)
    )


@pytest.mark.parametrize(
    "plant",
    [no_clipping, noise_divided_by_the_batch, clip_after_averaging, noise_missing_on_one_tensor, half_the_noise],
)
def test_broken_engines_are_called_a_violation(plant: Callable[[Patch], None]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        accused = [_accused(_audit(seed)) for seed in range(10)]
    assert sum(accused) >= 9


def test_the_engine_is_almost_never_accused() -> None:
    found = [_audit(seed) for seed in range(100)]
    assert sum(map(_accused, found)) <= 1
    assert {f.verdict for pair in found for f in pair} <= {"consistent", "violation"}  # a violation could be proved
    claim = found[0][0].claim.epsilon
    assert claim is not None
    assert np.mean([f.epsilon_lower_bound for pair in found for f in pair]) > 0.6 * claim  # and the audit has power


def test_the_engine_is_almost_never_accused_by_rules_without_a_curve() -> None:
    claim = Claim(DELTA, gaussian_curve(NOISE).epsilon(DELTA), CONFIDENCE)
    found = []
    for seed in range(20):
        (first, one), (second, other) = _trials(seed)
        found.append(audit_one_run(np.append(first, second), np.append(one, other), claim))
        found.append(audit_one_run(np.append(first, second), np.append(one, other), claim, family=gaussian_curve))
    assert not _accused(found)


def test_amplification_that_did_not_happen_is_called_a_violation() -> None:
    steps, canaries = 16, 20_000
    claimed = PrivacyPlan(1000, 100, 0.1, steps, NOISE, NORM, DELTA).epsilon()
    for seed in range(3):
        first, _ = _trials(seed, steps, canaries)
        assert _rates(first, Claim(DELTA, claimed, CONFIDENCE), 0.75 * steps, gaussian=False).verdict == "violation"
