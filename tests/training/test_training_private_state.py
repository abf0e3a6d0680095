"""The generator state: apart, for its owner only, used again for nothing else, erased."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from troth.accounting import troth_home
from troth.errors import ResumeError, RunError
from troth.seeds import PrivateRandomness
from troth.training.private_state import PrivateState

SETTING = {"device": "cpu", "physical_batch_size": 8, "versions": ["1"]}


def folder() -> Path:
    return troth_home() / "private" / "entry"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_keys_lie_under_the_home_for_their_owner_alone() -> None:
    randomness = PrivateRandomness.create()
    with PrivateState.opened("entry", "rows", SETTING) as state:
        state.save(4, randomness)
        assert mode(folder()) == 0o700
        assert mode(folder().parent) == 0o700
        assert mode(folder() / "step-4") == 0o600
        back = state.load(4)
    assert back is not None
    assert back.key == randomness.key


def test_a_key_is_not_given_for_another_setting() -> None:
    with PrivateState.opened("entry", "rows", SETTING) as state:
        state.save(4, PrivateRandomness.create())
        assert state.load(5) is None
    for change in ({"device": "cuda"}, {"physical_batch_size": 16}, {"versions": ["2"]}):
        with PrivateState.opened("entry", "rows", {**SETTING, **change}) as other:
            assert other.load(4) is None


def test_a_key_for_other_rows_stops_the_run() -> None:
    with PrivateState.opened("entry", "rows", SETTING) as state:
        state.save(4, PrivateRandomness.create())
    with (
        PrivateState.opened("entry", "other rows", SETTING) as state,
        pytest.raises(ResumeError, match="rows have changed"),
    ):
        state.load(4)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": "zz"}', json.dumps({"key": "00", "rows": "rows"})])
def test_a_damaged_key_counts_as_lost(content: str) -> None:
    with PrivateState.opened("entry", "rows", SETTING) as state:
        (folder() / "step-4").write_text(content)
        assert state.load(4) is None


def test_keys_of_other_steps_are_erased_and_all_at_the_end() -> None:
    with PrivateState.opened("entry", "rows", SETTING) as state:
        for step in (1, 2, 3):
            state.save(step, PrivateRandomness.create())
        state.keep([2, 3])
        assert sorted(p.name for p in folder().iterdir()) == ["step-2", "step-3"]
        state.erase()
    assert not folder().exists()


def test_a_ledger_entry_is_held_by_one_process_at_a_time() -> None:
    with (
        PrivateState.opened("entry", "rows", SETTING),
        pytest.raises(RunError, match="another process is training here"),
        PrivateState.opened("entry", "rows", SETTING),
    ):
        pass
