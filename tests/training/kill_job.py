"""What a process does that is going to be killed: start or resume one run, and say what it drew.

Everything the test must know afterwards is appended to a file line by line with single writes, which a kill cannot
take back.
"""

from __future__ import annotations

import hashlib
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from training_world import config, inputs, plan_of, reserve, weights

from troth import files
from troth.accounting import Ledger, PrivacyPlan
from troth.dp import Observer, PrivateEngine
from troth.seeds import PrivateRandomness
from troth.training import SilentProgress, fit
from troth.training import private as private_module


class LoggingEngine(PrivateEngine):
    """A private engine that logs every draw before, and every update after, it is made."""

    log: Path

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, observer=Observer(noise=self._noise), **kwargs)
        self._line = ""

    def _write(self, line: str) -> None:
        handle = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, line.encode())
        os.close(handle)

    def sample(self) -> np.ndarray:
        """Sample."""
        rows = super().sample()
        self._rows = hashlib.sha256(rows.tobytes()).hexdigest()[:16]
        return rows

    def _noise(self, flat: torch.Tensor) -> None:
        self._line = f"{self.step_index} {self._rows} {hashlib.sha256(flat.numpy().tobytes()).hexdigest()[:16]}\n"
        self._write("drew " + self._line)

    def step(self) -> None:
        """Step."""
        super().step()
        self._write("made " + self._line)


def crash_at(count: int) -> None:
    """Kill this process just before its `count`-th flush, rename or removal: all that changes what lies on the disk."""
    calls = 0

    def crashing(call: Any) -> Any:
        def made(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return made

    for name in ("fsync", "replace", "unlink", "rmdir"):
        setattr(os, name, crashing(getattr(os, name)))


def job(folder: str, home: str, options: dict[str, Any], how: dict[str, Any], started: Connection) -> None:
    """Start the run of `folder`, or go on with it; write its final weights when it ends.

    `how` may hold ``crash`` (the write before which to die) and ``entropy`` (what the system gives as keys).
    """
    os.environ["TROTH_HOME"] = home
    torch.set_num_threads(1)
    place = Path(folder)
    LoggingEngine.log = place / "draws"
    private_module.PrivateEngine = LoggingEngine  # type: ignore[misc]
    # What epsilon is, is tested elsewhere; what it costs would drown the kills.
    private_module.epsilon_curve = lambda plan, points: [{"step": plan.steps, "epsilon": 1.0}]
    PrivacyPlan.epsilon = lambda self, steps=None, delta=None: 1.0  # type: ignore[method-assign]
    run = config(**options)
    given, plan, entry = inputs(place, run), plan_of(run), place / "entry"
    reservation = None
    if plan is not None:
        if not entry.exists():
            files.write_bytes(entry, reserve(run, plan).id.encode())
        reservation = Ledger().resume(entry.read_text())
    started.send(True)
    if "crash" in how:
        crash_at(how["crash"])
    if "entropy" in how:
        private_module.PrivateRandomness.create = lambda seed=None: PrivateRandomness(how["entropy"])  # type: ignore[method-assign]
    fit(given, plan=plan, reservation=reservation, resume=True, progress=SilentProgress())
    files.write_bytes(place / "final", save(weights(given)))
