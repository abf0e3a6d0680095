"""The cryptographic noise: keystream and counters, the cut of the normal density, the draws made of both."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR, ECB
from scipy import stats

from troth.dp import secure_noise, write_noise
from troth.dp.normal_mixture import REMAINDER, SPACING, NormalMixture, normal_mixture
from troth.dp.secure_noise import SEGMENT, Keystream, SecureWriter
from troth.seeds import PrivateRandomness

ALARM = 1e-6  # false-alarm rate of each statistical check below

KEY = bytes(range(32))


def _counted(key: bytes, draw: int, segment: int, count: int) -> bytes:
    """The keystream block by block: AES of draw, segment and number."""
    encryptor = Cipher(AES256(key), ECB()).encryptor()
    start = (draw << 112) + (segment << 64)
    blocks = ((start + i).to_bytes(16, "big") for i in range(-(-count // 16)))
    return b"".join(encryptor.update(block) for block in blocks)[:count]


# The keystream


@pytest.mark.parametrize(("draw", "segment"), [(0, 0), (0, 1), (3, 0), (63, 2**48 - 1)])
def test_the_keystream_is_aes_of_draw_segment_and_number(draw: int, segment: int) -> None:
    stream = Keystream(KEY, draw, segment)
    parts = [np.empty(n, dtype=np.uint8) for n in (5, 16, 1000, 3)]
    for part in parts:
        stream.fill(part)
    assert b"".join(p.tobytes() for p in parts) == _counted(KEY, draw, segment, 1024)


def test_a_fill_longer_than_the_zeros_at_hand_goes_on_in_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secure_noise, "_ZEROS", bytes(100))
    out = np.empty(250, dtype=np.uint8)
    Keystream(KEY, 0, 0).fill(out)
    assert out.tobytes() == _counted(KEY, 0, 0, 250)


def test_no_counter_block_is_used_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over steps, segments and draws; what is read of each stream ends far before the next one's counters begin."""
    used: set[tuple[bytes, int]] = set()
    longest = 0
    fill = Keystream.fill

    def opened(key: bytes) -> AES256:
        opened.key = key  # type: ignore[attr-defined]
        return AES256(key)

    def counted(counter: bytes) -> CTR:
        place = (opened.key, int.from_bytes(counter, "big"))  # type: ignore[attr-defined]
        assert place not in used
        used.add(place)
        return CTR(counter)

    def filled(self: Keystream, out: np.ndarray) -> None:
        nonlocal longest
        self.read = getattr(self, "read", 0) + len(out)  # type: ignore[attr-defined]
        longest = max(longest, self.read)
        fill(self, out)

    monkeypatch.setattr(secure_noise, "AES256", opened)
    monkeypatch.setattr(secure_noise, "CTR", counted)
    monkeypatch.setattr(Keystream, "fill", filled)
    randomness = PrivateRandomness.create(4)
    for _ in range(3):
        write_noise(torch.empty(2 * SEGMENT + 5), 1.0, randomness, secure=True, draws=2, threads=1)
        randomness = randomness.advance()
    assert len(used) == 3 * 3 * 2
    assert len({key for key, _ in used}) == 3
    starts = sorted({start for _, start in used})
    nearest = min(b - a for a, b in pairwise(starts))
    assert 10 * SEGMENT < longest < 11 * SEGMENT < 16 * nearest


def test_the_key_is_one_of_its_own() -> None:
    """Neither the step's key nor what sampling or torch's generators are made from."""
    randomness = PrivateRandomness.create(4)
    flat, other = torch.empty(100), np.empty(100, dtype=np.float32)
    write_noise(flat, 1.0, randomness, secure=True)
    SecureWriter(randomness.derive("noise", "aes-256-ctr").key, 1.0).write(0, other)
    assert flat.tolist() == other.tolist()
    SecureWriter(randomness.key, 1.0).write(0, other)
    assert not np.isin(flat.numpy(), other).any()


# The cut of the density


@pytest.fixture(scope="module")
def mixture() -> NormalMixture:
    return normal_mixture()


def test_the_hats_lie_below_the_density_and_the_bounds_above_the_rest(mixture: NormalMixture) -> None:
    z = np.linspace(-10, 10, 1_000_001)
    rest = stats.norm.pdf(z) - mixture.hats(z)
    assert rest.min() >= 0
    inside = np.abs(z) < mixture.tail_start
    bound = mixture.bounds[(np.abs(z[inside]) / SPACING).astype(int)]
    assert (bound >= rest[inside]).all()


