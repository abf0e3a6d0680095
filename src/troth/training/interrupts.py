"""Ctrl-C as a request to stop after the last finished step, instead of an exception in the middle of an update."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["Interrupts", "StopRequested"]


class StopRequested(Exception):  # noqa: N818  a request, not an error
    """The user asked to stop; raised where no update is under way."""


class Interrupts:
    """While the block runs, the first Ctrl-C is remembered and the second raises `KeyboardInterrupt` at once.

    Outside of the main thread, and where the process ignores Ctrl-C, nothing is changed.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: Any = None
        self._installed = False

    def __enter__(self) -> Self:
        self._before = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is threading.main_thread() and callable(self._before):
            signal.signal(signal.SIGINT, self._remember)
            self._installed = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, self._before)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def check(self) -> None:
        """Raise `StopRequested` if Ctrl-C was pressed."""
        if self.requested:
            raise StopRequested
