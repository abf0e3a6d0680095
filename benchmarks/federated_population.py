"""What populations, registries and partitions cost at scale, on one thread.

Run ``python benchmarks/federated_population.py``. It prints three tables and writes ``results/federated_population.md``
and ``.json`` beside this file:

1. a registry of 10M devices from a Parquet file of 20M events (goal: below 60 s, at most 160 MB resident), each build
   in a process of its own, so that its peak can be read off;
2. Dirichlet partitions of 1M rows over 10,000 clients (goal: below 0.5 s at concentration 0.01 and 1), the other
   partitions and the report;
3. a population of 1M devices by natural keys and 20M rows, on disk: made, saved, opened, and what a round of 1,000
   costs beside the work of clients (goal: below 100 ms warm): the draw by `CohortSampler`, the gather, the rest.

Elapsed and CPU time, medians of 5. Where the machine is not quiet, CPU time is the one to read; the load is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from troth.config_federated import ParticipationConfig
from troth.federated.participation import CohortSampler
from troth.federated.partition_report import partition_report
from troth.federated.partitions_features import feature_clusters
from troth.federated.partitions_label import label_dirichlet, label_dirichlet_per_label
from troth.federated.partitions_quantity import quantity_dirichlet, quantity_log_normal, quantity_zipf
from troth.federated.partitions_shards import shards
from troth.federated.partitions_sizes import iid, with_minimum
from troth.federated.population import FederatedData, natural
from troth.federated.population_files import open_population, save_population
from troth.federated.registry import registry_of
from troth.federated.registry_parquet import registry_from_parquet
from troth.federated.selection import ByActivity, Selection, Uniform
from troth.federated.selection_activity import Activity
from troth.seeds import PublicSeeds

RESULTS = Path(__file__).parent / "results"
REPEATS = 5
DEVICES, EVENTS = 10_000_000, 20_000_000
ROWS, CLIENTS = 1_000_000, 10_000
COHORT, ROUNDS = 1_000, 25
CHUNK = 1_000_000


def resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def peak() -> float:
    """Return the most that was resident; unlike getrusage's, it does not begin with what the parent process held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6


def medians(work: Callable[[int], object]) -> dict[str, float]:
    """Return wall-clock and CPU seconds, medians over repeats with a seed each."""
    wall, cpu = [], []
    for repeat in range(REPEATS):
        start, started = time.perf_counter(), time.process_time()
        work(repeat)
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - started)
    return {"seconds": statistics.median(wall), "cpu_seconds": statistics.median(cpu)}


def child(*arguments: str) -> dict[str, float]:
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


# Registries


def device_ids(numbers: np.ndarray, kind: str) -> pa.Array:
    if kind == "numbers":
        return pa.array(numbers * 7_919 + 13)
    return pc.binary_join_element_wise("device", pc.cast(pa.array(numbers + 10**9), pa.string()), "-")


