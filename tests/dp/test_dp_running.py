"""What the running loop does is what the plan says: samples, noise, steps; and what would void the guarantee raises."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from dp_models import mlp
from dp_oracle import Case, distance, plan_for, private_step
from scipy import stats
from torch import nn
from torch.nn import functional as F

from troth.accounting import PrivacyPlan
from troth.dp import PrivateEngine, poisson_sample
from troth.errors import EngineStateError, PrivacyError, UnsupportedModuleError
from troth.seeds import PrivateRandomness

N, BATCH, STEPS, SIGMA, CLIP = 400, 20, 300, 1.3, 0.7
PLAN = PrivacyPlan(N, BATCH, BATCH / N, STEPS, SIGMA, CLIP, 1e-5)


def regression(n: int = N) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
    return model, torch.randn(n, 8, generator=generator), torch.randint(2, (n,), generator=generator)


def losses(model: nn.Module, x: torch.Tensor, y: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
    index = torch.from_numpy(rows)
    return F.cross_entropy(model(x[index]), y[index], reduction="none")


def attached(seed: int | None = 1, plan: PrivacyPlan = PLAN, **more: object) -> tuple[PrivateEngine, nn.Module, tuple]:
    model, x, y = regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = PrivateEngine(model, optimizer, plan, PrivateRandomness.create(seed), **more)  # type: ignore[arg-type]
    return engine, model, (x, y, optimizer)


def test_rate_noise_and_steps_counted_in_the_loop_are_those_of_the_plan() -> None:
    """Instrumentation. Each of the four checks has a false-alarm rate of at most 1e-4 over seeds; the seed is fixed."""
    noise: list[torch.Tensor] = []
    told: list[int] = []
    engine, model, (x, y, _) = attached(record_noise=lambda flat: noise.append(flat.clone()), before_step=told.append)
    seen = np.zeros(N)
    for _ in range(STEPS):
        rows = engine.sample()
        seen[rows] += 1
        for part in np.array_split(rows, 3):
            if len(part):
                engine.backward(losses(model, x, y, part))
        engine.step()
    counters = engine.counters
    assert counters.steps == STEPS == counters.noise_draws == len(noise) and told == list(range(STEPS))
    assert sum(counters.batch_sizes) == seen.sum() == counters.examples
    assert stats.binomtest(int(seen.sum()), N * STEPS, PLAN.sampling_rate).pvalue > 1e-4
    assert stats.chisquare(seen).pvalue > 1e-4
    used = sum(p.numel() for p in model.parameters())
    draws = torch.stack(noise)[:, :used].double().numpy() * BATCH  # the engine divides by the expected batch size
    spread = (draws**2).sum() / PLAN.sum_noise_std**2
    assert 1e-4 < stats.chi2.cdf(spread, draws.size) < 1 - 1e-4
    assert stats.kstest(draws.ravel()[::7] / PLAN.sum_noise_std, "norm").pvalue > 1e-4
    between_steps = np.corrcoef(draws[:-1].ravel(), draws[1:].ravel())[0, 1]
    assert abs(between_steps) < 5 / draws[1:].size ** 0.5
    event = PLAN.event()
    assert event.count == counters.steps and event.event.sampling_probability == PLAN.sampling_rate


def test_batch_sizes_follow_the_binomial_law() -> None:
    rng = np.random.default_rng(5)
    sizes = np.array([len(poisson_sample(50, 0.1, rng)) for _ in range(20_000)])
    expected = stats.binom.pmf(np.arange(16), 50, 0.1)
    counts = np.bincount(np.minimum(sizes, 15), minlength=16)
    expected[15] = 1 - expected[:15].sum()
    assert stats.chisquare(counts, expected * len(sizes)).pvalue > 1e-4


def test_pairs_are_included_independently() -> None:
    rng = np.random.default_rng(6)
    included = np.zeros((20_000, 6))
    for row in included:
        row[poisson_sample(6, 0.4, rng)] = 1
    correlation = np.corrcoef(included.T)[np.triu_indices(6, 1)]
    assert np.abs(correlation).max() < 5 / 20_000**0.5
    assert np.abs(included.mean(0) - 0.4).max() < 5 * (0.24 / 20_000) ** 0.5


def test_an_empty_batch_is_a_step_of_noise_alone() -> None:
    plan = PrivacyPlan(N, 1, 1 / N, 50, 1.0, 1.0, 1e-5)
    engine, model, (x, y, _) = attached(plan=plan)
    while len(engine.sample()):
        engine.backward(losses(model, x, y, engine.sample()))
        engine.step()
    before = copy.deepcopy(model.state_dict())
    engine.step()
    assert engine.counters.batch_sizes[-1] == 0
    assert all(not torch.equal(before[n], p) for n, p in model.state_dict().items())


def test_the_sum_is_divided_by_the_expected_batch_size() -> None:
    case = mlp().double()
    whole = private_step(case, clipping_norm=0.2)
    norm = torch.cat([g.flatten() for g in whole.gradient.values()]).norm()
    assert 0 < float(norm) <= case.rows * 0.2


def test_same_key_same_step_and_the_key_moves_on() -> None:
    results = []
    for _ in range(2):
        engine, model, (x, y, _) = attached(seed=9)
        for _ in range(3):
            rows = engine.sample()
            engine.backward(losses(model, x, y, rows))
            engine.step()
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*results)
    engine, _, _ = attached(seed=None)
    other, _, _ = attached(seed=None)
    assert engine.randomness.key != other.randomness.key


def test_restore_repeats_the_very_step() -> None:
    engine, model, (x, y, _) = attached(seed=4)
    keys, samples = [], []
    state = copy.deepcopy(model.state_dict())
    for _ in range(3):
        keys.append(engine.randomness)
        samples.append(engine.sample())
        engine.backward(losses(model, x, y, samples[-1]))
        engine.step()
    final = copy.deepcopy(model.state_dict())
    model.load_state_dict(state)
    engine.restore(0, keys[0])
    for rows in samples:
        assert (engine.sample() == rows).all()
        engine.backward(losses(model, x, y, rows))
        engine.step()
    assert all(torch.equal(final[n], v) for n, v in model.state_dict().items())


def test_before_step_comes_before_the_update_is_visible() -> None:
    engine, model, (x, y, _) = attached()
    before = copy.deepcopy(model.state_dict())

    def refuse(step: int) -> None:
        assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
        raise PrivacyError("the ledger says no")

    engine, model, (x, y, _) = attached(before_step=refuse)
    before = copy.deepcopy(model.state_dict())
    engine.backward(losses(model, x, y, engine.sample()))
    with pytest.raises(PrivacyError, match="the ledger says no"):
        engine.step()
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items()) and engine.step_index == 0


def test_what_would_void_the_guarantee_raises() -> None:
    engine, model, (x, y, optimizer) = attached()
    with pytest.raises(EngineStateError, match="sample"):
        engine.backward(losses(model, x, y, np.arange(4)))
    rows = engine.sample()
    with pytest.raises(PrivacyError, match=r"\[batch\]|per example|one loss"):
        engine.backward(losses(model, x, y, rows).mean())
    with pytest.raises(EngineStateError, match=r"engine\.step"):
        optimizer.step()
    with pytest.raises(EngineStateError, match="every sampled row"):
        engine.step()
    engine.backward(losses(model, x, y, rows))
    with pytest.raises(EngineStateError, match="each row once"):
        engine.backward(losses(model, x, y, rows))
    nn.utils.clip_grad_norm_(model.parameters(), 1e-9)
    with pytest.raises(EngineStateError, match="changed in place"):
        engine.step()


def test_dropped_gradients_are_found_again() -> None:
    engine, model, (x, y, optimizer) = attached()
    optimizer.zero_grad()
    rows = engine.sample()
    engine.backward(losses(model, x, y, rows))
    engine.step()
    optimizer.zero_grad(set_to_none=True)
    engine.backward(losses(model, x, y, engine.sample()))
    engine.step()
    assert engine.counters.steps == 2


def test_steps_beyond_the_plan_are_refused() -> None:
    engine, model, (x, y, _) = attached(plan=PrivacyPlan(N, BATCH, BATCH / N, 1, SIGMA, CLIP, 1e-5))
    engine.backward(losses(model, x, y, engine.sample()))
    engine.step()
    with pytest.raises(EngineStateError, match="all 1 steps"):
        engine.sample()


class Bypass(nn.Module):
    """Uses a weight behind its module's back."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + x @ self.inner.weight.T


