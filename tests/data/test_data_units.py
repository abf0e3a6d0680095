"""Which rows stand or fall together."""

from __future__ import annotations

import numpy as np
import pytest

from troth.data import Units, from_rows, privacy_units
from troth.errors import ConfigError


def test_without_further_columns_every_row_is_a_unit() -> None:
    units = privacy_units(from_rows([{"text": "a"}, {"text": "b"}], "rows"), "example")
    assert len(units) == 2
    assert units.all_single


def test_augmentations_belong_to_their_original() -> None:
    rows = [
        {"id": "1", "text": "she sings", "original": None},
        {"id": "2", "text": "rain", "original": None},
        {"id": "3", "text": "he sings", "original": "1"},
        {"id": "4", "text": "they sing", "original": "1"},
        {"id": "5", "text": "an orphan", "original": "99"},
        {"id": "6", "text": "another of it", "original": "99"},
    ]
    units = privacy_units(from_rows(rows, "rows"), "example")
    assert [units.rows(u).tolist() for u in range(len(units))] == [[0, 2, 3], [1], [4, 5]]
    assert not units.all_single


def test_all_rows_of_a_user_are_one_unit() -> None:
    table = from_rows([{"text": t, "user": u} for t, u in zip("abcde", "xyxxy", strict=True)], "rows")
    units = privacy_units(table, "user")
    assert [units.rows(u).tolist() for u in range(len(units))] == [[0, 2, 3], [1, 4]]
    assert len(privacy_units(table, "example")) == 5


def test_users_need_a_column() -> None:
    with pytest.raises(ConfigError, match=r"needs data\.user"):
        privacy_units(from_rows([{"text": "a"}], "rows"), "user")


def test_every_row_lies_in_exactly_one_unit() -> None:
    keys = np.random.default_rng(0).integers(50, size=500).tolist()
    units = Units.of(keys)
    assert sorted(units.order) == list(range(500))
    assert all(len({keys[r] for r in units.rows(u)}) == 1 for u in range(len(units)))
    assert np.array_equal(Units.single(4).order, Units.of("abcd").order)
