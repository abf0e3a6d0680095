"""What a client of a simulated federation costs: troth beside pfl, Flower's simulation and a plain loop.

Run ``python benchmarks/federated_clients.py --pfl PYTHON --flower PYTHON``, where each PYTHON is the interpreter of an
environment of its own, made from ``benchmarks/requirements-pfl.txt`` and ``benchmarks/requirements-flower.txt``;
without one, that peer is left out. It prints tables and writes ``results/federated_clients.json`` and ``.md`` beside
this file. Its parts, each of which can be run alone (``--only``):

- ``clients``: milliseconds per client of a round of 128 clients, two SGD steps each, on a 2-layer transformer with a
  vocabulary of 5,000, full precision, no dropout;
- ``light``: seconds of a round of 1,000 clients with 1 to 4 rows, once in one step (merged), once in two (stacked);
- ``grid``: the engine's own choice against a plain loop (copy, SGD, difference) over batch sizes and lengths;
- ``memory``: peak resident memory of a process whose rounds take 100 or 1,000 clients of one population;
- ``registry``: what a round costs besides client work where a million devices are registered on disk.

Each side lives in a process of its own interpreter with one thread, is warmed up, and is asked in turn for one round
at a time (interleaved, the order rotates); a ratio is taken within each such turn, and its median and quartiles are
shown. troth, pfl and the loop are measured in CPU seconds of their process. Flower works in several processes, so it
is measured in wall seconds, with two actors on two cores, and is compared with troth's wall seconds on one. All sides
start from the same parameters, take the same rows in the same order, and must agree on the first round's update to
1e-5, or the script fails. Data sets and batches of the peers and the plain loop are made outside of the clock; troth
draws the cohort, shuffles, collates and checks every update within it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from federated_clients_sides import Case, Troth, in_order_of_round_0, parameter_count
from numpy.typing import NDArray

RESULTS = Path(__file__).parent / "results"
PARTS = ("clients", "light", "grid", "memory", "registry")
AGREE = 1e-5
DEVICES, COHORT = 1_000_000, 1000
FEW = 5  # rounds of each side where a round takes seconds
Row = dict[str, Any]

CASES = (Case(4, 16, 128), Case(1, 16, 128), Case(10, 32, 128))
LIGHT = (Case(8, 16, 1000, light=True), Case(8, 16, 1000, epochs=2, light=True))
GRID = tuple(
    Case(batch, length, int(np.clip(65_536 // (2 * batch * length), 16, 128)))
    for batch in (1, 4, 10, 32)
    for length in (16, 32, 64)
)


@dataclass(frozen=True)
class Scope:
    """How a run goes: the peers' interpreters, rounds per measurement, a folder for passing things, standard error."""

    peers: Mapping[str, str]
    repeats: int
    folder: Path
    loud: bool


