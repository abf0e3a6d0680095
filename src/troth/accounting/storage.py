"""The ledger's files: one SQLite database and one key, mode 600, written durably or not at all."""

from __future__ import annotations

import hashlib
import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from troth.errors import RunError

__all__ = ["LedgerStore"]

_KEY_BYTES = 32
_VERSION = 2
_ADVICE = {
    "SQLITE_BUSY": "another process holds it; try again when that has finished",
    "SQLITE_LOCKED": "another process holds it; try again when that has finished",
    "SQLITE_FULL": "the disk is full; free some space, nothing was released without being counted",
    "SQLITE_IOERR": "the disk refused to write; nothing was released without being counted",
    "SQLITE_READONLY": "it cannot be written; set TROTH_HOME to a folder of your own",
    "SQLITE_CANTOPEN": "it cannot be opened; set TROTH_HOME to a folder of your own",
    "SQLITE_CORRUPT": "it is damaged; restore it from a backup, a budget is not safe without it",
    "SQLITE_NOTADB": "it is damaged; restore it from a backup, a budget is not safe without it",
}
_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE datasets (
    id TEXT PRIMARY KEY,
    declared INTEGER NOT NULL,
    unit TEXT,
    neighboring_relation TEXT,
    budget_epsilon REAL CHECK (budget_epsilon > 0),
    budget_delta REAL CHECK (budget_delta > 0 AND budget_delta < 1),
    rule_order INTEGER CHECK (rule_order >= 2),
    rule_sampling_rate REAL,
    rule_noise_multiplier REAL,
    rule_max_batch_size INTEGER,
    rule_units INTEGER,
    created TEXT NOT NULL,
    CHECK (rule_order IS NULL OR rule_sampling_rate IS NULL)
);
CREATE TABLE rows (dataset TEXT PRIMARY KEY REFERENCES datasets (id), hashes BLOB NOT NULL);
CREATE TABLE reservations (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    dataset TEXT NOT NULL REFERENCES datasets (id),
    run_name TEXT NOT NULL,
    kind TEXT NOT NULL,
    config_hash TEXT NOT NULL,
    guarantee TEXT NOT NULL CHECK (guarantee IN ('differential_privacy', 'none')),
    plan TEXT,
    steps_planned INTEGER NOT NULL CHECK (steps_planned >= 0),
    steps_replayed INTEGER NOT NULL DEFAULT 0 CHECK (steps_replayed >= 0),
    steps_spent INTEGER NOT NULL DEFAULT 0 CHECK (steps_spent >= steps_replayed),
    state TEXT NOT NULL DEFAULT 'reserved' CHECK (state IN ('reserved', 'running', 'finished', 'released')),
    owner TEXT NOT NULL,
    created TEXT NOT NULL,
    CHECK (plan IS NULL OR steps_spent <= steps_planned + steps_replayed)
);
CREATE TRIGGER spent_never_shrinks BEFORE UPDATE ON reservations
WHEN NEW.steps_spent < OLD.steps_spent OR NEW.steps_replayed < OLD.steps_replayed
BEGIN SELECT RAISE(ABORT, 'what was spent cannot be taken back'); END;
CREATE TRIGGER closed_stays_closed BEFORE UPDATE ON reservations
WHEN OLD.state IN ('finished', 'released')
BEGIN SELECT RAISE(ABORT, 'a finished or released run cannot change'); END;
CREATE TRIGGER nothing_is_forgotten BEFORE DELETE ON reservations
BEGIN SELECT RAISE(ABORT, 'a run cannot be taken out of the ledger'); END;
"""


class LedgerStore:
    """The database ``ledger.sqlite3`` and the key ``ledger.key`` in the ledger's home.

    Both are made together on first use, under a file lock, in such an order that a crash in between is mended on the
    next use; later, one without the other is an error, never a fresh start.

    Guarantees:
        - a write transaction holds the only write lock from its first statement and is on disk when its block ends:
          rollback journal with ``PRAGMA synchronous=EXTRA``, which is FULL and also syncs the folder, without which a
          power cut just after a commit could roll it back;
        - what goes wrong (lock, disk, permission, damage) raises one line, and the transaction never happened;
        - files are readable by their owner only.

    Raises:
        RunError: the home cannot be used, a file is missing or damaged, or it was written by a newer troth.
    """

    def __init__(self, home: Path, busy_seconds: float = 30.0) -> None:
        self.home = home
        self.path = home / "ledger.sqlite3"
        self._key_path = home / "ledger.key"
        self._busy_seconds = busy_seconds
        with self._translated():
            if not (self.path.exists() and self._key_path.exists()):
                self._prepare()
            for path in (self.path, self._key_path):
                if path.stat().st_mode & 0o077:
                    path.chmod(0o600)
            self.key = self._key_path.read_bytes()
        self._verify()

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection that sees one consistent state."""
        with self._transaction("BEGIN") as database:
            yield database

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection that alone may write; durable when the block ends, undone when it raises."""
        with self._transaction("BEGIN IMMEDIATE") as database:
            yield database

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._translated(), closing(_connect(self.path, "rw", self._busy_seconds)) as database:
            database.execute(begin)
            try:
                yield database
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn what SQLite and the file system raise into one line that names the file and the way out."""
        try:
            yield
        except sqlite3.Error as error:
            name = str(vars(error).get("sqlite_errorname", ""))
            advice = next((a for prefix, a in _ADVICE.items() if name.startswith(prefix)), "see the message")
            raise RunError(f"privacy ledger {self.path}: {error}: {advice}") from None
        except OSError as error:
            raise RunError(
                f"privacy ledger in {self.home}: {error.strerror or error}: set TROTH_HOME to a folder of your own"
            ) from None

    def _prepare(self) -> None:
        """Make home, database and key where they are missing, one process at a time."""
        import fcntl

        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _create(self.home / "ledger.lock", os.O_CREAT) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            new_key, new_path = self.home / "ledger.key.new", self.home / "ledger.sqlite3.new"
            if not self.path.exists():
                if self._key_path.exists():
                    raise RunError(
                        f"privacy ledger {self.path}: missing, though its key is there; restore it from a backup, or "
                        f"remove {self._key_path.name} to begin an empty ledger that knows of no spending"
                    )
                _write_key(new_key)
                _write_database(new_path, new_key.read_bytes(), self._busy_seconds)
                new_path.replace(self.path)
            if not self._key_path.exists():
                if not new_key.exists():
                    raise RunError(
                        f"privacy ledger {self.path}: its key {self._key_path.name} is missing; restore it from a "
                        "backup, known rows cannot be recognised without it"
                    )
                new_key.replace(self._key_path)
            _sync_folder(self.home)

    def _upgrade(self) -> None:
        """Give a database of version 1 the columns of version 2; another process may have done so meanwhile."""
        with self.write() as database:
            if database.execute("PRAGMA user_version").fetchone()[0] >= _VERSION:
                return
            for statement in filter(None, map(str.strip, _ADDED_IN_2.split(";"))):
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {_VERSION}")

    def _verify(self) -> None:
        """Refuse a damaged database, one of a newer troth, and one that another key belongs to."""
        with self._translated():
            empty = self.path.stat().st_size == 0
        if empty:
            raise RunError(f"privacy ledger {self.path}: empty file: {_ADVICE['SQLITE_CORRUPT']}")
        with self.read() as database:
            version = database.execute("PRAGMA user_version").fetchone()[0]
            if version > _VERSION:
                raise RunError(f"privacy ledger {self.path}: written by a newer troth; update this one")
            if version < 1 or database.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                raise RunError(f"privacy ledger {self.path}: {_ADVICE['SQLITE_CORRUPT']}")
            known = database.execute("SELECT value FROM meta WHERE name = 'key'").fetchone()
        if version < _VERSION:
            self._upgrade()
        if known is None or known[0] != _fingerprint(self.key):
            raise RunError(f"privacy ledger {self.path}: {self._key_path.name} is not its key; restore the right one")