def test_weights_heights_and_masses_belong_together(mixture: NormalMixture) -> None:
    centres, counts = np.unique(mixture.centres[mixture.centres != REMAINDER], return_counts=True)
    assert np.array_equal(centres, -centres[::-1]) and np.array_equal(counts, counts[::-1])
    positive = counts[centres >= 0] / (len(mixture.centres) * SPACING)
    assert np.array_equal(mixture.heights, np.append(positive, 0))
    assert mixture.remainder_mass == pytest.approx(1 - counts.sum() / 65536, abs=1e-15)
    assert 0 < mixture.remainder_mass < 2e-3
    masses = np.diff(mixture.cumulative, prepend=0)
    assert masses[:-1] == pytest.approx(mixture.bounds * SPACING, rel=1e-12)
    assert masses[-1] == pytest.approx(stats.norm.sf(mixture.tail_start), rel=1e-10)


def _remainder(mixture: NormalMixture, proposals: int) -> np.ndarray:
    words = np.frombuffer(_counted(KEY, 9, 9, 24 * proposals), dtype="<u8")
    return mixture.remainder(words.reshape(proposals, 3))


def test_the_remainder_has_the_density_that_the_hats_leave(mixture: NormalMixture) -> None:
    """Kolmogorov-Smirnov against φ - g integrated over a fine grid, and the share of proposals that is kept."""
    draws = _remainder(mixture, 200_000)
    edges = np.linspace(-9, 9, 18 * 256 * 16 + 1)
    middle = (edges[1:] + edges[:-1]) / 2
    mass = np.append(0, np.cumsum((stats.norm.pdf(middle) - mixture.hats(middle)) * np.diff(edges)))
    assert mass[-1] == pytest.approx(mixture.remainder_mass, rel=1e-6)
    assert stats.kstest(draws, lambda z: np.interp(z, edges, mass / mass[-1])).pvalue > ALARM
    share = mixture.remainder_mass / 2 / mixture.cumulative[-1]
    low, high = stats.binom.interval(1 - ALARM, 200_000, share)
    assert low <= len(draws) <= high and share > 0.6


def test_the_far_tail_is_the_normal_one(mixture: NormalMixture) -> None:
    draws = _remainder(mixture, 400_000)
    tail = np.abs(draws[np.abs(draws) > mixture.tail_start])
    assert len(tail) > 10_000
    level = stats.norm.sf(tail) / stats.norm.sf(mixture.tail_start)
    assert stats.kstest(level, "uniform").pvalue > ALARM


@pytest.mark.parametrize("second", [0, 2**64 - 1])
def test_extreme_words_make_draws_too(second: int, mixture: NormalMixture) -> None:
    words = np.array([[2**64 - 1, second, 2**64 - 1], [0, second, 0]], dtype=np.uint64)
    tail, first = mixture.remainder(words).tolist()
    assert -tail == pytest.approx(mixture.tail_start if second else 9.318, abs=0.01)
    assert first == pytest.approx(SPACING if second else 0, abs=1e-12)


# The draws


def test_the_draws_are_what_their_description_says() -> None:
    """A slow second implementation, number by number in whole-number arithmetic, of the first of a stream."""
    n, std = 5000, 0.37
    out = np.empty(n)
    SecureWriter(KEY, std).write(0, out)
    mixture = normal_mixture()
    stream = _counted(KEY, 0, 0, 10 * n + 24 * 100)
    centres = [int(mixture.centres[int.from_bytes(stream[2 * i : 2 * i + 2], "little")]) for i in range(n)]
    rare = [i for i, k in enumerate(centres) if k == REMAINDER]
    proposals = int(1.8 * len(rare)) + 16
    at = 2 * n
    words = np.frombuffer(stream[at : at + 24 * proposals], dtype="<u8").reshape(proposals, 3)
    kept = mixture.remainder(words)
    assert 0 < len(rare) <= len(kept)
    at += 24 * proposals

    def whole(row: int, i: int) -> int:
        place = at + 4 * (row * n + i)
        return int.from_bytes(stream[place : place + 4], "little", signed=True)

    wanted = []
    for i, k in enumerate(centres):
        left, right = whole(0, i) << 32, whole(1, i) * (2**32 - 1)
        exact = ((k << 64) + left - right) / 2**64
        wanted.append(std * kept[rare.index(i)] if k == REMAINDER else std * SPACING * exact)
    assert np.abs(out - wanted).max() < 2.0**-51 * std * 5


def test_places_under_a_hat_reach_its_ends_and_stay_in_their_cells() -> None:
    writer = SecureWriter(KEY, 1 / SPACING)
    low, high = -(2**31), 2**31 - 1
    words = np.array([[low, high, 0, -1, 1 << 30, 7], [high, low, 0, 0, 1 << 30, low]], dtype="<i4")
    values = writer._shape(words, np.array([0, 0, 0, 5, -3, 0], dtype=np.int8))
    whole = words[0].astype(float) - words[1]
    cell = values * 2.0**32 - np.array([0, 0, 0, 5, -3, 0]) * 2.0**32
    assert np.abs(cell - whole).max() <= 0.5
    assert -1 < values[0] < -1 + 2.0**-31 and 1 - 2.0**-31 < values[1] < 1
    assert values[2] == 0 and values[4] == -3 + 2.0**-34


