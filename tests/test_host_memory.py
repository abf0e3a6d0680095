"""Keeping freed memory: steps of the same size take no page faults after the first."""

from __future__ import annotations

import subprocess
import sys

import pytest

COUNT = """
import resource, torch
from troth.host_memory import keep_freed_memory
torch.set_num_threads(1)
told = keep_freed_memory() if {keep} else False
def step():
    kept = [torch.ones(2**20) for _ in range(8)]
    return sum(float(t[0]) for t in kept)
step(), step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5): step()
print(told, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(keep: bool, **environment: str) -> tuple[str, int]:
    command = [sys.executable, "-c", COUNT.format(keep=keep)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    told, faults = done.stdout.split()
    return told, int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_repeated_steps_take_no_page_faults_once_freed_memory_is_kept() -> None:
    told, kept = _faults(True)
    _, mapped = _faults(False, MALLOC_MMAP_THRESHOLD_="131072")
    assert told == "True"
    assert mapped > 40_000  # 5 steps of 8 tensors of 1,024 pages each
    assert kept < 0.1 * mapped  # the heap may grow by a tensor once more


def test_thresholds_of_the_environment_are_left_alone() -> None:
    assert _faults(True, MALLOC_TRIM_THRESHOLD_="131072")[0] == "False"
    assert _faults(True, GLIBC_TUNABLES="glibc.malloc.trim_threshold=131072")[0] == "False"
