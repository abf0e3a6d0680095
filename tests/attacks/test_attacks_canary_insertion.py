"""Canaries in the tables of every task: rows, labels, users, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from troth.attacks.canaries import CanaryKey, CanaryPlan, draw_key
from troth.attacks.canary_insertion import insert
from troth.data import Table, from_rows, privacy_units
from troth.errors import ConfigError, DataError
from troth.seeds import PrivateRandomness

PIN = "my pin code is {d}{d}{d}{d}"
ROWS: dict[str, dict[str, Any]] = {
    "classification": {"text": "play jazz", "label": "music"},
    "tagging": {"tokens": ["play", "some", "jazz"], "tags": ["O", "B-genre", "I-genre"]},
    "question_answering": {
        "question": "what",
        "context": "play jazz",
        "answers": {"text": ["jazz"], "answer_start": [5]},
    },
    "seq2seq": {"source": "play", "target": "jazz"},
    "language_modeling": {"text": "play jazz"},
}


def table(kind: str, count: int = 20) -> Table:
    return from_rows(
        [{**ROWS[kind], "id": f"r{i}", "user": f"u{i % 4}", "group": "ab"[i % 2]} for i in range(count)], "t"
    )


def key_of(plan: CanaryPlan, seed: int = 1) -> CanaryKey:
    return draw_key(plan, PrivateRandomness.create(insecure_seed=seed))


def spoken(plan: CanaryPlan, key: CanaryKey, canary: int) -> str:
    return " ".join(plan.parsed.complete(plan.parsed.digits(key.codes)[canary]))


@pytest.mark.parametrize("kind", ROWS)
def test_each_included_canary_stands_in_as_often_as_planned(kind: str) -> None:
    plan = CanaryPlan(PIN, count=6, repeats=(1, 3), inclusion_probability=0.5)
    key = key_of(plan, 2)
    assert 0 < key.included.sum() < 6
    before = table(kind)
    done = insert(plan, key, before, kind)
    owners = done.canary_of_row
    assert (owners[:20] == -1).all()
    counts = [int((owners == canary).sum()) for canary in range(6)]
    assert counts == (plan.repeats_of * key.included).tolist()
    assert len(done.table) == len(owners) == 20 + sum(counts)
    assert done.share == sum(counts) / len(owners)
    for role in before.roles:
        assert done.table.column(role)[:20] == before.column(role)
    assert len(set(done.table.column("id"))) == len(done.table)


@pytest.mark.parametrize("kind", ROWS)
def test_the_text_is_the_completed_pattern(kind: str) -> None:
    plan = CanaryPlan(PIN, count=2, repeats=(2,))
    key = key_of(plan)
    done = insert(plan, key, table(kind), kind)
    for row in (20, 23):
        text, code = spoken(plan, key, (row - 20) // 2), " ".join(spoken(plan, key, (row - 20) // 2).split()[4:])
        found = {role: done.table.column(role)[row] for role in done.table.roles}
        if kind == "tagging":
            assert " ".join(found["tokens"]) == text
            assert found["tags"] == ["O"] * 4 + ["B-canary"] + ["I-canary"] * 3
        elif kind == "question_answering":
            start = found["answers"]["answer_start"][0]
            assert found["answers"]["text"] == [code]
            assert found["context"][start : start + len(code)] == code
        elif kind == "seq2seq":
            assert (found["source"], found["target"]) == ("my pin code is", code)
        else:
            assert found["text"] == text
            assert kind == "language_modeling" or found["label"] == "canary"


def test_a_canary_is_one_new_user_however_often_it_is_repeated() -> None:
    plan = CanaryPlan(PIN, count=3, repeats=(10,))
    done = insert(plan, key_of(plan), table("classification"), "classification")
    units = privacy_units(done.table, "user")
    assert len(units) == 4 + 3
    assert sorted(len(units.rows(u)) for u in range(7)) == [5, 5, 5, 5, 10, 10, 10]
    assert all(len({done.canary_of_row[row] for row in units.rows(u)}) == 1 for u in range(4, 7))
    assert set(done.table.column("group")) == {"a", "b"}


def test_existing_labels_are_used_as_the_data_has_them() -> None:
    plan = CanaryPlan("call {d}{d} or {d}", count=1, repeats=(1,), label="genre")
    done = insert(plan, key_of(plan), table("tagging"), "tagging")
    assert done.table.column("tags")[-1] == ["O", "B-genre", "I-genre", "O", "B-genre"]
    short = from_rows([{"tokens": ["jazz"], "tags": ["B-genre"]}], "t")
    done = insert(plan, key_of(plan), short, "tagging")
    assert done.table.column("tags")[-1] == ["O", "B-genre", "B-genre", "O", "B-genre"]
    plan = CanaryPlan(PIN, count=1, repeats=(1,), label="music")
    done = insert(plan, key_of(plan), table("classification"), "classification")
    assert set(done.table.column("label")) == {"music"}


def test_a_table_without_ids_and_users_stays_so() -> None:
    plan = CanaryPlan(PIN, count=2, repeats=(1,))
    done = insert(plan, key_of(plan), from_rows([ROWS["classification"]], "t"), "classification")
    assert done.table.roles == ("text", "label")


def test_nobody_included_leaves_the_table_as_it_was() -> None:
    plan = CanaryPlan(PIN, count=2, repeats=(1,))
    key = key_of(plan)
    nobody = CanaryKey(key.codes, np.zeros(2, dtype=np.bool_), key.decoys, key.plan)
    done = insert(plan, nobody, table("classification"), "classification")
    assert len(done.table) == 20
    assert done.share == 0


def test_what_does_not_fit_is_refused_in_one_line() -> None:
    plan = CanaryPlan(PIN, count=2, repeats=(1,))
    key = key_of(plan)
    with pytest.raises(ConfigError, match="the data has no such label"):
        other = CanaryPlan(PIN, count=2, repeats=(1,), label="nothing")
        insert(other, key_of(other), table("tagging"), "tagging")
    with pytest.raises(ConfigError, match="has no labels"):
        other = CanaryPlan(PIN, count=2, repeats=(1,), label="music")
        insert(other, key_of(other), table("language_modeling"), "language_modeling")
    taken = from_rows([{"text": "x", "label": "canary"}], "t")
    with pytest.raises(DataError, match="has the label 'canary' already"):
        insert(plan, key, taken, "classification")
    twice = insert(plan, key, table("language_modeling"), "language_modeling").table
    with pytest.raises(DataError, match="is there already"):
        insert(plan, key, twice, "language_modeling")
    with pytest.raises(ConfigError, match="must start with words"):
        bare = CanaryPlan("{d}{d} it is", count=2, repeats=(1,))
        insert(bare, key_of(bare), table("seq2seq"), "seq2seq")
    with pytest.raises(DataError, match="does not fit the plan"):
        insert(CanaryPlan(PIN, count=3), key, table("classification"), "classification")
