"""What a user wrote as the place of a table, resolved to files or a data set of the hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from troth.data.formats import ENDINGS, files_of, read_path
from troth.data.hub import HubName, parse_hub_name, read_hub
from troth.data.raw import Raw, near, printable, shown
from troth.errors import DataError

__all__ = ["Part", "read_part", "resolve"]


@dataclass(frozen=True)
class Part:
    """One file, line-aligned folder or split of a hub data set.

    Attributes:
        source: its name for messages, as near to what the user wrote as can be.
        place: where it lies; two parts with the same place are the same rows.
        asked: the key and value that asked for it, for messages.
        folder: the folder against which the value was read.
    """

    source: str
    place: Path | HubName
    asked: str
    folder: Path


def resolve(text: str, *, folder: Path, split: str, key: str | None = None) -> list[Part]:
    """Return the parts that a path or hub id stands for.

    A path is relative to `folder`. What is neither a file nor a folder and has no ending of a file is taken for a hub
    id: ``owner/name``, ``owner/name:split`` or ``owner/name/config:split``; without a split, `split` is meant.

    Args:
        text: the path or hub id.
        folder: what relative paths are relative to.
        split: "train", "validation" or "test".
        key: the key in the run file, for messages.

    Raises:
        DataError: no such file, an ending or folder that cannot be read, or a text that can be neither.
    """
    source = printable(text)
    asked = f"{key} = '{source}'" if key else source
    if not text.strip() or "\0" in text:
        raise DataError(f"{asked}: not a path; give a file, a folder or a hub id")
    try:
        path = folder / Path(text).expanduser()
        there = path.exists()
    except (OSError, RuntimeError):  # too long for a name, a folder that may not be entered, an unknown ~user
        raise DataError(
            f"{key or 'source'}: {shown(text)} cannot be looked up; give a file, a folder or a hub id"
        ) from None
    if there:
        return [Part(called, place.resolve(), asked, folder) for place, called in files_of(path, source)]
    name = parse_hub_name(text, split)
    if name is None or path.suffix.lower() in ENDINGS:
        raise _not_found(path, asked)
    return [Part(source, name, asked, folder)]


def _not_found(path: Path, asked: str, hub: HubName | None = None) -> DataError:
    """Return the error for a path where nothing is, naming what is nearest."""
    parent = path.parent
    names = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
    nearest = near(path.name, names)
    there = printable(str(parent))
    hint = f"; nearest: {shown(nearest)}" if nearest else "" if parent.is_dir() else f"; there is no folder {there}"
    also = ""
    if hub is not None:
        also = (
            f", and no data set {shown(hub.repo)} in the local hub cache (nothing is fetched: to have it, "
            f"hf download --repo-type dataset {hub.repo})"
        )
    return DataError(f"{asked}: no such file or folder in {there}{hint}{also}")


def read_part(part: Part, columns: Sequence[str] | None) -> Raw:
    """Return the table of a part.

    Raises:
        DataError: the file or data set is not there or cannot be read.
    """
    if isinstance(part.place, Path):
        return read_path(part.place, part.source, columns)
    raw = read_hub(part.place, part.source)
    if raw is None:
        raise _not_found(part.folder / part.source, part.asked, part.place)
    if columns:
        raise DataError(f"{part.source}: columns = [...] is for files without a header, not for hub ids: drop columns")
    return raw
