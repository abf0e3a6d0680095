"""A registry from a Parquet file of events, one row each, in any order, in bounded memory.

The file is read once, a batch at a time. Rows are dealt by a hash of their device into files of about a million rows
each, which are then counted one after the other (a grace hash join): all rows of a device lie in one file, so that the
counts are exact whatever the hash does, and what lies in memory at a time is one file and a few columns.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from troth.errors import DataError, RunError
from troth.federated.array_folder import open_arrays, save_arrays
from troth.federated.client_names import ClientNames
from troth.federated.event_times import absolute_periods, period_numbers, seconds_since_1970
from troth.federated.registry import Registry, registry_from_counts
from troth.files import failing_in_one_line

__all__ = ["open_names", "registry_from_parquet"]

_BATCH = 1 << 17  # rows read at a time
_BUCKET = 1 << 20  # rows of a bucket, about
_MOST_BUCKETS = 256
_BUFFER = 1 << 20  # bytes of a column chunk read at a time
_KIND = "list of device names"
_UNKNOWN = np.iinfo(np.int64).min
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, the golden ratio times 2^64: spreads what it multiplies over the upper bits


def registry_from_parquet(
    path: Path,
    device: str,
    *,
    time: str | None = None,
    period_seconds: float = 86_400.0,
    names: Path | None = None,
    scratch: Path | None = None,
) -> Registry:
    """Return the registry of the devices in a Parquet file, numbered in the order in which they first appear.

    Args:
        path: the file; one row is one example of one device.
        device: the column that says whose it is: whole numbers or text.
        time: the column that says when it came: a date, a time stamp, seconds since 1970 or ISO 8601 text; None leaves
            `last_seen` unknown. Rows without a time count, and do not tell when the device was seen.
        period_seconds: length of a period of `last_seen`; periods are whole since 1970, and that of the earliest time
            in the file is number 1.
        names: a folder to write the devices' ids to, as text, device after device; read with `open_names`. It must
            not exist.
        scratch: where the temporary files go, about as large as the two columns; None is the system's place for such.

    Raises:
        DataError: a row without a device (named), no rows, no such column, or one of another type.
        ConfigError: more periods than 65,535.
        RunError: the disk is full, or the folder for names exists.
    """
    if names is not None and names.exists():
        raise RunError(f"{names}: is there already; remove it, or choose another folder for the names of devices")
    with contextlib.ExitStack() as stack:
        stack.enter_context(failing_in_one_line(scratch or Path(tempfile.gettempdir())))
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="troth-registry-", dir=scratch)))
        dealt = _deal(path, device, time, period_seconds, place)
        found = _count(dealt, keep_names=names is not None)
    order = np.argsort(found.first, kind="stable")
    if names is not None:
        _save_names(found.names, order, names)
    return registry_from_counts(found.counts[order], found.last_seen[order])


def _save_names(parts: list[pa.Array], order: NDArray[np.integer], folder: Path) -> None:
    """Write names in the order of their devices; `parts` are let go of."""
    joined = ClientNames.from_arrow(pa.concat_arrays(parts))
    parts.clear()
    called = joined.take(order)
    del joined
    save_arrays(folder, _KIND, {"offsets": called.offsets, "text": called.text}, {})
    del called
    pa.default_memory_pool().release_unused()


def open_names(folder: Path) -> ClientNames:
    """Return the device names that `registry_from_parquet` wrote, memory-mapped.

    Raises:
        DataError: nothing is there, or it is damaged.
    """
    arrays, _ = open_arrays(folder, _KIND)
    return ClientNames(arrays["offsets"], arrays["text"])


@dataclass(frozen=True)
class _Dealt:
    """The bucket files, how many events are in them, and the earliest of their periods."""

    files: list[Path]
    rows: int
    earliest: int


@dataclass(frozen=True)
class _Found:
    """What was counted, a device each, bucket after bucket: [devices] each."""

    counts: NDArray[np.uint32]
    first: NDArray[np.integer]
    last_seen: NDArray[np.uint16]
    names: list[pa.Array] = field(default_factory=list)


def _deal(path: Path, device: str, time: str | None, period_seconds: float, place: Path) -> _Dealt:
    """Write the events of a file into buckets by device."""
    earliest = np.iinfo(np.int64).max
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(_opened(path, device, time))
        rows = file.metadata.num_rows
        if not rows:
            raise DataError(f"{path}: has no rows; give the devices some data")
        buckets = min(_MOST_BUCKETS, -(-rows // _BUCKET))
        files = [place / f"{bucket}.arrow" for bucket in range(buckets)]
        writers: list[Any] = []
        for row, batch in _batches(file, path, device, time):
            ids = _ids(batch.column(0), path, device, row)
            periods = np.full(len(ids), _UNKNOWN)
            if time is not None:
                periods = absolute_periods(seconds_since_1970(batch.column(1), str(path), row), period_seconds)
                earliest = min(earliest, int(periods[periods != _UNKNOWN].min(initial=earliest)))
            columns = [ids, pa.array(np.arange(row, row + len(ids))), pa.array(periods)]
            events = pa.record_batch(columns, names=["device", "row", "period"])
            if not writers:
                writers = [stack.enter_context(pa.ipc.new_stream(str(f), events.schema)) for f in files]
            _write(events, _buckets(ids, buckets), writers)
    return _Dealt(files, rows, earliest)


def _opened(path: Path, device: str, time: str | None) -> pq.ParquetFile:
    """Return the file, its columns looked at."""
    try:
        file = pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)
    except (OSError, pa.ArrowException):
        raise DataError(f"{path}: is missing or no Parquet file; mend the path") from None
    for name in (device, *([] if time is None else [time])):
        if file.schema_arrow.names.count(name) != 1:
            known = ", ".join(file.schema_arrow.names[:20])
            raise DataError(f"{path}: has no column {name!r}, or several; columns there: {known}")
    return file


def _batches(file: pq.ParquetFile, path: Path, device: str, time: str | None) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield the number of a batch's first row, and its columns: device, then time."""
    wanted = [device] if time is None or time == device else [device, time]
    row = 0
    try:
        for batch in file.iter_batches(batch_size=_BATCH, columns=wanted, use_threads=False):
            yield row, batch.select(wanted if time is None else [device, time])
            row += len(batch)
    except (OSError, pa.ArrowException):
        raise DataError(f"{path}: is damaged after row {row}; make the file again") from None


