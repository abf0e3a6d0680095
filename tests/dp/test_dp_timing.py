"""The choice between two exact ways: measured once per shape, kept, and never where a run must be reproducible."""

from __future__ import annotations

import pytest
import torch

import troth.dp.linear
import troth.dp.timing
from troth.dp.linear import instantiates
from troth.dp.timing import written_out_over_ghost
from troth.dp.workspace import Workspace

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _forget() -> None:
    troth.dp.timing._ratio.cache_clear()


def test_a_shape_is_measured_once_per_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    first = written_out_over_ghost(8, 20, 16, 16, dtype=torch.float32, device=CPU)
    assert 0 < first < 1000
    monkeypatch.setattr(troth.dp.timing, "_measure", lambda *shape: pytest.fail("measured again"))
    troth.dp.timing._ratio.cache_clear()  # as in the next process: what is left lies on the disk
    assert written_out_over_ghost(8, 21, 16, 16, dtype=torch.float32, device=CPU) == first


def test_the_two_ways_give_the_same_norms() -> None:
    """What is timed is what it says: both compute the same clipped sum."""
    generator = torch.Generator().manual_seed(0)
    x, g = torch.randn(3, 5, 4, generator=generator), torch.randn(3, 5, 6, generator=generator)
    factors = torch.rand(3, generator=generator)
    ghost, written = torch.zeros(6, 4), torch.zeros(6, 4)
    troth.dp.timing._ghost(x, g, factors, ghost)
    troth.dp.timing._written_out(x, g, factors, written)
    assert torch.allclose(ghost, written, atol=1e-5)
    wide, wide_written = torch.zeros(4, 6), torch.zeros(4, 6)
    troth.dp.timing._ghost(g, x, factors, wide)
    troth.dp.timing._written_out(g, x, factors, wide_written)
    assert torch.allclose(wide, wide_written, atol=1e-5)


@pytest.mark.parametrize("ratio", [0.5, 2.0])
def test_the_faster_way_is_taken(ratio: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(troth.dp.linear, "written_out_over_ghost", lambda *shape, **kind: ratio)
    work = Workspace(torch.float32, measures=True)
    assert instantiates(100, 128, 128, 64, work) is (ratio < 1)


def test_small_layers_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(troth.dp.linear, "written_out_over_ghost", lambda *shape, **kind: pytest.fail("measured"))
    assert instantiates(100, 128, 128, 2, Workspace(torch.float32, measures=True))


def test_nothing_is_measured_for_a_reproducible_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(troth.dp.linear, "written_out_over_ghost", lambda *shape, **kind: pytest.fail("measured"))
    work = Workspace(torch.float32, measures=False)
    assert instantiates(200, 128, 128, 64, work)
    assert not instantiates(16, 128, 128, 64, work)


def test_gradients_that_would_fill_the_memory_are_not_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(troth.dp.linear, "written_out_over_ghost", lambda *shape, **kind: 0.01)
    assert not instantiates(16, 768, 3072, 8, Workspace(torch.float32, measures=True))
