"""Rows of a resumable study: one JSON object a line, appended as each run ends, found again by its key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["Rows"]


class Rows:
    """The rows in a file; a second process may append to it at the same time."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def all(self) -> list[dict[str, Any]]:
        """Return the rows that are there now."""
        return [json.loads(line) for line in self._path.read_text().splitlines()] if self._path.exists() else []

    def find(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """Return the row of a key; None where there is none."""
        return next((row for row in self.all() if all(row.get(name) == value for name, value in key.items())), None)

    def add(self, row: dict[str, Any]) -> None:
        """Append a row."""
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
