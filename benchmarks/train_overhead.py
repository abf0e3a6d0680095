"""What `troth.training.fit` costs beside a bare PyTorch loop over the same pre-tokenised batches (goal: at most 5 %).

Run ``python benchmarks/train_overhead.py``. It prints a table and writes ``results/train_overhead.json`` and ``.md``
beside this file. The bare loop gets its batches ready-made: tokenised, padded and collated outside of the clock. `fit`
collates, seeds dropout, checks the loss, keeps the series, shows progress and writes its checkpoints inside of it. Both
train the same model from the same weights, in one process, in turn (the order alternates), so that a slow spell of the
machine falls on both; the ratio is taken within each pair. Both end with the same bits, or the script fails.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from troth.config import RunConfig, parse
from troth.data import Table, load
from troth.seeds import PublicSeeds
from troth.tasks import Batch, Encoded, Task, length_buckets, make_model, make_task
from troth.training import LineProgress, TrainInputs, fit

GOAL = 1.05
RESULTS = Path(__file__).parent / "results"
REFERENCE = 1024  # side of the reference product's matrices


def settings(rows: int, epochs: int, batch: int) -> RunConfig:
    """Return the run file: SNIPS where it lies beside the repository, else the built-in corpus."""
    folder = Path(os.environ.get("TROTH_DATA", Path(__file__).parents[2] / "shared" / "data")) / "snips" / "train"
    data = {"train": str(folder)} if folder.is_dir() else {"builtin": {"name": "home", "rows": max(200, 2 * rows)}}
    return parse(
        {
            "run": {"name": "overhead", "seed": 1},
            "model": {"preset": "tiny-bert"},
            "data": data,
            "task": {"kind": "classification"},
            "train": {"epochs": epochs, "expected_batch_size": batch, "learning_rate": 2e-3},
        }
    )


def prepared(config: RunConfig, train: Table, encoded: Encoded, task: Task) -> list[Batch]:
    """Return every batch of the run, collated, in the order in which `fit` takes them."""
    seeds, size = PublicSeeds(config.run.seed), config.train.expected_batch_size
    return [
        task.collate(encoded, rows)
        for epoch in range(config.train.epochs)
        for rows in length_buckets(encoded.lengths, size, seeds.generator("epoch", epoch))
    ]


def bare(model: torch.nn.Module, task: Task, batches: list[Batch], config: RunConfig, seeds: list[int]) -> None:
    """Train with nothing but PyTorch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.train.learning_rate, weight_decay=0.0, fused=True)
    model.train()
    for step, batch in enumerate(batches):
        torch.manual_seed(seeds[step])  # the same dropout as `fit`, so that the weights can be compared
        for group in optimizer.param_groups:
            group["lr"] = config.train.learning_rate * (1 - step / len(batches))
        loss = task.per_example_loss(model, batch).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def reference() -> float:
    """Return the seconds of a fixed matrix product: tells whether the machine was busy."""
    a = torch.ones(REFERENCE, REFERENCE)
    a @ a
    start = time.perf_counter()
    for _ in range(5):
        a @ a
    return (time.perf_counter() - start) / 5


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Return whether two models have the same bits."""
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def measure(rows: int, epochs: int, batch: int, repeats: int) -> dict[str, Any]:
    """Return medians and ratios over `repeats` pairs, after one pair that does not count."""
    config = settings(rows, epochs, batch)
    train = load(config.data, config.task, Path.cwd()).train
    train = train.take(range(min(rows, len(train))))
    task, seeds = make_task(config, train, Path.cwd()), PublicSeeds(config.run.seed)
    encoded = task.encode(train)
    batches = prepared(config, train, encoded, task)
    dropout = [seeds.integer("dropout", step) for step in range(len(batches))]
    wall: dict[str, list[float]] = {"bare": [], "fit loop": [], "fit whole": []}
    cpu: dict[str, list[float]] = {"bare": [], "fit whole": []}
    before = reference()
    for repeat in range(repeats + 1):
        models = [make_model(config, task, seeds, Path.cwd()) for _ in range(2)]
        with tempfile.TemporaryDirectory() as folder:
            inputs = TrainInputs(task, models[1], encoded, config, seeds, Path(folder), torch.device("cpu"))
            for name in ("bare", "fit whole") if repeat % 2 else ("fit whole", "bare"):
                start, cpu_start = time.perf_counter(), time.process_time()
                if name == "bare":
                    bare(models[0], task, batches, config, dropout)
                else:
                    progress = LineProgress(io.StringIO())
                    outcome = fit(inputs, plan=None, reservation=None, resume=False, progress=progress)
                    wall["fit loop"].append(outcome.work_seconds)
                wall[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - cpu_start)
        if not same(*models):
            raise SystemExit("the two loops ended with different weights: they did not do the same work")
    after = reference()
    return {
        "rows": len(train),
        "source": "SNIPS" if config.data.train else "home (generated)",
        "steps": len(batches),
        "epochs": epochs,
        "batch": batch,
        "tokens": int(encoded.lengths.sum()),
        "repeats": repeats,
        "reference_seconds": [before, after],
        "ratios": {
            "fit loop, wall clock": ratio(wall["bare"], wall["fit loop"]),
            "fit whole, wall clock": ratio(wall["bare"], wall["fit whole"]),
            "fit whole, processor": ratio(cpu["bare"], cpu["fit whole"]),
        },
        "wall_seconds": {name: values[1:] for name, values in wall.items()},
        "processor_seconds": {name: values[1:] for name, values in cpu.items()},
    }


def ratio(bare_seconds: list[float], ours: list[float]) -> list[float]:
    """Return the quartiles of the ratio within each pair, the first pair left out."""
    pairs = [b / a for a, b in zip(bare_seconds[1:], ours[1:], strict=True)]
    return statistics.quantiles(pairs, n=4, method="inclusive")


def shown(quartiles: list[float]) -> str:
    """Return a ratio with its quartiles."""
    return f"{quartiles[1]:.3f} ({quartiles[0]:.3f} to {quartiles[2]:.3f})"


def middle(seconds: list[float] | None) -> str:
    """Return the median, or nothing."""
    return "" if seconds is None else f"{statistics.median(seconds):.2f}"


def markdown(result: dict[str, Any], machine: dict[str, Any]) -> str:
    """Return the table with its conditions."""
    first, last = (1e3 * seconds for seconds in result["reference_seconds"])
    busy = ": the machine was busy, measure again" if abs(first - last) > 0.2 * min(first, last) else ""
    wall, cpu, ratios = result["wall_seconds"], result["processor_seconds"], result["ratios"]
    rows = [("bare PyTorch loop, batches ready-made", wall["bare"], cpu["bare"], "1", "1")]
    loop, whole, processor = (shown(ratios[name]) for name in ratios)
    rows.append(("`fit`: its loop, checkpoints included (`work_seconds`)", wall["fit loop"], None, loop, ""))
    rows.append(("`fit`: the whole call", wall["fit whole"], cpu["fit whole"], whole, processor))
    met = "met" if ratios["fit loop, wall clock"][1] <= GOAL else "NOT met"
    lines = [
        "# Plain training beside a bare PyTorch loop",
        "",
        f"{machine['date']}; {machine['platform']}, {machine['threads']} thread(s); torch {machine['torch']}, "
        f"transformers {machine['transformers']}, troth {machine['troth']}.",
        f"Preset tiny-bert, {result['rows']} rows of {result['source']}, {result['epochs']} epochs of batch "
        f"{result['batch']} ({result['steps']} steps), medians of {result['repeats']} interleaved pairs; both loops "
        "end with the same bits.",
        "",
        "| | seconds | against bare | processor seconds | against bare |",
        "|---|---|---|---|---|",
        *(f"| {name} | {middle(w)} | {a} | {middle(c)} | {b} |" for name, w, c, a, b in rows),
        "",
        f"Goal: at most {GOAL:.2f} for the loop, wall clock: {met}. Ratios are medians within pairs, quartiles "
        f"in brackets. Reference product {first:.1f} ms before, {last:.1f} ms "
        f"after{busy}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    result = measure(chosen.rows, chosen.epochs, chosen.batch, chosen.repeats)
    machine = {
        "date": datetime.now(UTC).date().isoformat(),
        "platform": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "threads": chosen.threads,
        **{name: version(name) for name in ("torch", "transformers", "troth")},
    }
    text = markdown(result, machine)
    print(text)
    chosen.out.mkdir(exist_ok=True)
    (chosen.out / "train_overhead.json").write_text(json.dumps(machine | result, indent=1) + "\n")
    (chosen.out / "train_overhead.md").write_text(text)


if __name__ == "__main__":
    main()
