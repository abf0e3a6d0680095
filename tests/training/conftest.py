"""Accounting that is the same in every test is done once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def accounting_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of accounting results that all tests of this folder share."""
    return tmp_path_factory.mktemp("accounting-cache")


@pytest.fixture(autouse=True)
def _shared_cache(_own_home: None, accounting_cache: Path) -> None:
    """Let the test's own home keep its accounting results where the others find them."""
    (Path(os.environ["TROTH_HOME"]) / "cache").symlink_to(accounting_cache)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing from threads, and lose much where others compute too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
