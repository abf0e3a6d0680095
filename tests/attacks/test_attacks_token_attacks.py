"""Scores from tokens: equal to naive loops over rows, by hand on small rows, and refusing what does not fit."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from troth.attacks.token_attacks import margin_scores, min_k_plus_plus_scores, min_k_scores, zlib_scores
from troth.errors import DataError

VALUES = st.floats(-30, 0, allow_subnormal=False)
ROWS = st.lists(st.lists(st.tuples(VALUES, VALUES, st.floats(0.01, 5), st.booleans()), max_size=12), min_size=1)
SHARES = st.sampled_from([0.05, 0.2, 0.3, 0.5, 1.0])


def offsets_of(rows: list[list[tuple[float, float, float, bool]]]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)


def column(rows: list[list[tuple[float, float, float, bool]]], place: int) -> np.ndarray:
    return np.array([values[place] for row in rows for values in row], dtype=bool if place == 3 else float)


def lowest_mean(values: list[float], share: float) -> float:
    count = max(1, math.floor(share * len(values) + 1e-9))
    return sum(sorted(values)[:count]) / count if values else math.nan


@settings(deadline=None)
@given(ROWS, SHARES)
def test_min_k_is_the_naive_loop(rows: list[list[tuple[float, float, float, bool]]], share: float) -> None:
    found = min_k_scores(offsets_of(rows), column(rows, 0), share=share)
    expected = [lowest_mean([values[0] for values in row], share) for row in rows]
    np.testing.assert_allclose(found, expected, atol=1e-9, rtol=0)


@settings(deadline=None)
@given(ROWS, SHARES)
def test_min_k_plus_plus_is_the_naive_loop(rows: list[list[tuple[float, float, float, bool]]], share: float) -> None:
    found = min_k_plus_plus_scores(offsets_of(rows), *(column(rows, place) for place in range(3)), share=share)
    expected = [lowest_mean([(value - mean) / width for value, mean, width, _ in row], share) for row in rows]
    np.testing.assert_allclose(found, expected, atol=1e-9, rtol=1e-9)


@settings(deadline=None)
@given(ROWS)
def test_zlib_and_margins_are_the_naive_loops(rows: list[list[tuple[float, float, float, bool]]]) -> None:
    offsets, sizes = offsets_of(rows), np.arange(len(rows)) + 8
    totals = [
        sum(values[0] for values in row) / size if row else math.nan for row, size in zip(rows, sizes, strict=True)
    ]
    np.testing.assert_allclose(zlib_scores(offsets, column(rows, 0), sizes), totals, atol=1e-9, rtol=0)
    every = [min((values[1] for values in row), default=math.nan) for row in rows]
    inside = [min((v[1] for v in row if v[3]), default=every[place]) for place, row in enumerate(rows)]
    np.testing.assert_array_equal(margin_scores(offsets, column(rows, 1)), every)
    np.testing.assert_array_equal(margin_scores(offsets, column(rows, 1), column(rows, 3)), inside)


def test_a_row_by_hand() -> None:
    offsets = np.array([0, 0, 10, 11])
    logs = np.array([-1.0, -9.0, -2.0, -7.0, -1, -1, -1, -1, -1, -1, -3.0])
    assert np.isnan(min_k_scores(offsets, logs)[0])
    assert min_k_scores(offsets, logs)[1:].tolist() == [-8.0, -3.0]  # a fifth of ten; at least one
    surprised = min_k_plus_plus_scores(offsets, logs, np.full(11, -1.0), np.full(11, 2.0))
    assert surprised[1:].tolist() == [-3.5, -1.0]
    assert zlib_scores(offsets, logs, np.array([9, 5, 10]))[1:].tolist() == [-5.0, -0.3]


def test_a_sure_distribution_is_no_division_by_zero() -> None:
    found = min_k_plus_plus_scores(np.array([0, 1, 2]), np.array([0.0, -9.0]), np.zeros(2), np.zeros(2))
    assert found[0] == 0
    assert -np.inf < found[1] < -1e9


def test_no_rows_are_no_scores() -> None:
    assert min_k_scores(np.array([0]), np.zeros(0)).shape == (0,)
    assert margin_scores(np.array([0]), np.zeros(0)).shape == (0,)


@pytest.mark.parametrize(
    ("offsets", "values", "message"),
    [
        ([0, 2], [0.0], "ascend from 0 to the number of tokens, 1"),
        ([0, 2, 1], [0.0], "ascend"),
        ([1, 1], [0.0], "ascend"),
        ([0.0, 1.0], [0.0], "give integers"),
        ([0, 1, 2], [0.0, np.nan], "tokens of row 1: nan"),
        ([0, 0, 1, 2], [-np.inf, 0.0], "tokens of row 1: -inf"),
    ],
)
def test_columns_that_do_not_fit_are_refused(offsets: list[float], values: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        min_k_scores(np.array(offsets), np.array(values))


def test_shares_bytes_and_entities_that_do_not_fit_are_refused() -> None:
    offsets, values = np.array([0, 1]), np.array([-1.0])
    for share in (0.0, 1.5):
        with pytest.raises(DataError, match="share"):
            min_k_scores(offsets, values, share=share)
    with pytest.raises(DataError, match="row 0 is 0"):
        zlib_scores(offsets, values, np.array([0]))
    with pytest.raises(DataError, match="for 1 rows"):
        zlib_scores(offsets, values, np.array([8, 8]))
    with pytest.raises(DataError, match="one bool each"):
        margin_scores(offsets, values, np.array([1]))
