"""Table, fingerprint and row hashes: what they promise, whatever Arrow does below."""

from __future__ import annotations

import hashlib

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from troth.data import ROLES, Splits, Table, from_rows, row_hashes
from troth.data.table import table_of
from troth.errors import DataError

ANSWER = {"text": ["b", "é"], "answer_start": [0, 3]}
ROWS = [
    {"text": "play jazz", "label": "music", "tokens": ["play", "jazz"], "tags": ["O", "B-x"], "time": 1.5, "id": 7},
    {"text": "", "label": "light", "tokens": ["on"], "tags": ["O"], "time": 2.0, "id": "8"},
    {"text": "größer 日本 😀", "label": "music", "tokens": ["größer"], "tags": ["B-y"], "time": -3.25, "id": 9},
]

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
row_lists = st.lists(
    st.fixed_dictionaries(
        {
            "text": words,
            "label": words,
            "tokens": st.lists(words, max_size=3),
            "answers": st.lists(st.tuples(words, st.integers(0, 9)), max_size=2).map(
                lambda pairs: {"text": [t for t, _ in pairs], "answer_start": [s for _, s in pairs]}
            ),
            "original": st.none() | words,
            "time": st.floats(allow_nan=False),
        }
    ),
    min_size=1,
    max_size=6,
)


def test_columns_come_back_as_python_values():
    table = from_rows([{**ROWS[0], "answers": ANSWER}], "here")
    assert len(table) == 1
    assert table.source == "here"
    assert table.column("id") == ["7"]
    assert table.column("tokens") == [["play", "jazz"]]
    assert table.column("answers") == [ANSWER]
    assert table.column("time") == [1.5]
    assert table.has("label")
    assert not table.has("user")


def test_roles_stand_in_the_order_of_ROLES():
    table = from_rows([{"label": "b", "text": "a"}], "here")
    assert table.roles == ("text", "label")
    assert [role for role in ROLES if table.has(role)] == list(table.roles)


def test_a_missing_column_is_named():
    with pytest.raises(DataError, match=r"^here: no column plays the role 'user'; roles here: text$"):
        from_rows([{"text": "a"}], "here").column("user")


def test_from_rows_refuses_what_is_no_role():
    with pytest.raises(DataError, match=r"^here: 'intent' is no role; roles: text, label"):
        from_rows([{"text": "a", "intent": "b"}], "here")


@pytest.mark.parametrize(
    "row", [{"tokens": [1, 2]}, {"tokens": "play jazz"}, {"answers": {"text": "a"}}, {"answers": 3}, {"time": {}}]
)
def test_from_rows_refuses_a_value_of_the_wrong_type(row):
    good = {"tokens": ["a"], "answers": ANSWER, "time": 1.0}
    role = next(iter(row))
    with pytest.raises(DataError, match=f"^here: a value of '{role}' has not the type of that role$"):
        from_rows([{role: good[role]}, row], "here")


def test_a_table_lies_in_memory_and_is_its_own_data_set():
    table, same = from_rows(ROWS, "here"), from_rows(ROWS, "here")
    assert isinstance(table.dataset, datasets.Dataset)
    assert table.dataset.cache_files == []
    assert table.dataset._fingerprint != same.dataset._fingerprint  # `datasets` must not mistake one for the other


def test_take_orders_repeats_and_may_be_empty():
    table = from_rows(ROWS, "here")
    assert table.take([2, 0, 2]).column("id") == ["9", "7", "9"]
    assert table.take(np.array([1], dtype=np.int32)).column("label") == ["light"]
    assert len(table.take([])) == 0
    assert table.take([0]).source == "here"


@pytest.mark.parametrize("index", [3, -1, 100])
def test_take_refuses_an_index_outside(index):
    with pytest.raises(DataError, match=f"^here: no row at index {index}; the table has 3 rows$"):
        from_rows(ROWS, "here").take([0, index])


def test_splits_default_to_train_alone():
    splits = Splits(from_rows(ROWS, "here"))
    assert splits.validation is None
    assert splits.test is None
    assert splits.truth == {}


@settings(deadline=None, derandomize=True, max_examples=40)
@given(rows=row_lists, cut=st.integers(0, 6))
def test_fingerprint_knows_no_chunks_slices_or_column_order(rows, cut):
    table = from_rows(rows, "a")
    arrow = table.arrow
    cut = min(cut, len(rows))
    chunked = pa.concat_tables([arrow.slice(0, cut), arrow.slice(cut)])
    shuffled = arrow.select(list(reversed(arrow.column_names)))
    padded = pa.concat_tables([arrow, arrow]).combine_chunks().slice(len(rows), len(rows))
    for other in (chunked, shuffled, padded, table.take(range(len(rows))).arrow):
        assert table_of(other, "b").fingerprint == table.fingerprint


