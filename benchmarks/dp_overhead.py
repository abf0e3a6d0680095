"""What private training costs beside plain training: the same model, rows and optimizer, with and without the engine.

Run ``python benchmarks/dp_overhead.py``. It prints a table and writes ``results/dp_overhead.json`` and ``.md`` beside
this file. Each repeat times one plain step and one private step, their physical batches taking turns (interleaved), so
that a slow spell of the machine falls on both; the ratio is taken within each repeat and its median and quartiles are
shown. Times are CPU seconds of one thread; all steps run with freed memory kept (`troth.host_memory`). A reference
matrix product is timed before and after each series; a series whose two references differ by more than 20 % is run
again, up to three times, and marked if it stays so.

The model is transformers' RoBERTa classifier with random weights, in training mode (dropout 0.1), fused AdamW; the
private step includes sampling, norms, clipping, noise and the plan's bookkeeping. Beside it stand

- the one-example loop: gradients of one example at a time, clipped and added, timed on a few examples;
- for two settings Opacus, hooks and ghost clipping, three repeats each, where ``--opacus PYTHON`` names the
  interpreter of an environment made from ``benchmarks/requirements-opacus.txt``: its own plain step and private step,
  interleaved in the same way;
- peak memory: of one process each that only makes plain, or only private steps: model, gradients, optimizer and
  activations, above what the imports take.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import RobertaConfig, RobertaForSequenceClassification

RESULTS = Path(__file__).parent / "results"
LABELS, VOCABULARY = 7, 8192
REFERENCE = 1536  # side of the reference product's matrices


@dataclass(frozen=True)
class Work:
    """One setting: width, layers, tokens, logical and physical batch size."""

    width: int
    layers: int
    tokens: int
    logical: int
    physical: int

    @property
    def name(self) -> str:
        """Return the setting in words."""
        return f"d {self.width}, {self.layers} layers, T {self.tokens}, {self.logical} in {self.physical}"


WORKS = (
    Work(128, 2, 16, 256, 64),
    Work(128, 2, 16, 256, 256),
    Work(384, 4, 32, 256, 32),
    Work(384, 6, 32, 256, 32),
    Work(768, 4, 16, 128, 32),
    Work(768, 4, 32, 128, 32),
    Work(384, 4, 64, 64, 32),
    Work(384, 4, 128, 32, 16),
    Work(384, 4, 256, 16, 8),
)
BESIDE_PEERS, PEER_REPEATS = (WORKS[0], WORKS[2]), 3


def make_model(work: Work) -> nn.Module:
    torch.manual_seed(0)
    return RobertaForSequenceClassification(
        RobertaConfig(
            vocab_size=VOCABULARY,
            hidden_size=work.width,
            num_hidden_layers=work.layers,
            num_attention_heads=work.width // 64,
            intermediate_size=4 * work.width,
            max_position_embeddings=work.tokens + 2,
            type_vocab_size=1,
            num_labels=LABELS,
        )
    ).train()


def make_data(work: Work) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randint(4, VOCABULARY, (work.logical, work.tokens), generator=generator),
        torch.randint(LABELS, (work.logical,), generator=generator),
    )


def losses(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(input_ids=ids).logits, labels, reduction="none")


Step = Callable[[], Iterator[None]]
"""Makes one step, stopping after each of its physical batches."""


def plain_stepper(work: Work) -> Step:
    model = make_model(work)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    ids, labels = make_data(work)

    def step() -> Iterator[None]:
        optimizer.zero_grad()
        for start in range(0, work.logical, work.physical):
            rows = slice(start, start + work.physical)
            (losses(model, ids[rows], labels[rows]).sum() / work.logical).backward()
            yield
        optimizer.step()

    return step


def private_stepper(work: Work) -> Step:
    # Imported here: the environment of a peer runs this file too, and has no troth.
    from troth.accounting.plan import PrivacyPlan
    from troth.dp import PrivateEngine
    from troth.seeds import PrivateRandomness

    model = make_model(work)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    ids, labels = make_data(work)
    # Sampling rate 1: both steps see the same rows. The cost of a step does not depend on the rate.
    plan = PrivacyPlan(work.logical, work.logical, 1.0, 10_000, 1.0, 0.1, 1e-5)
    engine = PrivateEngine(model, optimizer, plan, PrivateRandomness())
    engine.check_losses(lambda rows: losses(model, ids[rows], labels[rows]), np.arange(4))

    def step() -> Iterator[None]:
        rows = torch.from_numpy(engine.sample())
        for part in rows.split(work.physical):
            engine.backward(losses(model, ids[part], labels[part]))
            yield
        engine.step()

    return step


def loop_stepper(work: Work, examples: int) -> Callable[[], None]:
    """Clip the gradients of a few examples one at a time, as DP-SGD is written down."""
    model = make_model(work)
    ids, labels = make_data(work)
    total = [torch.zeros_like(p) for p in model.parameters()]

    def step() -> None:
        for i in range(examples):
            model.zero_grad()
            losses(model, ids[i : i + 1], labels[i : i + 1]).sum().backward()
            grads = [p.grad for p in model.parameters()]
            norm = torch.stack([g.norm() for g in grads]).norm()
            factor = float((0.1 / (norm + 1e-6)).clamp(max=1))
            for into, grad in zip(total, grads, strict=True):
                into.add_(grad, alpha=factor)

    return step


def opacus_stepper(work: Work, mode: str) -> Step:
    """Opacus on the same model and rows; its loader is left aside, which only helps it."""
    from opacus import GradSampleModule
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizer
    from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping

    model = make_model(work)
    ids, labels = make_data(work)
    parts = [slice(s, s + work.physical) for s in range(0, work.logical, work.physical)]
    kind = {"noise_multiplier": 1.0, "max_grad_norm": 0.1, "expected_batch_size": work.logical}
    base = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    if mode == "hooks":
        module, optimizer = GradSampleModule(model), DPOptimizer(base, **kind)
    else:
        module = GradSampleModuleFastGradientClipping(model, max_grad_norm=0.1, use_ghost_clipping=True)
        optimizer = DPOptimizerFastGradientClipping(base, **kind)

    def step() -> Iterator[None]:
        for place, rows in enumerate(parts):
            optimizer.signal_skip_step(do_skip=place < len(parts) - 1)
            loss = losses(module, ids[rows], labels[rows])
            if mode == "hooks":
                loss.mean().backward()
            else:
                loss.mean().backward(retain_graph=True)
                optimizer.zero_grad()
                coefficient = module.get_clipping_coef()
                module.disable_hooks()
                (coefficient * loss).sum().backward()
                module.enable_hooks()
            optimizer.step()
            optimizer.zero_grad()
            yield

    return step


def seconds(action: Callable[[], object]) -> float:
    start = time.thread_time()
    action()
    return time.thread_time() - start


def reference_gflops() -> float:
    a = torch.randn(REFERENCE, REFERENCE)
    best = min(seconds(lambda: a @ a) for _ in range(5))
    return 2 * REFERENCE**3 / best / 1e9


def limit(work: Work) -> float:
    """Return the ratio that the ghost norms' operations alone would give, at equal speed (the physical lower bound).

    Per token and layer: 72 d² operations plain; Gram matrices 2 T (13 d) with the input shared by Q, K and V: inputs
    d, d, d, 4 d; output gradients 3 d, d, 4 d, d.
    """
    d, t = work.width, work.tokens
    return 1 + 2 * t * (7 * d + 9 * d) / (72 * d * d)


def interleaved(plain: Step, private: Step, repeats: int) -> list[tuple[float, float]]:
    def both() -> tuple[float, float]:
        sides, spent, running = (plain(), private()), [0.0, 0.0], True
        while running:
            for place, side in enumerate(sides):
                spent[place] += seconds(lambda side=side: next(side, None))  # type: ignore[misc]
            running = any(side.gi_frame is not None for side in sides)  # type: ignore[attr-defined]
        return spent[0], spent[1]

    both()  # warm-up, and the engine's checks of the first batch
    return [both() for _ in range(repeats)]


def measure(work: Work, repeats: int, opacus: str | None) -> dict[str, object]:
    from troth.host_memory import keep_freed_memory  # see `private_stepper`

    keep_freed_memory()
    for _ in range(3):
        before = reference_gflops()
        pairs = interleaved(plain_stepper(work), private_stepper(work), repeats)
        after = reference_gflops()
        steady = abs(before - after) <= 0.2 * max(before, after)
        if steady:
            break
    ratios = sorted(b / a for a, b in pairs)
    quartiles = statistics.quantiles(ratios, n=4)
    plain = statistics.median(a for a, _ in pairs)
    few = min(8, work.logical)
    loop = loop_stepper(work, few)
    loop()
    row: dict[str, object] = {
        "name": work.name,
        **asdict(work),
        "plain_seconds": plain,
        "private_seconds": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [quartiles[0], quartiles[2]],
        "ghost_limit": limit(work),
        "loop_ratio": min(seconds(loop) for _ in range(3)) * work.logical / few / plain,
        "memory_ratio": memory(work, "private") / memory(work, "plain"),
        "repeats": repeats,
        "reference_gflops": [before, after],
        "steady": steady,
    }
    if opacus and work in BESIDE_PEERS:
        row["opacus"] = {mode: peer(opacus, work, mode, PEER_REPEATS) for mode in ("hooks", "ghost")}
    return row


def memory(work: Work, mode: str) -> float:
    """Return the peak memory of a process that makes such steps, above what its imports take, in bytes."""
    command = [sys.executable, __file__, "--one", json.dumps(asdict(work)), "--mode", mode]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def peer(python: str, work: Work, mode: str, repeats: int) -> float:
    """Return the peer's median ratio of private to plain steps, measured in its own environment."""
    command = [python, __file__, "--one", json.dumps(asdict(work)), "--mode", mode, "--repeats", str(repeats)]
    kept = {"MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_MMAP_THRESHOLD_": str(2**25)}  # as in `measure`
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **kept})
    return float(done.stdout.splitlines()[-1])


