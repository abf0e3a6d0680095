"""Words, pieces and rows follow fixed rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from troth.tasks.word_pieces import PIECE_MARK, hashed_row, split_words, word_tokens


def words(text: str) -> list[str]:
    return [match.group() for match in split_words(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("turn it off", ["turn", "it", "off"]),
        ("7:30pm", ["7", ":", "30", "pm"]),
        ("It's Ann's, don't!", ["It", "'s", "Ann", "'s", ",", "don", "'t", "!"]),
        ("rock'n'roll 'tis", ["rock", "'", "n", "'", "roll", "'", "tis"]),
        ("foo_bar@x.com", ["foo", "_", "bar", "@", "x", ".", "com"]),
        ("##word", ["#", "#", "word"]),
        ("東京タワー", ["東", "京", "タ", "ワ", "ー"]),
        ("नमस्ते दुनिया।", ["नमस्ते", "दुनिया", "।"]),
        ("e\u0301te\u0301", ["e\u0301te\u0301"]),
        ("안녕 привет", ["안녕", "привет"]),
        ("so😀good", ["so", "😀", "good"]),
        ("\ud800x", ["\ud800", "x"]),
        (" \t\n ", []),
    ],
)
def test_words_of_many_scripts(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@given(st.text())
def test_words_cover_every_character_that_is_no_blank_and_stand_in_order(text: str) -> None:
    end, left_out = 0, []
    for match in split_words(text):
        left_out.append(text[end : match.start()])
        end = match.end()
    left_out.append(text[end:])
    assert not "".join(left_out).strip()


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("at", ("at",)),
        ("friday", ("friday",)),
        ("playlist", ("playlist", "##play", "##ist")),
        ("York", ("york", "##Aa")),
        ("NASA", ("nasa", "##AA")),
        ("iPhone", ("iphone", "##aA")),
        ("I", ("i", "##Aa")),
        ("7", ("7", "##<1>")),
        ("2024", ("2024", "##<4>")),
        ("'s", ("'s",)),
        ("’s", ("'s",)),
        ("ﬁne", ("fine",)),
        (",", (",",)),
    ],
)
def test_tokens_of_a_word(word: str, expected: tuple[str, ...]) -> None:
    assert word_tokens(word) == expected


@given(st.text(min_size=1))
def test_no_word_is_taken_for_a_piece(text: str) -> None:
    for match in split_words(text):
        first, *pieces = word_tokens(match.group())
        assert not first.startswith(PIECE_MARK)
        assert all(piece.startswith(PIECE_MARK) for piece in pieces)


def test_the_length_of_a_word_does_not_blow_up_its_tokens() -> None:
    tokens = word_tokens("x" * 1_000_000)
    assert len(tokens) == 3
    assert all(len(token) <= 64 for token in tokens)


@pytest.mark.parametrize(("token", "row"), [("play", 2961), ("##<4>", 4112), ("東", 4910), ("\ud800", 5244)])
def test_rows_are_the_same_everywhere(token: str, row: int) -> None:
    # Worked out with another program: printf TOKEN | b2sum -l 64, as a number, modulo 8188.
    assert hashed_row(token, 8188) == row


def test_rows_are_spread_evenly() -> None:
    # 50,000 tokens in 100 rows: chi-square with 99 degrees of freedom, 5 sigma above its mean is 170.
    counts = [0] * 100
    for number in range(50_000):
        counts[hashed_row(f"word{number}", 100)] += 1
    assert sum((count - 500) ** 2 / 500 for count in counts) < 170
