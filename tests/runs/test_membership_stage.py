"""Who is held out: whole privacy units, and about the share that was asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from troth.config import parse
from troth.data import from_rows
from troth.data.table import Splits
from troth.errors import DataError
from troth.runs.membership_stage import _held_out
from troth.runs.stages import Prepared, prepare
from troth.training import SilentProgress


def prepared(rows: int, user_unit: bool) -> Prepared:
    file = {
        "run": {"name": "x", "seed": 1},
        "model": {"preset": "tiny-bert"},
        "data": {"builtin": {"name": "home", "rows": 200}},
        "task": {"kind": "classification"},
    }
    if user_unit:
        file["privacy"] = {"target_epsilon": 8.0, "target_delta": 1e-3, "unit": "user"}
    made = prepare(parse(file), Path(), SilentProgress())
    table = from_rows(
        [
            {"text": f"t{i}", "label": "a", "id": str(i), "user": f"u{i % 7}", "original": str(i - i % 3)}
            for i in range(rows)
        ],
        "rows",
    )
    return Prepared(made.config, made.base, Splits(table), made.task, made.seeds, made.device, made.progress)


@pytest.mark.parametrize(("user_unit", "key"), [(False, lambda i: i - i % 3), (True, lambda i: i % 7)])
def test_units_are_held_out_whole(user_unit: bool, key: object) -> None:
    inner, outer = _held_out(prepared(84, user_unit), 0.5)
    assert sorted([*inner, *outer]) == list(range(84))
    assert {key(i) for i in inner}.isdisjoint({key(i) for i in outer})  # type: ignore[operator]
    assert 42 <= len(outer) < 42 + (12 if user_unit else 3)
    again, _ = _held_out(prepared(84, user_unit), 0.5)
    assert np.array_equal(inner, again)


def test_a_share_that_leaves_nobody_is_refused() -> None:
    with pytest.raises(DataError, match="must fall on each side"):
        _held_out(prepared(84, True), 0.99)
