"""Files and folders are written whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from troth import files
from troth.errors import RunError


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    half = tmp_path / ".checkpoint-9.writing-ab"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"x")
    (tmp_path / ".other.writing-cd").write_bytes(b"x")
    (tmp_path / "mine.txt").write_bytes(b"x")
    files.remove_unfinished(tmp_path, "checkpoint-9")
    assert names(tmp_path) == [".other.writing-cd", "mine.txt"]
    files.remove_unfinished(tmp_path)
    assert names(tmp_path) == ["mine.txt"]


def test_a_file_is_written_whole_with_its_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key"
    files.write_bytes(path, b"one", mode=0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def fail(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        files.write_bytes(path, b"two")
    assert path.read_bytes() == b"one"
    assert names(tmp_path) == ["key"]


def test_a_folder_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    with (
        files.locked(tmp_path / "run"),
        pytest.raises(RunError, match="another process is training here"),
        files.locked(tmp_path / "run"),
    ):
        pass
    with files.locked(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()


def test_full_disk_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    files.write_text(path, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="no space left"):
        files.write_text(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file.json"]
