"""Columns and offsets against lists of lists; buckets hold every row once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from troth.tasks import Encoded, Ragged, length_buckets

ROWS = st.lists(st.lists(st.integers(-5, 99), max_size=6), min_size=1, max_size=12)


@given(ROWS, st.data())
def test_take_and_pad_do_what_lists_do(rows: list[list[int]], data: st.DataObject) -> None:
    ragged = Ragged.from_rows(rows)
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8))
    indices = np.array(chosen, dtype=np.int64)
    wanted = [rows[i] for i in chosen]
    taken = ragged.take(indices)
    assert [taken.row(i).tolist() for i in range(len(taken))] == wanted
    width = max((len(row) for row in wanted), default=0)
    padded = ragged.pad(indices, -100)
    assert padded.shape == (len(wanted), width)
    assert padded.tolist() == [row + [-100] * (width - len(row)) for row in wanted]


def test_a_row_that_is_not_there_is_refused() -> None:
    with pytest.raises(IndexError, match="row 2 of 2"):
        Ragged.from_rows([[1], [2]]).row(2)


def test_taking_rows_takes_every_column() -> None:
    ids = Ragged.from_rows([[1, 2], [3], [4, 5, 6]])
    encoded = Encoded({"input_ids": ids}, {"labels": np.array([7, 8, 9])}, ids.lengths, 2)
    part = encoded.take(np.array([2, 0]))
    assert len(part) == 2
    assert part.ragged["input_ids"].values.tolist() == [4, 5, 6, 1, 2]
    assert part.scalars["labels"].tolist() == [9, 7]
    assert part.lengths.tolist() == [3, 2]


@given(st.integers(0, 400), st.integers(1, 40), st.integers(0, 5))
def test_buckets_hold_every_row_once(rows: int, batch_size: int, seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(1, 60, size=rows)
    batches = length_buckets(lengths, batch_size, np.random.default_rng(seed))
    assert sorted(np.concatenate([*batches, np.array([], dtype=np.int64)]).tolist()) == list(range(rows))
    sizes = sorted(len(batch) for batch in batches)
    assert all(size <= batch_size for size in sizes)
    assert sum(size < batch_size for size in sizes) <= 1


def test_buckets_pad_little_and_are_shuffled() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, size=3000)
    batches = length_buckets(lengths, 32, np.random.default_rng(1))
    padding = sum(len(b) * lengths[b].max() for b in batches) / lengths.sum()
    assert padding < 1.05
    longest = [lengths[b].max() for b in batches]
    assert abs(np.corrcoef(np.arange(len(longest)), longest)[0, 1]) < 0.3
    again, other = (length_buckets(lengths, 32, np.random.default_rng(seed)) for seed in (1, 2))
    assert all((a == b).all() for a, b in zip(batches, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(batches, other, strict=True))


def test_a_batch_size_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size = 0"):
        length_buckets(np.array([1, 2]), 0, np.random.default_rng(0))
