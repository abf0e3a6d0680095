"""The noise: its law, its independence, one draw a step. False-alarm rates are for the fixed keys' choice."""

from __future__ import annotations

import math
from fractions import Fraction

import dp_models
import numpy as np
import pytest
import torch
from dp_oracle import ComparedEngine, plan_for
from scipy import stats
from torch import Tensor, nn

from troth.accounting import PrivacyPlan
from troth.dp import Observer, noise, write_noise
from troth.dp.grid import grid_step, round_to_grid
from troth.dp.noise import beside
from troth.dp.secure_noise import SEGMENT, SecureWriter
from troth.errors import EngineStateError, PrivacyError
from troth.seeds import PrivateRandomness

ALARM = 1e-6  # false-alarm rate of each statistical check below

SOURCES = pytest.mark.parametrize("secure", [False, True], ids=["torch", "keystream"])


def _draws(
    count: int,
    elements: int,
    std: float = 1.0,
    dtype: torch.dtype = torch.float32,
    *,
    secure: bool = False,
    draws: int = 1,
) -> np.ndarray:
    randomness = PrivateRandomness.create(123)
    rows = []
    for _ in range(count):
        flat = torch.full((elements,), torch.nan, dtype=dtype)
        write_noise(flat, std, randomness, secure=secure, draws=draws)
        rows.append(flat.double().numpy().copy())
        randomness = randomness.advance()
    return np.stack(rows)


def _within_chance(count: int, chance: float, trials: int) -> bool:
    low, high = stats.binom.interval(1 - ALARM, trials, chance)
    return bool(low <= count <= high)


# The law


@SOURCES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("draws", [1, 4])
def test_mean_and_variance_are_those_asked_for(dtype: torch.dtype, draws: int, secure: bool) -> None:
    n, std = 1_000_000, 0.37
    values = _draws(1, n, std, dtype, secure=secure, draws=draws)[0]
    low, high = stats.norm.interval(1 - ALARM)
    assert low < values.mean() / (std / np.sqrt(n)) < high
    low, high = stats.chi2.interval(1 - ALARM, n)
    assert low < np.square(values / std).sum() < high


@SOURCES
@pytest.mark.parametrize("draws", [1, 2, 4])
def test_the_law_is_gaussian(draws: int, secure: bool) -> None:
    values = _draws(1, 200_000, secure=secure, draws=draws)[0]
    assert stats.kstest(values, "norm").pvalue > ALARM


@SOURCES
def test_the_tails_are_as_heavy_as_they_should_be(secure: bool) -> None:
    """2^25 draws: about 2,125 expected beyond four standard deviations, 19 beyond five, on both sides together."""
    bounds = (3.0, 4.0, 4.5, 5.0)
    randomness = PrivateRandomness.create(8)
    beyond, above = dict.fromkeys(bounds, 0), dict.fromkeys(bounds, 0)
    flat = torch.empty(1 << 22)
    for _ in range(8):
        write_noise(flat, 1.0, randomness, secure=secure)
        randomness = randomness.advance()
        rare = flat[flat.abs() > 3]
        for bound in bounds:
            beyond[bound] += int((rare.abs() > bound).sum())
            above[bound] += int((rare > bound).sum())
    for bound in bounds:
        assert _within_chance(beyond[bound], 2 * stats.norm.sf(bound), 8 * len(flat)), (bound, beyond)
        assert _within_chance(above[bound], stats.norm.sf(bound), 8 * len(flat)), (bound, above)


def _untempered(output: int) -> int:
    """Return the word of the Mersenne Twister's state that comes out as `output`."""
    y = output ^ output >> 18
    y ^= y << 15 & 0xEFC60000
    x = y
    for _ in range(4):
        x = y ^ x << 7 & 0x9D2C5680
    y = x = x & 0xFFFFFFFF
    for _ in range(2):
        x = y ^ x >> 11
    return x


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 48), (torch.float64, 106)])
def test_torch_cuts_its_normals_where_the_documentation_says(dtype: torch.dtype, most: int) -> None:
    """A generator whose uniforms are all the largest: sqrt(48 ln 2) = 5.77 in float32, made from 24 bits."""
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state().numpy().copy()
    state[8:16] = np.array([600, 1], dtype=np.int32).view(np.uint8)  # words left, and that it is seeded
    state[16:24] = np.array([20], dtype=np.uint64).view(np.uint8)  # the next word
    state[24 : 24 + 8 * 624] = np.full(624, _untempered(0xFFFFFFFF), dtype=np.uint64).view(np.uint8)
    generator.set_state(torch.from_numpy(state))
    largest = float(torch.empty(64, dtype=dtype).normal_(generator=generator).abs().max())
    assert largest == pytest.approx(math.sqrt(most * math.log(2)), rel=1e-6)


