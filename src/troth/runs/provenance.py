"""What a run was made with: versions, machine, data fingerprints."""

from __future__ import annotations

import platform
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata

from troth import __version__
from troth.results import Cost, Json

__all__ = ["Clock", "peak_memory_bytes", "provenance"]

_PACKAGES = ("torch", "transformers", "datasets", "tokenizers", "numpy", "scipy", "scikit-learn", "dp-accounting")


def provenance(fingerprints: Mapping[str, str]) -> dict[str, Json]:
    """Return versions, platform and the SHA-256 fingerprint of each split."""
    versions: dict[str, Json] = {"troth": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "versions": versions,
        "platform": f"{platform.system()} {platform.machine()}",
        "data": dict(fingerprints),
    }


def peak_memory_bytes() -> int:
    """Return the largest resident size this process has had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass
class Clock:
    """Wall seconds of a verb, split into the stage's own work and everything else."""

    started: float = field(default_factory=time.perf_counter)
    work_seconds: float = 0.0

    def add_work(self, seconds: float) -> None:
        """Count seconds as the stage's own work."""
        self.work_seconds += seconds

    def cost(self) -> Cost:
        """Return the cost so far."""
        seconds = time.perf_counter() - self.started
        return Cost(seconds, max(0.0, seconds - self.work_seconds), self.work_seconds, peak_memory_bytes())
