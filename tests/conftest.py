"""Shared fixtures: real data where it lies beside the repository, a ledger home of the test's own, no network."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets, or a skip with its reason."""
    folder = Path(os.environ.get("TROTH_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        if os.environ.get("TROTH_REQUIRE_REAL_DATA"):
            pytest.fail(f"no real data at {folder}, and TROTH_REQUIRE_REAL_DATA is set")
        pytest.skip(f"no real data at {folder}: set TROTH_DATA")
    return folder


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every test a ledger home of its own, so that no test touches the user's budgets."""
    monkeypatch.setenv("TROTH_HOME", str(tmp_path_factory.mktemp("troth-home")))


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C interrupt, also where the tests run in the background of a shell that made them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
