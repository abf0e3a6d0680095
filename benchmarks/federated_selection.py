"""What it costs to draw a cohort out of 1, 10 and 100 million registered clients.

Run ``python benchmarks/federated_selection.py``. It prints a table and writes ``results/federated_selection.md`` and
``.json`` beside this file. A draw is the whole of `CohortSampler.draw`: 1,000 clients and their weights, from a seed
and a round number. Index: from the column of row counts (uint32, heavy-tailed, 1 to 2,000 rows) to the first possible
draw. Wall time is what the goals are about; CPU time of the same calls stands beside it, for the machine may be busy.

The memory-mapped rows read the counts from a file. *Warm*: the file is in the system's cache. *Cold*: before the index
and before each draw its pages are dropped from the process and from the cache.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from troth.config_federated import ParticipationConfig
from troth.federated.participation import CohortSampler
from troth.federated.selection import ByActivity, Mixture, Recency, Selection, TopActive, Uniform
from troth.federated.selection_activity import Activity
from troth.seeds import PublicSeeds

RESULTS = Path(__file__).parent / "results"
COHORT = 1000
GOALS_MS = {1_000_000: 1.0, 10_000_000: 2.0, 100_000_000: 5.0}
INDEX_GOAL_S = 0.3
MAPPED_GOAL_MS = 60.0
SEEDS = PublicSeeds(1)
BUSY = ParticipationConfig(available=0.8, minimum_separation=5, over_selection=1.3, drop_out=0.1)
Row = dict[str, float | int | str | None]


def counts_of(clients: int) -> NDArray[np.uint32]:
    """Return row counts [clients] with tail P(count >= x) = x^-0.6, at most 2,000."""
    generator, counts = np.random.default_rng(0), np.empty(clients, dtype=np.uint32)
    for start in range(0, clients, 1_000_000):
        piece = counts[start : start + 1_000_000]
        piece[:] = np.minimum((1 - generator.random(len(piece))) ** (-1 / 0.6), 2000)
    return counts


def registry(counts: NDArray[np.uint32]) -> Activity:
    days = np.random.default_rng(1).integers(1, 31, size=len(counts), dtype=np.uint16)
    return Activity(counts, days, np.zeros(len(counts), dtype=np.uint16), now=30)


def timed(call: Callable[[int], object], repeats: int, before: Callable[[], object] = lambda: None) -> tuple[Row, Row]:
    """Return median and quartiles of wall milliseconds, and of CPU milliseconds, over calls with numbers 0, 1, .."""
    wall, cpu = [], []
    for k in range(repeats + 1):
        before()
        begun, used = time.perf_counter(), time.thread_time()
        call(k)
        cpu.append((time.thread_time() - used) * 1e3)
        wall.append((time.perf_counter() - begun) * 1e3)
    return summary(wall[1:]), summary(cpu[1:])


def summary(times: list[float]) -> Row:
    low, middle, high = statistics.quantiles(times, n=4)
    return {"median": middle, "low": low, "high": high}


def measure(
    name: str, rule: Selection, activity: Activity, repeats: int, who: ParticipationConfig | None = None
) -> Row:
    index_wall, index_cpu = timed(lambda _: rule.rates(activity), 5)
    sampler = CohortSampler(rule, activity, who)
    wall, cpu = timed(lambda k: sampler.draw(COHORT, k, SEEDS), repeats)
    return {
        "clients": len(activity),
        "work": name,
        "index_s": index_wall["median"] / 1e3,  # type: ignore[operator]
        "index_cpu_s": index_cpu["median"] / 1e3,  # type: ignore[operator]
        **{f"draw_ms_{k}": v for k, v in wall.items()},
        "draw_cpu_ms": cpu["median"],
        "draws": repeats,
        "goal_ms": GOALS_MS.get(len(activity)) if name == "activity, power 1" else None,
    }


def race(counts: NDArray[np.integer], k: int) -> NDArray[np.int64]:
    """Return a cohort as the textbook does: one exponential time for each client."""
    times = SEEDS.generator("race", k).standard_exponential(len(counts)) / counts
    return np.sort(np.argpartition(times, COHORT)[:COHORT])


def measure_race(activity: Activity) -> Row:
    wall, cpu = timed(lambda k: race(activity.counts, k), 5)
    spread = {f"draw_ms_{k}": v for k, v in wall.items()}
    nothing: Row = {"index_s": None, "index_cpu_s": None, "goal_ms": None}
    about: Row = {"clients": len(activity), "work": "activity, power 1, one time per client (NumPy)", "draws": 5}
    return {**about, **nothing, **spread, "draw_cpu_ms": cpu["median"]}


def measure_mapped(counts: NDArray[np.uint32], folder: Path, repeats: int) -> list[Row]:
    """Return the rows of draws whose counts lie in a file."""
    path = folder / "counts.u32"
    counts.tofile(path)
    rows = []
    with path.open("rb") as file:
        os.fsync(file.fileno())
        for name, cold in (("warm", False), ("cold", True)):
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)

            def forget(mapped: mmap.mmap = mapped, cold: bool = cold) -> None:
                if cold:
                    mapped.madvise(mmap.MADV_DONTNEED)
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

            activity = Activity(np.frombuffer(mapped, dtype=np.uint32))
            forget()
            begun, used = time.perf_counter(), time.thread_time()
            sampler = CohortSampler(ByActivity(), activity)
            index, index_cpu = time.perf_counter() - begun, time.thread_time() - used

            def draw(k: int, sampler: CohortSampler = sampler) -> object:
                return sampler.draw(COHORT, k, SEEDS)

            wall, cpu = timed(draw, repeats, forget)
            spread = {f"draw_ms_{k}": v for k, v in wall.items()}
            about: Row = {
                "clients": len(counts),
                "work": f"activity, power 1, memory-mapped, {name}",
                "index_s": index,
                "index_cpu_s": index_cpu,
            }
            rows.append({**about, **spread, "draw_cpu_ms": cpu["median"], "draws": repeats, "goal_ms": MAPPED_GOAL_MS})
    return rows


def measure_size(clients: int, repeats: int, folder: Path) -> list[Row]:
    activity = registry(counts_of(clients))
    rules: list[tuple[str, Selection, ParticipationConfig | None]] = [
        ("activity, power 1", ByActivity(), None),
        ("activity, power 1, weights by inverse probability", ByActivity(1.0, "inverse_probability"), None),
        ("activity, power 0.5", ByActivity(0.5), None),
        ("mixture, half uniform", Mixture(), None),
        ("recency", Recency(7.0), None),
        ("top 1 %", TopActive(top_fraction=0.01), None),
        ("uniform", Uniform(), None),
        ("activity, power 1; 80 % reachable, rest 5 rounds, 1.3 x asked, 10 % drop out", ByActivity(), BUSY),
    ]
    rows = [measure(name, rule, activity, repeats, who) for name, rule, who in rules]
    if clients <= 10_000_000:
        rows.append(measure_race(activity))
    if clients >= 100_000_000:
        rows += measure_mapped(np.asarray(activity.counts), folder, repeats)
    return rows


def table(rows: list[Row], made: dict[str, object]) -> str:
    lines = [
        "# Drawing a cohort of 1,000 out of millions",
        "",
        "One thread. Draw: median wall time of the whole call, quartiles in brackets, and the CPU time of the same "
        "calls. Index: made once, as long as the counts stay the same; a change of some clients' counts costs their "
        f"blocks only. Goals: {INDEX_GOAL_S} s for the index by activity in memory, and those in the table for a draw. "
        "Besides the columns the index takes 0.27 byte a client. The rows with NumPy draw by the same law from these "
        "counts, with one random time for each client. Cold: the file's pages are dropped from the system's "
        "cache before each draw; the disk may have caches of its own.",
        "",
        "| clients | work | index s (CPU) | draw ms | CPU ms | goal ms | draws |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        index = "none" if r["index_s"] is None else f"{r['index_s']:.3f} ({r['index_cpu_s']:.3f})"
        goal = "" if r["goal_ms"] is None else f"{r['goal_ms']:g}"
        spread = f"{r['draw_ms_median']:.2f} [{r['draw_ms_low']:.2f}, {r['draw_ms_high']:.2f}]"
        lines.append(
            f"| {r['clients']:,} | {r['work']} | {index} | {spread} | {r['draw_cpu_ms']:.2f} | {goal} | {r['draws']} |"
        )
    load = made["load_average"]
    about = f"{made['made']}, {made['machine']}, Python {made['python']}, numpy {made['numpy']}; load average {load}"
    return "\n".join([*lines, "", f"{about} on {made['cores']} cores."]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=list(GOALS_MS))
    parser.add_argument("--repeats", type=int, default=51)
    parser.add_argument("--folder", type=Path, default=None, help="where the memory-mapped file is written")
    parser.add_argument("--dry", action="store_true", help="print, write nothing")
    arguments = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for clients in arguments.clients:
            rows += measure_size(clients, arguments.repeats, Path(folder))
    made: dict[str, object] = {
        "made": datetime.now(UTC).date().isoformat(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "load_average": round(os.getloadavg()[1], 1),
    }
    text = table(rows, made)
    print(text)
    if arguments.dry:
        return
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "federated_selection.md").write_text(text, encoding="utf-8")
    goals = {"draw_ms": GOALS_MS, "index_s": INDEX_GOAL_S, "mapped_ms": MAPPED_GOAL_MS}
    record = json.dumps({**made, "cohort": COHORT, "goals": goals, "rows": rows}, indent=1)
    (RESULTS / "federated_selection.json").write_text(record + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