_ADDED_IN_2 = """
ALTER TABLE datasets ADD COLUMN rule_max_batch_size INTEGER;
ALTER TABLE datasets ADD COLUMN rule_units INTEGER;
"""


def _connect(path: Path, mode: str, busy_seconds: float) -> sqlite3.Connection:
    database = sqlite3.connect(
        f"{path.as_uri()}?mode={mode}", uri=True, timeout=busy_seconds, isolation_level=None, cached_statements=0
    )
    database.row_factory = sqlite3.Row
    database.execute("PRAGMA journal_mode = DELETE")
    database.execute("PRAGMA synchronous = EXTRA")
    database.execute("PRAGMA foreign_keys = ON")
    return database


@contextmanager
def _create(path: Path, flags: int) -> Iterator[int]:
    """Yield a file descriptor of a file that only its owner can read, open for writing."""
    handle = os.open(path, os.O_WRONLY | flags, 0o600)
    try:
        yield handle
    finally:
        os.close(handle)


def _write_key(path: Path) -> None:
    path.unlink(missing_ok=True)
    with _create(path, os.O_CREAT | os.O_EXCL) as handle:
        os.write(handle, secrets.token_bytes(_KEY_BYTES))
        os.fsync(handle)


def _write_database(path: Path, key: bytes, busy_seconds: float) -> None:
    for stale in (path, path.with_name(path.name + "-journal")):
        stale.unlink(missing_ok=True)
    with _create(path, os.O_CREAT | os.O_EXCL):
        pass
    with closing(_connect(path, "rw", busy_seconds)) as database:
        database.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
        database.execute("INSERT INTO meta VALUES ('key', ?)", (_fingerprint(key),))


def _fingerprint(key: bytes) -> str:
    return hashlib.blake2b(b"troth ledger", key=key, digest_size=16).hexdigest()


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
