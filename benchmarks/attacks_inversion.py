"""What 16 starts of the gradient attack cost beside one, all starts in one batch (goals: 2.2, 3.2 and 6 times).

Run ``python benchmarks/attacks_inversion.py``. It prints a table and writes ``results/attacks_inversion.json`` and
``.md`` beside this file. Models have random weights and about 25,000, 100,000 and 400,000 parameters outside of their
embedding tables, of which a text reads a few rows whatever their size: tiny-bert classifiers of width 32, 64 and 128,
and BiLSTM-CRF taggers. Each repeat runs one start, 16 starts, and 16 starts with the weights left trainable, in turn,
for the same number of steps; ratios are taken within each repeat. Times are CPU
seconds of one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from troth.attacks.canaries import CanaryPlan, draw_key
from troth.attacks.canary_candidates import Candidates
from troth.attacks.canary_insertion import insert
from troth.attacks.inversion import InversionSettings, invert, relaxed_candidates
from troth.config import parse
from troth.data import from_rows
from troth.seeds import PrivateRandomness, PublicSeeds
from troth.tasks import make_model, make_task
from troth.tasks.relaxed_inputs import frozen

RESULTS = Path(__file__).parent / "results"
PLAN = CanaryPlan("my pin code is {d}{d}{d}{d}", count=10)
RESTARTS = 16
LABELS = 20


@dataclass(frozen=True)
class Setting:
    """A model and its goal: the time of 16 starts over that of one."""

    preset: str
    kind: str
    width: int
    goal: float


SETTINGS = (
    Setting("tiny-bert", "classification", 32, 2.2),
    Setting("tiny-bert", "classification", 64, 3.2),
    Setting("tiny-bert", "classification", 128, 6.0),
    Setting("bilstm-crf", "tagging", 44, 2.2),
    Setting("bilstm-crf", "tagging", 138, 3.2),
    Setting("bilstm-crf", "tagging", 346, 6.0),
)


def measure(setting: Setting, steps: int, repeats: int) -> dict[str, Any]:
    """Return parameters, CPU seconds and the quartiles of both ratios, after one repeat that does not count."""
    rows = {
        "classification": [{"text": f"word{i}", "label": f"l{i}"} for i in range(LABELS)],
        "tagging": [{"tokens": [f"word{i}"], "tags": [f"B-l{i}"]} for i in range(LABELS)],
    }[setting.kind]
    shape = {"heads": 2} if setting.preset == "tiny-bert" else {}
    config = parse(
        {
            "run": {"name": "inversion", "seed": 1},
            "model": {"preset": setting.preset, "width": setting.width, **shape},
            "data": {"train": "rows"},
            "task": {"kind": setting.kind},
        }
    )
    key = draw_key(PLAN, PrivateRandomness.create(insecure_seed=1))
    task = make_task(config, insert(PLAN, key, from_rows(rows, "rows"), setting.kind).table, Path())
    model = make_model(config, task, PublicSeeds(1), Path()).eval()
    candidates = Candidates(task, PLAN)
    tables = sum(p.numel() for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters())
    seconds: dict[str, list[float]] = {name: [] for name in ("one", "many", "not frozen")}
    for _ in range(repeats + 1):
        for name, restarts in (("one", 1), ("many", RESTARTS), ("not frozen", RESTARTS)):
            with nullcontext() if name == "not frozen" else frozen(model):
                losses = relaxed_candidates(candidates, model).losses
                rule = InversionSettings(restarts=restarts, most_steps=steps, patience=steps + 1)
                start = time.process_time()
                invert(losses, PLAN.parsed.sizes, seeds=PublicSeeds(1), settings=rule)
                seconds[name].append(time.process_time() - start)
    return {
        "model": setting.preset,
        "width": setting.width,
        "parameters": sum(p.numel() for p in model.parameters()) - tables,
        "goal": setting.goal,
        "steps": steps,
        "seconds": {name: values[1:] for name, values in seconds.items()},
        "ratio": quartiles(seconds["one"], seconds["many"]),
        "ratio_not_frozen": quartiles(seconds["one"], seconds["not frozen"]),
    }


def quartiles(one: list[float], many: list[float]) -> list[float]:
    """Return the quartiles of the ratio within each repeat, the first repeat left out."""
    return statistics.quantiles([b / a for a, b in zip(one[1:], many[1:], strict=True)], n=4, method="inclusive")


def row(result: dict[str, Any]) -> str:
    """Return a line of the table."""
    low, middle, high = result["ratio"]
    met = "met" if middle <= result["goal"] else "NOT met"
    each = 1e3 * statistics.median(result["seconds"]["one"]) / result["steps"]
    return (
        f"| {result['model']}, width {result['width']} | {result['parameters']:,} | {each:.2f} | "
        f"{middle:.2f} ({low:.2f} to {high:.2f}) | {result['goal']} | {met} | {result['ratio_not_frozen'][1]:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Sixteen starts of the gradient attack beside one",
        "",
        f"CPU seconds of one thread, {chosen.steps} steps, medians of {chosen.repeats} repeats in which the runs take "
        "turns, quartiles in brackets. Parameters: outside of embedding tables. Last column: the same with the "
        "weights left trainable.",
        "",
        "| model | parameters | ms a step, one start | 16 starts / one | goal | | weights not frozen |",
        "|---|---|---|---|---|---|---|",
    ]
    results = []
    for setting in SETTINGS:
        results.append(measure(setting, chosen.steps, chosen.repeats))
        lines.append(row(results[-1]))
        print(lines[-1], flush=True)
    facts = ", ".join(f"{p} {version(p)}" for p in ("torch", "transformers", "numpy"))
    load = f"load average {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores"
    lines += ["", f"{datetime.now(UTC).date().isoformat()}, {platform.machine()}, {facts}; {load}.", ""]
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "attacks_inversion.json").write_text(json.dumps({"results": results, "load": load}, indent=1) + "\n")
    (chosen.out / "attacks_inversion.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
