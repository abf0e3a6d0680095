"""Which way to a layer's per-example norms is faster on this machine: measured once per shape, and kept on disk."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from troth.accounting.cache import remembered
from troth.results import Json

__all__ = ["written_out_over_ghost"]

_REPEATS = 5
_MOST_NUMBERS = 2**22  # in one tensor: enough to leave the caches, small enough to take milliseconds


def written_out_over_ghost(
    batch: int, tokens: int, width_in: int, width_out: int, *, dtype: torch.dtype, device: torch.device
) -> float:
    """Return the time of written-out gradients over that of ghost norms, norm and clipped sum included.

    Shapes are put into buckets (tokens and batch rounded to half-octaves and octaves), each measured once per machine,
    number of threads and version of torch; the figure is kept under ``$TROTH_HOME/cache``, so that a run that is
    resumed decides as before.

    Args:
        batch: examples in the physical batch.
        tokens: of each example.
        width_in: of the layer's input.
        width_out: of its output.
        dtype: the working type.
        device: where the products are made.
    """
    time_bucket = round(2 ** (math.ceil(2 * math.log2(max(1, tokens))) / 2))
    widest = max(width_in * width_out, time_bucket * max(width_in, width_out))
    most = max(1, _MOST_NUMBERS // widest)
    batch_bucket = min(2 ** round(math.log2(max(1, batch))), 2 ** int(math.log2(most)))
    return _ratio(batch_bucket, time_bucket, width_in, width_out, str(dtype), str(device), torch.get_num_threads())


@lru_cache(maxsize=4096)
def _ratio(batch: int, tokens: int, width_in: int, width_out: int, dtype: str, device: str, threads: int) -> float:
    key: dict[str, Json] = {
        "shape": [batch, tokens, width_in, width_out],
        "dtype": dtype,
        "device": device if not device.startswith("cuda") else torch.cuda.get_device_name(device),
        "threads": threads,
        "torch": torch.__version__,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }
    sizes = (batch, tokens, width_in, width_out)
    return remembered("norm-method", key, lambda: _measure(sizes, getattr(torch, dtype[6:]), torch.device(device)))


def _measure(sizes: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> float:
    batch, tokens, width_in, width_out = sizes
    x = torch.ones(batch, tokens, width_in, dtype=dtype, device=device)
    g = torch.ones(batch, tokens, width_out, dtype=dtype, device=device)
    factors = torch.ones(batch, dtype=dtype, device=device)
    weight = torch.zeros(width_out, width_in, dtype=dtype, device=device)
    with torch.no_grad():
        return _seconds(lambda: _written_out(x, g, factors, weight)) / _seconds(lambda: _ghost(x, g, factors, weight))


def _ghost(x: Tensor, g: Tensor, factors: Tensor, weight: Tensor) -> None:
    torch.linalg.vecdot(torch.bmm(x, x.mT).add_(1).flatten(1), torch.bmm(g, g.mT).flatten(1))
    narrow, wide = (x, g) if x.shape[2] <= g.shape[2] else (g, x)
    scaled = (narrow * factors.view(-1, 1, 1)).flatten(0, 1)
    (weight if narrow is x else weight.t()).addmm_(wide.flatten(0, 1).t(), scaled)


def _written_out(x: Tensor, g: Tensor, factors: Tensor, weight: Tensor) -> None:
    gradients = torch.bmm(g.mT, x).flatten(1)
    torch.linalg.vector_norm(gradients, dim=1)
    weight.view(-1).addmv_(gradients.t(), factors)


def _seconds(work: Callable[[], None]) -> float:
    """Return the shortest of a few times: what the machine can do when nobody disturbs it."""
    best = math.inf
    for _ in range(_REPEATS + 1):  # the first one warms up
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best
