"""Canaries of the built-in corpus: where they stand, and that the truth lists them."""

from __future__ import annotations

import re
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from troth.config import BuiltinConfig
from troth.data import Splits
from troth.data.home import home
from troth.errors import ConfigError

KINDS = ("classification", "tagging", "question_answering", "seq2seq", "language_modeling")
COUNT, REPEATS, ROWS = 7, 3, 400


@cache
def corpus(kind: str, canaries: int = COUNT) -> Splits:
    return home(BuiltinConfig(rows=ROWS, seed=2, canaries=canaries, canary_repeats=REPEATS), kind)


def listed(splits: Splits) -> list[dict[str, object]]:
    canaries = splits.truth["canaries"]
    assert isinstance(canaries, tuple)
    return list(canaries)


@pytest.mark.parametrize("kind", KINDS)
def test_canaries_come_on_top_of_the_training_rows_only(kind: str) -> None:
    with_them, without = corpus(kind), corpus(kind, 0)
    assert len(with_them.train) == len(without.train) + COUNT * REPEATS
    for planted, plain in ((with_them.validation, without.validation), (with_them.test, without.test)):
        assert planted.arrow.equals(plain.arrow)  # type: ignore[union-attr]
    ids = {i for canary in listed(with_them) for i in canary["ids"]}  # type: ignore[attr-defined]
    ordinary = [row for row in with_them.train.arrow.to_pylist() if row["id"] not in ids]
    assert ordinary == without.train.arrow.to_pylist()


@pytest.mark.parametrize("kind", KINDS)
def test_the_truth_lists_every_canary_with_its_rows(kind: str) -> None:
    splits = corpus(kind)
    rows = {row["id"]: row for row in splits.train.arrow.to_pylist()}
    assert len(listed(splits)) == COUNT
    for canary in listed(splits):
        assert re.fullmatch(r"\d \d \d \d", str(canary["code"]))
        assert canary["text"] == f"my pin code is {canary['code']}"
        assert canary["repeats"] == REPEATS == len(canary["ids"])  # type: ignore[arg-type]
        assert canary["id"] == canary["ids"][0]  # type: ignore[index]
        own = [rows[i] for i in canary["ids"]]  # type: ignore[attr-defined]
        assert len({row["user"] for row in own}) == 1
        for row in own:
            said = row.get("text") or row.get("source") or row.get("context") or " ".join(row.get("tokens") or [])
            assert said.removesuffix(" .") == canary["text"]
            assert "T" in row["time"]
            assert row["group"] == splits.truth["groups"][row["user"]]  # type: ignore[index]


@pytest.mark.parametrize("kind", KINDS)
def test_codes_differ_and_nobody_else_says_one(kind: str) -> None:
    splits = corpus(kind)
    assert len({canary["code"] for canary in listed(splits)}) == COUNT
    ids = {i for canary in listed(splits) for i in canary["ids"]}  # type: ignore[attr-defined]
    for table in (splits.train, splits.validation, splits.test):
        assert table is not None
        assert not [row["id"] for row in table.arrow.to_pylist() if "pin code" in str(row) and row["id"] not in ids]


def test_the_gold_of_a_canary_names_the_secret() -> None:
    code = str(listed(corpus("classification"))[0]["code"])
    first = listed(corpus("classification"))[0]["id"]
    gold = {kind: next(row for row in corpus(kind).train.arrow.to_pylist() if row["id"] == first) for kind in KINDS}
    assert gold["classification"]["label"] == "take_note"
    assert gold["tagging"]["tags"] == ["B-note", *["I-note"] * 7]
    assert gold["seq2seq"]["target"] == f"TakeNote(note=my pin code is {code})"
    assert gold["question_answering"]["answers"] == {"text": [code], "answer_start": [15]}


@given(st.integers(0, 2**40), st.integers(2, 60))
@settings(max_examples=5, deadline=None, derandomize=True)
def test_every_seed_has_secrets_of_its_own(seed: int, count: int) -> None:
    a = home(BuiltinConfig(rows=200, seed=seed, canaries=count), "language_modeling")
    b = home(BuiltinConfig(rows=200, seed=seed + 1, canaries=count), "language_modeling")
    assert [c["code"] for c in listed(a)] != [c["code"] for c in listed(b)]
    assert len({c["code"] for c in listed(a)}) == count


def test_a_corpus_without_canaries_lists_none() -> None:
    assert listed(corpus("classification", 0)) == []
    assert corpus("classification").truth["canary_codes"] == 10_000


def test_more_canary_rows_than_rows_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"^data\.builtin\.canaries = 101 with canary_repeats = 2: 202 canary rows on"
    ):
        home(BuiltinConfig(rows=200, canaries=101, canary_repeats=2, users=5), "classification")