@pytest.fixture(scope="module")
def many() -> np.ndarray:
    flat = torch.empty(1 << 24)
    write_noise(flat, 1.0, PrivateRandomness.create(77), secure=True)
    return flat.numpy()


@pytest.mark.parametrize("bins", [64, 4096])
def test_the_law_is_gaussian_to_the_last_bin(bins: int, many: np.ndarray) -> None:
    """Chi-square over bins of equal probability."""
    edges = stats.norm.ppf(np.arange(1, bins) / bins).astype(np.float32)
    counts = np.bincount(np.searchsorted(edges, many), minlength=bins)
    expected = len(many) * np.diff(stats.norm.cdf(edges.astype(float)), prepend=0, append=1)
    assert stats.chisquare(counts, expected, sum_check=False).pvalue > ALARM


def test_the_law_is_gaussian_within_each_hat(many: np.ndarray) -> None:
    """Chi-square over eighths of a hat's spacing: seams between hats, and between hats and remainder, would show."""
    edges = np.arange(-4 * 128, 4 * 128 + 1) * (SPACING / 8)
    counts = np.bincount(np.searchsorted(edges, many), minlength=len(edges) + 1)
    expected = len(many) * np.diff(stats.norm.cdf(edges), prepend=0, append=1)
    assert stats.chisquare(counts, expected, sum_check=False).pvalue > ALARM
    seams = np.bincount((np.abs(many[np.abs(many) < 4]) * 16 / SPACING).astype(int) % 16, minlength=16)
    fine = np.arange(0, 4 + SPACING / 32, SPACING / 16)
    share = 2 * np.diff(stats.norm.cdf(fine)).reshape(-1, 16).sum(0)
    assert stats.chisquare(seams, seams.sum() * share / share.sum()).pvalue > ALARM


@pytest.mark.parametrize(("std", "start"), [(1.0, 0.7), (0.37, 0.4)])
def test_no_float_is_left_out(std: float, start: float) -> None:
    """Of 65,536 neighbouring float32 numbers as many are met as if each were equally likely (occupancy)."""
    flat = torch.empty(1 << 23)
    write_noise(flat, std, PrivateRandomness.create(3), secure=True)
    first = int(np.float32(start).view(np.int32))
    numbers = np.arange(first, first + 65_536, dtype=np.int32)
    ends = numbers[[0, -1]].view(np.float32).astype(float)
    size = flat.abs()
    met = size[(size >= float(ends[0])) & (size <= float(ends[1]))].numpy().view(np.int32)
    rate = len(flat) * 2 * (stats.norm.cdf(ends[1] / std) - stats.norm.cdf(ends[0] / std)) / len(numbers)
    empty = math.exp(-rate)
    expected, variance = len(numbers) * (1 - empty), len(numbers) * empty * (1 - empty)
    assert rate > 0.2
    assert abs(len(np.unique(met)) - expected) < stats.norm.isf(ALARM / 2) * math.sqrt(variance)


def test_float64_draws_lie_on_no_coarse_grid() -> None:
    flat = torch.empty(1 << 16, dtype=torch.float64)
    write_noise(flat, 1.0, PrivateRandomness.create(3), secure=True)
    steps = flat.numpy() / (SPACING * 2.0**-32)
    assert np.mean(steps == np.rint(steps)) < 1e-3
    low_bits = flat[flat.abs() > 0.5].numpy().view(np.int64) & 63
    assert stats.chisquare(np.bincount(low_bits, minlength=64)).pvalue > ALARM


def test_summed_draws_come_from_streams_of_their_own() -> None:
    single = []
    for draw in range(3):
        out = np.empty(70_000)
        writer = SecureWriter(KEY, 1.0, 3)
        single.append(next(writer._blocks(2, draw, 70_000)).copy())
        writer.write(2, out)
    assert out[: len(single[0])] == pytest.approx(sum(single), abs=1e-14)
    assert np.abs(np.corrcoef(single)[np.triu_indices(3, 1)]).max() < stats.norm.isf(ALARM / 6) / math.sqrt(
        len(single[0])
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_noise_on_a_gpu_is_that_of_the_host() -> None:
    host, device = torch.empty(SEGMENT + 9), torch.empty(SEGMENT + 9, device="cuda")
    for flat in (host, device):
        write_noise(flat, 0.3, PrivateRandomness.create(2), secure=True)
    assert torch.equal(host, device.cpu())
