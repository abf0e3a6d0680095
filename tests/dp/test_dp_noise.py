"""The noise: its law, its independence, one draw a step. False-alarm rates are for the fixed keys' choice."""

from __future__ import annotations

import dp_models
import numpy as np
import pytest
import torch
from dp_oracle import plan_for
from scipy import stats
from torch import Tensor, nn

from troth.dp import PrivateEngine, write_noise
from troth.seeds import PrivateRandomness

ALARM = 1e-6  # false-alarm rate of each statistical check below


def _draws(count: int, elements: int, std: float = 1.0, dtype: torch.dtype = torch.float32) -> np.ndarray:
    randomness = PrivateRandomness.create(123)
    rows = []
    for _ in range(count):
        flat = torch.full((elements,), torch.nan, dtype=dtype)
        write_noise(flat, std, randomness)
        rows.append(flat.double().numpy().copy())
        randomness = randomness.advance()
    return np.stack(rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mean_and_variance_are_those_asked_for(dtype: torch.dtype) -> None:
    n, std = 200_000, 0.37
    values = _draws(1, n, std, dtype)[0]
    low, high = stats.norm.interval(1 - ALARM)
    assert low < values.mean() / (std / np.sqrt(n)) < high
    low, high = stats.chi2.interval(1 - ALARM, n)
    assert low < np.square(values / std).sum() < high


def test_the_law_is_gaussian() -> None:
    values = _draws(1, 100_000)[0]
    assert stats.kstest(values, "norm").pvalue > ALARM


def test_steps_are_independent() -> None:
    draws = _draws(40, 5_000)
    correlation = np.corrcoef(draws)
    off = correlation[np.triu_indices(40, 1)]
    bound = stats.norm.isf(ALARM / len(off) / 2) / np.sqrt(5_000)
    assert np.abs(off).max() < bound
    assert len(np.unique(np.round(draws[:, 0], 6))) == 40


def test_parameters_are_independent_of_each_other() -> None:
    """Parts of one draw, as different parameters see them, and the draw against itself shifted."""
    draw = _draws(1, 120_000)[0]
    parts = draw.reshape(12, -1)
    off = np.corrcoef(parts)[np.triu_indices(12, 1)]
    assert np.abs(off).max() < stats.norm.isf(ALARM / len(off) / 2) / np.sqrt(parts.shape[1])
    for lag in (1, 2, 3, 8, 16, 64):
        product = draw[:-lag] * draw[lag:]
        assert abs(product.mean()) * np.sqrt(len(product)) < stats.norm.isf(ALARM / 2)


def test_the_same_key_gives_the_same_noise_and_another_key_another() -> None:
    first, second, other = (torch.empty(1000) for _ in range(3))
    write_noise(first, 1.0, PrivateRandomness.create(1))
    write_noise(second, 1.0, PrivateRandomness.create(1))
    write_noise(other, 1.0, PrivateRandomness.create(1).advance())
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_no_noise_clears_the_buffer() -> None:
    flat = torch.ones(5)
    write_noise(flat, 0.0, PrivateRandomness())
    assert torch.equal(flat, torch.zeros(5))


def test_two_runs_never_share_noise() -> None:
    draws = []
    for _ in range(2):
        flat = torch.empty(1000)
        write_noise(flat, 1.0, PrivateRandomness())
        draws.append(flat)
    assert not torch.isin(draws[0], draws[1]).any()


def test_exactly_one_draw_a_step_however_the_batch_is_cut() -> None:
    """Every coordinate of every trainable parameter gets noise, once a step, before any gradient is added."""
    case = dp_models.bert()
    model: nn.Module = case.model
    noise: list[Tensor] = []
    engine = PrivateEngine(
        model,
        torch.optim.SGD(model.parameters(), lr=0.0),
        plan_for(case.rows, noise_multiplier=3.0),
        PrivateRandomness(),
        record_noise=lambda flat: noise.append(flat.clone()),
    )
    for physical in (1, 2, case.rows):
        engine.sample()
        for start in range(0, case.rows, physical):
            engine.backward(case.losses(model, case.take(slice(start, start + physical))))
        engine.step()
    assert engine.counters.noise_draws == len(noise) == 3
    elements = sum(p.numel() for p in model.parameters())
    for flat in noise:
        assert len(flat) >= elements
        assert int((flat == 0).sum()) == 0
        assert float(flat.std()) == pytest.approx(3.0 / case.rows, rel=0.05)


def test_what_reaches_the_optimizer_is_the_sum_plus_that_noise() -> None:
    case = dp_models.mlp().double()
    gradients = []
    for sigma in (0.0, 2.0):
        model = case.double().model
        recorded: list[Tensor] = []
        engine = PrivateEngine(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            plan_for(case.rows, noise_multiplier=sigma),
            PrivateRandomness.create(2),
            record_noise=lambda flat, kept=recorded: kept.append(flat.clone()),
        )
        engine.sample()
        engine.backward(case.losses(model, case.batch))
        gradients.append((engine._gradient.flat.clone(), recorded[0]))
    (plain, nothing), (noised, noise) = gradients
    assert not nothing.any()
    assert torch.allclose(noised - noise, plain, atol=1e-14)