@settings(deadline=None, derandomize=True, max_examples=50)
@given(one=row_lists, two=row_lists)
def test_fingerprints_are_equal_when_the_rows_are(one, two):
    a, b = from_rows(one, "a"), from_rows(two, "b")
    same = a.arrow.schema.equals(b.arrow.schema) and a.arrow.equals(b.arrow)
    # -0.0 equals 0.0 for Arrow; as bytes they differ
    if same and repr(a.column("time")) != repr(b.column("time")):
        return
    assert (a.fingerprint == b.fingerprint) == same


def _moved(rows):
    return [
        [rows[1], rows[0], rows[2]],
        rows[:2],
        [*rows, rows[0]],
        [{**rows[0], "label": "Music"}, *rows[1:]],
        [{**rows[0], "text": "play jazz "}, *rows[1:]],
        [{**rows[0], "tokens": ["play jazz"], "tags": ["O"]}, *rows[1:]],
        [{**rows[0], "tokens": ["play", "jazz", "on"]}, {**rows[1], "tokens": []}, rows[2]],
        [{**row, "user": "u"} for row in rows],
        [{**row, "time": 0.0} for row in rows],
        [{key: value for key, value in row.items() if key != "id"} for row in rows],
        [{**rows[0], "text": "play jazzg"}, {**rows[1], "text": ""}, {**rows[2], "text": rows[2]["text"][1:]}],
    ]


@pytest.mark.parametrize("other", range(len(_moved(ROWS))))
def test_fingerprint_sees_every_change(other):
    changed = from_rows(_moved(ROWS)[other], "here")
    assert changed.fingerprint != from_rows(ROWS, "here").fingerprint


def test_a_missing_value_is_not_an_empty_one():
    assert from_rows([{"original": None}], "a").fingerprint != from_rows([{"original": ""}], "a").fingerprint
    chunks = [pa.array([None], pa.string()), pa.array(["a"])]
    one = pa.table({"original": pa.chunked_array(chunks)})
    two = pa.table({"original": pa.array([None, "a"], pa.string())})
    assert table_of(one, "a").fingerprint == table_of(two, "a").fingerprint


def test_fingerprint_is_the_same_on_every_machine():
    # frozen: a change of this value orphans the budgets of data sets without a declared id
    expected = "867639dac764b918bd92a9f95144654323882ea93636acf4c139a12176305bed"
    assert from_rows([{"text": "play jazz", "label": "music"}], "a").fingerprint == expected


def test_row_hashes_are_keyed_blake2b_of_the_text():
    table = from_rows([{"text": "größer", "label": "x"}], "a")
    encoded = "größer".encode()
    digest = hashlib.blake2b(len(encoded).to_bytes(8, "little") + encoded, digest_size=8, key=b"secret").digest()
    hashes = row_hashes(table, b"secret")
    assert hashes.dtype == np.uint64
    assert hashes.tolist() == [int.from_bytes(digest, "little")]
    assert row_hashes(table, b"other").tolist() != hashes.tolist()


def test_row_hashes_see_the_text_and_not_its_labels_or_task():
    base = row_hashes(from_rows([{"text": "play jazz now", "label": "music"}], "a"), b"k")
    relabelled = row_hashes(from_rows([{"text": "play jazz now", "label": "x", "user": "u", "id": 1}], "a"), b"k")
    tagged = row_hashes(from_rows([{"tokens": ["play", "jazz", "now"], "tags": ["O", "O", "O"]}], "a"), b"k")
    spaced = row_hashes(from_rows([{"text": " play  jazz\tnow\n", "label": "music"}], "a"), b"k")
    other = row_hashes(from_rows([{"text": "play jazz now!", "label": "music"}], "a"), b"k")
    assert base == relabelled == tagged == spaced
    assert base != other


def test_row_hashes_of_two_texts_cannot_be_shifted_into_one_another():
    pairs = [("ab", "c"), ("a", "bc"), ("abc", ""), ("", "abc")]
    hashes = [row_hashes(from_rows([{"source": s, "target": t}], "a"), b"k")[0] for s, t in pairs]
    questions = [row_hashes(from_rows([{"question": s, "context": t}], "a"), b"k")[0] for s, t in pairs]
    assert len(set(hashes)) == len(pairs)
    assert hashes == questions


@settings(deadline=None, derandomize=True, max_examples=25)
@given(rows=row_lists, seed=st.integers(0, 99))
def test_row_hashes_follow_their_rows(rows, seed):
    table = from_rows(rows, "a")
    order = np.random.default_rng(seed).permutation(len(rows))
    assert np.array_equal(row_hashes(table.take(order), b"k"), row_hashes(table, b"k")[order])


@pytest.mark.parametrize("key", [b"", b"k" * 65])
def test_row_hashes_refuse_a_key_blake2b_cannot_take(key):
    with pytest.raises(DataError, match=f"^row_hashes: key has {len(key)} bytes; give 1 to 64$"):
        row_hashes(from_rows(ROWS, "a"), key)


def test_row_hashes_refuse_a_table_without_text():
    with pytest.raises(DataError, match=r"^a: rows without text"):
        row_hashes(from_rows([{"label": "x"}], "a"), b"k")


def test_tables_are_frozen():
    table: Table = from_rows(ROWS, "a")
    with pytest.raises(AttributeError):
        table.source = "b"
