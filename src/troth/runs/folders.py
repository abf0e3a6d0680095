"""Run folders: one folder a run, nothing overwritten, every file written whole or not at all.

A run lives in ``OUT/NAME``, the next of that name in ``OUT/NAME-2``, and so on. The folder holds ``run.toml`` (the
resolved run file), ``provenance.json`` (versions and data fingerprints), ``record.json`` once the run is finished,
``checkpoints/`` and ``model/``; verbs that run alone on a finished run add ``attack.json``, ``fairness-2.json``...
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from troth.config import RunConfig, parse, read_toml, to_toml, training_digest
from troth.errors import ConfigError, ResumeError, RunError
from troth.files import write_text
from troth.results import Json, Record, plain_json

__all__ = ["DISK_ERRORS", "RunFolder", "create", "find_finished", "find_unfinished", "open_run", "run_folders"]

DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO})
"""What a disk does to a good path; any other error of a path is that of who named it."""


@dataclass(frozen=True)
class RunFolder:
    """One run on disk."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Where training keeps its checkpoints."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """Where the finished model lies."""
        return self.path / "model"

    @property
    def _reservation(self) -> Path:
        return self.path / "reservation"

    def reservation_id(self) -> str | None:
        """Return the id of the run's entry in the ledger, or None where it has none."""
        return self._reservation.read_text(encoding="utf-8").strip() if self._reservation.is_file() else None

    def keep_reservation_id(self, reservation_id: str) -> None:
        """Write the id of the run's entry in the ledger down, durably."""
        write_text(self._reservation, reservation_id + "\n")

    @property
    def finished(self) -> bool:
        """Whether the run's own record is there."""
        return (self.path / "record.json").is_file()

    def config(self) -> RunConfig:
        """Return the resolved configuration the run was made with."""
        return parse(read_toml(self.path / "run.toml"), str(self.path / "run.toml"))

    def write_config(self, config: RunConfig) -> None:
        """Write the resolved configuration; a resumed run may measure the same model otherwise."""
        write_text(self.path / "run.toml", to_toml(config))

    def write_record(self, record: Record, verb: str | None = None) -> Path:
        """Write the run's record, or that of a verb which ran alone, under the next free name."""
        stem = "record" if verb is None else verb
        path, number = self.path / f"{stem}.json", 1
        while verb is not None and path.exists():
            number += 1
            path = self.path / f"{stem}-{number}.json"
        write_text(path, record.to_json(indent=1) + "\n")
        return path

    def records(self) -> list[Record]:
        """Return the run's record and those of verbs that ran alone afterwards, oldest first."""
        verbs = [p for p in self.path.glob("*.json") if re.fullmatch(r"(attack|fairness)(-\d+)?\.json", p.name)]
        verbs.sort(key=lambda p: (p.stem.split("-")[0], int(p.stem.partition("-")[2] or 1)))
        return [self._read(p) for p in [self.path / "record.json", *verbs]]

    def record(self) -> Record:
        """Return the run's own record.

        Raises:
            ResumeError: the run is not finished.
            RunError: the record is damaged.
        """
        return self._read(self.path / "record.json")

    def _read(self, path: Path) -> Record:
        try:
            return Record.from_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ResumeError(f"{self.path}: not a finished run; continue it with --resume") from None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise RunError(f"{path}: damaged record ({type(error).__name__}); run it again") from None

    def write_provenance(self, provenance: dict[str, Json]) -> Path:
        """Write versions and data fingerprints beside the record."""
        path = self.path / "provenance.json"
        write_text(path, json.dumps(plain_json(provenance), indent=1) + "\n")
        return path

    def provenance(self) -> dict[str, Json]:
        """Return what `write_provenance` wrote, or an empty mapping."""
        path = self.path / "provenance.json"
        loaded = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return loaded if isinstance(loaded, dict) else {}


