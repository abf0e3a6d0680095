"""What the noise of a private step costs: torch's generators, the cryptographic keystream, and simpler ways to use one.

Run ``python benchmarks/noise.py``. It prints three tables and writes ``results/noise.json`` and ``.md`` beside this
file:

1. nanoseconds per element of every way to make the noise, on one thread (CPU time) and on two (elapsed time);
2. the same as a share of the plain training step it belongs to, in two regimes of the overhead table;
3. a first micro-batch with the noise made before it and beside it (`beside`), on two threads (elapsed time).

All ways are measured in turn within each repeat (interleaved); medians, quartiles and the smallest value are shown. A
reference matrix product is timed before and after; where the two differ by more than 20 %, or the machine had other
work to do, the table says so.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256, ChaCha20
from cryptography.hazmat.primitives.ciphers.modes import CTR
from torch import Tensor
from torch.nn import functional as F
from transformers import RobertaConfig, RobertaForSequenceClassification

from troth.dp.grid import grid_step, round_to_grid
from troth.dp.noise import beside, write_noise
from troth.seeds import PrivateRandomness

RESULTS = Path(__file__).parent / "results"
ELEMENTS = 1 << 22
BLOCK = 1 << 15
STD = 0.37
REFERENCE = 1536  # side of the reference product's matrices

Clock = Callable[[], float]
Spread = tuple[float, float, float, float]  # smallest, lower quartile, median, upper quartile


@dataclass(frozen=True)
class Regime:
    """A plain step of the overhead table."""

    width: int
    layers: int
    tokens: int
    logical: int
    physical: int

    @property
    def name(self) -> str:
        """Return the regime in words."""
        return f"d {self.width}, {self.layers} layers, T {self.tokens}, {self.logical} in {self.physical}"


REGIMES = (Regime(128, 2, 16, 256, 64), Regime(384, 4, 32, 256, 32))


# Ways to make noise that troth does not use


class Stream:
    """A keystream as float64 uniforms, to build the simpler ways on."""

    def __init__(self) -> None:
        self.encryptor = Cipher(AES256(bytes(32)), CTR(bytes(16))).encryptor()

    def halves(self, count: int) -> Tensor:
        """Return `count` uniforms in (0, 1/2), odd multiples of 2^-54."""
        words = np.empty(count, dtype=np.int64)
        self.encryptor.update_into(bytes(8 * count), words.view(np.uint8).data)
        return torch.from_numpy(words).bitwise_right_shift_(11).double().add_(0.5).mul_(2.0**-53).abs_()


def box_muller(flat: Tensor, block: int) -> None:
    """Overwrite `flat` by float64 Box-Muller, `block` elements at a time."""
    stream = Stream()
    for part in flat.split(block):
        half = len(part) // 2
        radius = stream.halves(half).mul_(2).log_().mul_(-2).sqrt_().mul_(STD)
        angle = stream.halves(half).mul_(4 * math.pi)
        part[:half] = radius * angle.cos()
        part[half:] = radius.mul_(angle.sin_())


def inverse(flat: Tensor, block: int) -> None:
    """Overwrite `flat` by the float64 inverse of the normal distribution function, `block` elements at a time."""
    stream = Stream()
    for part in flat.split(block):
        part.copy_(stream.halves(len(part)).mul_(4).sub_(1).erfinv_().mul_(STD * math.sqrt(2)))


def keystream(encryptor: object) -> Callable[[], None]:
    """Return what makes 8 bytes an element, block by block."""
    zeros, out = bytes(8 * BLOCK), bytearray(8 * BLOCK)

    def run() -> None:
        for _ in range(ELEMENTS // BLOCK):
            encryptor.update_into(zeros, out)  # type: ignore[attr-defined]

    return run


def ways(flat: Tensor, key: PrivateRandomness) -> dict[str, Callable[[], None]]:
    """Return every way to fill `flat`, on one thread."""
    generator = key.torch_generator("benchmark")

    def torch_alone() -> None:
        flat.normal_(0.0, STD, generator=generator)

    def own(*, secure: bool, draws: int = 1) -> Callable[[], None]:
        return lambda: write_noise(flat, STD, key, secure=secure, draws=draws, threads=1)

    return {
        "torch `normal_`, one call": torch_alone,
        "`write_noise`": own(secure=False),
        "`write_noise(secure=True)`": own(secure=True),
        "`write_noise(draws=4)`": own(secure=False, draws=4),
        "`write_noise(secure=True, draws=4)`": own(secure=True, draws=4),
        "AES-256-CTR, float64 Box-Muller over the whole buffer (naive)": lambda: box_muller(flat, len(flat)),
        "AES-256-CTR, float64 Box-Muller in blocks": lambda: box_muller(flat, BLOCK),
        "AES-256-CTR, float64 inverse distribution function in blocks": lambda: inverse(flat, BLOCK),
        "AES-256-CTR alone, 8 bytes an element": keystream(Cipher(AES256(bytes(32)), CTR(bytes(16))).encryptor()),
        "ChaCha20 alone, 8 bytes an element": keystream(Cipher(ChaCha20(bytes(32), bytes(16)), None).encryptor()),
        "`round_to_grid`": lambda: round_to_grid(flat, grid_step(STD, 12)),
    }


# Plain training


def make_step(regime: Regime) -> tuple[int, Callable[[], None], Callable[[], None]]:
    """Return the number of parameters, a plain step, and its first micro-batch alone."""
    torch.manual_seed(0)
    model = RobertaForSequenceClassification(
        RobertaConfig(
            vocab_size=8192,
            hidden_size=regime.width,
            num_hidden_layers=regime.layers,
            num_attention_heads=regime.width // 64,
            intermediate_size=4 * regime.width,
            max_position_embeddings=regime.tokens + 2,
            type_vocab_size=1,
            num_labels=7,
        )
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    ids = torch.randint(4, 8192, (regime.logical, regime.tokens))
    labels = torch.randint(7, (regime.logical,))

    def batch(start: int) -> None:
        rows = slice(start, start + regime.physical)
        losses = F.cross_entropy(model(input_ids=ids[rows]).logits, labels[rows], reduction="none")
        (losses.sum() / regime.logical).backward()

    def step() -> None:
        optimizer.zero_grad()
        for start in range(0, regime.logical, regime.physical):
            batch(start)
        optimizer.step()

    return sum(p.numel() for p in model.parameters()), step, lambda: batch(0)


# Measuring


def seconds(action: Callable[[], None], clock: Clock) -> float:
    start = clock()
    action()
    return clock() - start


def spread(values: list[float]) -> Spread:
    low, middle, high = statistics.quantiles(values, n=4)
    return min(values), low, middle, high


def interleaved(actions: dict[str, Callable[[], None]], repeats: int, clock: Clock) -> dict[str, list[float]]:
    for action in actions.values():
        action()
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeats):
        for name, action in actions.items():
            taken[name].append(seconds(action, clock))
    return taken


def reference_gflops() -> float:
    a = torch.randn(REFERENCE, REFERENCE)
    return 2 * REFERENCE**3 / min(seconds(lambda: a @ a, time.thread_time) for _ in range(5)) / 1e9


def per_element(repeats: int) -> list[dict[str, object]]:
    torch.set_num_threads(1)
    key, flat = PrivateRandomness(), torch.empty(ELEMENTS)
    one = interleaved(ways(flat, key), repeats, time.thread_time)
    both = {
        "`write_noise`": lambda: write_noise(flat, STD, key, threads=2),
        "`write_noise(secure=True)`": lambda: write_noise(flat, STD, key, secure=True, threads=2),
    }
    two = interleaved(both, repeats, time.perf_counter)
    return [
        {
            "way": way,
            "one_thread_ns": spread([t / ELEMENTS * 1e9 for t in times]),
            "two_threads_ns": spread([t / ELEMENTS * 1e9 for t in two[way]]) if way in two else None,
        }
        for way, times in one.items()
    ]


def of_a_step(regime: Regime, repeats: int) -> dict[str, object]:
    torch.set_num_threads(1)
    parameters, step, _ = make_step(regime)
    key, flat = PrivateRandomness(), torch.empty(parameters)
    taken = interleaved(
        {
            "plain step": step,
            "torch": lambda: write_noise(flat, STD, key),
            "keystream": lambda: write_noise(flat, STD, key, secure=True),
            "recipe": lambda: write_noise(flat, STD, key, secure=True, draws=4),
            "grid": lambda: round_to_grid(flat, grid_step(STD, 12)),
        },
        repeats,
        time.thread_time,
    )
    plain = taken.pop("plain step")
    return {
        "regime": regime.name,
        "parameters": parameters,
        "plain_seconds": spread(plain),
        "share": {way: spread([t / p for t, p in zip(times, plain, strict=True)]) for way, times in taken.items()},
    }


def overlap(regime: Regime, repeats: int) -> dict[str, object]:
    torch.set_num_threads(2)
    parameters, _, batch = make_step(regime)
    key, flat = PrivateRandomness(), torch.empty(parameters)

    def first(*, secure: bool) -> None:
        write_noise(flat, STD, key, secure=secure)
        batch()

    def overlapped(*, secure: bool) -> None:
        with beside(flat, lambda threads: write_noise(flat, STD, key, secure=secure, threads=threads)):
            batch()

    taken = interleaved(
        {
            "batch": batch,
            "torch, before": lambda: first(secure=False),
            "torch, beside": lambda: overlapped(secure=False),
            "keystream, before": lambda: first(secure=True),
            "keystream, beside": lambda: overlapped(secure=True),
        },
        repeats,
        time.perf_counter,
    )
    torch.set_num_threads(1)
    return {"regime": regime.name, "milliseconds": {name: spread([1e3 * t for t in v]) for name, v in taken.items()}}


# Showing


def shown(values: Spread | None, unit: float = 1, digits: int = 2) -> str:
    if values is None:
        return ""
    least, low, middle, high = (f"{unit * v:.{digits}f}" for v in values)
    return f"{middle} [{low}, {high}] {least}"


def table(facts: dict[str, object]) -> str:
    lines = [
        "# What noise costs",
        "",
        f"Median of {facts['repeats']} interleaved repeats, [quartiles], smallest. Float32 buffer of {ELEMENTS} "
        "elements; one thread: CPU time, two threads: elapsed time. `secure=True` is AES-256-CTR through the cut of "
        "the normal density (`troth.dp.secure_noise`), the others that name AES use 53-bit uniforms.",
        "",
        "| way | ns per element, one thread | two threads |",
        "|---|---|---|",
    ]
    for row in facts["ways"]:  # type: ignore[attr-defined]
        lines.append(f"| {row['way']} | {shown(row['one_thread_ns'])} | {shown(row['two_threads_ns'])} |")
    lines += [
        "",
        "Share of the plain step (RoBERTa-shaped classifier, fused AdamW, one thread), in per cent. Recipe: keystream "
        "with `draws=4`; grid: one rounding of the buffer.",
        "",
        "| regime | parameters | plain s | torch | keystream | recipe | grid |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in facts["steps"]:  # type: ignore[attr-defined]
        shares = " | ".join(shown(row["share"][way], 100) for way in ("torch", "keystream", "recipe", "grid"))
        lines.append(f"| {row['regime']} | {row['parameters']} | {shown(row['plain_seconds'], 1, 3)} | {shares} |")
    lines += [
        "",
        "First micro-batch with the noise made before it by two threads, and beside it by one background thread; torch "
        "on two threads, elapsed milliseconds.",
        "",
        "| regime | batch alone | torch, before | torch, beside | keystream, before | keystream, beside |",
        "|---|---|---|---|---|---|",
    ]
    for row in facts["overlap"]:  # type: ignore[attr-defined]
        lines.append(f"| {row['regime']} | " + " | ".join(shown(v, 1, 1) for v in row["milliseconds"].values()) + " |")
    before, after = facts["reference_gflops"]  # type: ignore[misc]
    calm = "calm" if facts["calm"] else "busy with other work: read ratios, not times"
    lines += [
        "",
        f"Reference product {before:.0f} GFLOP/s before, {after:.0f} after; load {facts['load']}; the machine was "
        f"{calm}.",
        "",
        f"{facts['date']}, {facts['processor']}, {facts['versions']}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--dry", action="store_true", help="print, write nothing")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    torch.set_num_threads(1)
    before = reference_gflops()
    facts: dict[str, object] = {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": f"{platform.machine()} ({torch.backends.cpu.get_cpu_capability()}), {os.cpu_count()} cores",
        "versions": ", ".join(f"{p} {version(p)}" for p in ("torch", "numpy", "cryptography", "transformers")),
        "repeats": arguments.repeats,
        "ways": per_element(arguments.repeats),
        "steps": [of_a_step(regime, arguments.repeats) for regime in REGIMES],
        "overlap": [overlap(regime, arguments.repeats) for regime in REGIMES],
        "load": f"{load:.1f} at the start",
    }
    after = reference_gflops()
    facts["reference_gflops"] = [before, after]
    facts["calm"] = load < 0.7 and abs(before - after) <= 0.2 * max(before, after)
    print(table(facts))
    if arguments.dry:
        return
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "noise.json").write_text(json.dumps(facts, indent=1) + "\n")
    (RESULTS / "noise.md").write_text(table(facts))


if __name__ == "__main__":
    main()
