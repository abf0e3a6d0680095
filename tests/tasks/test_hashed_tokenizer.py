"""The hashed tokenizer as transformers sees it, and what it promises about privacy."""

from __future__ import annotations

import copy
import json
import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, DataCollatorWithPadding

from troth.errors import ModelError
from troth.tasks.hashed_tokenizer import HashedTokenizer

PLAY = "Play Ann's playlist at 7:30"
SHARED = HashedTokenizer()
SMALL = HashedTokenizer(vocabulary_size=64)
PAD, UNKNOWN, SEPARATOR, MASK = range(4)


@pytest.fixture
def tokenizer() -> HashedTokenizer:
    return HashedTokenizer(model_max_length=128)


def test_a_word_keeps_its_row_wherever_it_stands(tokenizer: HashedTokenizer) -> None:
    alone = tokenizer("playlist")["input_ids"]
    assert tokenizer("my playlist, please")["input_ids"][1:4] == alone
    assert len(alone) == 3


def test_ids_depend_on_the_text_alone(tokenizer: HashedTokenizer) -> None:
    golden = [2965, 1396, 1953, 1396, 7191, 6739, 7501, 766, 791, 3206, 3420, 7373, 2248, 1183]
    assert tokenizer(PLAY)["input_ids"] == golden
    tokenizer.encode_texts(["other words", "playlist of Ann"])
    assert tokenizer(PLAY)["input_ids"] == golden


@given(st.lists(st.text(), max_size=5), st.none() | st.integers(1, 12))
def test_the_fast_path_and_the_call_agree(texts: list[str], longest: int | None) -> None:
    flat, offsets = SHARED.encode_texts(texts, longest)
    assert flat.dtype == np.int32 and offsets.dtype == np.int64
    rows = [flat[a:b].tolist() for a, b in pairwise(offsets)]
    called = SHARED(texts, truncation=longest is not None, max_length=longest)["input_ids"]
    assert rows == called
    assert all(rows)


@given(st.text())
def test_ids_lie_in_the_table_and_only_an_empty_text_is_unknown(text: str) -> None:
    ids = SMALL(text)["input_ids"]
    assert all(4 <= row < 64 for row in ids) or (ids == [UNKNOWN] and not text.strip())


@given(st.text())
def test_offsets_point_at_the_words(text: str) -> None:
    encoding = SHARED(text, return_offsets_mapping=True)
    covered = [(start, end) for start, end in encoding["offset_mapping"] if end > start]
    assert all(a[1] <= b[0] for a, b in pairwise(covered))
    assert "".join(text[start:end] for start, end in covered) == "".join(text.split())
    firsts = [w for place, w in enumerate(encoding.word_ids()) if w not in encoding.word_ids()[:place]]
    assert firsts == list(range(len(covered))) or not covered


def test_pieces_share_the_word_and_end_where_it_ends(tokenizer: HashedTokenizer) -> None:
    encoding = tokenizer("my playlist", return_offsets_mapping=True)
    assert encoding.word_ids() == (0, 1, 1, 1)
    assert encoding["offset_mapping"] == [(0, 2), (3, 11), (11, 11), (11, 11)]
    assert encoding.tokens() == ("my", "playlist", "##play", "##ist")


def test_given_words_keep_their_numbers(tokenizer: HashedTokenizer) -> None:
    encoding = tokenizer([["New", "York's", " ", "a"], ["b"]], is_split_into_words=True, padding=True)
    assert encoding.word_ids(0) == (0, 0, 1, 1, 1, 3)
    assert encoding.word_ids(1) == (0, None, None, None, None, None)
    assert encoding["attention_mask"][1] == [1, 0, 0, 0, 0, 0]
    single = tokenizer(["b"], is_split_into_words=True)
    assert single["input_ids"] == tokenizer("b")["input_ids"]


def test_a_pair_has_one_separator(tokenizer: HashedTokenizer) -> None:
    encoding = tokenizer("who is it", "a b", return_token_type_ids=True, return_special_tokens_mask=True)
    assert encoding["input_ids"][3] == SEPARATOR
    assert encoding.sequence_ids() == (0, 0, 0, None, 1, 1)
    assert encoding["token_type_ids"] == [0, 0, 0, 0, 1, 1]
    assert encoding["special_tokens_mask"] == [0, 0, 0, 1, 0, 0]
    assert encoding.n_sequences == 2
    ids = encoding["input_ids"]
    assert tokenizer.build_inputs_with_special_tokens(ids[:3], ids[4:]) == ids
    assert tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True) == [0, 0, 0, 1, 0, 0]
    assert SEPARATOR not in tokenizer("who is it", "a b", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("only_second", ["a b c d e [SEP] u v"]),
        ("only_first", ["a b c [SEP] u v w x"]),
        ("longest_first", ["a b c d [SEP] u v w"]),
    ],
)
def test_what_is_cut_of_a_pair(tokenizer: HashedTokenizer, strategy: str, expected: list[str]) -> None:
    encoding = tokenizer(["a b c d e"], ["u v w x"], truncation=strategy, max_length=8)
    assert [" ".join(encoding.tokens(0))] == expected


def test_longest_first_leaves_a_short_text_whole(tokenizer: HashedTokenizer) -> None:
    encoding = tokenizer("a", "u v w x y z", truncation=True, max_length=5)
    assert encoding.tokens() == ("a", "[SEP]", "u", "v", "w")


def test_the_left_can_be_cut_and_padded() -> None:
    tokenizer = HashedTokenizer(truncation_side="left", padding_side="left")
    encoding = tokenizer(["a b c", "z"], truncation=True, max_length=2, padding=True)
    assert encoding.tokens(0) == ("b", "c")
    assert encoding.tokens(1) == ("[PAD]", "z")