# Independence


def test_steps_are_independent() -> None:
    for secure in (False, True):
        draws = _draws(40, 5_000, secure=secure)
        correlation = np.corrcoef(draws)
        off = correlation[np.triu_indices(40, 1)]
        bound = stats.norm.isf(ALARM / len(off) / 2) / np.sqrt(5_000)
        assert np.abs(off).max() < bound
        assert len(np.unique(np.round(draws[:, 0], 6))) == 40


@SOURCES
def test_parameters_are_independent_of_each_other(secure: bool) -> None:
    """Parts of one draw, as different parameters see them, and the draw against itself shifted."""
    draw = _draws(1, 120_000, secure=secure)[0]
    parts = draw.reshape(12, -1)
    off = np.corrcoef(parts)[np.triu_indices(12, 1)]
    assert np.abs(off).max() < stats.norm.isf(ALARM / len(off) / 2) / np.sqrt(parts.shape[1])
    for lag in (1, 2, 3, 8, 16, 64):
        product = draw[:-lag] * draw[lag:]
        assert abs(product.mean()) * np.sqrt(len(product)) < stats.norm.isf(ALARM / 2)


@SOURCES
def test_segments_and_blocks_are_independent_of_each_other(secure: bool) -> None:
    """Values and their squares, against those at the same place in another block or segment."""
    draw = _draws(1, 3 * SEGMENT, secure=secure)[0]
    for lag in (1 << 13, 1 << 14, 1 << 15, 1 << 16, SEGMENT, 2 * SEGMENT):
        for values in (draw, (np.square(draw) - 1) / math.sqrt(2)):
            product = values[:-lag] * values[lag:]
            assert abs(product.mean()) * np.sqrt(len(product)) < stats.norm.isf(ALARM / 2), lag
    assert len(np.unique(draw.reshape(3, -1)[:, :4])) == 12


# Keys and threads


@SOURCES
def test_the_same_key_gives_the_same_noise_and_another_key_another(secure: bool) -> None:
    first, second, other = (torch.empty(1000) for _ in range(3))
    write_noise(first, 1.0, PrivateRandomness.create(1), secure=secure)
    write_noise(second, 1.0, PrivateRandomness.create(1), secure=secure)
    write_noise(other, 1.0, PrivateRandomness.create(1).advance(), secure=secure)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@SOURCES
@pytest.mark.parametrize("draws", [1, 2])
def test_the_noise_does_not_depend_on_the_number_of_threads(draws: int, secure: bool) -> None:
    key = PrivateRandomness.create(5)
    wanted = torch.empty(2 * SEGMENT + 4321)
    write_noise(wanted, 0.5, key, secure=secure, draws=draws, threads=1)
    for threads in (2, 3, 8):
        flat = torch.full_like(wanted, torch.nan)
        write_noise(flat, 0.5, key, secure=secure, draws=draws, threads=threads)
        assert torch.equal(flat, wanted)


