"""Times ``import troth`` and ``troth --help`` as whole processes and prints the medians (goals: 0.3 s and 0.5 s)."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "import troth": [sys.executable, "-c", "import troth"],
        "troth --help": [str(Path(sys.executable).with_name("troth")), "--help"],
    }
    for name, command in commands.items():
        seconds(command)
        times = [seconds(command) for _ in range(repeats)]
        spread = f"min {min(times):.3f}, max {max(times):.3f}, n {repeats}"
        print(f"{name:16s} median {statistics.median(times):.3f} s, {spread}")


if __name__ == "__main__":
    main()
