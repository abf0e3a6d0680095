"""Checkpoints: whole or not at all, the last k kept, damaged ones passed over."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from troth.errors import ResumeError, RunError
from troth.training import Checkpoint, checkpoints, latest_checkpoint, load_checkpoint, save_checkpoint
from troth.training.checkpoints import checkpoint_steps, keep_latest, remove_checkpoints


def make(step: int, value: float = 1.0) -> Checkpoint:
    tensors = {"model": {"w": torch.full((3, 2), value), "b": torch.tensor([step])}, "optimizer": {}}
    return Checkpoint(step, tensors, {"note": 0.1 + 0.2, "rows": [{"loss": None}]})


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "deep" / "checkpoints", make(7))
    back = load_checkpoint(path)
    assert path.name == "checkpoint-7"
    assert back.step == 7
    assert back.state == {"note": 0.1 + 0.2, "rows": [{"loss": None}]}
    assert torch.equal(back.tensors["model"]["w"], torch.ones(3, 2))
    assert back.tensors["optimizer"] == {}
    assert names(path) == ["checkpoint.json", "model.safetensors", "optimizer.safetensors"]


def test_views_and_shared_tensors_are_stored_as_values(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"t": whole.T, "part": whole[1:], "again": whole, "twice": whole, "wide": torch.ones(1).expand(5)}
    back = load_checkpoint(save_checkpoint(tmp_path, Checkpoint(1, {"model": tensors}))).tensors["model"]
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def test_the_last_k_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 100):
        save_checkpoint(tmp_path, make(step))
    assert checkpoint_steps(tmp_path) == [5, 10, 100]
    assert keep_latest(tmp_path, 2) == [10, 100]
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-100"]
    assert keep_latest(tmp_path, 5) == [10, 100]


def test_the_same_step_again_replaces(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make(5, 1.0))
    save_checkpoint(tmp_path, make(5, 2.0))
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert float(found.tensors["model"]["w"][0, 0]) == 2.0
    assert names(tmp_path) == ["checkpoint-5"]


def test_no_checkpoint_where_there_is_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "nothing") is None
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / "checkpoint-3").mkdir()
    assert latest_checkpoint(tmp_path) is None


def damage_truncate(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])


def damage_flip(path: Path) -> None:
    file = path / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def damage_state(path: Path) -> None:
    (path / "checkpoint.json").write_text("{")


def damage_missing(path: Path) -> None:
    (path / "optimizer.safetensors").unlink()


def damage_version(path: Path) -> None:
    content = json.loads((path / "checkpoint.json").read_text())
    (path / "checkpoint.json").write_text(json.dumps({**content, "version": 99}))


@pytest.mark.parametrize("damage", [damage_truncate, damage_flip, damage_state, damage_missing, damage_version])
def test_damaged_checkpoints_are_refused_and_passed_over(tmp_path: Path, damage: object) -> None:
    save_checkpoint(tmp_path, make(5))
    path = save_checkpoint(tmp_path, make(10))
    damage(path)  # type: ignore[operator]
    with pytest.raises(ResumeError) as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 5


def fill_the_disk(monkeypatch: pytest.MonkeyPatch, after_bytes: int) -> None:
    def save_file(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
        path.write_bytes(b"\0" * after_bytes)
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(checkpoints, "save_file", save_file)


def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, make(5))
    fill_the_disk(monkeypatch, 20)
    with pytest.raises(RunError, match="no space left on the disk; make room and go on with --resume") as error:
        save_checkpoint(tmp_path, make(10))
    monkeypatch.undo()
    assert "\n" not in str(error.value)
    assert names(tmp_path) == ["checkpoint-5"]
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 5


def test_a_full_disk_does_not_cost_the_checkpoint_of_the_same_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, make(5, 1.0))
    fill_the_disk(monkeypatch, 0)
    with pytest.raises(RunError):
        save_checkpoint(tmp_path, make(5, 2.0))
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert float(found.tensors["model"]["w"][0, 0]) == 1.0


def test_a_rename_that_fails_brings_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, calls = Path.replace, []

    def failing(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        return replace(self, target)

    path = save_checkpoint(tmp_path, make(5, 1.0))
    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(RunError, match="Input/output error"):
        save_checkpoint(tmp_path, make(5, 2.0))
    assert float(load_checkpoint(path).tensors["model"]["w"][0, 0]) == 1.0
    assert names(tmp_path) == ["checkpoint-5"]


def test_what_safetensors_says_of_a_bad_place_is_one_line_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
        real(dict(tensors), tmp_path / "no" / "folder" / "here")

    real = checkpoints.save_file
    monkeypatch.setattr(checkpoints, "save_file", elsewhere)
    with pytest.raises(RunError, match="cannot be written") as error:
        save_checkpoint(tmp_path / "c", make(1))
    assert "\n" not in str(error.value)


def test_every_file_and_folder_is_flushed_before_the_name_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of calls is what survives a power cut: contents, then names, then the rename, then its folder."""
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def record_fsync(handle: int) -> None:
        done.append("sync " + Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    def record_replace(self: Path, target: Path) -> Path:
        done.append(f"rename to {Path(target).name}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record_replace)
    save_checkpoint(tmp_path, make(3))
    rename = done.index("rename to checkpoint-3")
    flushed = done[:rename]
    for name in ("model.safetensors", "optimizer.safetensors", "checkpoint.json"):
        assert any(call == f"sync {name}" for call in flushed), name
    assert flushed[-1].startswith("sync .checkpoint-3")
    assert done[rename + 1 :] == [f"sync {tmp_path.name}"]


def test_removing_takes_only_the_named_steps(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, make(step))
    remove_checkpoints(tmp_path, [2])
    assert checkpoint_steps(tmp_path) == [1, 3]