class Worker:
    """A process that makes rounds in some ways and answers requests, one JSON line with one JSON line."""

    def __init__(self, python: str, name: str, scope: Scope) -> None:
        one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
        home = {"TROTH_HOME": str(scope.folder / "home")}  # layouts are measured here, not taken from earlier runs
        script = Path(__file__).with_name("federated_clients_sides.py")
        self._name = name
        self._process = subprocess.Popen(
            [python, str(script), name, str(max(case.clients for case in CASES))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if scope.loud else subprocess.DEVNULL,
            text=True,
            env={**os.environ, **one, **quiet, **home},
        )

    def ask(self, **request: object) -> Row:
        """Return the answer to a request."""
        if self._process.stdin is None or self._process.stdout is None:
            raise SystemExit(f"{self._name}: no pipes")
        self._process.stdin.write(json.dumps(request, default=str) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of {self._name} ended; run again with --loud to see why")
        return cast(Row, json.loads(line))

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()


@contextmanager
def workers(scope: Scope, names: Sequence[str]) -> Iterator[dict[str, Worker]]:
    """Give the worker of each side: troth and the plain loop share one, each peer has its own."""
    with ExitStack() as stack:
        made: dict[str, Worker] = {}
        for name in names:
            if name == "troth" or name in scope.peers:
                made[name] = Worker(scope.peers.get(name, sys.executable), name, scope)
                stack.callback(made[name].close)
        sides = dict.fromkeys(("auto", "stacked", "loop", "plain"), made["troth"])
        yield {**sides, **{name: worker for name, worker in made.items() if name != "troth"}}


def quartiles(values: Sequence[float]) -> list[float]:
    """Return the median and the two quartiles."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return [statistics.median(values), low, high]


def check_agreement(sides: Mapping[str, Worker], case: Case, scope: Scope) -> float:
    """Return the largest difference of any side's first update from the plain loop's.

    Raises:
        SystemExit: it is above 1e-5.
    """
    found: dict[str, dict[str, NDArray[Any]]] = {}
    for name, worker in sides.items():
        path = scope.folder / f"update-{name}.npz"
        worker.ask(do="update", side=name, path=path)
        with np.load(path, allow_pickle=False) as file:
            found[name] = {key: file[key] for key in file.files}
    apart = {
        name: max(float(np.abs(update[key] - found["plain"][key]).max()) for key in found["plain"])
        for name, update in found.items()
    }
    largest = max(float(np.abs(array).max()) for array in found["plain"].values())
    if max(apart.values()) > AGREE or largest < 100 * AGREE:
        raise SystemExit(f"{case.name}: the sides' updates differ from the plain loop's (largest {largest}): {apart}")
    return max(apart.values())


def compare(sides: Mapping[str, Worker], case: Case, scope: Scope, ours: str) -> Row:
    """Return seconds of a round by side, and each side's ratio to `ours`, from rounds asked for in turn."""
    data = scope.folder / f"rows-{case.batch}-{case.length}-{case.epochs}.npz"  # a name of its own: workers keep rows
    in_order_of_round_0(case, data)
    for name, worker in sides.items():
        worker.ask(do="prepare", side=name, case=asdict(case), data=data)
    apart = check_agreement(sides, case, scope)  # it makes a round: the first, which allocates and chooses a layout
    names = list(sides)
    for name in names:
        sides[name].ask(do="time", side=name)
    seconds: dict[str, list[Row]] = {name: [] for name in names}
    for turn in range(scope.repeats):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            seconds[name].append(sides[name].ask(do="time", side=name))
    made: Row = {"name": case.name, **asdict(case), "parameters": parameter_count(case.length), "apart": apart}
    for name in names:
        clock = "wall" if name == "flower" else "cpu"
        ratios = [s[clock] / o[clock] for s, o in zip(seconds[name], seconds[ours], strict=True)]
        made[name] = {
            "clock": clock,
            "cpu_ms": quartiles([1e3 * s["cpu"] / case.clients for s in seconds[name]]),
            "wall_ms": quartiles([1e3 * s["wall"] / case.clients for s in seconds[name]]),
            "ratio": quartiles(ratios),
            "note": sides[name].ask(do="note", side=name)["note"],
        }
    return made


def only(sides: Mapping[str, Worker], names: Sequence[str]) -> dict[str, Worker]:
    return {name: sides[name] for name in names if name in sides}


def measure_clients(scope: Scope) -> list[Row]:
    with workers(scope, ("troth", "pfl", "flower")) as sides:
        return [noted(compare(sides, case, scope, "auto")) for case in CASES]


def measure_light(scope: Scope) -> list[Row]:
    scope = replace(scope, repeats=min(scope.repeats, FEW))
    with workers(scope, ("troth", "pfl")) as sides:
        ways = [("auto", "plain", "pfl"), ("stacked", "auto", "plain", "pfl")]
        return [noted(compare(only(sides, way), case, scope, way[0])) for case, way in zip(LIGHT, ways, strict=True)]


def measure_grid(scope: Scope) -> list[Row]:
    scope = replace(scope, repeats=min(scope.repeats, FEW))
    with workers(scope, ("troth",)) as sides:
        ways = only(sides, ("auto", "plain", "loop"))
        return [noted(compare(ways, case, scope, "auto")) for case in GRID]


def measure_memory(scope: Scope) -> list[Row]:
    """Return peaks of fresh processes, one for each way and cohort; the population is the same."""
    rows = []
    for epochs, side, chunk in ((1, "auto", 0), (2, "stacked", 64), (2, "stacked", 0)):
        row: Row = {"name": "merged" if epochs == 1 else f"two steps, stacked by {chunk or 'what was measured'}"}
        for cohort in (100, 1000):
            with workers(scope, ("troth",)) as sides:
                case = Case(8, 16, 1000, epochs, light=True, cohort=cohort, chunk=chunk)
                sides[side].ask(do="prepare", side=side, case=asdict(case), data="")
                row[str(cohort)] = sides[side].ask(do="memory", side=side, rounds=5)
                row[str(cohort)]["note"] = sides[side].ask(do="note", side=side)["note"].partition(";")[0]
        row["ratio"] = row["1000"]["peak"] / row["100"]["peak"]
        row["grown_bytes"] = row["1000"]["peak"] - row["100"]["peak"]
        rows.append(noted(row))
    return rows


# --- a million devices


def build_devices(folder: Path) -> tuple[Row, int]:
    """Save a population of a million devices with natural keys; return seconds by step and the rows."""
    import pyarrow as pa

    from troth.federated import natural
    from troth.federated.population_files import save_population

    rng = np.random.default_rng(3)
    counts = np.minimum(rng.zipf(2.1, DEVICES), 200)  # some 3 rows a device
    keys = np.repeat(rng.choice(2**40, DEVICES, replace=False), counts)
    rng.shuffle(keys)
    begun = time.perf_counter()
    population = natural(pa.array(keys))
    grouped = time.perf_counter()
    save_population(population, folder / "population")
    saved = time.perf_counter()
    lengths = rng.integers(4, 17, len(keys))
    np.save(folder / "offsets.npy", np.r_[0, np.cumsum(lengths)])
    tokens = np.lib.format.open_memmap(folder / "ids.npy", "w+", np.int64, (int(lengths.sum()),))
    for start in range(0, len(tokens), 1 << 22):
        piece = tokens[start : start + (1 << 22)]
        piece[:] = rng.integers(4, 5000, len(piece))
    tokens.flush()
    return {"group_seconds": grouped - begun, "save_seconds": saved - grouped}, len(keys)


def open_devices(folder: Path, rows: int, chunk: int = 0) -> tuple[Troth, Row]:
    """Return an engine over that population, all of it memory-mapped, and seconds by step."""
    from troth.federated.population_files import open_population
    from troth.tasks import Encoded, Ragged

    begun = time.perf_counter()
    population = open_population(folder / "population")
    opened = time.perf_counter()
    ids = np.load(folder / "ids.npy", mmap_mode="r", allow_pickle=False)
    ragged = Ragged(ids, np.load(folder / "offsets.npy", allow_pickle=False))
    labels = np.random.default_rng(4).integers(4, size=rows)
    encoded = Encoded({"input_ids": ragged}, {"labels": labels}, ragged.lengths, 0)
    troth = Troth("stacked" if chunk else "auto")
    index = time.perf_counter()
    troth.take(Case(8, 16, DEVICES, cohort=COHORT, chunk=chunk), population, encoded, "activity")
    spent = {"open_seconds": opened - begun, "index_seconds": time.perf_counter() - index}
    return troth, {**spent, "summary": {k: v for k, v in population.summary().items() if not isinstance(v, str)}}


def phases(troth: Troth, participations: NDArray[np.int32], index: int) -> tuple[dict[str, list[float]], Row]:
    """Return [wall, CPU] seconds of what a round does besides client work, by phase, and what it came to."""
    from troth.federated.client_batches import collate_clients
    from troth.federated.participation import gini
    from troth.federated.round_plan import plan_chunks, round_work

    spent: dict[str, list[float]] = {}

    def timed(name: str, make: Callable[[], Any]) -> Any:  # noqa: ANN401
        wall, cpu = time.perf_counter(), time.process_time()
        out = make()
        spent[name] = [time.perf_counter() - wall, time.process_time() - cpu]
        return out

    engine, local = troth.engine, troth.config.local
    cohort = timed("draw", lambda: troth.rounds.next(index, lambda k: np.zeros(len(k))).parts[index])
    given = (troth.population, cohort.clients, cohort.weights, engine.encoded.lengths, local, index, troth.seeds)
    work = timed("gather", lambda: round_work(*given))
    chunks = timed("plan", lambda: plan_chunks(work, local, 64))

    def bookkeeping() -> float:
        participations[cohort.clients] += 1
        return gini(participations[participations > 0], DEVICES)

    timed("bookkeeping", bookkeeping)
    batches = [(c.rows[c.steps > s, s], c.draws[c.steps > s, s]) for c in chunks for s in range(int(c.steps.max()))]
    timed("tokens", lambda: [collate_clients(engine.task, engine.encoded, *batch) for batch in batches])
    return spent, {"rows": len(work.rows), "steps": int(work.steps.sum()), "chunks": len(chunks)}


def measure_registry(scope: Scope) -> Row:
    torch.set_num_threads(1)
    built, rows = build_devices(scope.folder)
    troth, opened = open_devices(scope.folder, rows)
    participations = np.zeros(DEVICES, dtype=np.int32)
    cold, came_to = phases(troth, participations, 0)
    warm = [phases(troth, participations, 1 + k) for k in range(max(20, scope.repeats))]
    rounds = {}
    for way, engine in (("auto", troth), ("stacked", open_devices(scope.folder, rows, 64)[0])):
        begun = time.process_time()
        engine.round()
        rounds[way] = {"cpu_seconds": time.process_time() - begun, "note": engine.note()}
    names = list(cold)
    millis = {n: {c: quartiles([1e3 * w[n][i] for w, _ in warm]) for i, c in enumerate(("wall", "cpu"))} for n in names}
    overhead = [sum(1e3 * w[n][0] for n in names if n != "tokens") for w, _ in warm]
    return noted(
        {
            "devices": DEVICES,
            "rows": rows,
            **built,
            **opened,
            "cohort": came_to,
            "cold_ms": {n: 1e3 * cold[n][0] for n in names},
            "warm_ms": millis,
            "overhead_ms": quartiles(overhead),
            "with_tokens_ms": quartiles([sum(1e3 * w[n][0] for n in names) for w, _ in warm]),
            "rounds": rounds,
        }
    )


# --- tables


def noted(row: Row) -> Row:
    """Print a result as it comes, and return it."""
    print(json.dumps(row), flush=True)
    return row


def span(values: Sequence[float], digits: int = 2) -> str:
    return f"{values[0]:.{digits}f} [{values[1]:.{digits}f}, {values[2]:.{digits}f}]"


def clients_table(rows: Sequence[Row]) -> list[str]:
    out = [
        "## Milliseconds per client",
        "",
        "| work | parameters | side | CPU ms | wall ms | times auto's (clock) | how |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        for side in ("auto", "stacked", "loop", "plain", "pfl", "flower"):
            if (found := row.get(side)) is not None:
                cpu = "-" if side == "flower" else span(found["cpu_ms"])
                out.append(
                    f"| {row['name']} | {row['parameters']:,} | {side} | {cpu} | {span(found['wall_ms'])} | "
                    f"{span(found['ratio'])} ({found['clock']}) | {found['note']} |"
                )
    return out


def light_table(rows: Sequence[Row]) -> list[str]:
    out = [
        "## Seconds of a round of 1,000 light clients",
        "",
        "| work | side | CPU s | times ours | how |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        for side in ("auto", "stacked", "plain", "pfl"):
            if (found := row.get(side)) is not None:
                seconds = [ms * row["clients"] / 1e3 for ms in found["cpu_ms"]]
                out.append(f"| {row['name']} | {side} | {span(seconds)} | {span(found['ratio'])} | {found['note']} |")
    return out


def grid_table(rows: Sequence[Row]) -> list[str]:
    out = [
        "## The engine's own choice against the plain loop (two steps)",
        "",
        "| work | clients | auto ms | plain loop ms | plain loop / auto | engine's loop / auto | how |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        auto, plain = row["auto"], row["plain"]
        out.append(
            f"| {row['name']} | {row['clients']} | {span(auto['cpu_ms'])} | {span(plain['cpu_ms'])} | "
            f"{span(plain['ratio'])} | {span(row['loop']['ratio'])} | {auto['note']} |"
        )
    return out


def memory_table(rows: Sequence[Row]) -> list[str]:
    out = [
        "## Peak resident memory, MB",
        "",
        "Five rounds of a fresh process over a population of 1,000; before: with model and data, before the first.",
        "",
        "| way | before | 100 clients | 1,000 clients | ratio | how, for 100 and for 1,000 |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        few, many = row["100"], row["1000"]
        out.append(
            f"| {row['name']} | {few['before'] / 1e6:.0f} | {few['peak'] / 1e6:.0f} | {many['peak'] / 1e6:.0f} | "
            f"{row['ratio']:.3f} | {few['note']}; {many['note']} |"
        )
    return out


def registry_table(found: Row) -> list[str]:
    head = (
        f"{found['devices']:,} devices with natural keys, {found['rows']:,} rows, everything memory-mapped; a round "
        f"takes 1,000 by activity ({found['cohort']['rows']:,} rows in the first). Grouped by key in "
        f"{found['group_seconds']:.1f} s, saved in {found['save_seconds']:.1f} s, opened in "
        f"{1e3 * found['open_seconds']:.0f} ms, index made in {1e3 * found['index_seconds']:.0f} ms. "
        f"**Overhead, warm: {span(found['overhead_ms'], 1)} ms** (wall, all phases but tokens; with tokens "
        f"{span(found['with_tokens_ms'], 1)}). A whole round, client work included, CPU: "
        + "; ".join(f"{way} {r['cpu_seconds']:.1f} s ({r['note']})" for way, r in found["rounds"].items())
        + "."
    )
    out = [
        "## A round with a million registered devices",
        "",
        head,
        "",
        "| phase | first round, wall ms | warm, wall ms | warm, CPU ms |",
        "|---|---|---|---|",
    ]
    for name, warm in found["warm_ms"].items():
        out.append(f"| {name} | {found['cold_ms'][name]:.1f} | {span(warm['wall'])} | {span(warm['cpu'])} |")
    return out


TABLES: dict[str, Callable[[Any], list[str]]] = {
    "clients": clients_table,
    "light": light_table,
    "grid": grid_table,
    "memory": memory_table,
    "registry": registry_table,
}
MEASURES: dict[str, Callable[[Scope], Any]] = {
    "clients": measure_clients,
    "light": measure_light,
    "grid": measure_grid,
    "memory": measure_memory,
    "registry": measure_registry,
}


def document(found: Row) -> str:
    facts = found["facts"]
    lines = [
        "# What a client of a simulated federation costs",
        "",
        f"Made by `benchmarks/federated_clients.py`, whose text says how; {facts['date']}, {facts['processor']}, "
        f"{facts['versions']}; load average {facts['load'][0]:.1f} at the start, {facts['load'][1]:.1f} at the end. "
        f"{facts['beside']} Medians, quartiles in brackets; {facts['repeats']} rounds of each side in turn, {FEW} at "
        "most in the second and third table. "
        "auto, stacked, loop: troth's engine with that `federated.execution`; plain: copy, SGD, difference in bare "
        "PyTorch on troth's model.",
    ]
    for part, table in TABLES.items():
        if part in found:
            lines += ["", *table(found[part])]
    return "\n".join(lines) + "\n"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pfl", help="the Python of an environment with pfl")
    parser.add_argument("--flower", help="the Python of an environment with Flower's simulation")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--beside", default="", help="a sentence on what else the machine did, for the results")
    parser.add_argument("--dry", action="store_true", help="print, write nothing")
    parser.add_argument("--loud", action="store_true", help="show what the sides write to standard error")
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    peers = {name: python for name, python in (("pfl", asked.pfl), ("flower", asked.flower)) if python}
    before, begun = os.getloadavg()[1], time.perf_counter()
    found: Row = {}
    for part in asked.only:
        with tempfile.TemporaryDirectory(prefix="federated-clients-") as folder:
            found[part] = MEASURES[part](Scope(peers, asked.repeats, Path(folder), asked.loud))
    found["facts"] = {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": f"{platform.machine()} ({torch.backends.cpu.get_cpu_capability()}), {os.cpu_count()} cores",
        "versions": ", ".join(f"{p} {version(p)}" for p in ("torch", "transformers", "numpy")),
        "load": [before, os.getloadavg()[1]],
        "beside": asked.beside,
        "repeats": asked.repeats,
        "seconds": time.perf_counter() - begun,
    }
    print(document(found))
    if asked.dry:
        return
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "federated_clients.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "federated_clients.md").write_text(document(found), encoding="utf-8")


if __name__ == "__main__":
    main()
