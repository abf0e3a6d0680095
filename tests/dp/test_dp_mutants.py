"""Every planted defect is caught, and nothing is caught where none was planted."""

from __future__ import annotations

import pytest
from mutants import CAUGHT, MUTANTS, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_defect_is_caught(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    for catcher in mutant.catchers.values():
        catcher()
    mutant.plant(monkeypatch)
    for catcher in mutant.catchers.values():
        with pytest.raises(CAUGHT):
            catcher()


def test_there_are_enough_of_them() -> None:
    assert len({m.name for m in MUTANTS}) == len(MUTANTS) >= 25
