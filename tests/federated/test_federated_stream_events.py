"""Times, periods and deletion requests: read as written, refused in one line where they cannot be."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from troth.config_federated import StreamConfig
from troth.data import from_rows
from troth.errors import ConfigError, DataError
from troth.federated.deletions import DeletionRequests, deletion_periods, read_deletions
from troth.federated.stream_events import Events, Periods, make_periods, parse_times, seconds_of, table_times

DAY = 86_400.0


@pytest.mark.parametrize(
    "values",
    [
        [0, DAY],
        [0.0, DAY],
        ["0", "86400"],
        np.array([0, 86400], dtype=np.int32),
        ["1970-01-01", "1970-01-02"],
        ["1970-01-01T00:00:00Z", "1970-01-02T02:00:00+02:00"],
        [dt.datetime(1970, 1, 1), dt.datetime(1970, 1, 2, tzinfo=dt.UTC)],
        [dt.date(1970, 1, 1), dt.date(1970, 1, 2)],
        np.array(["1970-01-01", "1970-01-02"], dtype="datetime64[s]"),
        pd.to_datetime(pd.Series(["1970-01-01", "1970-01-02"]), utc=True),
        pd.Series(["1970-01-01", "1970-01-02"]),
    ],
)
def test_times_are_seconds_since_the_epoch(values: object) -> None:
    found = parse_times(values)
    assert found.dtype == np.float64 and found.tolist() == [0.0, DAY]


def test_parts_of_a_second_survive() -> None:
    assert parse_times(["2026-05-01T12:00:00.25Z"])[0] == dt.datetime(2026, 5, 1, 12, tzinfo=dt.UTC).timestamp() + 0.25


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ([1.0, float("nan"), None], r"row 2 has no finite time \(2 such rows\)"),
        ([1.0, float("inf")], r"row 2 has no finite time \(1 such rows\)"),
        (["2026-01-01", "soon", None], r"row 2 has no time that can be read \(2 such rows\)"),
        (["01/02/2026"], r"row 1 has no time that can be read"),
        ([None, None], r"row 1 has no time \(2 such rows\)"),
        (np.array(["2026-01-01", "NaT"], dtype="datetime64[s]"), "row 2 has no time that can be read"),
        ([True, False], "several types, or no times"),
        ([1, "2026-01-01"], "several types, or no times"),
        (["20260501", "20260502"], "dates written as YYYYMMDD"),
        ([1.7e12], "milliseconds"),
    ],
)
def test_what_is_no_time_is_refused_in_one_line(values: object, what: str) -> None:
    with pytest.raises(DataError, match=what) as error:
        parse_times(values, "train.csv: time")
    assert str(error.value).startswith("train.csv: time: ") and "\n" not in str(error.value)
    assert "soon" not in str(error.value)


def test_a_table_without_times_is_refused_in_one_line() -> None:
    table = from_rows([{"text": "a", "time": "1970-01-02"}], "train.csv")
    assert table_times(table).tolist() == [DAY]
    with pytest.raises(ConfigError, match=r"^train.csv: no time column.*data.time = COLUMN$"):
        table_times(from_rows([{"text": "a"}], "train.csv"))


def test_rows_out_of_order_within_a_device_are_counted() -> None:
    grouped = Events.of(np.array([0, 0, 1, 1, -1]), np.array([1.0, 2.0, 0.0, 0.5, 9.0]), 2)
    assert grouped.warnings == ()
    mixed = Events.of(np.array([0, 1, 0, 1, 0]), np.array([5.0, 2.0, 1.0, 1.0, 1.0]), 2)
    assert mixed.warnings[0].startswith("federated.stream: 2 rows stand after a later row of their device")


def test_bad_events_are_refused() -> None:
    for devices, times, what in (
        ([0, 1], [0.0], "2 devices and 1 times"),
        ([-1], [0.0], "no rows"),
        ([0, 2], [0.0, 1.0], "device 2 or 0; there are 0 to 1"),
        ([0, -2], [0.0, 1.0], "device 0 or -2"),
        ([0, 1], [0.0, np.nan], "row 2 has no finite time"),
    ):
        with pytest.raises(DataError, match=what):
            Events.of(np.array(devices), np.array(times), 2)


def test_periods_cover_every_row_once() -> None:
    rng = np.random.default_rng(0)
    times = 1.7e9 + rng.uniform(0, 9.3 * DAY, 500)
    by_length = make_periods(StreamConfig(period="1d"), times)
    by_count = make_periods(StreamConfig(periods=7), times)
    assert len(by_length) == int(np.ptp(times) // DAY) + 1 and len(by_count) == 7
    for periods in (by_length, by_count):
        found = periods.of(times)
        assert found.min() == 0 and found.max() == len(periods) - 1
        assert ((periods.edges[found] <= times) & (times <= periods.edges[found + 1])).all()
        np.testing.assert_allclose(np.diff(periods.edges), np.diff(periods.edges)[0], rtol=1e-6)
        outside = np.array([times.min() - 1, times.max() + 10 * DAY])
        assert periods.of(outside).tolist() == [-1, len(periods)]
    np.testing.assert_array_equal(by_length.of(times), ((times - times.min()) // DAY).astype(int))


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("5min", 300), ("12h", 43_200), ("2d", 172_800), ("1w", 7 * DAY)]
)
def test_durations(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


def test_periods_that_cannot_be_are_refused() -> None:
    times = np.array([0.0, 1e7])
    for config, values, what in (
        (StreamConfig(periods=3), np.array([4.0, 4.0]), "all rows have the same time"),
        (StreamConfig(period="1s"), times, "10000001 periods.*choose a longer period"),
        (StreamConfig(period="52w"), times, "makes 1 periods.*choose a shorter period"),
    ):
        with pytest.raises(ConfigError, match=what):
            make_periods(config, values)
    with pytest.raises(ConfigError, match="not a duration"):
        seconds_of("1 day")


FOUR = Periods(np.array([0.0, 10.0, 20.0, 30.0, 40.0]))


def requests(*entries: tuple[float, str, str]) -> DeletionRequests:
    times, users, ids = zip(*entries, strict=True)
    return DeletionRequests(np.array(times), np.array(users, dtype=object), np.array(ids, dtype=object))


def test_a_request_takes_effect_in_the_first_period_that_ends_no_earlier() -> None:
    asked = requests(
        (20.0, "", "a"), (20.1, "", "b"), (-5.0, "", "c"), (40.0, "", "d"), (41.0, "", "e"), (15.0, "", "a")
    )
    found = deletion_periods(asked, FOUR, 6, ids=["a", "b", "c", "d", "e", "f"])
    assert found.periods.tolist() == [1, 2, 0, 3, 4, 4]
    assert len(found.warnings) == 1 and "1 requests are dated after the last period" in found.warnings[0]


def test_a_users_request_covers_all_rows_of_the_user() -> None:
    asked = requests((12.0, "7", ""), (35.0, "ann", ""), (5.0, "", "r4"), (5.0, "nobody", ""))
    found = deletion_periods(asked, FOUR, 5, users=[7, "ann", "bob", 7, "ann"], ids=["r0", "r1", "r2", "r3", "r4"])
    assert found.periods.tolist() == [1, 3, 4, 1, 0]
    assert len(found.warnings) == 1 and "1 users or ids occur in no training row" in found.warnings[0]


def test_requests_for_a_column_that_is_not_there_are_refused() -> None:
    for entry, role in (((1.0, "u", ""), "user"), ((1.0, "", "i"), "id")):
        with pytest.raises(ConfigError, match=f"1 requests name a {role}, .* has no {role} column"):
            deletion_periods(requests(entry), FOUR, 2)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("d.csv", "time,user,id\n1970-01-02,ann,\n1970-01-01,,4\n"),
        ("d.tsv", "time\tuser\tid\n86400\tann\t\n0\t\t4\n"),
        ("d.jsonl", '{"time": 86400, "user": "ann"}\n{"time": 0, "id": 4}\n'),
        ("d.json", '[{"time": "1970-01-02", "user": "ann"}, {"time": "1970-01-01", "id": 4.0}]'),
    ],
)
def test_requests_are_read_from_files(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    found = read_deletions(tmp_path / name)
    assert len(found) == 2 and found.times.tolist() == [DAY, 0.0]
    assert found.users.tolist() == ["ann", ""] and found.ids.tolist() == ["", "4"]


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("d.csv", "user\nann\n", "want time, and user or id"),
        ("d.csv", "time,who\n1,secret\n", "want time, and user or id"),
        ("d.csv", "time,user,id\n1,ann,\n2,,\n", r"row 2 \(line 3\): names neither a user and an id \(1 such rows\)"),
        ("d.csv", "time,user,id\n1,secret,9\n", r"row 1 \(line 2\): names both"),
        ("d.csv", "time,user\nsecret,ann\n", "time: row 1 has no time that can be read"),
        ("d.jsonl", '{"time": null, "user": "secret"}\n', "time: row 1 has no time"),
        ("d.csv", "", "empty file"),
        ("d.exe", "x", "not a known ending"),
        ("gone.csv", None, "no such file"),
    ],
)
def test_bad_request_files_are_refused_in_one_line(tmp_path: Path, name: str, text: str | None, what: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=what) as error:
        read_deletions(tmp_path / name, "requests")
    assert "\n" not in str(error.value) and "secret" not in str(error.value)


def test_a_folder_is_no_request_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("time,user\n1,ann\n")
    with pytest.raises(DataError, match=r"a folder; .* wants one file"):
        read_deletions(tmp_path)
