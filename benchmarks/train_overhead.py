"""What `troth.training.fit` costs beside a bare PyTorch loop over the same pre-tokenised batches (goal: at most 5 %).

Run ``python benchmarks/train_overhead.py``. It prints a table and writes ``results/train_overhead.json`` and ``.md``
beside this file. The bare loop gets its batches ready-made: tokenised, padded and collated outside of the clock. `fit`
collates, seeds dropout, checks the loss, keeps the series, shows progress and writes its checkpoints inside of it. Both
train the same model from the same weights, in one process, in turn *step by step*: after each step of `fit` one bare
step is made, so that a slow spell of the machine falls on both. Both end with the same bits, or the script fails.
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


class Clock:
    """Wall-clock and processor seconds, started and stopped many times."""

    def __init__(self) -> None:
        self.wall = self.processor = 0.0
        self._since = (0.0, 0.0)

    def start(self) -> None:
        """Go on."""
        self._since = (time.perf_counter(), time.process_time())

    def stop(self) -> None:
        """Add what has passed."""
        self.wall += time.perf_counter() - self._since[0]
        self.processor += time.process_time() - self._since[1]


class BareLoop:
    """Nothing but PyTorch: one step at a time."""

    def __init__(self, model: torch.nn.Module, task: Task, batches: list[Batch], config: RunConfig) -> None:
        self._model, self._task, self._batches, self._rate = model.train(), task, batches, config.train.learning_rate
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=self._rate, weight_decay=0.0, fused=True)
        self._seeds = [PublicSeeds(config.run.seed).integer("dropout", step) for step in range(len(batches))]

    def step(self, step: int) -> None:
        """Make one step."""
        torch.manual_seed(self._seeds[step])  # the same dropout as `fit`, so that the weights can be compared
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate * (1 - step / len(self._batches))
        loss = self._task.per_example_loss(self._model, self._batches[step]).mean()
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()


class InTurn(LineProgress):
    """A progress that lets the bare loop make its step after each step of `fit`, each on its own clock."""

    def __init__(self, loop: BareLoop) -> None:
        super().__init__(io.StringIO())
        self.ours, self.bare, self._loop = Clock(), Clock(), loop

    def start(self, total: int, label: str) -> None:
        """Start the clock of `fit`."""
        super().start(total, label)
        self.ours.start()

    def update(self, step: int, **values: float | None) -> None:
        """Let the bare loop make the same step."""
        super().update(step, **values)
        self.ours.stop()
        self.bare.start()
        self._loop.step(step - 1)
        self.bare.stop()
        self.ours.start()


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
    """Return seconds and ratios over `repeats` runs, after one that does not count."""
    config = settings(rows, epochs, batch)
    train = load(config.data, config.task, Path.cwd()).train
    train = train.take(range(min(rows, len(train))))
    task, seeds = make_task(config, train, Path.cwd()), PublicSeeds(config.run.seed)
    encoded = task.encode(train)
    batches = prepared(config, train, encoded, task)
    seconds: dict[str, list[float]] = {n: [] for n in ("bare", "fit", "bare processor", "fit processor", "set-up")}
    before = reference()
    for _ in range(repeats + 1):
        models = [make_model(config, task, seeds, Path.cwd()) for _ in range(2)]
        clocks = InTurn(BareLoop(models[0], task, batches, config))
        with tempfile.TemporaryDirectory() as folder:
            inputs = TrainInputs(task, models[1], encoded, config, seeds, Path(folder), torch.device("cpu"))
            start = time.perf_counter()
            fit(inputs, plan=None, reservation=None, resume=False, progress=clocks)
            clocks.ours.stop()
            whole = time.perf_counter() - start
        if not same(*models):
            raise SystemExit("the two loops ended with different weights: they did not do the same work")
        for name, clock in (("bare", clocks.bare), ("fit", clocks.ours)):
            seconds[name].append(clock.wall)
            seconds[f"{name} processor"].append(clock.processor)
        seconds["set-up"].append(whole - clocks.ours.wall - clocks.bare.wall)
    return {
        "rows": len(train),
        "source": "SNIPS" if config.data.train else "home (generated)",
        "steps": len(batches),
        "epochs": epochs,
        "batch": batch,
        "tokens": int(encoded.lengths.sum()),
        "repeats": repeats,
        "reference_seconds": [before, reference()],
        "load_average": os.getloadavg()[1],
        "ratio": ratio(seconds["bare"], seconds["fit"]),
        "ratio_processor": ratio(seconds["bare processor"], seconds["fit processor"]),
        "seconds": {name: values[1:] for name, values in seconds.items()},
    }


def ratio(bare_seconds: list[float], ours: list[float]) -> list[float]:
    """Return the quartiles of the ratio within each run, the first run left out."""
    pairs = [b / a for a, b in zip(bare_seconds[1:], ours[1:], strict=True)]
    return statistics.quantiles(pairs, n=4, method="inclusive")


def shown(quartiles: list[float]) -> str:
    """Return a ratio with its quartiles."""
    return f"{quartiles[1]:.3f} ({quartiles[0]:.3f} to {quartiles[2]:.3f})"


def markdown(result: dict[str, Any], machine: dict[str, Any]) -> str:
    """Return the table with its conditions."""
    first, last = (1e3 * seconds for seconds in result["reference_seconds"])
    middle = {name: statistics.median(values) for name, values in result["seconds"].items()}
    met = "met" if result["ratio"][1] <= GOAL else "NOT met"
    lines = [
        "# Plain training beside a bare PyTorch loop",
        "",
        f"{machine['date']}; {machine['platform']}, {machine['threads']} thread(s); torch {machine['torch']}, "
        f"transformers {machine['transformers']}, troth {machine['troth']}.",
        f"Preset tiny-bert, {result['rows']} rows of {result['source']}, {result['epochs']} epochs of batch "
        f"{result['batch']} ({result['steps']} steps). Medians of {result['repeats']} runs; in each run the two loops "
        "make their steps in turn, and end with the same bits.",
        "",
        "| | seconds | against bare | processor seconds | against bare |",
        "|---|---|---|---|---|",
        f"| bare PyTorch loop, batches ready-made | {middle['bare']:.2f} | 1 | {middle['bare processor']:.2f} | 1 |",
        f"| `fit`: its loop with {result['epochs']} checkpoints, series and progress | {middle['fit']:.2f} | "
        f"{shown(result['ratio'])} | {middle['fit processor']:.2f} | {shown(result['ratio_processor'])} |",
        "",
        f"Goal: at most {GOAL:.2f} of wall-clock time: {met}. Ratios are medians over runs, quartiles in brackets. "
        f"Set-up of `fit` before its first step (first checkpoint, digests, physical batch): {middle['set-up']:.2f} s. "
        f"The machine was shared: load average {result['load_average']:.1f} on {os.cpu_count()} cores, "
        f"reference product {first:.1f} ms before and {last:.1f} ms after.",
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
