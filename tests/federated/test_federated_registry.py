"""The registry: 16 bytes a device, the same from a population as from a Parquet file read in pieces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from troth.errors import ConfigError, DataError, RunError
from troth.federated import registry_parquet
from troth.federated.event_times import absolute_periods, period_numbers, seconds_since_1970
from troth.federated.population import FederatedData, by_user
from troth.federated.registry import Registry, registry_from_counts, registry_of
from troth.federated.registry_parquet import open_names, registry_from_parquet

DAY = 86_400


def table(devices: list[object], times: list[object] | None = None) -> pa.Table:
    return pa.table({"device": devices} | ({} if times is None else {"time": times}))


def naive(devices: list[object], times: list[float | None] | None) -> tuple[list[int], list[int], list[str]]:
    """Counts, last day counted from the first, and names, by a loop over the rows."""
    counts: dict[object, int] = {}
    last: dict[object, int] = {}
    days = [None if t is None else int(np.floor(t / DAY)) for t in times or [None] * len(devices)]
    first = min((d for d in days if d is not None), default=0)
    for device, day in zip(devices, days, strict=True):
        counts[device] = counts.get(device, 0) + 1
        last[device] = max(last.get(device, 0), 0 if day is None else day - first + 1)
    return list(counts.values()), list(last.values()), [str(d) for d in counts]


ids = st.one_of(
    st.lists(st.integers(-5, 5), min_size=1, max_size=80),
    st.lists(st.sampled_from(["a", "aa", "b", "ab", "ba", "ü", "device-1", "device-2"]), min_size=1, max_size=80),
)


@given(devices=ids, data=st.data())
@settings(deadline=None, max_examples=60)
def test_a_parquet_file_in_pieces_is_counted_as_by_a_loop(
    devices: list[object], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("registry")
    moments = st.one_of(st.none(), st.integers(-3 * DAY, 40 * DAY))
    times = data.draw(st.lists(moments, min_size=len(devices), max_size=len(devices)))
    pq.write_table(
        pa.table({"device": devices, "time": pa.array(times, pa.int64())}), folder / "events.parquet", row_group_size=7
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry_parquet, "_BATCH", 5)
        patch.setattr(registry_parquet, "_BUCKET", 9)
        found = registry_from_parquet(folder / "events.parquet", "device", time="time", names=folder / "names")
    counts, last, names = naive(devices, times)
    assert found.counts.tolist() == counts and found.last_seen.tolist() == last
    assert open_names(folder / "names").tolist() == names
    assert found.rows == len(devices) and found.offsets.tolist() == [0, *np.cumsum(counts)[:-1].tolist()]


def test_the_file_numbers_devices_as_the_population_does(tmp_path: Path) -> None:
    users = [f"user {n}" for n in np.random.default_rng(0).zipf(1.5, 4000) % 500]
    times = np.random.default_rng(1).integers(0, 30 * DAY, size=4000)
    pq.write_table(table(users, times), tmp_path / "e.parquet", row_group_size=1000)
    data = by_user(users)
    periods = absolute_periods(seconds_since_1970(pa.array(times)), DAY)
    ours = registry_of(data, period_numbers(periods, int(periods.min())))
    found = registry_from_parquet(tmp_path / "e.parquet", "device", time="time")
    for name, column in ours.arrays().items():
        assert column.tolist() == found.arrays()[name].tolist(), name
    assert ours.counts.tolist() == data.counts.tolist() and found.last_seen.max() == 30


@pytest.mark.parametrize(
    "times",
    [
        pa.array(["1970-01-01", None, "1970-01-03T01:00:00Z"]),
        pa.array([0, None, 2 * DAY + 3600]),
        pa.array([0.0, None, 2 * DAY + 3600.5]),
        pa.array([0, None, 2 * DAY + 3600], pa.timestamp("s")),
        pa.array([0, None, (2 * DAY + 3600) * 1000], pa.timestamp("ms", tz="Europe/Berlin")),
        pa.array([0, None, 2], pa.date32()),
    ],
)
def test_times_of_any_form_are_the_same_days(tmp_path: Path, times: pa.Array) -> None:
    pq.write_table(pa.table({"d": [7, 8, 7], "t": times}), tmp_path / "e.parquet")
    found = registry_from_parquet(tmp_path / "e.parquet", "d", time="t")
    assert found.last_seen.tolist() == [3, 0]
    hours = registry_from_parquet(tmp_path / "e.parquet", "d", time="t", period_seconds=3600.0)
    assert hours.last_seen[0] == (49 if times.type == pa.date32() else 50)


@pytest.mark.parametrize(
    "devices",
    [
        pa.array(["x", "y", "x"]).dictionary_encode(),
        pa.array(["x", "y", "x"], pa.large_string()),
        pa.array([2**63 + 1, 5, 2**63 + 1], pa.uint64()),
        pa.array([-7, 5, -7], pa.int8()),
    ],
)
def test_devices_of_any_form(tmp_path: Path, devices: pa.Array) -> None:
    pq.write_table(pa.table({"device": devices}), tmp_path / "e.parquet")
    found = registry_from_parquet(tmp_path / "e.parquet", "device", names=tmp_path / "names")
    assert found.counts.tolist() == [2, 1] and found.last_seen.tolist() == [0, 0]
    assert open_names(tmp_path / "names").tolist() == [str(d) for d in devices.to_pylist()[:2]]


@pytest.mark.parametrize("devices", [["a"] * 11 + [None, "a"], ["a"] * 11 + ["", "a"], [1] * 11 + [None, 1]])
def test_a_row_without_a_device_is_named(
    tmp_path: Path, devices: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_parquet, "_BATCH", 4)
    pq.write_table(table(devices), tmp_path / "e.parquet")
    with pytest.raises(DataError, match=r"e.parquet: row 11 has no device in column 'device'"):
        registry_from_parquet(tmp_path / "e.parquet", "device", scratch=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["e.parquet"]


def test_files_that_cannot_be_used_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "e.parquet"
    with pytest.raises(DataError, match="missing or no Parquet file"):
        registry_from_parquet(path, "device")
    path.write_bytes(b"PAR1 but no more")
    with pytest.raises(DataError, match="missing or no Parquet file"):
        registry_from_parquet(path, "device")
    pq.write_table(table([1.5, 2.5]), path)
    with pytest.raises(DataError, match="has type double; a device is a whole number or a text"):
        registry_from_parquet(path, "device")
    with pytest.raises(DataError, match="no column 'user', or several; columns there: device"):
        registry_from_parquet(path, "user")
    pq.write_table(table(["a", "b"], ["1970-01-01", "secret"]), path)
    with pytest.raises(
        DataError, match=r"the time of row 1 \(1 such rows\) is neither a number nor ISO 8601"
    ) as raised:
        registry_from_parquet(path, "device", time="time")
    assert "secret" not in str(raised.value)
    pq.write_table(table([1], [1])[:0], path)
    with pytest.raises(DataError, match="has no rows"):
        registry_from_parquet(path, "device")
    pq.write_table(table([1, 2], [0, 70_000 * DAY]), path)
    with pytest.raises(ConfigError, match="span 70001 periods"):
        registry_from_parquet(path, "device", time="time")
    with pytest.raises(ConfigError, match="a period of 0 seconds"):
        registry_from_parquet(path, "device", time="time", period_seconds=0)


def test_a_folder_of_names_that_is_there_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is there already"):
        registry_from_parquet(tmp_path / "no such file", "device", names=tmp_path)


def test_a_damaged_page_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "e.parquet"
    pq.write_table(table(np.random.default_rng(0).integers(1 << 60, size=20_000)), path, compression="none")
    data = bytearray(path.read_bytes())
    data[4:40] = b"\xff" * 36
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="is damaged after row 0"):
        registry_from_parquet(path, "device")


def test_a_device_takes_16_bytes() -> None:
    registry = registry_from_counts(np.arange(1, 1001))
    assert registry.nbytes == 16_000 and len(registry) == 1000
    assert [c.dtype.str for c in registry.arrays().values()] == ["<u4", "<u2", "<u2", "<u8"]


def test_row_ranges_are_those_of_the_population() -> None:
    data = FederatedData.from_assignment(np.array([2, 0, 2, 4, 4, 4]), 5, keep_empty=True)
    registry = registry_of(data)
    starts, ends = registry.row_ranges(np.arange(5))
    assert starts.tolist() == data.offsets[:-1].tolist() and ends.tolist() == data.offsets[1:].tolist()
    registry.counts[:] = 0  # what counts in a stream's window does not move the rows on the disk
    assert registry.row_ranges(np.array([4, 2]))[1].tolist() == [6, 3]
    for wrong in (5, -1):
        with pytest.raises(IndexError):
            registry.row_ranges(np.array([wrong]))


def test_empty_clients_of_a_population_were_never_seen() -> None:
    data = FederatedData.from_assignment(np.array([2, 0, 2]), 4, keep_empty=True)
    registry = registry_of(data, np.array([5, 0, 3], dtype=np.uint16))
    assert registry.last_seen.tolist() == [0, 0, 5, 0] and registry.counts.tolist() == [1, 0, 2, 0]
    with pytest.raises(DataError, match="holds row 2, there are times for 2 rows"):
        registry_of(data, np.array([5, 0], dtype=np.uint16))


def test_devices_rest_until_their_round() -> None:
    registry = registry_from_counts(np.ones(4, dtype=int))
    assert registry.allowed(0).all()
    registry.rest(np.array([1, 3]), 5)
    assert registry.allowed(4).tolist() == [True, False, True, False] and registry.allowed(5).all()
    registry.rest(np.array([1]), 3)  # does not cut the rest short
    assert registry.next_allowed.tolist() == [0, 5, 0, 5]
    assert registry.allowed(100_000).all()
    for wrong in (-1, 65_536):
        with pytest.raises(ConfigError, match="minimum_separation"):
            registry.rest(np.array([0]), wrong)
    with pytest.raises(IndexError):
        registry.rest(np.array([-1]), 3)


def test_devices_are_seen_in_periods() -> None:
    registry = registry_from_counts(np.ones(3, dtype=int))
    registry.see(np.array([0, 2]), 7)
    registry.see(np.array([2, 1]), 4)
    assert registry.last_seen.tolist() == [7, 4, 7]
    for wrong in (0, 65_536):
        with pytest.raises(ConfigError, match="counts periods from 1 to 65535"):
            registry.see(np.array([0]), wrong)


def test_a_registry_goes_through_a_checkpoint(tmp_path: Path) -> None:
    registry = registry_of(FederatedData.from_assignment(np.arange(50) % 7, 7))
    registry.rest(np.array([3]), 9)
    registry.see(np.array([2]), 2)
    np.savez(tmp_path / "r.npz", **registry.arrays())
    with np.load(tmp_path / "r.npz", allow_pickle=False) as stored:
        back = Registry.from_arrays(dict(stored), registry.rows)
    for name, column in registry.arrays().items():
        assert back.arrays()[name].tolist() == column.tolist() and back.arrays()[name].dtype == column.dtype
    back.rest(np.array([0]), 4)
    assert registry.next_allowed[0] == 0  # a copy
    with pytest.raises(DataError, match="column last_seen"):
        Registry.from_arrays({**registry.arrays(), "last_seen": np.zeros(6, dtype=np.uint16)}, 50)
    with pytest.raises(DataError, match="column offsets"):
        Registry.from_arrays({**registry.arrays(), "offsets": registry.offsets.astype(np.int64)}, 50)


def test_more_rows_than_the_column_counts_are_refused() -> None:
    with pytest.raises(DataError, match="counts up to 4294967295"):
        registry_from_counts(np.array([1, 2**32]))


def test_days_before_1970_and_missing_times_have_numbers_too() -> None:
    seconds = np.array([-1.0, 0.0, np.nan, DAY - 1, DAY])
    absolute = absolute_periods(seconds, DAY)
    assert period_numbers(absolute, -1).tolist() == [1, 2, 0, 2, 3]


def test_seconds_are_those_of_pandas() -> None:
    texts = ["2026-01-31T12:00:00", "2026-02-01", "1999-12-31T23:59:59.5+02:00"]
    expected = [pd.Timestamp(t).tz_localize("UTC").timestamp() for t in texts[:2]] + [
        pd.Timestamp(texts[2]).timestamp()
    ]
    assert seconds_since_1970(pa.array(texts)).tolist() == expected
    for missing in (pa.array([None, "1970-01-02"]), pa.array([None, 86_400]), pa.array([float("nan"), 86_400.0])):
        found = seconds_since_1970(missing)
        assert np.isnan(found[0]) and found[1] == 86_400
    assert np.isnan(seconds_since_1970(pa.nulls(2))).all()


@pytest.mark.parametrize(
    ("times", "said"),
    [
        (["1970-01-01", "soon"], r"the time of row 6 \(1 such rows\) is neither"),
        ([None, True], r"the time of row 6 \(1 such rows\) is neither"),
        ([0.0, float("inf")], "the time of row 6 .* is not finite"),
        ([0, 1_700_000_000_000], "the time of row 6 .* milliseconds"),
    ],
)
def test_times_that_cannot_be_read_are_named(times: list[object], said: str) -> None:
    with pytest.raises(DataError, match=said):
        seconds_since_1970(pa.array(times), "rows", 5)
