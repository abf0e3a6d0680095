"""Times reading, validating and fingerprinting 100,000 rows on one core (goal for JSONL: under 3 s).

Prints a table of medians and writes it, with versions and date, to ``benchmarks/results/data_loading.json``.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from troth.data import Table, read, row_hashes

GOAL = 3.0  # seconds, JSONL loaded and fingerprinted
RESULTS = Path(__file__).parent / "results" / "data_loading.json"
Rows = list[dict[str, object]]


def make_rows(count: int) -> Rows:
    """Return rows of 4 to 20 words from 5,000, with intent, id, user and time."""
    generator = np.random.default_rng(0)
    words = np.array(
        [f"word{i}" for i in range(4_990)]
        + ["größer", "señor", "naïve", "日本", "😀", '"quoted"', "a,b", "ça", "ö", "ü"]
    )
    lengths = generator.integers(4, 21, count)
    return [
        {
            "id": f"r{i}",
            "text": " ".join(generator.choice(words, length)),
            "intent": f"intent_{i % 23}",
            "user": f"u{i % 997}",
            "time": 1.7e9 + 26.0 * i,
        }
        for i, length in enumerate(lengths)
    ]


def write_files(rows: Rows, folder: Path) -> dict[str, Path]:
    """Write the rows in each format and return the files."""
    files = {name: folder / f"rows.{name}" for name in ("jsonl", "csv", "tsv", "parquet")}
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    files["jsonl"].write_text("\n".join(lines) + "\n", encoding="utf-8")
    with files["csv"].open("w", encoding="utf-8", newline="") as sink:
        writer = csv.DictWriter(sink, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    cells = ["\t".join(rows[0]), *("\t".join(map(str, row.values())) for row in rows)]
    files["tsv"].write_text("\n".join(cells) + "\n", encoding="utf-8")
    parquet.write_table(pa.Table.from_pylist(rows), files["parquet"])
    slow = folder / "careful.jsonl"  # a column of two types sends the reader down its careful path
    mixed = [json.dumps(row | {"id": i if i % 2 else row["id"]}, ensure_ascii=False) for i, row in enumerate(rows)]
    slow.write_text("\n".join(mixed) + "\n", encoding="utf-8")
    tagged = folder / "tagged.jsonl"
    split = [str(row["text"]).split() for row in rows]
    tags = [["B-x" if word.endswith("7") else "O" for word in words] for words in split]
    named = [{"tokens": t, "tags": g} for t, g in zip(split, tags, strict=True)]
    tagged.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in named), encoding="utf-8")
    return {**files, "jsonl, mixed types": slow, "jsonl, tokens and tags": tagged}


def measure(work: Callable[[], object], repeats: int) -> dict[str, float]:
    """Return wall-clock seconds over repeats, after one that does not count, and the median of processor seconds."""
    work()
    wall, cpu = [], []
    for _ in range(repeats):
        start, cpu_start = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - cpu_start)
    return {"median": statistics.median(wall), "min": min(wall), "max": max(wall), "cpu_median": statistics.median(cpu)}


def load(path: Path) -> Table:
    if "tagged" in path.name:
        table = read(path, kind="tagging")
    else:
        table = read(path, roles={"label": "intent"}, kind="classification")
    assert len(table.fingerprint) == 64
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    if sys.platform == "linux":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        files = write_files(make_rows(options.rows), Path(scratch))
        tables = {name: load(path) for name, path in files.items()}
        work: dict[str, Callable[[], object]] = {
            f"load + fingerprint, {name}": (lambda path=path: load(path)) for name, path in files.items()
        }
        work["row hashes, jsonl"] = lambda: row_hashes(tables["jsonl"], b"key")
        print(f"{options.rows:,} rows, {options.repeats} repeats, one core")
        print(f"{'work':40s} {'median s':>9s} {'min':>9s} {'max':>9s} {'CPU s':>9s}")
        for name, task in work.items():
            times = measure(task, options.repeats)
            results.append({"work": name, **{key: round(value, 4) for key, value in times.items()}})
            shown = " ".join(f"{value:9.3f}" for value in times.values())
            print(f"{name:40s} {shown}")
        megabytes = files["jsonl"].stat().st_size / 1e6
    reached = results[0]["median"] < GOAL
    print(f"JSONL of {megabytes:.1f} MB: goal under {GOAL:g} s {'reached' if reached else 'MISSED'}")
    packages = ("troth", "datasets", "pyarrow", "numpy")
    record = {
        "benchmark": "data_loading",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": options.rows,
        "repeats": options.repeats,
        "load_average": round(os.getloadavg()[0], 1),
        "jsonl_megabytes": round(megabytes, 1),
        "unit": "seconds on one core: median, min and max of wall clock, median of processor time",
        "goal": {"work": results[0]["work"], "below": GOAL, "reached": reached},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "results": results,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
