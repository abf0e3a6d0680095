"""The index of runs: a SQLite file that can be thrown away and rebuilt from the folders at any time."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from troth.errors import TrothError
from troth.results import Json
from troth.runs.folders import RunFolder, run_folders

__all__ = ["RunRow", "list_runs", "rebuild"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    folder TEXT PRIMARY KEY, stamp TEXT NOT NULL, name TEXT NOT NULL, kind TEXT, created TEXT, state TEXT NOT NULL,
    epsilon REAL, guarantee TEXT, headline TEXT, headline_value REAL
)
"""
_HEADLINES = (
    "test.accuracy",
    "test.span_f1",
    "test.f1",
    "test.rouge_l",
    "test.perplexity",
    "federated.round.accuracy",
    "train.loss",
)


@dataclass(frozen=True)
class RunRow:
    """One run in a list: where it lies, what it is, its privacy and its headline number."""

    folder: str
    name: str
    kind: str | None
    created: str | None
    state: str
    epsilon: float | None
    guarantee: str | None
    headline: str | None
    headline_value: float | None

    def row(self) -> dict[str, Json]:
        """Return the row that ``troth runs list --json`` prints."""
        return dict(self.__dict__)


def _stamp(folder: RunFolder) -> str:
    """Return what changes when a run changes: the time and size of its record, or of its run file."""
    path = folder.path / ("record.json" if folder.finished else "run.toml")
    status = path.stat()
    return f"{status.st_mtime_ns}:{status.st_size}:{folder.finished}"


def _read(folder: RunFolder) -> RunRow:
    """Return a folder's row; a damaged one is listed as damaged, never hidden."""
    try:
        name = folder.config().run.name
        if not folder.finished:
            return RunRow(folder.path.name, name, None, None, "unfinished", None, None, None, None)
        record = folder.record()
    except TrothError:
        return RunRow(folder.path.name, folder.path.name, None, None, "damaged", None, None, None, None)
    headline = next((m for n in _HEADLINES if (m := record.measurement(n)) is not None), None)
    privacy = record.privacy
    return RunRow(
        folder=folder.path.name,
        name=name,
        kind=record.kind,
        created=record.created,
        state="finished",
        epsilon=None if privacy is None else privacy.epsilon,
        guarantee=None if privacy is None else privacy.guarantee,
        headline=None if headline is None else headline.name,
        headline_value=None if headline is None else headline.value,
    )


def _connect(out: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(out / "index.sqlite3", timeout=30)
    connection.execute(_SCHEMA)
    return connection


def rebuild(out: Path) -> None:
    """Throw the index away and read every run folder again."""
    (out / "index.sqlite3").unlink(missing_ok=True)
    list_runs(out)


def list_runs(out: Path) -> list[RunRow]:
    """Return one row a run folder below `out`; only folders that changed since the last call are read.

    A damaged, locked or unwritable index costs time, never rows: the folders are the truth.
    """
    folders = run_folders(out)
    if not folders:
        return []
    try:
        return _through_index(out, folders)
    except sqlite3.DatabaseError:
        return [_read(f) for f in folders]


def _through_index(out: Path, folders: list[RunFolder]) -> list[RunRow]:
    with closing(_connect(out)) as connection, connection:
        known = {row[0]: row for row in connection.execute("SELECT * FROM runs")}
        rows: list[RunRow] = []
        for folder in folders:
            stamp, old = _stamp(folder), known.get(folder.path.name)
            if old is not None and old[1] == stamp:
                rows.append(RunRow(old[0], *old[2:]))
                continue
            row = _read(folder)
            values = (row.folder, stamp, *list(row.__dict__.values())[1:])
            connection.execute(f"INSERT OR REPLACE INTO runs VALUES ({','.join('?' * 10)})", values)  # noqa: S608  only question marks
            rows.append(row)
        gone = known.keys() - {f.path.name for f in folders}
        connection.executemany("DELETE FROM runs WHERE folder = ?", [(g,) for g in gone])
    return rows
