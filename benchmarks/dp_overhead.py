"""What private training costs beside plain training: the same model, rows and optimizer, with and without the engine.

Run ``python benchmarks/dp_overhead.py``. It prints a table and writes ``results/dp_overhead.json`` and ``.md`` beside
this file. Each repeat times one plain step and one private step, one after the other (interleaved), so that a slow
spell of the machine falls on both; the ratio is taken within each repeat and its median and quartiles are shown. Times
are CPU seconds of one thread. A reference matrix product is timed before and after each series: where the two differ by
more than 20 %, or repeats scatter widely, the machine was busy and the note says so.

The model is transformers' RoBERTa classifier with random weights, in training mode (dropout 0.1), fused AdamW; the
private step includes sampling, norms, clipping, noise and the plan's bookkeeping.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import RobertaConfig, RobertaForSequenceClassification

from troth.accounting.plan import PrivacyPlan
from troth.dp import PrivateEngine
from troth.seeds import PrivateRandomness

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
    Work(384, 4, 128, 32, 16),
    Work(384, 4, 256, 16, 8),
)


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


def plain_stepper(work: Work) -> Callable[[], None]:
    model = make_model(work)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    ids, labels = make_data(work)

    def step() -> None:
        optimizer.zero_grad()
        for start in range(0, work.logical, work.physical):
            rows = slice(start, start + work.physical)
            (losses(model, ids[rows], labels[rows]).sum() / work.logical).backward()
        optimizer.step()

    return step


def private_stepper(work: Work) -> Callable[[], None]:
    model = make_model(work)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    ids, labels = make_data(work)
    # Sampling rate 1: both steps see the same rows. The cost of a step does not depend on the rate.
    plan = PrivacyPlan(work.logical, work.logical, 1.0, 10_000, 1.0, 0.1, 1e-5)
    engine = PrivateEngine(model, optimizer, plan, PrivateRandomness())

    def step() -> None:
        rows = torch.from_numpy(engine.sample())
        for part in rows.split(work.physical):
            engine.backward(losses(model, ids[part], labels[part]))
        engine.step()

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


def measure(work: Work, repeats: int) -> dict[str, object]:
    before = reference_gflops()
    plain, private = plain_stepper(work), private_stepper(work)
    plain(), private()  # warm-up, and the engine's checks of the first batch
    pairs = [(seconds(plain), seconds(private)) for _ in range(repeats)]
    after = reference_gflops()
    ratios = sorted(b / a for a, b in pairs)
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "name": work.name,
        **asdict(work),
        "plain_seconds": statistics.median(a for a, _ in pairs),
        "private_seconds": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [quartiles[0], quartiles[2]],
        "ratio_of_medians": statistics.median(b for _, b in pairs) / statistics.median(a for a, _ in pairs),
        "ghost_limit": limit(work),
        "repeats": repeats,
        "reference_gflops": [before, after],
        "steady": abs(before - after) <= 0.2 * max(before, after) and quartiles[2] - quartiles[0] <= 0.1,
    }


def table(rows: list[dict[str, object]], facts: dict[str, object]) -> str:
    lines = [
        "# Private training beside plain training",
        "",
        "CPU seconds of one thread, RoBERTa-shaped classifier, dropout 0.1, fused AdamW; noise, sampling and clipping "
        "included. Ratio: median over interleaved repeats, quartiles in brackets. Limit: what the operations of ghost "
        "norms alone would add at the speed of the model's own products; from about T = 128 on the engine writes "
        "per-example gradients out where that is cheaper, and may lie below it.",
        "",
        "| work | plain s | private s | ratio | limit | repeats | reference GFLOP/s before, after | steady |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["ratio_quartiles"]  # type: ignore[misc]
        first, last = row["reference_gflops"]  # type: ignore[misc]
        lines.append(
            f"| {row['name']} | {row['plain_seconds']:.3f} | {row['private_seconds']:.3f} | "
            f"{row['ratio']:.3f} [{low:.3f}, {high:.3f}] | {row['ghost_limit']:.3f} | {row['repeats']} | "
            f"{first:.0f}, {last:.0f} | {'yes' if row['steady'] else 'no: machine busy'} |"
        )
    lines += ["", f"{facts['date']}, {facts['processor']}, {facts['versions']}.", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--only", type=int, nargs="*", help="indices of the settings to run")
    parser.add_argument("--dry", action="store_true", help="print, write nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    works = WORKS if arguments.only is None else [WORKS[i] for i in arguments.only]
    rows = []
    for work in works:
        rows.append(measure(work, arguments.repeats * (3 if work.width < 256 else 1)))
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
