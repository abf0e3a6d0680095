"""Where troth keeps what outlives a run: the privacy ledger, its key and caches."""

from __future__ import annotations

import os
from pathlib import Path

from troth.errors import ConfigError

__all__ = ["key_folder", "troth_home"]


def troth_home() -> Path:
    """Return the folder of the ledger and its key: ``$TROTH_HOME``, or ``~/.local/share/troth``.

    The folder is not made here; it lies outside of any run's ``out``, so that deleting runs resets no budget.

    Raises:
        ConfigError: ``$TROTH_HOME`` is not set and the user has no home folder.
    """
    chosen = os.environ.get("TROTH_HOME", "").strip()
    try:
        return Path(chosen).expanduser().absolute() if chosen else Path.home() / ".local" / "share" / "troth"
    except RuntimeError:
        raise ConfigError("no home folder for the privacy ledger: set TROTH_HOME to a folder of your own") from None


def key_folder(reservation_id: str) -> Path:
    """Return where the keys of an unfinished private run lie, by its entry in the ledger: never in the run folder."""
    return troth_home() / "private" / reservation_id
