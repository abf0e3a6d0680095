"""Which rows the ledger has seen: keyed hashes per data set, so that the same rows under another name are noticed."""

from __future__ import annotations

import hashlib
import sqlite3

import numpy as np

from troth.errors import PrivacyError

__all__ = ["checked", "count", "merge", "overlaps", "rows_key"]

_ADVICE = "if both are the same data, give both the same data.dataset_id"


def checked(hashes: np.ndarray) -> np.ndarray:
    """Return the sorted, unique row hashes.

    Raises:
        PrivacyError: not a one-dimensional array of uint64.
    """
    if hashes.ndim != 1 or hashes.dtype != np.uint64:
        raise PrivacyError(f"row_hashes: {hashes.dtype} {hashes.shape}; give troth.data.row_hashes, uint64 [rows]")
    return np.unique(hashes)


def rows_key(hashes: np.ndarray, key: bytes) -> str:
    """Return the ledger's name for a data set that declares none: a keyed hash of its rows, in whatever order.

    `hashes` are all rows, repeated ones included: one row more, even a copy, is another data set.
    """
    text = np.sort(hashes).astype("<u8").tobytes()
    return "rows:" + hashlib.blake2b(text, key=key, digest_size=12).hexdigest()


def _load(database: sqlite3.Connection, dataset: str) -> np.ndarray:
    found = database.execute("SELECT hashes FROM rows WHERE dataset = ?", (dataset,)).fetchone()
    return np.frombuffer(b"" if found is None else found[0], dtype="<u8")


def count(database: sqlite3.Connection, dataset: str) -> int:
    """Return how many different rows are known of a data set."""
    found = database.execute("SELECT length(hashes) FROM rows WHERE dataset = ?", (dataset,)).fetchone()
    return 0 if found is None else int(found[0]) // 8


def merge(database: sqlite3.Connection, dataset: str, unique: np.ndarray) -> None:
    """Add row hashes to what is known of a data set; writes nothing where all are known."""
    known = _load(database, dataset)
    union = np.union1d(known, unique)
    if union.size > known.size:
        blob = union.astype("<u8").tobytes()
        database.execute("INSERT OR REPLACE INTO rows (dataset, hashes) VALUES (?, ?)", (dataset, blob))


def overlaps(
    database: sqlite3.Connection, dataset: str, unique: np.ndarray, *, with_budget: bool = False
) -> tuple[str, ...]:
    """Return one warning for each other data set that shares rows with this one, the largest overlap first.

    `with_budget` looks only at data sets that have one.
    """
    found: list[tuple[int, str]] = []
    others = database.execute(
        "SELECT dataset FROM rows JOIN datasets ON datasets.id = rows.dataset "
        "WHERE dataset != ? AND (budget_epsilon IS NOT NULL OR NOT ?)",
        (dataset, with_budget),
    )
    for (other,) in others.fetchall():
        shared = int(np.isin(unique, _load(database, other), assume_unique=True).sum())
        if shared:
            found.append((shared, other))
    return tuple(
        f"{shared} of {unique.size} rows ({shared / unique.size:.1%}) are known to the ledger as rows of data set "
        f"{other}: what is spent here is spent on them too; {_ADVICE}"
        for shared, other in sorted(found, reverse=True)
    )