@pytest.mark.parametrize(("allowed", "pools"), [(1, []), (2, [2]), (8, [3])])
def test_no_more_threads_than_torch_has_work(allowed: int, pools: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """At most one for each segment; with one thread no other is started."""
    made: list[int] = []

    class Watched(noise.ThreadPoolExecutor):  # type: ignore[misc]
        def __init__(self, workers: int, **kwargs: str) -> None:
            made.append(workers)
            super().__init__(workers, **kwargs)

    monkeypatch.setattr(noise, "ThreadPoolExecutor", Watched)
    monkeypatch.setattr(torch, "get_num_threads", lambda: allowed)
    flat = torch.full((3 * SEGMENT,), torch.nan)
    write_noise(flat, 1.0, PrivateRandomness.create(1))
    assert made == pools and not flat.isnan().any()


@SOURCES
def test_two_runs_never_share_noise(secure: bool) -> None:
    runs = []
    for _ in range(2):
        flat = torch.empty(1000, dtype=torch.float64)
        write_noise(flat, 1.0, PrivateRandomness(), secure=secure)
        runs.append(flat)
    assert not torch.isin(runs[0], runs[1]).any()


@SOURCES
@pytest.mark.parametrize("elements", [0, 1, 15, (1 << 15) - 1, (1 << 15) + 1, SEGMENT - 1, SEGMENT, SEGMENT + 1])
def test_every_element_is_overwritten_whatever_the_length(elements: int, secure: bool) -> None:
    flat = torch.full((elements,), torch.nan)
    write_noise(flat, 1.0, PrivateRandomness.create(3), secure=secure)
    assert not flat.isnan().any() and int((flat == 0).sum()) == 0


# What fails, fails closed


def test_no_noise_clears_the_buffer() -> None:
    for secure in (False, True):
        flat = torch.ones(5)
        write_noise(flat, 0.0, PrivateRandomness(), secure=secure)
        assert torch.equal(flat, torch.zeros(5))


@pytest.mark.parametrize("std", [-1.0, math.nan, math.inf])
def test_a_deviation_that_is_none_is_refused(std: float) -> None:
    with pytest.raises(PrivacyError, match="standard deviation"):
        write_noise(torch.zeros(5), std, PrivateRandomness())


@pytest.mark.parametrize("flat", [torch.zeros(4, dtype=torch.bfloat16), torch.zeros(2, 2), torch.zeros(8)[::2]])
def test_a_buffer_that_cannot_be_filled_is_refused(flat: Tensor) -> None:
    with pytest.raises(PrivacyError, match="one dimension"):
        write_noise(flat, 1.0, PrivateRandomness())


@pytest.mark.parametrize("draws", [0, -1, 65])
def test_a_senseless_number_of_draws_is_refused(draws: int) -> None:
    with pytest.raises(PrivacyError, match="draws"):
        write_noise(torch.zeros(4), 1.0, PrivateRandomness(), draws=draws)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_what_fails_in_one_thread_is_raised_and_leaves_no_number_behind(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = SecureWriter.write

    def wrong(self: SecureWriter, segment: int, out: np.ndarray) -> None:
        if segment == 1:
            raise MemoryError("no room")
        right(self, segment, out)

    monkeypatch.setattr(SecureWriter, "write", wrong)
    flat = torch.zeros(3 * SEGMENT)
    with pytest.raises(MemoryError, match="no room"):
        write_noise(flat, 1.0, PrivateRandomness(), secure=True, threads=threads)
    assert bool(flat.isnan().all())


# In the background


@SOURCES
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_noise_written_beside_other_work_is_the_same_noise(
    threads: int, secure: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    key = PrivateRandomness.create(6)
    wanted, flat = torch.empty(SEGMENT + 77), torch.full((SEGMENT + 77,), torch.nan)
    write_noise(wanted, 0.2, key, secure=secure)
    with beside(flat, lambda threads: write_noise(flat, 0.2, key, secure=secure, threads=threads)):
        pass
    assert torch.equal(flat, wanted)


def test_with_one_torch_thread_nothing_happens_before_the_block_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(noise, "ThreadPoolExecutor", None)
    flat = torch.zeros(100)
    with beside(flat, lambda threads: write_noise(flat, 1.0, PrivateRandomness.create(1), threads=threads)):
        assert not flat.any()
    assert bool(flat.all())


def test_what_fails_beside_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def wrong(threads: int) -> None:
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"), beside(torch.zeros(4), wrong):
        pass


def test_a_buffer_that_the_block_changes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not so the noise itself: it leaves the version alone that the engine watches."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    flat = torch.zeros(SEGMENT)

    def write(threads: int) -> None:
        write_noise(flat, 1.0, PrivateRandomness(), threads=threads)

    before = flat._version
    with beside(flat, write):
        pass
    assert flat._version == before
    with pytest.raises(EngineStateError, match="changed in place"), beside(flat, write):
        flat[5:10].zero_()
    assert bool(flat.isnan().all())


# The grid


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("step", [2.0**-20, 2.0**-3, 4.0])
def test_rounding_to_a_grid_is_exact(step: float, dtype: torch.dtype) -> None:
    """Against rational arithmetic, ties and numbers beyond the grid's reach included."""
    generator = torch.Generator().manual_seed(1)
    powers = torch.randint(-30, 30, (8000,), generator=generator).to(dtype)
    spread = torch.randn(8000, generator=generator, dtype=dtype) * 2.0**powers
    ties = (torch.arange(-50, 50, dtype=dtype) + 0.5) * step
    values = torch.cat(
        (spread, ties, -ties.nextafter(torch.tensor(torch.inf, dtype=dtype)), torch.zeros(3, dtype=dtype))
    )
    wanted = [float(round(Fraction(v) / Fraction(step)) * Fraction(step)) for v in values.tolist()]
    rounded = values.clone()
    round_to_grid(rounded, step)
    assert rounded.tolist() == wanted
    again = rounded.clone()
    round_to_grid(again, step)
    assert torch.equal(again, rounded)


def test_the_grid_leaves_no_number_that_is_none() -> None:
    values = torch.tensor([math.nan, math.inf, -math.inf, 0.3])
    round_to_grid(values, 0.5)
    assert math.isnan(values[0]) and values[1:].tolist() == [math.inf, -math.inf, 0.5]


@pytest.mark.parametrize("step", [0.3, 0.0, -0.5, math.inf, math.nan, 2.0**-140, 2.0**127])
def test_a_step_that_would_not_be_exact_is_refused(step: float) -> None:
    with pytest.raises(PrivacyError, match="power of two"):
        round_to_grid(torch.zeros(3), step)


@pytest.mark.parametrize("std", [1e-9, 0.25, 0.3, 0.49, 0.5, 1.0, 3.7, 1e5])
def test_the_step_lies_the_bits_asked_for_below_the_noise(std: float) -> None:
    step = grid_step(std, 12)
    assert math.frexp(step)[0] == 0.5
    assert step <= std * 2.0**-12 < 2 * step


@pytest.mark.parametrize(("std", "bits"), [(0.0, 12), (math.inf, 12), (1.0, -1)])
def test_a_grid_without_noise_to_measure_it_by_is_refused(std: float, bits: int) -> None:
    with pytest.raises(PrivacyError, match="grid"):
        grid_step(std, bits)


# In the engine


def test_exactly_one_draw_a_step_however_the_batch_is_cut() -> None:
    """Every coordinate of every trainable parameter gets noise, once a step, before any gradient is added."""
    case = dp_models.bert()
    model: nn.Module = case.model
    noise: list[Tensor] = []
    engine = ComparedEngine(
        model,
        torch.optim.SGD(model.parameters(), lr=0.0),
        plan_for(case.rows, noise_multiplier=3.0),
        PrivateRandomness(),
        observer=Observer(noise=lambda flat: noise.append(flat.clone())),
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
        engine = ComparedEngine(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            plan_for(case.rows, noise_multiplier=sigma),
            PrivateRandomness.create(2),
            observer=Observer(noise=lambda flat, kept=recorded: kept.append(flat.clone())),
        )
        engine.sample()
        engine.backward(case.losses(model, case.batch))
        gradients.append((engine._gradient.flat.clone(), recorded[0]))
    (plain, nothing), (noised, noise) = gradients
    assert not nothing.any()
    assert torch.allclose(noised - noise, plain, atol=1e-14)


@pytest.mark.parametrize("fields", [{"secure_noise": False}, {"noise_draws": 4}, {"grid_bits": 8}])
def test_the_engine_carries_out_the_plans_noise(fields: dict[str, object]) -> None:
    """What reaches the optimizer, and what the record says of it."""
    sums = {}
    for name, chosen in {"plain": {}, "chosen": fields}.items():
        torch.manual_seed(0)
        model = torch.nn.Linear(40, 30)
        plan = PrivacyPlan(4, 4, 1.0, 2, 1.0, 1.0, 0.02, **chosen)
        engine = ComparedEngine(
            model, torch.optim.SGD(model.parameters(), lr=0.1), plan, PrivateRandomness.create(7), self_check=False
        )
        for rows in engine.batch(4):
            engine.backward(model(torch.ones(len(rows), 40)).sum(1) * 0)
        engine.step()
        sums[name] = model.weight.grad.clone()
        said = engine.privacy().noise
    assert said == ("non-cryptographic" if "secure_noise" in fields else "cryptographic")
    assert float(sums["chosen"].std()) == pytest.approx(0.25, rel=0.15)
    assert not torch.equal(sums["plain"], sums["chosen"])
    steps = sums["chosen"] / grid_step(0.25, 8)
    assert bool((steps == steps.round()).all()) is ("grid_bits" in fields)
