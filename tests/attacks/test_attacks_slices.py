"""Slices: each group's area is that of its own rows; small ones are left out and counted."""

from __future__ import annotations

import numpy as np
import pytest

from troth.attacks import auc
from troth.attacks.slices import activity_slices, auc_by_slice, quantile_slices
from troth.errors import DataError


def test_each_slice_has_the_area_of_its_own_rows() -> None:
    generator = np.random.default_rng(1)
    members, others = generator.normal(0.5, 1, 200), generator.normal(0, 1, 160)
    inner, outer = ["a", "b"] * 100, ["a"] * 100 + ["b"] * 60
    (found,) = auc_by_slice(members, others, {"label": (inner, outer)}, prefix="x")
    assert found.name == "x.auc_by_label" and found.value == auc(members, others).value
    assert found.groups is not None
    exact = auc(members[::2], others[:100], 0.975)  # two slices share 5 %
    group = found.groups["a"]
    assert (group.value, group.low, group.high, group.n) == (
        exact.value,
        exact.interval.low,
        exact.interval.high,
        200,
    )


def test_slices_of_members_alone_are_held_against_all_others() -> None:
    members, others = np.arange(80.0), np.arange(50.0)
    (found,) = auc_by_slice(members, others, {"user_activity": (["1"] * 40 + ["2"] * 40, None)}, prefix="x")
    assert found.groups is not None and {g.n for g in found.groups.values()} == {90}
    assert found.groups["2"].value == auc(members[40:], others).value
    assert found.protocol["nonmembers"] == "all"


def test_small_slices_are_left_out_and_counted() -> None:
    members, others = np.arange(80.0), np.arange(50.0)
    slicing = {"label": (["a"] * 79 + ["rare"], ["a"] * 50)}
    (found,) = auc_by_slice(members, others, slicing, prefix="x")
    assert found.groups is not None and set(found.groups) == {"a"}
    assert found.protocol["slices_left_out"] == 1
    (none,) = auc_by_slice(members[:9], others[:9], {"label": (["a"] * 9, ["a"] * 9)}, prefix="x")
    assert not none.supported and none.groups == {}


def test_slices_must_fit_the_scores() -> None:
    with pytest.raises(DataError, match="slices by label: one for each of 4 members"):
        auc_by_slice(np.arange(4.0), np.arange(4.0), {"label": (["a"], ["a"] * 4)}, prefix="x")


def test_ranges_cover_every_value_once() -> None:
    values = np.random.default_rng(0).integers(1, 30, 500)
    names = quantile_slices(values, 4, "words")
    for value, name in zip(values, names, strict=True):
        ends = [int(part) for part in name.removesuffix(" words").split(" to ")]
        assert ends[0] <= value <= ends[-1]
    assert 3 <= len(set(names)) <= 4
    assert quantile_slices(np.array([5, 5, 5])) == ["5 tokens"] * 3


def test_activity_counts_a_users_rows() -> None:
    assert activity_slices(["a", "b", "a", *["c"] * 6]) == [
        "2 to 5 rows",
        "1 row",
        "2 to 5 rows",
        *["6 to 20 rows"] * 6,
    ]
