"""Progress of long work on standard error: a bar on a terminal, plain lines where it is piped, or nothing."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress

__all__ = ["BarProgress", "LineProgress", "Progress", "SilentProgress"]

_NAMES = {"examples_per_second": "examples/s"}
_SECONDS_BETWEEN_LINES = 5.0


class Progress(Protocol):
    """Where long work says how far it is. Steps are absolute, so that a resumed run starts where it stood."""

    def start(self, total: int, label: str) -> None:
        """Begin a piece of work of `total` steps; a piece that was under way ends."""

    def update(self, step: int, **values: float | None) -> None:
        """Say that `step` steps are done, with named values (``loss``, ``epsilon``, ``examples_per_second``)."""

    def message(self, text: str) -> None:
        """Show one line that stays."""

    def stop(self) -> None:
        """End the piece of work."""

    def labelled(self, label: str) -> Callable[[int, int], None]:
        """Return a callback ``(done, total)`` that shows a piece of work of that name and ends it at the total."""


@dataclass
class _Pace:
    """How fast a piece of work goes, from the first step seen on (a resumed run starts in the middle)."""

    total: int
    clock: Callable[[], float] = time.monotonic
    first: tuple[int, float] | None = None
    step: int = 0

    def at(self, step: int) -> None:
        self.step = step
        if self.first is None:
            self.first = (step, self.clock())

    def seconds_left(self) -> float | None:
        """Return the seconds the rest will take at the present pace, or None before there is a pace."""
        if self.first is None or self.step <= self.first[0]:
            return None
        seconds = self.clock() - self.first[1]
        return seconds * (self.total - self.step) / (self.step - self.first[0])


def duration(seconds: float) -> str:
    """Return seconds as ``m:ss`` or ``h:mm:ss``, rounded up.

    >>> duration(75.2), duration(3600)
    ('1:16', '1:00:00')
    """
    whole = math.ceil(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def described(values: dict[str, float | None]) -> str:
    """Return named values as people read them, those that are None left out.

    >>> described({"loss": 0.51234, "epsilon": 3.2, "examples_per_second": 812.3, "none": None})
    'loss 0.5123  epsilon 3.20  812 examples/s'
    """
    shown = []
    for name, value in values.items():
        if value is None:
            continue
        if name == "epsilon":
            shown.append(f"epsilon {value:.2f}" if math.isfinite(value) else "epsilon infinite")
        elif name.endswith("_per_second"):
            shown.append(f"{value:,.0f} {_NAMES.get(name, name.removesuffix('_per_second') + '/s')}")
        else:
            shown.append(f"{name} {value:.4g}")
    return "  ".join(shown)


class SilentProgress:
    """Shows nothing."""

    def start(self, total: int, label: str) -> None:
        """Show nothing."""

    def update(self, step: int, **values: float | None) -> None:
        """Show nothing."""

    def message(self, text: str) -> None:
        """Show nothing."""

    def stop(self) -> None:
        """Show nothing."""

    def labelled(self, label: str) -> Callable[[int, int], None]:
        """Return a callback that shows nothing."""
        return lambda done, total: None


def _counting(progress: Progress, label: str) -> Callable[[int, int], None]:
    """Return a callback ``(done, total)`` that drives `progress`."""
    started = False

    def count(done: int, total: int) -> None:
        nonlocal started
        if not started:
            progress.start(total, label)
            started = True
        progress.update(done)
        if done >= total:
            progress.stop()

    return count


@dataclass
class LineProgress:
    """One plain line every few seconds, and one at the end of each piece of work.

    Attributes:
        stream: where lines go; None means standard error as it stands when the line is written.
        every: seconds between lines.
        clock: seconds, monotonic; another one in tests.
    """

    stream: TextIO | None = None
    every: float = _SECONDS_BETWEEN_LINES
    clock: Callable[[], float] = time.monotonic
    _label: str = field(default="", init=False)
    _pace: _Pace | None = field(default=None, init=False)
    _values: dict[str, float | None] = field(default_factory=dict, init=False)
    _last: float = field(default=-math.inf, init=False)
    _shown: int = field(default=-1, init=False)

    def start(self, total: int, label: str) -> None:
        """Begin a piece of work."""
        self.stop()
        self._label, self._pace, self._values = label, _Pace(total, self.clock), {}
        self._last, self._shown = self.clock(), -1

    def update(self, step: int, **values: float | None) -> None:
        """Take note, and write a line if the last one is old enough."""
        if self._pace is None:
            return
        self._pace.at(step)
        self._values = values or self._values
        if self.clock() - self._last >= self.every:
            self._show()

    def message(self, text: str) -> None:
        """Write one line."""
        stream = self.stream or sys.stderr
        stream.write(text + "\n")
        stream.flush()

    def stop(self) -> None:
        """Write where the work stands, if the last line did not say so, and end it."""
        if self._pace is not None and self._pace.first is not None and self._shown != self._pace.step:
            self._show()
        self._pace = None

    def labelled(self, label: str) -> Callable[[int, int], None]:
        """Return a callback ``(done, total)`` for a piece of work of that name."""
        return _counting(self, label)

    def _show(self) -> None:
        if self._pace is None:
            return
        left = self._pace.seconds_left()
        parts = [f"{self._label} {self._pace.step}/{self._pace.total}", described(self._values)]
        if left:
            parts.append(f"{duration(left)} left")
        self.message("  ".join(p for p in parts if p))
        self._last, self._shown = self.clock(), self._pace.step


class BarProgress:
    """A live bar on a terminal: label, bar, steps, values and time left; the cursor is given back whatever happens."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bar: RichProgress | None = None
        self._task = TaskID(0)
        self._pace = _Pace(0)
        self._values: dict[str, float | None] = {}

    def start(self, total: int, label: str) -> None:
        """Show a bar."""
        self.stop()
        self._pace, self._values = _Pace(total), {}
        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}", markup=False),
            TextColumn("{task.fields[values]}", markup=False),
            TextColumn("{task.fields[left]}", markup=False),
            console=self._console,
            refresh_per_second=5,
        )
        self._task = self._bar.add_task(label, total=total, values="", left="")
        self._bar.start()

    def update(self, step: int, **values: float | None) -> None:
        """Move the bar."""
        if self._bar is None:
            return
        self._pace.at(step)
        self._values = values or self._values
        left = self._pace.seconds_left()
        self._bar.update(
            self._task,
            completed=step,
            values=described(self._values),
            left="" if left is None else f"{duration(left)} left",
        )

    def message(self, text: str) -> None:
        """Show one line above the bar."""
        self._console.print(text, markup=False, highlight=False)

    def stop(self) -> None:
        """Leave the bar as it stands and give the cursor back."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def labelled(self, label: str) -> Callable[[int, int], None]:
        """Return a callback ``(done, total)`` for a piece of work of that name."""
        return _counting(self, label)
