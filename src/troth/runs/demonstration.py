"""The demo's three runs on the built-in corpus: a plain model, a private one, and a federation of the same data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from troth import __version__
from troth.config import RunConfig, parse
from troth.results import Record, now
from troth.runs.pipeline import Pipeline
from troth.runs.provenance import Clock

__all__ = ["DEMO_ROWS", "configurations", "demonstrate"]

DEMO_ROWS = 10_000
_BIAS = 0.5


def configurations(out: Path, rows: int = DEMO_ROWS) -> tuple[RunConfig, RunConfig, RunConfig]:
    """Return the run files of the demo: plain, private and federated, all on the same corpus with a planted bias."""
    base: dict[str, Any] = {
        "run": {"seed": 1, "out": str(out)},
        "model": {"preset": "tiny-bert", "max_length": 32},
        "data": {"builtin": {"name": "home", "rows": rows, "bias": _BIAS, "users": rows // 20}},
        "task": {"kind": "classification"},
        # validation rows come from the templates of the training rows, test rows from others
        "attack": {"membership": ["loss"], "nonmembers": "validation", "maximum_members": 2000},
        "fairness": {"metrics": ["accuracy_gap"]},
    }
    plain = {
        **base,
        "run": {**base["run"], "name": "plain"},
        "train": {"epochs": 3, "learning_rate": 2e-3, "expected_batch_size": 64},
    }
    private = {
        **base,
        "run": {**base["run"], "name": "private"},
        "train": {"epochs": 6, "learning_rate": 2e-3, "expected_batch_size": 256},
        "privacy": {"target_epsilon": 8.0, "target_delta": 1e-5, "clipping_norm": 0.1},
    }
    federated = {
        **base,
        "run": {**base["run"], "name": "federated"},
        "federated": {
            "clients": "user",
            "selection": {"by": "activity", "power": 0.5},
            "rounds": 20,
            "cohort_size": 20,
            "local": {"epochs": 1, "batch_size": 16, "optimizer": "adamw", "learning_rate": 1e-3},
            "evaluate_every": 10,
        },
    }
    return parse(plain), parse(private), parse(federated)


def demonstrate(pipeline: Pipeline, out: Path, rows: int = DEMO_ROWS) -> Record:
    """Run the demo's runs, write one report about all of them, and return a record whose ``runs`` lists theirs."""
    clock = Clock()
    records = []
    for config in configurations(out, rows):
        pipeline.progress.message(f"-- {config.run.name}")
        records.append(pipeline.run(config, "run"))
        clock.add_work(records[-1].cost.work_seconds if records[-1].cost else 0.0)
    folders = [pipeline.folder(record) for record in records]
    path = pipeline.finisher.write_report(folders, out / "report.html")
    return Record(
        kind="demo",
        name="demo",
        created=now(),
        version=__version__,
        seed=1,
        cost=clock.cost(),
        artifacts={"report": str(path)},
        runs=tuple(records),
    )
