"""The generator state of a private run, apart from its checkpoints.

Who holds the key of a step can compute its noise and subtract it. Hence the key never enters a checkpoint, which may
be handed on, but lies under ``$TROTH_HOME/private/<ledger entry>/step-N`` (folder mode 700, file mode 600), and is
erased when the run ends. Where it is lost, the resumed run draws fresh noise and counts the replayed steps again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from troth.accounting import key_folder
from troth.errors import ResumeError
from troth.files import failing_in_one_line, locked, remove_unfinished, sync, write_bytes
from troth.results import Json
from troth.seeds import PrivateRandomness

__all__ = ["PrivateState"]

_NAME = re.compile(r"step-(\d+)")


class PrivateState:
    """The keys of one run's kept checkpoints.

    A key is used again only for exactly the same computation: the same rows and the same `setting` (device, number
    format, physical batch, library versions). The same noise on anything else would cancel in the difference.

    Guarantees:
    - `save` returns only when the key is on the disk, so a checkpoint that follows it never lacks its key after a kill;
    - `load` returns a key only for the rows and the setting it was saved with;
    - folder and files are readable by their owner alone.

    Args:
        folder: where the keys lie.
        rows: SHA-256 of the encoded training rows.
        setting: what else decides the draws and the gradients they are added to.
    """

    def __init__(self, folder: Path, rows: str, setting: Mapping[str, Json]) -> None:
        self.folder, self._rows, self._setting = folder, rows, dict(setting)

    @classmethod
    @contextmanager
    def opened(cls, reservation: str, rows: str, setting: Mapping[str, Json]) -> Iterator[PrivateState]:
        """Give the state of a ledger entry, held by this process alone while the block runs.

        Raises:
            RunError: another process trains under the same ledger entry, or the place cannot be written.
        """
        folder = key_folder(reservation)
        with failing_in_one_line(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for path in (folder.parent, folder):
                path.chmod(0o700)
        with locked(folder):
            remove_unfinished(folder)
            yield cls(folder, rows, setting)

    def save(self, step: int, randomness: PrivateRandomness) -> None:
        """Write the key of the step about to run, durably.

        Raises:
            RunError: the place cannot be written.
        """
        content = {"step": step, "key": randomness.key.hex(), "rows": self._rows, "setting": self._setting}
        with failing_in_one_line(self.folder):
            write_bytes(self.folder / f"step-{step}", json.dumps(content).encode(), mode=0o600)

    def load(self, step: int) -> PrivateRandomness | None:
        """Return the key of a step, or None where it is lost or was made for another setting.

        Raises:
            ResumeError: the training rows are not those of the key.
        """
        try:
            content = json.loads((self.folder / f"step-{step}").read_bytes())
            key, rows, setting = bytes.fromhex(content["key"]), content["rows"], content["setting"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if rows != self._rows:
            raise ResumeError(
                "data.train: the training rows have changed since the checkpoint; restore them, or start a new run "
                "without --resume"
            )
        return PrivateRandomness(key) if setting == self._setting else None

    def keep(self, steps: Sequence[int]) -> None:
        """Erase the keys of all other steps.

        Raises:
            RunError: the place cannot be written.
        """
        with failing_in_one_line(self.folder):
            for path in self.folder.iterdir():
                match = _NAME.fullmatch(path.name)
                if match and int(match.group(1)) not in steps:
                    path.unlink()
            sync(self.folder)

    def erase(self) -> None:
        """Erase every key and the folder.

        Raises:
            RunError: the place cannot be written.
        """
        self.keep(())
        with failing_in_one_line(self.folder):
            remove_unfinished(self.folder)
            self.folder.rmdir()
