"""Progress: bars on a terminal, lines in a pipe, nothing when quiet."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from troth.training import BarProgress, LineProgress, Progress, SilentProgress
from troth.training.progress import described, duration


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def lines(every: float = 5.0) -> tuple[LineProgress, io.StringIO, Clock]:
    stream, clock = io.StringIO(), Clock()
    return LineProgress(stream, every, clock), stream, clock


def test_lines_come_every_few_seconds_and_once_at_the_end() -> None:
    progress, stream, clock = lines()
    progress.start(100, "training")
    for step in range(1, 101):
        clock.now += 0.125
        progress.update(step, loss=2.0 / step, epsilon=step / 100, examples_per_second=640.0)
    progress.stop()
    written = stream.getvalue().splitlines()
    assert len(written) == 3
    assert written[0] == "training 40/100  loss 0.05  epsilon 0.40  640 examples/s  0:08 left"
    assert written[1].startswith("training 80/100  loss 0.025  epsilon 0.80")
    assert written[2].startswith("training 100/100  loss 0.02  epsilon 1.00")
    progress.stop()
    assert stream.getvalue().splitlines() == written


def test_time_left_counts_from_the_step_where_a_resumed_run_starts() -> None:
    progress, stream, clock = lines(every=0.0)
    progress.start(100, "training")
    progress.update(90)
    clock.now = 10.0
    progress.update(95)
    assert stream.getvalue().splitlines()[-1] == "training 95/100  0:10 left"


def test_a_new_piece_of_work_ends_the_one_before() -> None:
    progress, stream, _ = lines()
    progress.start(2, "one")
    progress.update(1)
    progress.start(2, "two")
    progress.message("a word")
    assert stream.getvalue().splitlines() == ["one 1/2", "a word"]


def test_updates_outside_of_a_piece_of_work_show_nothing() -> None:
    progress, stream, _ = lines(every=0.0)
    progress.update(3, loss=1.0)
    progress.stop()
    assert stream.getvalue() == ""


def test_lines_go_to_standard_error_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    LineProgress().message("hello")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")


def test_a_bar_shows_loss_and_epsilon_beside_each_other() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=140)
    progress = BarProgress(console)
    progress.start(10, "training [privately]")
    progress.update(4, loss=0.25, epsilon=3.5, examples_per_second=1234.0)
    progress.message("a [bold] word")
    progress.stop()
    shown = stream.getvalue()
    assert "loss 0.25  epsilon 3.50  1,234 examples/s" in shown
    assert "4/10" in shown
    assert "training [privately]" in shown
    assert "a [bold] word" in shown
    assert shown.rstrip().endswith("\x1b[?25h")  # the cursor is back


@pytest.mark.parametrize(
    "make", [lambda: lines(0.0)[0], lambda: BarProgress(Console(file=io.StringIO())), SilentProgress]
)
def test_every_progress_takes_the_same_calls(make: Callable[[], Progress]) -> None:
    progress = make()
    progress.start(3, "work")
    progress.update(1, loss=None, epsilon=float("inf"))
    progress.message("text")
    count = progress.labelled("scoring")
    assert count(1, 2) is None
    assert count(2, 2) is None
    progress.stop()
    progress.stop()


def test_a_labelled_callback_shows_a_piece_of_work_of_its_own() -> None:
    progress, stream, _ = lines()
    count = progress.labelled("scoring test")
    count(64, 128)
    count(128, 128)
    assert stream.getvalue().splitlines() == ["scoring test 128/128"]


def test_values_as_people_read_them() -> None:
    assert described({"epsilon": float("inf"), "rows_per_second": 5.4}) == "epsilon infinite  5 rows/s"
    assert described({}) == ""


def test_durations_round_up() -> None:
    assert [duration(s) for s in (0.1, 59.1, 3601)] == ["0:01", "1:00", "1:00:01"]
