"""`kill -9` at random moments and at every single write: nothing is lost, nothing is used twice, nothing is hidden."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
from kill_job import job

from troth.accounting import Ledger

pytestmark = pytest.mark.slow
_PLAN_STEPS = 40
_BASE: dict[str, Any] = {"epochs": 8, "checkpoint_every": 3}
PLAIN = _BASE
INSECURE = {**_BASE, "private": True, "insecure": True}
SECURE = {**_BASE, "private": True}
SHORT: dict[str, Any] = {"epochs": 1, "checkpoint_every": 3, "keep_checkpoints": 1, "private": True}
_SHORT_STEPS = 5


@pytest.fixture(scope="module")
def server() -> ForkServerContext:
    """A process that has imported everything once and forks a child for each run."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers", "troth.training", "troth.data"])
    return context


@dataclass
class Run:
    """One run in a folder of its own, and the processes that work on it."""

    server: ForkServerContext
    folder: Path
    options: dict[str, Any]
    how: dict[str, Any] = field(default_factory=dict)
    seconds: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.home.mkdir()

    @property
    def home(self) -> Path:
        """The run's own ledger home."""
        return self.folder.parent / f"{self.folder.name}-home"

    def live(self, until: float | None = None, crash: int | None = None) -> bool:
        """Start or resume; kill after `until` seconds of training or at write `crash`. Return whether it was killed."""
        here, there = self.server.Pipe(duplex=False)
        how = self.how if crash is None else {**self.how, "crash": crash}
        process = self.server.Process(
            target=job, args=(str(self.folder), str(self.home), self.options, how, there), daemon=True
        )
        process.start()
        there.close()
        here.recv()
        begin = time.monotonic()
        process.join(until)
        if process.is_alive():
            process.kill()
        process.join()
        self.seconds = time.monotonic() - begin
        assert process.exitcode in (0, -signal.SIGKILL), f"the run failed: exit code {process.exitcode}"
        return process.exitcode != 0

    @property
    def final(self) -> bytes:
        """The final weights."""
        return (self.folder / "final").read_bytes()

    def draws(self, kind: str) -> list[tuple[str, str, str]]:
        """(step, sample, noise) of every draw (``drew``) or update (``made``) so far, in order."""
        log = self.folder / "draws"
        lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
        return [(step, rows, noise) for made, step, rows, noise in lines if made == kind]

    def spent(self, monkeypatch: pytest.MonkeyPatch) -> int:
        """Steps that the ledger counts."""
        monkeypatch.setenv("TROTH_HOME", str(self.home))
        return int(Ledger().resume((self.folder / "entry").read_text()).steps_spent)


def killed_until_done(run: Run, moments: random.Random, longest: float) -> Iterator[int]:
    """Kill and resume a run until it comes through; give a number after each kill."""
    kills = 0
    while run.live(until=moments.uniform(0, longest)):
        kills += 1
        yield kills


def check_noise(run: Run) -> None:
    """No noise was used for another batch or another step."""
    uses: dict[str, set[tuple[str, str]]] = {}
    for step, rows, noise in run.draws("drew"):
        uses.setdefault(noise, set()).add((step, rows))
    assert all(len(where) == 1 for where in uses.values())


def check_ledger(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger counts at least the updates that were really made, repeats of the same draw being one."""
    made = {noise for _, _, noise in run.draws("made")}
    assert run.spent(monkeypatch) >= len(made)


@pytest.mark.parametrize(("options", "wanted"), [(PLAIN, 8), (INSECURE, 20)], ids=["plain", "insecure"])
def test_killed_runs_end_with_the_same_bits(
    server: ForkServerContext, tmp_path: Path, options: dict[str, Any], wanted: int
) -> None:
    whole = Run(server, tmp_path / "whole", options)
    assert not whole.live()
    moments, kills, number = random.Random(1), 0, 0
    while kills < wanted:
        number += 1
        run = Run(server, tmp_path / f"run-{number}", options)
        kills += sum(1 for _ in killed_until_done(run, moments, 0.8 * whole.seconds))
        assert run.final == whole.final
    assert kills >= wanted


def test_killed_secure_runs_hide_nothing_and_reuse_nothing(
    server: ForkServerContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty kills; after every third the keys are lost as well."""
    whole = Run(server, tmp_path / "whole", SECURE)
    assert not whole.live()
    assert whole.spent(monkeypatch) == len(whole.draws("made")) == _PLAN_STEPS
    moments, kills, number, replayed = random.Random(2), 0, 0, 0
    while kills < 20:
        number += 1
        run = Run(server, tmp_path / f"run-{number}", SECURE)
        lost = False
        for _ in killed_until_done(run, moments, 0.8 * whole.seconds):
            kills += 1
            check_noise(run)
            check_ledger(run, monkeypatch)
            if kills % 3 == 0:
                lost = True
                shutil.rmtree(run.home / "private")
        check_noise(run)
        check_ledger(run, monkeypatch)
        assert run.final != whole.final
        assert not list((run.home / "private").rglob("step-*"))
        if lost:
            replayed += run.spent(monkeypatch) - _PLAN_STEPS
        else:
            assert run.spent(monkeypatch) == len({noise for _, _, noise in run.draws("made")}) == _PLAN_STEPS
    assert kills >= 20
    assert replayed > 0


def test_a_kill_at_every_single_write(
    server: ForkServerContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One kill before each flush, rename and removal of a whole private run; then one resume.

    The system's entropy is the same in all of them, so that the final weights can be compared; the ledger would tell a
    key that was lost and drawn again, since it counts the replay.
    """
    whole = Run(server, tmp_path / "whole", SHORT, {"entropy": bytes(32)})
    assert not whole.live()
    point = 0
    while True:
        point += 1
        run = Run(server, tmp_path / f"run-{point}", SHORT, {"entropy": bytes(32)})
        if not run.live(crash=point):
            break
        assert not run.live()
        check_noise(run)
        assert run.spent(monkeypatch) == len({noise for _, _, noise in run.draws("made")}) == _SHORT_STEPS
        assert run.final == whole.final
        assert not list((run.home / "private").rglob("step-*"))
    assert point > 30
