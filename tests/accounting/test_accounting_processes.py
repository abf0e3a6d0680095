"""The ledger under several processes, kill -9, a full disk and a read-only home."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from troth.accounting import Ledger, PrivacyPlan, SpendRequest
from troth.errors import BudgetError, RunError

PROCESSES = 4


def request(plan: PrivacyPlan, name: str) -> SpendRequest:
    return SpendRequest("letters", name, plan, "differential_privacy", None, "c0ffee")


def open_ledger(home: Path, barrier: Barrier, queue: multiprocessing.Queue[str]) -> None:
    barrier.wait()
    queue.put(Ledger(home).key.hex())


def grab(home: Path, plan: PrivacyPlan, barrier: Barrier, queue: multiprocessing.Queue[str]) -> None:
    """Reserve as often as the ledger lets us, in a race with the other processes."""
    ledger = Ledger(home)
    barrier.wait()
    try:
        for attempt in range(10):
            ledger.reserve(request(plan, f"{os.getpid()}-{attempt}"))
            queue.put("reserved")
    except BudgetError:
        queue.put("refused")


def race(target: object, *arguments: object, results: int) -> list[str]:
    """Run `target` in several processes at once and return what they put into their queue, until `results` ended."""
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(PROCESSES), context.Queue()
    processes = [context.Process(target=target, args=(*arguments, barrier, queue)) for _ in range(PROCESSES)]  # type: ignore[arg-type]
    for process in processes:
        process.start()
    found: list[str] = []
    while sum(entry != "reserved" for entry in found) < results:
        found.append(queue.get(timeout=120))
    for process in processes:
        process.join()
        assert process.exitcode == 0
        process.close()
    queue.close()
    queue.join_thread()
    return found


def test_processes_that_open_a_new_ledger_at_once_share_one_key(tmp_path: Path) -> None:
    assert len(set(race(open_ledger, tmp_path / "home", results=PROCESSES))) == 1


def test_processes_cannot_both_take_the_last_of_a_budget(tmp_path: Path, small: PrivacyPlan) -> None:
    ledger = Ledger(tmp_path / "home")
    ledger.set_budget("letters", 0.6, 1e-5, "example")
    fits = ledger.forecast("letters", small)["fitting_runs"]
    assert fits == 3
    found = race(grab, ledger.home, small, results=PROCESSES)
    assert found.count("reserved") == fits
    assert found.count("refused") == PROCESSES
    assert len(ledger.show()[0]["runs"]) == fits
    assert ledger.forecast("letters", small)["fitting_runs"] == 0


KILLS = """
import json, os, random, signal, sys
from pathlib import Path
from troth.accounting import Ledger, PrivacyPlan, SpendRequest

home, released = Path(sys.argv[1]), Path(sys.argv[2])
rng = random.Random(7)
released.touch()
plan = PrivacyPlan(10_000, 100, 0.01, 10**6, 2.0, 0.1, 1e-5)
ledger = Ledger(home, block_steps=3)
request = SpendRequest("letters", "killed", plan, "differential_privacy", None, "c0ffee")
name = ledger.reserve(request).id


def train(checkpoint):
    reservation = Ledger(home, block_steps=3).resume(name)
    reservation.replay_from(checkpoint)
    handle = os.open(released, os.O_WRONLY | os.O_APPEND)
    for step in range(checkpoint, plan.steps):
        reservation.spend(step)
        os.write(handle, b"x")  # the update becomes visible
        os.fsync(handle)


rounds, checkpoint = [], 0
for _ in range(20):
    before, wanted = released.stat().st_size, rng.randrange(0, 30)
    child = os.fork()
    if child == 0:
        train(checkpoint)
        os._exit(1)
    while released.stat().st_size < before + wanted:
        pass
    for _ in range(rng.randrange(0, 20_000)):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    visible = released.stat().st_size
    reservation = Ledger(home, block_steps=3).resume(name)
    rounds.append([visible, reservation.steps_spent])
    checkpoint = max(0, reservation.position - rng.randrange(0, 25))
print(json.dumps(rounds))
"""


def test_after_a_kill_at_any_moment_the_ledger_shows_no_less_than_was_released(tmp_path: Path) -> None:
    """20 kills; each child resumes from an older checkpoint with fresh noise: steps that run twice count twice."""
    command = [sys.executable, "-c", KILLS, str(tmp_path / "home"), str(tmp_path / "released")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    rounds = json.loads(done.stdout)
    assert len(rounds) == 20
    assert rounds[-1][0] > 100
    for visible, counted in rounds:
        assert counted >= visible
    assert rounds[-1][1] <= rounds[-1][0] + 20 * (3 + 25)  # it over-counts by blocks and replays, not without bound


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from troth.accounting import Ledger, PrivacyPlan, SpendRequest
from troth.errors import RunError

plan = PrivacyPlan(10_000, 100, 0.01, 200, 2.0, 0.1, 1e-5)
ledger = Ledger(Path(sys.argv[1]))
rows = np.arange(100_000, dtype=np.uint64)
reservation = ledger.reserve(SpendRequest("letters", "first", plan, "differential_privacy", rows[:10], "c0ffee"))


def attempt(action):
    try:
        action()
        print("done")
    except RunError as error:
        print(str(error).replace("\\n", "NEWLINE"))


for limit in (100, 40_960):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    attempt(lambda: ledger.reserve(SpendRequest("notes", "big", plan, "differential_privacy", rows, "c0ffee")))
    if limit == 100:
        attempt(lambda: reservation.spend(0))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(reservation.steps_spent, ledger.resume(reservation.id).steps_spent)
attempt(lambda: ledger.resume(reservation.id).spend(0))
print(len(Ledger(ledger.home).show()))
"""


def test_a_full_disk_stops_the_run_before_the_step_and_leaves_the_ledger_whole(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL, str(tmp_path / "home")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for line in lines[:3]:
        assert line.startswith("privacy ledger")
        assert "nothing was released without being counted" in line
        assert "NEWLINE" not in line
    assert lines[3:] == ["0 0", "done", "1"]


@contextmanager
def unprivileged() -> Iterator[None]:
    """Drop the file rights of the superuser, who may write anywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_read_only_home_is_refused_in_one_line(small: PrivacyPlan) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        home = folder / "home"
        ledger = Ledger(home)
        reservation = ledger.reserve(request(small, "first"))
        if os.geteuid() == 0:
            for path in (folder, home, *home.iterdir()):
                os.chown(path, 65534, 65534)
        home.chmod(0o500)
        folder.chmod(0o500)
        with unprivileged():
            for action in (lambda: reservation.spend(0), lambda: Ledger(folder / "other")):
                with pytest.raises(RunError, match="set TROTH_HOME to a folder of your own") as caught:
                    action()
                assert "\n" not in str(caught.value)
        assert reservation.steps_spent == 0
        folder.chmod(0o700)
        home.chmod(0o700)
