"""Plant defects in the private engine one by one and print who catches each: its self-check, or which test.

    python benchmarks/mutants.py

Exits 1 if one goes unseen by one of its catchers, or if a catcher fails without a defect.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "dp"))

from mutants import CAUGHT, MUTANTS, Mutant  # noqa: E402  lies among the tests


def seen(mutant: Mutant) -> dict[str, str]:
    """Return by catcher what it said: the first line of its error, or an empty text where it saw nothing."""
    found = {}
    for name, catcher in mutant.catchers.items():
        catcher()
        with pytest.MonkeyPatch.context() as patch:
            mutant.plant(patch)
            try:
                catcher()
                found[name] = ""
            except CAUGHT as error:
                found[name] = f"{type(error).__name__}"
    return found


def main() -> int:
    """Print the table, write it beside the other results, and return 1 if a defect went unseen."""
    lines = ["# Planted defects and who caught them", "", "| defect | caught by |", "|---|---|"]
    missed = []
    for mutant in MUTANTS:
        found = seen(mutant)
        missed += [mutant.name for error in found.values() if not error]
        caught = ", ".join(f"{name} ({error})" for name, error in found.items() if error)
        lines.append(f"| {mutant.name.replace('_', ' ')} | {caught or 'nobody'} |")
        print(lines[-1], flush=True)
    lines += [
        "",
        f"{len(MUTANTS)} defects, {len(missed)} unseen. {datetime.now(UTC):%Y-%m-%d}, torch {torch.__version__}.",
    ]
    (ROOT / "benchmarks" / "results" / "mutants.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(lines[-1])
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