def _ids(column: pa.Array, path: Path, device: str, row: int) -> pa.Array:
    """Return device ids as 64-bit integers or text, every one there."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if not text and not pa.types.is_integer(column.type):
        raise DataError(f"{path}: column {device!r} has type {column.type}; a device is a whole number or a text")
    missing = pc.is_null(column)
    if text:
        missing = pc.or_kleene(missing, pc.fill_null(pc.equal(column, ""), True))
    if pc.any(missing).as_py():
        where = row + pc.index(missing, True).as_py()
        raise DataError(f"{path}: row {where} has no device in column {device!r}; give each row one, or drop such rows")
    if text:
        return column.cast(pa.string())  # large strings would be grouped ten times slower
    return column if pa.types.is_uint64(column.type) else column.cast(pa.int64())


def _buckets(ids: pa.Array, buckets: int) -> NDArray[np.uint8]:
    """Return [rows] a bucket for each id, the same for equal ids."""
    if pa.types.is_string(ids.type):
        names = ClientNames.from_arrow(ids)
        starts = names.offsets[:-1]
        place = np.arange(len(names.text)) - np.repeat(starts, np.diff(names.offsets))
        powers = np.cumprod(np.full(int(place.max()) + 1, _MULTIPLIER, dtype=np.uint64))
        keys = np.add.reduceat(names.text * powers[place], starts)  # no text is empty
    else:
        keys = ids.to_numpy().astype(np.uint64)
    mixed = (keys ^ (keys >> np.uint64(32))) * np.uint64(_MULTIPLIER)
    chosen: NDArray[np.uint8] = ((mixed >> np.uint64(32)) % np.uint64(buckets)).astype(np.uint8)
    return chosen


def _write(events: pa.RecordBatch, buckets: NDArray[np.uint8], writers: list[Any]) -> None:
    """Append each event to the file of its bucket."""
    sorted_events = events.take(pa.array(np.argsort(buckets, kind="stable")))
    ends = np.cumsum(np.bincount(buckets, minlength=len(writers)))
    for bucket, (start, end) in enumerate(zip(np.r_[0, ends[:-1]], ends, strict=True)):
        if end > start:
            writers[bucket].write_batch(sorted_events.slice(start, end - start))


def _count(dealt: _Dealt, *, keep_names: bool) -> _Found:
    """Return the devices of all buckets: rows, first row, last period; each bucket is removed once it is counted."""
    narrow = np.uint32 if dealt.rows < 1 << 32 else np.int64
    counts, first, seen, names = [], [], [], []
    wanted = [("row", "count"), ("row", "min"), ("period", "max")]
    for file in dealt.files:
        with pa.OSFile(str(file)) as source:
            events = pa.ipc.open_stream(source).read_all()
        file.unlink()
        found = events.group_by("device", use_threads=False).aggregate(wanted)
        counts.append(found["row_count"].to_numpy().astype(np.uint32))
        first.append(found["row_min"].to_numpy().astype(narrow))
        seen.append(period_numbers(found["period_max"].to_numpy(), dealt.earliest))
        if keep_names:
            names.append(found["device"].combine_chunks().cast(pa.large_string()))
        del events, found
    pa.default_memory_pool().release_unused()
    return _Found(np.concatenate(counts), np.concatenate(first), np.concatenate(seen), names)
