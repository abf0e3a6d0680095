"""What a client of `troth.federated` costs beside a bare PyTorch loop that does the same work (goal: at most 1.1x).

Run ``python benchmarks/federated_round.py``. It prints a table and writes ``results/federated_round.json`` beside this
file. One client's turn is: copy the global parameters in, SGD over its batches, take the difference, add it to the
running sum. The bare loop does this with nothing but PyTorch and batches collated outside of the clock; the engine
draws its batches, collates them, seeds dropout, checks each update and counts. Both run the same clients in one
process, in turn (the order alternates); the ratio is taken within each pair. Both end with the same sum to 1e-6, or the
script fails.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from troth.config import RunConfig, parse
from troth.config_federated import LocalConfig
from troth.data import load
from troth.federated import Cohort, FedAvg, SequentialEngine, by_user
from troth.seeds import PublicSeeds
from troth.tasks import make_model, make_task

RESULTS = Path(__file__).parent / "results"
GOAL = 1.1


def settings(rows: int) -> RunConfig:
    return parse(
        {
            "run": {"name": "federated-round", "seed": 1},
            "model": {"preset": "tiny-bert", "max_length": 32},
            "data": {"builtin": {"name": "home", "rows": rows}},
            "task": {"kind": "classification"},
        }
    )


class Bench:
    """One model, one cohort, and the two ways to run it."""

    def __init__(self, batch_size: int, clients: int) -> None:
        config = settings(10_000)
        self.seeds = PublicSeeds(1)
        train = load(config.data, config.task, Path.cwd()).train
        self.task = make_task(config, train, Path.cwd())
        self.encoded = self.task.encode(train)
        self.model = make_model(config, self.task, self.seeds, Path.cwd())
        self.population = by_user(train.column("user"))
        self.local = LocalConfig(batch_size=batch_size, learning_rate=0.1)
        self.engine = SequentialEngine(self.task, self.model, self.encoded, self.population, self.local, self.seeds)
        self.algorithm = FedAvg(self.local.learning_rate)
        self.state = self.algorithm.init(self.engine.parameters())
        chosen = np.sort(np.random.default_rng(0).choice(len(self.population), clients, replace=False))
        self.cohort = Cohort(chosen, np.full(clients, 1 / clients), True)
        self.batches = [self._batches(int(client)) for client in chosen]

    def _batches(self, client: int) -> tuple[int, list[dict[str, torch.Tensor]]]:
        """Return the dropout seed and the collated batches that the engine will draw for a client."""
        order = self.seeds.generator("local batches", 0, client).permutation(self.population.rows_of(client))
        size = self.local.batch_size
        made = [self.task.collate(self.encoded, order[i : i + size]) for i in range(0, len(order), size)]
        return self.seeds.integer("dropout", 0, client), made

    def bare(self) -> dict[str, torch.Tensor]:
        """Return the weighted sum of updates, made with nothing but PyTorch."""
        self.model.train()
        places = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        total = {n: torch.zeros_like(p) for n, p in places.items()}
        for weight, (seed, batches) in zip(self.cohort.weights.tolist(), self.batches, strict=True):
            torch.manual_seed(seed)
            with torch.no_grad():
                for name, place in places.items():
                    place.copy_(self.state.parameters[name])
            optimizer = torch.optim.SGD(places.values(), lr=self.local.learning_rate)
            for batch in batches:
                self.task.per_example_loss(self.model, batch).mean().backward()
                optimizer.step()
                optimizer.zero_grad()
            with torch.no_grad():
                for name, place in places.items():
                    total[name].add_(place - self.state.parameters[name], alpha=weight)
        return total

    def troth(self) -> dict[str, torch.Tensor]:
        """Return the weighted sum of updates, made by the engine."""
        outcome = self.engine.run_round(self.algorithm, self.state, self.cohort)
        if outcome.update is None:
            raise SystemExit("every update was rejected")
        return dict(outcome.update)


def timed(function: object) -> tuple[float, dict[str, torch.Tensor]]:
    start = time.process_time()
    result = function()  # type: ignore[operator]
    return time.process_time() - start, result


def measure(batch_size: int, clients: int, repeats: int) -> dict[str, float | int]:
    bench = Bench(batch_size, clients)
    pairs: list[tuple[float, float]] = []
    for repeat in range(repeats + 1):
        first, second = (bench.bare, bench.troth) if repeat % 2 else (bench.troth, bench.bare)
        one, two = timed(first), timed(second)
        (bare, expected), (ours, found) = (one, two) if repeat % 2 else (two, one)
        worst = max(float((found[n] - expected[n]).abs().max()) for n in expected)
        if worst > 1e-6:
            raise SystemExit(f"the sums differ by {worst}")
        if repeat:
            pairs.append((bare, ours))
    ratios = sorted(ours / bare for bare, ours in pairs)
    return {
        "batch_size": batch_size,
        "clients": clients,
        "rows": int(bench.population.counts[bench.cohort.clients].sum()),
        "repeats": repeats,
        "bare_ms_per_client": statistics.median(b for b, _ in pairs) / clients * 1e3,
        "troth_ms_per_client": statistics.median(o for _, o in pairs) / clients * 1e3,
        "ratio": statistics.median(ratios),
        "ratio_low": ratios[0],
        "ratio_high": ratios[-1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(size, arguments.clients, arguments.repeats) for size in (1, 4, 8, 32)]
    print("batch  rows  bare ms/client  troth ms/client  ratio [min, max] (CPU time, one thread)")
    for r in rows:
        print(
            f"{r['batch_size']:5d} {r['rows']:5d} {r['bare_ms_per_client']:15.1f} {r['troth_ms_per_client']:16.1f} "
            f" {r['ratio']:.3f} [{r['ratio_low']:.3f}, {r['ratio_high']:.3f}]"
        )
    made = {"made": datetime.now(UTC).isoformat(timespec="seconds"), "torch": version("torch"), "goal": GOAL}
    machine = {"machine": platform.machine(), "python": platform.python_version(), "load_average": os.getloadavg()[1]}
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({**made, **machine, "cases": rows}, indent=1)
    (RESULTS / "federated_round.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
