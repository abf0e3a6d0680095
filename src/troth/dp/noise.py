"""Gaussian noise, written straight into the flat gradient: by torch's generators or by a cryptographic keystream."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from troth.dp.secure_noise import SEGMENT, SecureWriter
from troth.errors import EngineStateError, PrivacyError
from troth.seeds import PrivateRandomness

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["NoiseHandle", "begin_noise", "write_noise"]

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


class NoiseHandle:
    """Noise that is being written; until `wait` has returned nobody else may read or write the buffer."""

    def __init__(self, flat: Tensor, fill: Callable[[], None], *, background: bool) -> None:
        """Start `fill` in the background, or keep it for `wait`."""
        self._flat = flat
        self._fill: Callable[[], None] | None = fill
        self._future: Future[None] | None = None
        self._version = flat._version
        if background:
            pool = ThreadPoolExecutor(1, thread_name_prefix="noise")
            self._future = pool.submit(fill)
            pool.shutdown(wait=False)

    def wait(self) -> None:
        """Return once the buffer holds the whole noise; calling again changes nothing.

        Raises:
            EngineStateError: somebody wrote to the buffer meanwhile, so that noise may be missing.
        """
        if self._fill is None:
            return
        if self._future is None:
            self._fill()
        else:
            self._future.result()
            if self._flat._version != self._version:
                self._flat.data.fill_(torch.nan)
                raise EngineStateError(
                    "gradients were changed in place while their noise was being written (optimizer.zero_grad("
                    "set_to_none=False), gradient clipping): remove that call and start the batch anew"
                )
        self._fill = None


def begin_noise(
    flat: Tensor,
    standard_deviation: float,
    randomness: PrivateRandomness,
    *,
    secure: bool = False,
    draws: int = 1,
    background_threads: int | None = None,
) -> NoiseHandle:
    """Begin what `write_noise` does and return at once; the noise is whole after `wait` on what is returned.

    The buffer must not be needed until then, which holds in the private engine from the drawing of a batch to the end
    of its first backward pass; no second buffer is used.

    Args:
        flat: as in `write_noise`.
        standard_deviation: as in `write_noise`.
        randomness: as in `write_noise`.
        secure: as in `write_noise`.
        draws: as in `write_noise`.
        background_threads: threads that work beside the caller; None for one fewer than torch uses. With 0, hence
            by default where torch is held to one thread, `wait` does the work itself: nothing runs on a second core
            unless it is asked for.

    Raises:
        PrivacyError: as in `write_noise`.
    """
    source = _Source(standard_deviation, randomness, secure, draws)
    _refuse(flat, source)
    beside = torch.get_num_threads() - 1 if background_threads is None else background_threads
    threads = beside if beside > 0 else torch.get_num_threads()
    return NoiseHandle(flat, lambda: _fill(flat, source, threads), background=beside > 0)
