"""Warnings that empty numbers of their meaning: rows in two splits, and models that say one thing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from troth.config import BuiltinConfig
from troth.data import Splits, Table, from_rows, home
from troth.runs.cautions import constant_predictions, shared_ids


def table(ids: list[str], text: str = "lights on", source: str = "rows") -> Table:
    return from_rows([{"text": f"{text} {i}", "label": "ab"[k % 2], "id": i} for k, i in enumerate(ids)], source)


def test_ids_of_two_splits_are_counted_and_compared() -> None:
    train, test = table(["a", "b", "c", "d"]), table(["c", "x", "b"])
    (line,) = shared_ids(Splits(train, None, test))
    assert "2 of 3 ids of the test split also stand in the train split, 1 of them with equal rows" in line
    other = table(["a", "b", "c", "d"], text="another text")
    (line,) = shared_ids(Splits(train, other, None))
    assert "4 of 4 ids of the validation split" in line and "0 of them with equal rows" in line
    assert len(shared_ids(Splits(train, table(["a"]), table(["a"])))) == 3


def test_no_id_no_warning() -> None:
    train, test = table(["a", "b"]), table(["c", "d"])
    assert shared_ids(Splits(train, None, test)) == ()
    bare = from_rows([{"text": "lights on a", "label": "a"}], "rows")
    assert shared_ids(Splits(train, None, bare)) == ()


def test_the_built_in_corpus_shares_none() -> None:
    splits = home(BuiltinConfig(rows=400, canaries=5), "classification")
    assert splits.test is not None and splits.test.has("id")
    assert shared_ids(splits) == ()


def told(predictions: list[int], *, kind: str = "classification") -> tuple[str, ...]:
    test = table([str(i) for i in range(len(predictions))])
    prepared: Any = SimpleNamespace(
        task=SimpleNamespace(kind=kind, labels=("a", "b")), splits=Splits(table(["t"]), None, test)
    )
    scores = SimpleNamespace(detail={"prediction": np.array(predictions)})
    return constant_predictions(prepared, SimpleNamespace(of=lambda name, table: scores))  # type: ignore[arg-type]


def test_a_classifier_that_says_one_thing_is_named() -> None:
    (line,) = told([1] * 97 + [0] * 3)
    assert "test: 97.0% of the predictions are the label 'b', which 50.0% of the rows have" in line
    assert told([1] * 95 + [0] * 5) == ()
    assert told([1] * 100, kind="tagging") == ()


@pytest.mark.parametrize("share", [0.96, 1.0])
def test_the_share_is_that_of_the_most_frequent_label(share: float) -> None:
    ones = round(100 * share)
    assert f"{share:.1%}" in told([0] * (100 - ones) + [1] * ones)[0]
