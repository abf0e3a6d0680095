"""Files and folders written whole or not at all, also when the process is killed or the disk is full.

A folder is filled under a temporary name beside its own, flushed to the disk (`fsync` of every file, of the folder and
of its parent) and renamed. Whatever stands under a final name is therefore complete.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from troth.errors import RunError

__all__ = ["failing_in_one_line", "locked", "new_folder", "remove_unfinished", "sync", "write_bytes", "write_text"]

_MARK = ".writing-"
_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def failing_in_one_line(path: Path) -> Iterator[None]:
    """Turn a failed write below `path` into a one-line `RunError` that says what to do.

    Raises:
        RunError: the disk is full, or the place cannot be written.
    """
    try:
        yield
    except SafetensorError as error:  # the library wraps the system's error in text of its own
        reason = " ".join(str(error).split())
        raise RunError(_text(path, reason, "os error 28" in reason)) from None
    except OSError as error:
        raise RunError(_text(path, error.strerror or type(error).__name__, error.errno in _FULL)) from None


def _text(path: Path, reason: str, full: bool) -> str:
    if full:
        return f"{path}: no space left on the disk; make room and go on with --resume: what was written before is whole"
    return f"{path}: cannot be written: {reason}; mend it and go on with --resume, or choose another folder"


def sync(path: Path) -> None:
    """Flush a file or a folder's list of names to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a file whole or not at all, flushed to the disk when the call returns.

    Raises:
        OSError: the disk is full or the folder cannot be written; what was there before stays.
    """
    temporary = path.parent / f".{path.name}{_MARK}{secrets.token_hex(8)}"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_text(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a UTF-8 file whole or not at all, flushed to the disk when the call returns; its folder is made.

    Raises:
        RunError: the disk is full or the folder cannot be written; what was there before stays.
    """
    with failing_in_one_line(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, text.encode(), mode)


@contextmanager
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Give a temporary folder to fill; when the block ends it is flushed and renamed to `path`.

    A block that raises leaves nothing behind. A folder that is already at `path` gives way only with `replace`, and
    only when the new one is complete.

    Raises:
        OSError: the disk is full, the place cannot be written, or `path` holds something.
    """
    temporary = path.parent / f".{path.name}{_MARK}{secrets.token_hex(8)}"
    old = path.parent / f".{path.name}{_MARK}{secrets.token_hex(8)}"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.mkdir()
    try:
        yield temporary
        for inner in sorted(temporary.rglob("*")):
            sync(inner)
        sync(temporary)
        if replace and path.exists():
            path.replace(old)
        temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists():
            old.replace(path)
        raise
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove_unfinished(folder: Path, name: str | None = None) -> None:
    """Remove what a killed process left half-written in a folder, of one final name or of all."""
    wanted = "*" if name is None else glob.escape(name)
    for path in folder.glob(f".{wanted}{_MARK}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; the system lets go of it when the process ends, however it ends.

    Raises:
        RunError: another process holds it, or it cannot be made.
    """
    with failing_in_one_line(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{folder}: another process is training here; wait for it to end, or stop it") from None
        yield
    finally:
        os.close(handle)
