"""Every example and the README's Python run as they stand."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
VERBS = {"intents.toml": "run", "federation.toml": "federate", "learning_rates.toml": "train"}


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TROTH_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def test_every_run_file_is_listed() -> None:
    assert {p.name for p in EXAMPLES.glob("*.toml")} == set(VERBS)


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(p.name for p in EXAMPLES.glob("*.py")))
def test_scripts(script: str, tmp_path: Path) -> None:
    done = run([str(EXAMPLES / script)], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() and "Warning" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(VERBS))
def test_run_files(name: str, tmp_path: Path) -> None:
    """In a process of its own, as a user's script would: one JSON object, exit code 0, and the artifacts it names."""
    shutil.copy(EXAMPLES / name, tmp_path)
    done = run(["-m", "troth.cli", VERBS[name], name, "--json", "--quiet"], tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["kind"] == VERBS[name] and done.stderr == ""
    for made in record.get("runs", [record]):
        assert Path(made["artifacts"]["model"], "model.safetensors").is_file()
        names = {m["name"] for m in made["measurements"]}
        assert "test.accuracy" in names


@pytest.mark.slow
def test_readme_python(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks and all(len(block.splitlines()) <= 25 for block in blocks)
    for number, block in enumerate(blocks):
        (tmp_path / f"block{number}.py").write_text(block, encoding="utf-8")
        done = run([f"block{number}.py"], tmp_path)
        assert done.returncode == 0, done.stderr
        assert re.fullmatch(r"epsilon \d+\.\d\d at delta 1e-05\n", done.stdout)


def test_readme_run_file_is_valid(tmp_path: Path) -> None:
    from troth.config import load

    (block,) = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    (tmp_path / "run.toml").write_text(block, encoding="utf-8")
    assert load(tmp_path / "run.toml").privacy is not None