class Bare(nn.Module):
    """Holds a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.scale = nn.Linear(8, 2), nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * self.scale


class Coupled(nn.Module):
    """Lets the examples of a batch see each other."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.inner(x)
        return y - y.mean(0, keepdim=True)


@pytest.mark.parametrize(
    "model,expected",
    [
        (nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), "1"),
        (Bare(), "scale"),
        (nn.Sequential(nn.Unflatten(1, (1, 8)), nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(12, 2)), "1.weight"),
    ],
)
def test_models_that_cannot_be_clipped_are_refused_by_name(model: nn.Module, expected: str) -> None:
    with pytest.raises(UnsupportedModuleError, match=expected):
        PrivateEngine(model, torch.optim.SGD(model.parameters(), lr=0.1), PLAN, PrivateRandomness.create(1))


@pytest.mark.parametrize("model", [Bypass(), Coupled()])
def test_what_only_shows_in_the_first_batch_is_refused_there(model: nn.Module) -> None:
    engine = PrivateEngine(model, torch.optim.SGD(model.parameters(), lr=0.1), PLAN, PrivateRandomness.create(1))
    _, x, y = regression()
    with pytest.raises(PrivacyError):
        engine.backward(losses(model, x, y, engine.sample()))
    engine.detach()


def test_optimizer_and_model_must_hold_the_same_parameters() -> None:
    model, _, _ = regression()
    for parameters in (list(model.parameters())[:2], [*model.parameters(), nn.Parameter(torch.ones(1))]):
        with pytest.raises(PrivacyError, match="optimizer"):
            PrivateEngine(model, torch.optim.SGD(parameters, lr=0.1), PLAN, PrivateRandomness.create(1))


