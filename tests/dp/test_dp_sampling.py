"""The sampler's distribution, and what a running loop really sampled, drew and counted against its plan."""

from __future__ import annotations

import dp_accounting
import numpy as np
import torch
from dp_oracle import ComparedEngine
from scipy import stats
from torch import Tensor, nn

from troth.accounting.plan import PrivacyPlan
from troth.dp import Observer, poisson_sample
from troth.seeds import PrivateRandomness

ALARM = 1e-6  # false-alarm rate of each statistical check below, for the fixed seeds' choice


def _batches(examples: int, rate: float, count: int, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [poisson_sample(examples, rate, generator) for _ in range(count)]


def test_rows_are_unique_sorted_and_in_range() -> None:
    for rows in _batches(1000, 0.2, 50):
        assert rows.dtype == np.int64
        assert np.array_equal(rows, np.unique(rows))
        assert not len(rows) or (rows[0] >= 0 and rows[-1] < 1000)


def test_batch_sizes_are_binomial() -> None:
    sizes = np.array([len(rows) for rows in _batches(500, 0.06, 4000)])
    edges = stats.binom.ppf(np.linspace(0, 1, 11)[1:-1], 500, 0.06)
    cells = np.searchsorted(edges, sizes)  # cell k holds the sizes in (edge k-1, edge k]
    chances = np.diff(np.concatenate([[0.0], stats.binom.cdf(edges, 500, 0.06), [1.0]]))
    assert stats.chisquare(np.bincount(cells, minlength=10), chances * 4000).pvalue > ALARM


def test_every_row_has_the_same_chance() -> None:
    examples, rate, count = 60, 0.15, 6000
    hits = np.bincount(np.concatenate(_batches(examples, rate, count)), minlength=examples)
    statistic = np.square(hits - count * rate).sum() / (count * rate * (1 - rate))
    assert stats.chi2.cdf(statistic, examples) < 1 - ALARM


def test_rows_are_independent_of_each_other() -> None:
    """Pairs are in the batch together with chance q²: neither drawn together nor shut out, as a shuffle would do."""
    examples, rate, count = 25, 0.3, 8000
    present = np.zeros((count, examples))
    for i, rows in enumerate(_batches(examples, rate, count)):
        present[i, rows] = 1
    correlation = np.corrcoef(present.T)[np.triu_indices(examples, 1)]
    assert np.abs(correlation).max() < stats.norm.isf(ALARM / len(correlation) / 2) / np.sqrt(count)
    assert abs(correlation.mean()) < 0.005  # of fixed-size batches it would be -1/24


def test_batches_are_independent_of_each_other() -> None:
    present = np.zeros((4000, 30))
    for i, rows in enumerate(_batches(30, 0.4, 4000)):
        present[i, rows] = 1
    left, right = present[:-1] - 0.4, present[1:] - 0.4
    z = (left * right).mean(0) * np.sqrt(3999) / (0.4 * 0.6)
    assert np.abs(z).max() < stats.norm.isf(ALARM / 30 / 2)


def test_the_ends_of_the_range() -> None:
    generator = np.random.default_rng(0)
    assert np.array_equal(poisson_sample(7, 1.0, generator), np.arange(7))
    empty = poisson_sample(7, 0.0, generator)
    assert empty.dtype == np.int64
    assert len(empty) == 0
    assert sum(len(rows) == 0 for rows in _batches(10, 0.05, 400)) > 150  # empty batches are real: 0.95^10 = 0.60


def test_a_huge_data_set_costs_no_more_than_its_batch() -> None:
    """10^12 rows: anything of the data set's size would not fit in memory."""
    rows = poisson_sample(10**12, 1e-10, np.random.default_rng(1))
    assert 40 < len(rows) < 180
    assert rows.max() > 10**11


def test_the_running_loop_agrees_with_the_event_of_its_plan() -> None:
    """Sampling rate, noise standard deviation and steps, counted where they happen, against the accounted event."""
    torch.manual_seed(0)
    plan = PrivacyPlan(2_000, 80, 0.04, 120, 1.3, 0.5, 1e-5)
    model = nn.Sequential(nn.Linear(30, 40), nn.Tanh(), nn.Linear(40, 2))
    x, y = torch.randn(2_000, 30), torch.randint(2, (2_000,))
    noise: list[Tensor] = []
    spent: list[int] = []
    engine = ComparedEngine(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        plan,
        PrivateRandomness.create(4),
        before_step=spent.append,
        observer=Observer(noise=lambda flat: noise.append(flat.clone())),
    )
    while engine.step_index < plan.steps:
        rows = torch.from_numpy(engine.sample())
        for part in rows.split(32):
            engine.backward(nn.functional.cross_entropy(model(x[part]), y[part], reduction="none"))
        engine.step()

    event = plan.event()
    assert isinstance(event, dp_accounting.SelfComposedDpEvent)
    sampled = event.event
    assert isinstance(sampled, dp_accounting.PoissonSampledDpEvent)
    steps, rate, sigma = event.count, sampled.sampling_probability, sampled.event.noise_multiplier

    counters = engine.counters
    assert counters.steps == counters.noise_draws == len(counters.batch_sizes) == steps
    assert spent == list(range(steps))
    trials = plan.examples * steps
    assert stats.binomtest(counters.examples, trials, rate).pvalue > ALARM
    # The sum's noise is what was written times the expected batch size, in units of the clipping norm.
    values = torch.cat(noise).double().numpy() * plan.expected_batch_size / plan.clipping_norm
    low, high = stats.chi2.interval(1 - ALARM, len(values))
    assert low < np.square(values / sigma).sum() < high
    assert plan.sum_noise_std == sigma * plan.clipping_norm