def one(work: Work, mode: str, repeats: int) -> float:
    """Do what a process of its own is for: a peer's ratio, or the peak memory of one kind of step."""
    if mode in ("hooks", "ghost"):
        pairs = interleaved(plain_stepper(work), opacus_stepper(work, mode), repeats)
        return statistics.median(b / a for a, b in pairs)
    import troth.dp  # noqa: F401  what is imported is no part of the steps' memory
    from troth.host_memory import keep_freed_memory

    keep_freed_memory()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
    start = _status("VmRSS")
    step = plain_stepper(work) if mode == "plain" else private_stepper(work)
    for _ in range(3):
        for _ in step():
            pass
    return _status("VmHWM") - start


def _status(name: str) -> float:
    """Return a size of this process in bytes, as the system counts it (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def table(rows: list[dict[str, object]], facts: dict[str, object]) -> str:
    lines = [
        "# Private training beside plain training",
        "",
        "CPU seconds of one thread, RoBERTa-shaped classifier, dropout 0.1, fused AdamW; noise, sampling and clipping "
        "included. Ratio: median over interleaved repeats, quartiles in brackets. Limit: what the operations of ghost "
        "norms alone would add at the speed of the model's own products; from about T = 128 on the engine writes "
        "per-example gradients out where that is cheaper, and may lie below it. Loop: one example at a time. Memory: "
        "peak of model, gradients, optimizer and activations, private over plain. Opacus: its own private over its own "
        "plain step.",
        "",
        "| work | plain s | private s | ratio | limit | loop | memory | Opacus hooks, ghost | repeats | "
        "reference GFLOP/s before, after | steady |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["ratio_quartiles"]  # type: ignore[misc]
        first, last = row["reference_gflops"]  # type: ignore[misc]
        lines.append(
            f"| {row['name']} | {row['plain_seconds']:.3f} | {row['private_seconds']:.3f} | "
            f"{row['ratio']:.3f} [{low:.3f}, {high:.3f}] | {row['ghost_limit']:.3f} | {row['loop_ratio']:.1f} | "
            f"{row['memory_ratio']:.2f} | {peers(row)} | {row['repeats']} | "
            f"{first:.0f}, {last:.0f} | {'yes' if row['steady'] else 'no: machine busy'} |"
        )
    lines += ["", f"{facts['date']}, {facts['processor']}, {facts['versions']}.", ""]
    return "\n".join(lines)


def peers(row: dict[str, object]) -> str:
    found = row.get("opacus")
    return f"{found['hooks']:.2f}, {found['ghost']:.2f}" if isinstance(found, dict) else "not run"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--only", type=int, nargs="*", help="indices of the settings to run")
    parser.add_argument("--dry", action="store_true", help="print, write nothing")
    parser.add_argument("--opacus", help="the Python of an environment with Opacus")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--mode", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.one:
        print(one(Work(**json.loads(arguments.one)), arguments.mode, arguments.repeats))
        return
    works = WORKS if arguments.only is None else [WORKS[i] for i in arguments.only]
    rows = []
    for work in works:
        rows.append(measure(work, arguments.repeats * (3 if work.width < 256 else 1), arguments.opacus))
        print(json.dumps(rows[-1]), flush=True)
    facts: dict[str, object] = {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": f"{platform.machine()} ({torch.backends.cpu.get_cpu_capability()})",
        "versions": ", ".join(f"{p} {version(p)}" for p in ("torch", "transformers", "numpy")),
    }
    print(table(rows, facts))
    if arguments.dry:
        return
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "dp_overhead.json").write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    (RESULTS / "dp_overhead.md").write_text(table(rows, facts))


if __name__ == "__main__":
    main()