def test_privacy_says_what_was_done() -> None:
    engine, model, (x, y, _) = attached(seed=None)
    assert engine.privacy().epsilon == 0.0
    for _ in range(2):
        engine.backward(losses(model, x, y, engine.sample()))
        engine.step()
    privacy = engine.privacy()
    assert privacy.epsilon == PLAN.epsilon(2) and privacy.guarantee == "differential_privacy" and privacy.steps == 2
    insecure, _, _ = attached(seed=1)
    assert insecure.privacy().guarantee == "none" and insecure.privacy().epsilon is None


@pytest.mark.parametrize("defect", ["no clip", "one norm 1 % off", "mean over the batch"])
def test_the_oracle_sees_planted_defects(defect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison with the loop can fail: three mutants of the engine, each caught."""
    from troth.dp import clipping
    from troth.dp import engine as engine_module
    from troth.dp.linear import LinearBlock

    case = mlp().double()
    expected = private_step(case, clipping_norm=0.3).gradient
    honest = clipping.clip_factors
    if defect == "no clip":
        monkeypatch.setattr(engine_module, "clip_factors", lambda n, c, e: torch.full_like(n, 1 / e))
    elif defect == "mean over the batch":
        monkeypatch.setattr(engine_module, "clip_factors", lambda n, c, e: honest(n, c, e) / len(n))
    else:
        right = LinearBlock.norms_squared
        monkeypatch.setattr(LinearBlock, "norms_squared", lambda self, work: right(self, work) * 1.02)
    found = private_step(Case(case.model, case.batch, case.losses), clipping_norm=0.3).gradient
    assert max(distance(found[n], expected[n]) for n in expected) > 1e-4


def test_plan_for_tests_is_a_plan() -> None:
    assert plan_for(5).sampling_rate == 1.0
