"""Plans and requests that the accounting tests share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from troth.accounting import Ledger, PrivacyPlan, SpendRequest

SMALL = PrivacyPlan(
    examples=10_000,
    expected_batch_size=100,
    sampling_rate=0.01,
    steps=200,
    noise_multiplier=2.0,
    clipping_norm=0.1,
    delta=1e-5,
)


@pytest.fixture
def small() -> PrivacyPlan:
    """A plan of epsilon about 0.3: several fit a budget of 2."""
    return SMALL


@pytest.fixture
def large() -> PrivacyPlan:
    """A plan whose own epsilon is about 1.85, and whose divergence exceeds the filter's allowance for epsilon 2."""
    return replace(SMALL, noise_multiplier=0.8)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """An empty ledger."""
    return Ledger(tmp_path / "home")


@pytest.fixture
def ask() -> Callable[..., SpendRequest]:
    """A maker of requests: ``ask(plan, run_name=..., dataset_id=..., ...)``."""

    def make(plan: PrivacyPlan | None, **changes: object) -> SpendRequest:
        request = SpendRequest("letters", "first", plan, "differential_privacy", None, "c0ffee")
        return replace(request, **changes)  # type: ignore[arg-type]

    return make


def hashes(start: int, stop: int) -> np.ndarray:
    """Row hashes that overlap where their ranges do."""
    return np.arange(start, stop, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
