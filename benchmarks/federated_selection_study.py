"""Selection by activity on real senders: does it win per round, and does it win per sample? Resumable.

Run ``python benchmarks/federated_selection_study.py``. The claim is that of Dupuy et al. (ICASSP 2022, arXiv
2202.03925): choosing devices by activity beats uniform choice, and more so on data that arrive in periods. Here, on

- **chat**: causal language modelling on the packaged chat corpus, 1,315 real senders (``troth models get chitchat``),
  tiny-gpt2 from scratch, perplexity on 1,000 utterances held out at random;
- **home**: intent classification on the built-in corpus, 60,000 rows of 5,000 users of Zipf activity, tiny-bert from
  scratch, accuracy on rows of other templates;

static (all data there from the start) and continual (10 periods, a row is kept for 3), rules with their default
weights, three seeds. ``all at once`` is uniform choice with the data of all periods, the reference of the continual
setting. A device trains on at most 32 rows a round. Learning rates are the same for all rules.

Each run's row is appended to ``results/federated_selection_study.jsonl`` and skipped when it is there; the table
``results/federated_selection_study.md`` is made anew at the end. ``--corpora``, ``--hours``, ``--share 1/2``,
``--table`` as in ``federated_grid.py``.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from federated_rows import Rows
from scipy.stats import t as student
from transformers import PreTrainedModel

from troth.accounting.home import troth_home
from troth.config import RunConfig, parse
from troth.data import Table, load
from troth.federated import Events, FederatedData, Federation, Stream, by_user, make_periods, simulate, table_times
from troth.results import Measurement
from troth.seeds import PublicSeeds
from troth.tasks import Encoded, Task, make_model, make_task

RESULTS = Path(__file__).parent / "results"
ROWS, TABLE = Rows(RESULTS / "federated_selection_study.jsonl"), RESULTS / "federated_selection_study.md"
COHORT, ROUNDS, PERIODS, RETENTION = 20, 40, 10, 3
TEST_ROWS, SEEDS = 1000, (1, 2, 3)
RULES: dict[str, dict[str, Any]] = {
    "uniform": {"by": "uniform"},
    "activity, power 0.5": {"by": "activity", "power": 0.5},
    "activity, power 1": {"by": "activity", "power": 1.0},
    "mixture": {"by": "mixture", "power": 1.0, "uniform_share": 0.5},
    "top active tenth": {"by": "top_active", "top_fraction": 0.1},
    "power of choice": {"by": "power_of_choice", "candidates": 2 * COHORT},
}
ALL_AT_ONCE = "all at once, uniform"
LOCAL = {"epochs": 1, "batch_size": 8, "maximum_examples": 32, "optimizer": "adamw"}


@dataclass(frozen=True, eq=False)
class Corpus:
    """A corpus, encoded once for all runs."""

    name: str
    config: RunConfig
    task: Task
    encoded: Encoded
    clients: FederatedData
    times: np.ndarray
    test: Table
    metric: str

    @property
    def lower(self) -> bool:
        """Whether less is better."""
        return self.metric == "perplexity"


def corpus(name: str) -> Corpus:
    """Return a corpus with its devices."""
    if name == "chat":
        data: dict[str, Any] = {"train": str(troth_home() / "models" / "chitchat" / "chitchat.jsonl")}
        model, task, metric = {"preset": "tiny-gpt2", "max_length": 32}, {"kind": "language_modeling"}, "perplexity"
        task["objective"] = "causal"
    else:
        data = {"builtin": {"name": "home", "rows": 60_000, "users": 5000}}
        model, task, metric = {"preset": "tiny-bert", "max_length": 32}, {"kind": "classification"}, "accuracy"
    config = parse({"run": {"name": name}, "model": model, "data": data, "task": task, "federated": {}})
    splits = load(config.data, config.task, Path())
    train, test = splits.train, splits.test
    if test is None:
        order = np.random.default_rng(0).permutation(len(train))
        train, test = train.take(np.sort(order[TEST_ROWS:])), train.take(np.sort(order[:TEST_ROWS]))
    made = make_task(config, train, Path())
    few = test.take(np.arange(min(TEST_ROWS, len(test))))
    clients = by_user(train.arrow.column("user"), name)
    return Corpus(name, config, made, made.encode(train), clients, table_times(train), few, metric)


def run(data: Corpus, setting: str, rule: str, seed: int) -> dict[str, Any]:
    """Return the row of one run."""
    stream = None
    if setting == "continual":
        protocol = "all" if rule == ALL_AT_ONCE else "stream"
        stream = {
            "periods": PERIODS,
            "retention": RETENTION,
            "rounds_per_period": ROUNDS // PERIODS,
            "protocol": protocol,
        }
    rate = 2e-3 if data.name == "chat" else 1e-3
    section: dict[str, Any] = {
        "cohort_size": COHORT,
        "selection": RULES.get(rule, RULES["uniform"]),
        "local": {**LOCAL, "learning_rate": rate},
        "evaluate_every": 4,
    }
    section |= {"rounds": ROUNDS} if stream is None else {"stream": stream}
    raw = data.config.to_dict()
    config = parse({**raw, "run": {**raw["run"], "seed": seed}, "federated": section})
    federated, seeds = config.federated, PublicSeeds(seed)
    model = make_model(config, data.task, seeds, Path())
    made = None
    if federated.stream is not None:
        events = Events.of_population(data.clients, data.times)
        periods = make_periods(federated.stream, data.times)
        made = Stream(events, federated.stream, seeds=seeds, periods=periods)

    def evaluate(global_model: PreTrainedModel) -> tuple[Measurement, ...]:
        scores = data.task.score(global_model, data.test)
        return data.task.measure(scores, data.test, prefix="federated.round", seeds=seeds, outside_guarantee=False)

    begun = time.perf_counter()
    federation = Federation(data.task, model, data.encoded, data.clients, federated, seeds, made)
    outcome = simulate(federation, evaluate=evaluate)
    found = {m.name: m for m in outcome.measurements}
    last = found[f"federated.round.{data.metric}"]
    rows = outcome.series["federated.round"]
    return {
        "corpus": data.name,
        "setting": setting,
        "rule": rule,
        "seed": seed,
        "value": last.value,
        "low": last.low,
        "high": last.high,
        "n": last.n,
        "gini": found["federated.participation_gini"].value,
        "devices": found["federated.clients_seen"].value,
        "curve": [[r["round"], r["samples"], r["bytes"], r[data.metric]] for r in rows],
        "seconds": round(time.perf_counter() - begun, 1),
    }


def at_samples(curve: list[list[float]], samples: float) -> float:
    """Return the quality at so many samples, linear between evaluations."""
    points = np.array([[row[1], row[3]] for row in curve], dtype=np.float64)
    return float(np.interp(samples, points[:, 0], points[:, 1]))


def paired(rows: list[dict[str, Any]], reference: list[dict[str, Any]], *, equal_samples: bool) -> str:
    """Return the mean difference to the reference over seeds, with its 95 % t interval."""
    by_seed = {r["seed"]: r for r in reference}
    found = []
    for row in rows:
        other = by_seed.get(row["seed"])
        if other is None:
            continue
        if equal_samples:
            samples = min(row["curve"][-1][1], other["curve"][-1][1])
            found.append(at_samples(row["curve"], samples) - at_samples(other["curve"], samples))
        else:
            found.append(row["value"] - other["value"])
    if len(found) < 2:
        return "not run"
    half = student.ppf(0.975, len(found) - 1) * np.std(found, ddof=1) / math.sqrt(len(found))
    return f"{np.mean(found):+.3g} ± {half:.2g}"


def table() -> str:
    """Return the tables, in Markdown."""
    rows = ROWS.all()
    out = [
        "# Selection by activity: per round and per sample",
        "",
        f"`benchmarks/federated_selection_study.py`, {datetime.now(tz=UTC):%Y-%m-%d}; torch {torch.__version__}, "
        f"transformers {version('transformers')}. {COHORT} devices a round, {ROUNDS} rounds, seeds "
        f"{', '.join(map(str, SEEDS))}; clients: AdamW, at most 32 rows a round. Differences to uniform choice are "
        "paired by seed, ± half of the 95 % t interval; 'at equal samples' compares where the one that processed fewer "
        "samples ended.",
    ]
    for name, setting in itertools.product(("chat", "home"), ("static", "continual")):
        mine = [r for r in rows if (r["corpus"], r["setting"]) == (name, setting)]
        if not mine:
            continue
        metric = "perplexity, lower is better" if name == "chat" else "accuracy, higher is better"
        out += ["", f"## {name}, {setting} ({metric})", ""]
        out.append(
            "| rule | at the last round | samples | bytes | difference | difference at equal samples | Gini | n |"
        )
        out.append("|---" * 8 + "|")
        reference = [r for r in mine if r["rule"] == "uniform"]
        for rule in (*RULES, ALL_AT_ONCE):
            of = [r for r in mine if r["rule"] == rule]
            if not of:
                continue
            mean = np.mean([r["value"] for r in of])
            samples, sent = np.mean([r["curve"][-1][1] for r in of]), np.mean([r["curve"][-1][2] for r in of])
            gini = np.mean([r["gini"] for r in of])
            ends = ["", ""] if rule == "uniform" else [paired(of, reference, equal_samples=e) for e in (False, True)]
            out.append(
                f"| {rule} | {mean:.4g} | {samples:,.0f} | {sent / 1e6:,.0f} MB | {ends[0]} | {ends[1]} | {gini:.2f} | "
                f"{len(of)} |"
            )
    return "\n".join(out) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", nargs="+", choices=["chat", "home"], default=["chat", "home"])
    parser.add_argument("--hours", type=float, default=math.inf)
    parser.add_argument("--share", default="1/1")
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    deadline = time.monotonic() + 3600 * asked.hours
    mine, of = map(int, asked.share.split("/"))
    for name in [] if asked.table else asked.corpora:
        torch.set_num_threads(1)
        data = corpus(name)
        cells = [
            *itertools.product(SEEDS, ("static", "continual"), RULES),
            *((s, "continual", ALL_AT_ONCE) for s in SEEDS),
        ]
        for number, (seed, setting, rule) in enumerate(cells):
            key = {"corpus": name, "setting": setting, "rule": rule, "seed": seed}
            if number % of != mine - 1 or ROWS.find(key) is not None or time.monotonic() > deadline:
                continue
            row = run(data, setting, rule, seed)
            ROWS.add(row)
            print(f"{key} -> {row['value']:.4g} in {row['seconds']:.0f} s", flush=True)
    TABLE.write_text(table())
    print(table())


if __name__ == "__main__":
    main()