def test_overflowing_windows_cover_the_text_and_overlap(tokenizer: HashedTokenizer) -> None:
    encoding = tokenizer(
        ["q r", "q"],
        ["a b c d e f g", "a"],
        truncation="only_second",
        max_length=6,
        stride=1,
        return_overflowing_tokens=True,
    )
    assert [" ".join(encoding.tokens(i)) for i in range(4)] == [
        "q r [SEP] a b c",
        "q r [SEP] c d e",
        "q r [SEP] e f g",
        "q [SEP] a",
    ]
    assert encoding["overflow_to_sample_mapping"] == [0, 0, 0, 1]


def test_tensors_and_multiples(tokenizer: HashedTokenizer) -> None:
    batch = tokenizer(["a b c", "a"], padding=True, pad_to_multiple_of=4, return_tensors="pt")
    assert batch["input_ids"].shape == (2, 4)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert tokenizer("a b", return_tensors="pt")["input_ids"].shape == (1, 2)
    assert len(tokenizer("a", padding="max_length", max_length=9)["input_ids"]) == 9


def test_transformers_collator_pads_it(tokenizer: HashedTokenizer) -> None:
    rows = [{**tokenizer("a b c"), "label": 1}, {**tokenizer("a"), "label": 0}]
    batch = DataCollatorWithPadding(tokenizer)(rows)
    assert batch["input_ids"][1, 1:].tolist() == [PAD, PAD]
    assert torch.equal(batch["labels"], torch.tensor([1, 0]))


def test_names_of_special_tokens_in_a_text_are_text(tokenizer: HashedTokenizer) -> None:
    assert min(tokenizer("a [SEP] b [MASK] [PAD]")["input_ids"]) >= 4
    masked = tokenizer("a [MASK] b", split_special_tokens=False, return_offsets_mapping=True)
    assert masked["input_ids"][1] == MASK == tokenizer.mask_token_id
    assert masked["offset_mapping"] == [(0, 1), (2, 8), (9, 10)]
    assert masked.word_ids() == (0, None, 1)


def test_tokens_and_rows_convert_back_and_forth(tokenizer: HashedTokenizer) -> None:
    ids = tokenizer(PLAY)["input_ids"]
    assert tokenizer.convert_tokens_to_ids(tokenizer.tokenize(PLAY)) == ids
    names = tokenizer.convert_ids_to_tokens(ids)
    assert names[0] == "[row 2965]"
    assert tokenizer.convert_tokens_to_ids(names) == ids
    assert tokenizer.decode([SEPARATOR, 9]) == "[SEP] [row 9]"
    assert tokenizer.decode([SEPARATOR, 9], skip_special_tokens=True) == "[row 9]"
    assert len(tokenizer) == tokenizer.vocab_size == 8192
    assert sorted(tokenizer.get_vocab().values()) == list(range(8192))
    assert sorted(tokenizer.all_special_ids) == [0, 1, 2, 3]


def test_saved_and_loaded_by_the_auto_class(tmp_path: Path) -> None:
    HashedTokenizer(vocabulary_size=500, model_max_length=77).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(loaded, HashedTokenizer)
    assert (loaded.vocab_size, loaded.model_max_length, loaded.split_special_tokens) == (500, 77, True)
    assert loaded(PLAY)["input_ids"] == HashedTokenizer(vocabulary_size=500)(PLAY)["input_ids"]


def test_nothing_of_a_text_is_stored(tokenizer: HashedTokenizer, tmp_path: Path) -> None:
    tokenizer("my password is swordfish")
    tokenizer.save_pretrained(tmp_path)
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for content in (stored, pickle.dumps(tokenizer), pickle.dumps(copy.deepcopy(tokenizer))):
        assert b"swordfish" not in content
    assert pickle.loads(pickle.dumps(tokenizer))(PLAY) == tokenizer(PLAY)


def test_the_cache_is_bounded(tokenizer: HashedTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("troth.tasks.hashed_tokenizer._CACHED_WORDS", 10)
    before = tokenizer("word11")["input_ids"]
    tokenizer.encode_texts([f"word{chr(97 + n)}x" for n in range(25)] + ["y" * 100])
    assert len(tokenizer._cache) <= 10
    assert "y" * 100 not in tokenizer._cache
    assert tokenizer("word11")["input_ids"] == before


def test_a_table_made_under_other_rules_is_refused(tokenizer: HashedTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "rules": 0}))
    with pytest.raises(ModelError, match="word rules 0"):
        AutoTokenizer.from_pretrained(tmp_path)


def test_refusals_name_the_way_out(tokenizer: HashedTokenizer) -> None:
    with pytest.raises(ModelError, match="at least 64 rows"):
        HashedTokenizer(vocabulary_size=63)
    with pytest.raises(ModelError, match="raise vocabulary_size"):
        tokenizer.add_tokens(["new"])
    with pytest.raises(ModelError, match="2 texts but 1 second"):
        tokenizer(["a", "b"], ["c"])
    with pytest.raises(ModelError, match="not int"):
        tokenizer([1, 2])
    with pytest.raises(ModelError, match="list of strings"):
        tokenizer(["a", 3], is_split_into_words=True)
    with pytest.raises(ModelError, match="leaves no token"):
        tokenizer("a b c", "d", truncation="only_second", max_length=4)
    with pytest.raises(ModelError, match="stride = 2"):
        tokenizer("a b c d", truncation=True, max_length=2, stride=2, return_overflowing_tokens=True)
    with pytest.raises(ModelError, match="only_first"):
        tokenizer("a b", "c d", truncation=True, max_length=3, return_overflowing_tokens=True)
