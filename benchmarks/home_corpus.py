"""Times the built-in corpus on one core (goal: 10,000 rows in under a second) and measures how hard it is.

The work is one thread of computation, so processor time is what it takes on an idle machine; wall clock is shown beside
it together with the load of the machine.
Prints a table of medians and of a bag of words' accuracy by seed, and writes both, with versions and date, to
``benchmarks/results/home_corpus.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from troth.config import BuiltinConfig
from troth.data import home

GOAL = 1.0  # seconds
BOUND = 0.97  # accuracy a bag of words must not pass at bias 0
KINDS = ("classification", "tagging", "question_answering", "seq2seq", "language_modeling")
RESULTS = Path(__file__).parent / "results" / "home_corpus.json"


def measure(kind: str, rows: int, repeats: int) -> dict[str, float]:
    """Return seconds over repeats, each with a seed of its own, after one that does not count."""
    home(BuiltinConfig(rows=rows), kind)
    wall, cpu = [], []
    for seed in range(repeats):
        start, cpu_start = time.perf_counter(), time.process_time()
        home(BuiltinConfig(rows=rows, seed=seed), kind)
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - cpu_start)
    return {"median": statistics.median(wall), "min": min(wall), "max": max(wall), "cpu_median": statistics.median(cpu)}


def bag_of_words(seed: int, rows: int, bias: float) -> dict[str, float]:
    """Return test accuracy of logistic regression on word counts: in all, by group, and by phrasing."""
    splits = home(BuiltinConfig(rows=rows, seed=seed, bias=bias), "classification")
    counter = CountVectorizer(token_pattern=r"\S+")
    classifier = LogisticRegression(C=3.0, max_iter=200)
    classifier.fit(counter.fit_transform(splits.train.column("text")), splits.train.column("label"))
    hits = classifier.predict(counter.transform(splits.test.column("text"))) == np.array(splits.test.column("label"))
    parts = {
        "group": splits.test.column("group"),
        "phrasing": [splits.truth["phrasings"][i] for i in splits.test.column("id")],
    }
    shares = {name: float(hits[np.array(of) == name].mean()) for of in parts.values() for name in sorted(set(of))}
    reference = float(splits.truth["reference_accuracy"])
    return {"seed": seed, "bias": bias, "accuracy": float(hits.mean()), **shares, "reference": reference}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    if sys.platform == "linux":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    times = {kind: measure(kind, options.rows, options.repeats) for kind in KINDS}
    print(f"{options.rows:,} rows, {options.repeats} repeats, one core")
    print(f"{'task':20s} {'median s':>9s} {'min':>9s} {'max':>9s} {'CPU s':>9s}")
    for kind, row in times.items():
        print(f"{kind:20s} " + " ".join(f"{value:9.3f}" for value in row.values()))
    settings = [(seed, 0.0) for seed in range(options.seeds)] + [(0, bias) for bias in (0.25, 0.5, 0.75, 1.0)]
    hardness = [bag_of_words(seed, options.rows, bias) for seed, bias in settings]
    print("\nbag of words, test accuracy")
    print(" ".join(f"{name:>9s}" for name in hardness[0]))
    for row in hardness:
        print(" ".join(f"{value:9.3f}" for value in row.values()))
    record = {
        "benchmark": "home_corpus",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": options.rows,
        "repeats": options.repeats,
        "unit": "seconds on one core: median, min and max of wall clock, median of processor time",
        "load_average": round(os.getloadavg()[0], 1),
        "goal": {
            "below": GOAL,
            "of": "cpu_median, which is the wall clock of a machine with nothing else to do; see load_average",
            "reached": {kind: row["cpu_median"] < GOAL for kind, row in times.items()},
        },
        "bound": {"accuracy": BOUND, "held": all(row["accuracy"] <= BOUND for row in hardness)},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("troth", "datasets", "pyarrow", "numpy", "scikit-learn")},
        },
        "seconds": {kind: {name: round(value, 4) for name, value in row.items()} for kind, row in times.items()},
        "bag_of_words": [{name: round(value, 4) for name, value in row.items()} for row in hardness],
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
