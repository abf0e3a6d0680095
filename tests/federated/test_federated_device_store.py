"""What devices keep: read back to the bit, kept for the checkpoint that names it, refused where the disk is full."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from troth.errors import RunError
from troth.federated import Ditto, FedAvg, LocalHead, LocalTraining, Scaffold, ServerState
from troth.federated.device_store import DeviceStore, blank_memory

SGD = LocalTraining(0.1)
PARAMETERS = {"w": torch.randn(3, 2), "b": torch.randn(4)}
STATE = ServerState(PARAMETERS)


def trees(clients: int, seed: int) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return {"control": {n: torch.randn((clients, *p.shape), generator=generator) for n, p in PARAMETERS.items()}}


def same(one: dict[str, dict[str, Tensor]], two: dict[str, dict[str, Tensor]]) -> bool:
    return all(torch.equal(one[tree][n], two[tree][n]) for tree in one for n in one[tree])


def test_devices_start_as_the_algorithm_says_and_get_back_what_they_kept(tmp_path: Path) -> None:
    store = DeviceStore(Scaffold(SGD, 9), PARAMETERS, 9, tmp_path)
    assert same(store.read(STATE, np.array([4, 1])), blank_memory(Scaffold(SGD, 9), STATE, 2))
    first, second = trees(2, 1), trees(1, 2)
    store.write(np.array([7, 2]), first)
    store.write(np.array([5]), second)
    found = store.read(STATE, np.array([2, 0, 5, 7]))["control"]
    for name, p in PARAMETERS.items():
        expected = [
            first["control"][name][1],
            torch.zeros_like(p),
            second["control"][name][0],
            first["control"][name][0],
        ]
        assert torch.equal(found[name], torch.stack(expected))
    assert (tmp_path / "devices.bin").stat().st_mode & 0o777 == 0o600
    ditto = blank_memory(Ditto(FedAvg(SGD), 0.1), STATE, 3)["personal"]
    assert all(torch.equal(ditto[n][k], p) for n, p in PARAMETERS.items() for k in range(3))
    assert list(blank_memory(LocalHead(FedAvg(SGD), frozenset({"b"})), STATE, 1)["personal"]) == ["b"]


def test_a_checkpoint_finds_its_memory_whatever_was_written_after_it(tmp_path: Path) -> None:
    algorithm = Scaffold(SGD, 200)
    store = DeviceStore(algorithm, PARAMETERS, 200, tmp_path)
    everyone = np.arange(200)
    store.write(everyone, trees(200, 1))
    store.flush()
    slots = store.slots.copy()
    store.release()
    for seed in range(2, 5):
        store.write(everyone[::2], trees(100, seed))
        store.write(everyone[50:], trees(150, seed + 10))
    store.close()
    again = DeviceStore(algorithm, PARAMETERS, 200, tmp_path)
    again.take_up(slots)
    assert same(again.read(STATE, everyone), trees(200, 1))
    again.write(everyone[:3], trees(3, 9))
    assert same(again.read(STATE, everyone[:3]), trees(3, 9))
    assert not set(again.slots[:3]) & set(slots.tolist()), "slots of the checkpoint are not written over"
    again.close()


def test_slots_are_used_again_once_no_checkpoint_names_them(tmp_path: Path) -> None:
    store = DeviceStore(Scaffold(SGD, 10), PARAMETERS, 10, tmp_path)
    for seed in range(50):
        store.write(np.arange(10), trees(10, seed))
        store.release()
    assert store.slots.max() < 20
    assert same(store.read(STATE, np.arange(10)), trees(10, 49))
    store.close()


def test_a_full_disk_is_one_line_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DeviceStore(Scaffold(SGD, 9), PARAMETERS, 9, tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(RunError) as caught:
        store.write(np.array([3]), trees(1, 1))
    assert "\n" not in str(caught.value) and "devices.bin" in str(caught.value)
    assert (store.slots == -1).all()
    store.close()


def test_without_a_folder_nothing_is_left() -> None:
    store = DeviceStore(Scaffold(SGD, 9), PARAMETERS, 9, None)
    store.write(np.array([1]), trees(1, 1))
    place = store._path.parent
    assert place.exists()
    store.close()
    assert not place.exists()
