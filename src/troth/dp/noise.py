"""Gaussian noise, written straight into the flat gradient: by torch's generators or by a cryptographic keystream."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from troth.dp.secure_noise import SEGMENT, SecureWriter
from troth.errors import EngineStateError, PrivacyError
from troth.seeds import PrivateRandomness

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["beside", "write_noise"]

_MOST_DRAWS = 64


@dataclass(frozen=True)
class _Source:
    """Where one step's noise comes from and what it looks like."""

    standard_deviation: float
    randomness: PrivateRandomness
    secure: bool
    draws: int

    def writer(self, device: torch.device) -> Callable[[int, Tensor], None]:
        """Return what overwrites a segment, given its index; one per thread."""
        if self.secure:
            key = self.randomness.derive("noise", "aes-256-ctr").key
            secure = SecureWriter(key, self.standard_deviation, self.draws)
            return lambda index, part: _write_through_host(secure, index, part)
        if device.type != "cpu":
            common = self.randomness.torch_generator("noise", device=str(device))
            return lambda index, part: self._write_plain(part, common)
        return lambda index, part: self._write_plain(part, self.randomness.torch_generator("noise", "segment", index))

    def _write_plain(self, part: Tensor, generator: torch.Generator) -> None:
        each = self.standard_deviation / math.sqrt(self.draws)
        part.normal_(0.0, each, generator=generator)
        for _ in range(self.draws - 1):
            part.add_(torch.empty_like(part).normal_(0.0, each, generator=generator))


def _write_through_host(writer: SecureWriter, index: int, part: Tensor) -> None:
    """Let the writer fill a segment in place, or in the host's memory where the segment lies on another device."""
    if part.is_cpu:
        writer.write(index, part.numpy())
        return
    host = torch.empty(len(part), dtype=part.dtype)
    writer.write(index, host.numpy())
    part.copy_(host)


def _write_every(parts: list[tuple[int, Tensor]], source: _Source) -> None:
    write = source.writer(parts[0][1].device)
    for index, part in parts:
        write(index, part)


def _fill(flat: Tensor, source: _Source, threads: int) -> None:
    # Same memory, but a version counter of its own: who watches the buffer's sees everybody's writes except the noise.
    target = flat.data
    try:
        if source.standard_deviation == 0:
            target.zero_()
            return
        parts = list(enumerate(torch.split(target, SEGMENT)))
        one_generator = not source.secure and target.device.type != "cpu"
        workers = 1 if one_generator else min(threads, len(parts))
        if workers <= 1:
            _write_every(parts, source)
            return
        with ThreadPoolExecutor(workers, thread_name_prefix="noise") as pool:
            shares = [pool.submit(_write_every, parts[first::workers], source) for first in range(workers)]
        for share in shares:
            share.result()
    except BaseException:
        target.fill_(torch.nan)
        raise


def _refuse(flat: Tensor, source: _Source) -> None:
    std = source.standard_deviation
    if not (math.isfinite(std) and std >= 0):
        raise PrivacyError(f"noise of standard deviation {std}: it must be finite and at least 0")
    if flat.dtype not in {torch.float32, torch.float64} or flat.dim() != 1 or not flat.is_contiguous():
        raise PrivacyError(
            f"noise for a {flat.dtype} tensor of shape {list(flat.shape)}: give a contiguous float32 or float64 tensor "
            "of one dimension"
        )
    if not 1 <= source.draws <= _MOST_DRAWS:
        raise PrivacyError(f"noise as a sum of {source.draws} draws: choose 1 to {_MOST_DRAWS}")


def write_noise(
    flat: Tensor,
    standard_deviation: float,
    randomness: PrivateRandomness,
    *,
    secure: bool = False,
    draws: int = 1,
    threads: int | None = None,
) -> None:
    """Overwrite `flat` with independent N(0, standard_deviation²) draws made from the step's key.

    Without `secure` the draws come from torch's generators, which are not cryptographic: `Privacy.noise` must say so.
    In float32 torch makes its normal draws from 24-bit uniforms: none exceeds 5.77 standard deviations. With `secure`
    they come from AES-256 in counter mode, with tails to 9.3 (`troth.dp.secure_noise`).

    Guarantees:
    - the same key and settings give the same noise, whatever the number of threads;
    - every element is overwritten, or all are NaN and the error of the thread that failed is raised;
    - no more threads than torch may use work at once.

    Args:
        flat: the buffer [elements], float32 or float64, contiguous.
        standard_deviation: of the noise, finite, at least 0; 0 clears the buffer.
        randomness: the step's key; the caller ratchets it after the step.
        secure: whether to use the cryptographic keystream.
        draws: how many independent draws make one element (their sum over √draws); 4 is the recipe of Holohan and
            Braghin (arXiv 2107.10138, section 5.1, n = 2) and costs four times as much.
        threads: how many threads may work at once; None for as many as torch uses.

    Raises:
        PrivacyError: a standard deviation, buffer or number of draws that cannot be served.
    """
    source = _Source(standard_deviation, randomness, secure, draws)
    _refuse(flat, source)
    _fill(flat, source, torch.get_num_threads() if threads is None else threads)


@contextmanager
def beside(flat: Tensor, write: Callable[[int], None]) -> Iterator[None]:
    """Fill a buffer while the block runs; it is whole when the block is left.

    One thread fewer than torch uses works beside the block. Where torch is held to one thread nothing runs on a second
    core: the buffer is filled when the block is left.

    Args:
        flat: the buffer, which the block must not touch.
        write: fills the buffer, given how many threads may work.

    Raises:
        EngineStateError: the block wrote to the buffer, so that noise may be missing.
    """
    threads, version = torch.get_num_threads() - 1, flat._version
    if threads < 1:
        yield
        write(1)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="noise") as pool:  # left, it has ended
        written = pool.submit(write, threads)
        yield
    written.result()
    if flat._version != version:
        flat.data.fill_(torch.nan)
        raise EngineStateError(
            "gradients were changed in place during engine.backward, while their noise was being written: remove the "
            "hook that does so and start the batch anew"
        )