def write_events(path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    owner = np.r_[np.arange(DEVICES), rng.integers(DEVICES, size=EVENTS - DEVICES)].astype(np.int64)
    rng.shuffle(owner)
    schema = pa.schema([("device", device_ids(owner[:1], kind).type), ("time", pa.int64())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, EVENTS, CHUNK):
            part = owner[start : start + CHUNK]
            times = pa.array(rng.integers(1_750_000_000, 1_770_000_000, size=len(part)))
            writer.write_table(pa.table([device_ids(part, kind), times], schema=schema))


def build_registry(path: Path) -> dict[str, float]:
    before = resident()
    start, cpu = time.perf_counter(), time.process_time()
    registry = registry_from_parquet(path, "device", time="time")
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    if len(registry) != DEVICES or registry.rows != EVENTS or int(registry.counts.sum()) != EVENTS:
        raise SystemExit("the registry does not hold what the file does")
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "registry_mb": registry.nbytes / 1e6,
        "resident_mb": resident() - before,
        "peak_mb": peak() - before,
        "before_mb": before,
    }


def registries(folder: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for kind in ("numbers", "text"):
        path = folder / f"{kind}.parquet"
        write_events(path, kind)
        runs = [child("--registry", str(path)) for _ in range(REPEATS)]
        middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        rows.append({"devices": kind, "file_mb": path.stat().st_size / 1e6, **middle})
        path.unlink()
    return rows


# Partitions


def dirichlet(labels: int, concentration: float, convention: str) -> dict[str, object]:
    kinds = np.random.default_rng(0).integers(labels, size=ROWS)
    split = {"per client": label_dirichlet, "per label": label_dirichlet_per_label}[convention]
    seconds = medians(lambda r: split(kinds, CLIENTS, concentration, np.random.default_rng(r)))
    owner = split(kinds, CLIENTS, concentration, np.random.default_rng(0))
    data = FederatedData.from_assignment(owner, CLIENTS)
    report = partition_report(data, kinds)
    empty = 0.0
    if convention == "per label":
        raw = label_dirichlet_per_label(kinds, CLIENTS, concentration, np.random.default_rng(0), minimum=0)
        empty = 1 - len(np.unique(raw)) / CLIENTS
    return {
        "partition": f"label Dirichlet {convention}, {concentration:g}, {labels} labels",
        **seconds,
        "smallest": report.smallest,
        "largest": report.largest,
        "empty_before_repair": empty,
        "label_divergence": report.divergence,
        "skew": report.skew,
    }


def others() -> list[dict[str, object]]:
    kinds = np.random.default_rng(0).integers(20, size=ROWS)
    embeddings = np.random.default_rng(0).normal(size=(ROWS, 64)).astype(np.float32)
    works: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
        "IID": lambda rng: iid(ROWS, CLIENTS, rng),
        "quantity, Dirichlet 0.1": lambda rng: quantity_dirichlet(ROWS, CLIENTS, 0.1, rng),
        "quantity, Zipf 1.2": lambda rng: quantity_zipf(ROWS, CLIENTS, 1.2, rng),
        "quantity, log-normal 1": lambda rng: quantity_log_normal(ROWS, CLIENTS, 1.0, rng),
        "shards, 2 of 20 labels": lambda rng: shards(kinds, CLIENTS, 2, rng),
        "features, 10 clusters of given embeddings [1M, 64], Dirichlet 0.1": lambda rng: label_dirichlet(
            feature_clusters(embeddings, 10, rng), CLIENTS, 0.1, rng
        ),
    }
    rows: list[dict[str, object]] = []
    for name, work in works.items():

        def whole(seed: int, work: Callable[[np.random.Generator], np.ndarray] = work) -> np.ndarray:
            rng = np.random.default_rng(seed)
            return with_minimum(work(rng), CLIENTS, 1, rng)

        seconds = medians(whole)
        report = partition_report(FederatedData.from_assignment(whole(0), CLIENTS), kinds)
        rows.append(
            {
                "partition": name,
                **seconds,
                "smallest": report.smallest,
                "largest": report.largest,
                "label_divergence": report.divergence,
                "skew": report.skew,
            }
        )
    data = FederatedData.from_assignment(iid(ROWS, CLIENTS, np.random.default_rng(0)), CLIENTS)
    rows.append({"partition": "the report of one", **medians(lambda _: partition_report(data, kinds))})
    return rows


# Natural keys on disk


def make_natural(folder: Path) -> dict[str, float]:
    rng = np.random.default_rng(0)
    devices, rows = DEVICES // 10, EVENTS
    rates = np.cumsum(np.arange(1, devices + 1) ** -0.6)
    drawn = np.searchsorted(rates, rng.random(rows - devices) * rates[-1])
    owner = np.r_[np.arange(devices), rng.permutation(devices)[np.minimum(drawn, devices - 1)]]
    rng.shuffle(owner)
    keys = pa.chunked_array([device_ids(owner[s : s + CHUNK], "text") for s in range(0, rows, CHUNK)])
    del owner, drawn
    start = time.perf_counter()
    data = natural(keys)
    made = time.perf_counter()
    save_population(data, folder)
    saved = time.perf_counter()
    size = sum(path.stat().st_size for path in folder.iterdir())
    sizes = {"skew": float((data.counts**2).mean() / data.counts.mean() ** 2), "largest": float(data.counts.max())}
    return {"make_seconds": made - start, "save_seconds": saved - made, "disk_mb": size / 1e6, **sizes}


def rounds(folder: Path) -> dict[str, float]:
    """Open the population and draw cohorts as a federation does; the first rounds warm the pages up."""
    before = resident()
    start = time.perf_counter()
    data = open_population(folder)
    opened = time.perf_counter()
    registry = registry_of(data)
    registered = time.perf_counter()
    found = {"open_ms": 1e3 * (opened - start), "registry_ms": 1e3 * (registered - opened)}
    participation = ParticipationConfig(minimum_separation=3)
    rules: dict[str, Selection] = {"uniform": Uniform(), "activity": ByActivity()}
    for name, rule in rules.items():
        found |= {f"{name}_{part}": ms for part, ms in rule_rounds(data, registry, rule, participation).items()}
        registry.next_allowed[:] = 0
    found["resident_mb"] = resident() - before
    return found


def rule_rounds(
    data: FederatedData, registry: object, rule: Selection, settings: ParticipationConfig
) -> dict[str, float]:
    columns = Activity(registry.counts, registry.last_seen, registry.next_allowed)  # type: ignore[attr-defined]
    start = time.perf_counter()
    sampler = CohortSampler(rule, columns, settings)
    index = time.perf_counter() - start
    parts: dict[str, list[float]] = {"draw_ms": [], "gather_ms": [], "rest_ms": [], "total_ms": [], "rows": []}
    for round_index in range(ROUNDS):
        a = time.perf_counter()
        cohort = sampler.draw(COHORT, round_index, PublicSeeds(1))
        b = time.perf_counter()
        rows, _ = data.gather(cohort.clients)
        names = None if data.names is None else data.names.take(cohort.clients)
        c = time.perf_counter()
        registry.rest(cohort.asked_clients, round_index + 1 + settings.minimum_separation)  # type: ignore[attr-defined]
        d = time.perf_counter()
        if names is None or len(names) != COHORT:
            raise SystemExit("a cohort without names")
        for part, value in zip(parts, (b - a, c - b, d - c, d - a, len(rows) / 1e3), strict=True):
            parts[part].append(1e3 * value)
    cold = {"first_ms": parts["total_ms"][0], "index_ms": 1e3 * index}
    return cold | {part: statistics.median(values[-2 * REPEATS :]) for part, values in parts.items()}


# Showing


def table(facts: dict[str, object]) -> str:
    lines = [
        "# Populations, registries and partitions at scale",
        "",
        f"One thread, elapsed time, medians of {REPEATS}. Load {facts['load']}: the machine had other work to do, "
        "so that elapsed times are upper bounds; CPU time is about what a quiet machine takes.",
        "",
        f"## A registry of {DEVICES:,} devices from a Parquet file of {EVENTS:,} events",
        "",
        "Goal: below 60 s, at most 160 MB resident. Memory is above what the process took before the build; the peak "
        "is within the build.",
        "",
        "| devices are | file MB | s | CPU s | registry MB | resident after MB | peak MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in facts["registries"]:  # type: ignore[attr-defined]
        lines.append(
            f"| {r['devices']} | {r['file_mb']:.0f} | {r['seconds']:.1f} | {r['cpu_seconds']:.1f} | "
            f"{r['registry_mb']:.0f} | {r['resident_mb']:.0f} | {r['peak_mb']:.0f} |"
        )
    lines += [
        "",
        f"## Partitions of {ROWS:,} rows over {CLIENTS:,} clients, at least 1 row each",
        "",
        "Goal for label Dirichlet: below 0.5 s. Divergence is the mean Jensen-Shannon divergence of clients' labels "
        "from those of all rows, in bits (IID has some, from clients of 100 rows); skew is E[n^2] / E[n]^2; the labels "
        "are uniform.",
        "",
        "| partition | s | CPU s | smallest | largest | empty before repair | label divergence | skew |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in facts["partitions"]:  # type: ignore[attr-defined]
        empty = f"{100 * r['empty_before_repair']:.0f} %" if r.get("empty_before_repair") is not None else ""
        rest = (
            f"{r['smallest']} | {r['largest']} | {empty} | {r['label_divergence']:.3f} | {r['skew']:.1f}"
            if "smallest" in r
            else " | | | | "
        )
        lines.append(f"| {r['partition']} | {r['seconds']:.3f} | {r['cpu_seconds']:.3f} | {rest} |")
    made: dict[str, float] = facts["natural"]  # type: ignore[assignment]
    opened: dict[str, float] = facts["rounds"]  # type: ignore[assignment]
    lines += [
        "",
        f"## {DEVICES // 10:,} devices by natural keys (text), {EVENTS:,} rows, on disk",
        "",
        f"Sizes by rank^-0.6, at least 1, at most {made['largest']:.0f}; E[n^2] / E[n]^2 is {made['skew']:.1f}. "
        f"Made from an Arrow column in {made['make_seconds']:.1f} s, saved in {made['save_seconds']:.1f} s, "
        f"{made['disk_mb']:.0f} MB on disk. Opened and checked in {opened['open_ms']:.0f} ms, registry in "
        f"{opened['registry_ms']:.0f} ms; after {2 * ROUNDS} rounds the process holds {opened['resident_mb']:.0f} MB "
        "more than before (pages of the map that were read included).",
        "",
        f"A round of {COHORT:,} beside the work of clients, minimum separation 3 (goal: below 100 ms warm):",
        "",
        "| selection | index ms | draw ms | gather ms | rest ms | total ms | first round ms | rows gathered |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for rule in ("uniform", "activity"):
        cells = [
            f"{opened[f'{rule}_{part}']:.1f}"
            for part in ("index_ms", "draw_ms", "gather_ms", "rest_ms", "total_ms", "first_ms")
        ]
        lines.append(f"| {rule} | {' | '.join(cells)} | {opened[f'{rule}_rows']:.0f} |")
    lines += ["", f"{facts['date']}, {facts['machine']}, {facts['versions']}.", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry", action="store_true", help="print, write nothing")
    parser.add_argument("--registry", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--natural", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    for chosen, work in (
        (arguments.registry, build_registry),
        (arguments.natural, make_natural),
        (arguments.rounds, rounds),
    ):
        if chosen is not None:
            print(json.dumps(work(chosen)))
            return
    os.environ["OMP_NUM_THREADS"] = "1"
    load = os.getloadavg()[1]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        partitions = [
            dirichlet(labels, concentration, convention)
            for convention in ("per client", "per label")
            for labels in (4, 20, 150)
            for concentration in (0.01, 1.0)
        ]
        facts: dict[str, object] = {
            "date": datetime.now(UTC).date().isoformat(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "versions": ", ".join(f"{p} {version(p)}" for p in ("numpy", "pyarrow", "scikit-learn")),
            "repeats": REPEATS,
            "partitions": partitions + others(),
            "natural": child("--natural", str(folder / "natural")),
            "rounds": child("--rounds", str(folder / "natural")),
            "registries": registries(folder),
            "load": f"{load:.1f} at the start, {os.getloadavg()[1]:.1f} at the end",
        }
    print(table(facts))
    if arguments.dry:
        return
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "federated_population.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "federated_population.md").write_text(table(facts), encoding="utf-8")


if __name__ == "__main__":
    main()
