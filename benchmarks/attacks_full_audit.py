"""How long a full audit of a SNIPS classifier takes, from the command line: training, attacks, canaries, report.

Run ``python benchmarks/attacks_full_audit.py``. Data: SNIPS in ``$TROTH_DATA`` (default: the data folder beside the
repository). The run file is what a user would write: tiny-bert, three epochs, the loss attack and RMIA with eight
shadow models, ten canaries in a twin, an audit by a thousand canaries in another, and the report. Goal: below eight
minutes on two cores. It prints a table and writes ``results/attacks_full_audit.md`` and ``.json`` beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
GOAL_SECONDS = 480
FILE = """
[run]
name = "snips"
[model]
preset = "tiny-bert"
max_length = 32
[data]
train = "{data}/snips/train"
validation = "{data}/snips/dev"
test = "{data}/snips/test"
label = "intent"
[task]
kind = "classification"
[train]
epochs = 3
learning_rate = 2e-3
[attack]
membership = ["loss", "rmia"]
canaries = {{}}
audit = {{}}
[report]
"""
SHOWN = (
    "test.accuracy",
    "attack.membership.loss.auc",
    "attack.membership.rmia.auc",
    "attack.membership.rmia.tpr_at_fpr_0.1",
    "attack.membership.blind.auc",
    "attack.canaries.exposure",
    "attack.canaries.decoy.exposure",
    "attack.audit.canary_auc",
    "attack.audit.epsilon_lower_bound",
)


def measure(data: Path) -> dict[str, object]:
    """Run the file in a folder of its own; return seconds of wall time and the record."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "snips.toml"
        path.write_text(FILE.format(data=data), encoding="utf-8")
        environment = {**os.environ, "TROTH_HOME": f"{folder}/home"}
        command = [sys.executable, "-m", "troth.cli", "run", str(path), "--json", "--quiet"]
        start = time.perf_counter()
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "record": json.loads(done.stdout)}


def table(found: dict[str, object]) -> str:
    """Return the seconds and what the audit says, as Markdown."""
    record = found["record"]
    assert isinstance(record, dict)
    lines = [
        "# A full audit of a SNIPS classifier",
        "",
        f"tiny-bert, 13,084 rows, three epochs; RMIA with 8 shadows, 10 canaries, an audit by 1,000 canaries, report: "
        f"{found['seconds']:.0f} seconds of wall time on {os.cpu_count()} cores (goal: below {GOAL_SECONDS}). Load "
        f"average before: {found['load']:.1f}.",
        "",
        "| measurement | value | interval | n | supported |",
        "|---|---|---|---|---|",
    ]
    by_name = {m["name"]: m for m in record["measurements"]}
    for name in SHOWN:
        m = by_name[name]
        ends = "" if m["low"] is None else f"{m['low']:.3f} to {'' if m['high'] is None else format(m['high'], '.3f')}"
        lines.append(f"| {name} | {m['value']:.3f} | {ends} | {m['n']:,} | {'yes' if m['supported'] else 'no'} |")
    versions = ", ".join(f"{p} {version(p)}" for p in ("torch", "transformers", "numpy"))
    return "\n".join([*lines, "", f"{found['date']}, {platform.machine()}, {versions}.", ""])


def main() -> None:
    """Measure once, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry", action="store_true", help="print, write nothing")
    arguments = parser.parse_args()
    data = Path(os.environ.get("TROTH_DATA", Path(__file__).parents[2] / "shared" / "data")).resolve()
    load = os.getloadavg()[0]
    found = measure(data) | {"load": load, "date": datetime.now(UTC).date().isoformat()}
    print(table(found))
    if not arguments.dry:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "attacks_full_audit.md").write_text(table(found), encoding="utf-8")
        kept = {name: found[name] for name in ("seconds", "load", "date")}
        (RESULTS / "attacks_full_audit.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