def _number(path: Path, name: str) -> int | None:
    """Return k of ``NAME-k`` (1 for ``NAME``), or None where the folder belongs to another run."""
    match = re.fullmatch(re.escape(name) + r"(?:-(\d+))?", path.name)
    return None if match is None else int(match.group(1) or 1)


def run_folders(out: Path, name: str | None = None) -> list[RunFolder]:
    """Return the run folders below `out`, of one name or all, in the order of their names and numbers."""
    if not out.is_dir():
        return []
    found = [p for p in out.iterdir() if (p / "run.toml").is_file() and (name is None or _belongs(p, name))]
    return [RunFolder(p) for p in sorted(found, key=_order)]


def _belongs(path: Path, name: str) -> bool:
    if _number(path, name) is None:
        return False
    try:
        return RunFolder(path).config().run.name == name
    except ConfigError:
        return False


def _order(path: Path) -> tuple[str, int]:
    match = re.fullmatch(r"(.*?)(?:-(\d+))?", path.name)
    return (match.group(1), int(match.group(2) or 1)) if match else (path.name, 1)


def _candidates(out: Path, name: str) -> Iterator[Path]:
    yield out / name
    number = 2
    while True:
        yield out / f"{name}-{number}"
        number += 1


def create(config: RunConfig, out: Path) -> RunFolder:
    """Make the next free folder of the run's name and write ``run.toml`` into it, or leave nothing behind.

    Raises:
        ConfigError: the folder cannot be made there.
        RunError: the disk is full.
    """
    for path in _candidates(out, config.run.name):
        if path.exists() or path.is_symlink():
            continue
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            if not out.is_dir():
                raise ConfigError(f"{out}: is not a folder; choose another one with run.out") from None
            continue  # another process was faster
        except OSError as error:
            kind = RunError if error.errno in DISK_ERRORS else ConfigError
            raise kind(f"{path}: cannot be made: {error.strerror}; choose another folder with run.out") from None
        try:
            write_text(path / "run.toml", to_toml(config))
        except RunError:
            path.rmdir()
            raise
        return RunFolder(path)
    raise RunError(f"{out}: no free folder name")  # pragma: no cover  the candidates never end


def find_unfinished(config: RunConfig, out: Path) -> RunFolder:
    """Return the newest unfinished run of that name that makes the same model; [attack] and [fairness] may differ.

    Raises:
        ResumeError: there is none; the text says whether a run under another configuration is there.
    """
    unfinished = [f for f in run_folders(out, config.run.name) if not f.finished]
    same = [f for f in unfinished if training_digest(f.config()) == training_digest(config)]
    if same:
        return same[-1]
    if unfinished:
        changed = changed_keys(unfinished[-1].config(), config)
        raise ResumeError(
            f"{unfinished[-1].path}: was started with another configuration (changed: {', '.join(changed)}); "
            "restore it, or start anew without --resume"
        )
    raise ResumeError(f"{out}: no unfinished run named {config.run.name}; start it without --resume")


def find_finished(config: RunConfig, out: Path) -> RunFolder:
    """Return the newest finished run of that name.

    Raises:
        RunError: there is none.
    """
    finished = [f for f in run_folders(out, config.run.name) if f.finished]
    if not finished:
        raise ResumeError(
            f"{out}: no finished run named {config.run.name}; run 'troth train' first or give --run FOLDER"
        )
    return finished[-1]


def open_run(path: Path) -> RunFolder:
    """Return the run at a folder the user named.

    Raises:
        ConfigError: it is no run folder.
    """
    if not (path / "run.toml").is_file():
        what = "no run.toml in it" if path.is_dir() else "there is no such folder"
        raise ConfigError(f"{path}: not a run folder ({what})")
    return RunFolder(path)


def changed_keys(old: RunConfig, new: RunConfig) -> list[str]:
    """Return the dotted keys in which two configurations differ."""
    before, after = _flat(old.to_dict()), _flat(new.to_dict())
    return sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))


def _flat(data: dict[str, object], prefix: str = "") -> dict[str, object]:
    out: dict[str, object] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            out |= _flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out
