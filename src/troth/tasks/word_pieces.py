"""Words of a text and the pieces that stand beside them, by fixed rules: nothing here is learnt from any text.

A text is cut into runs of letters, runs of digits and single other characters; the endings of English contractions
("'s", "n't" as "n" + "'t") and the characters of scripts written without blanks stand alone. Each word gives one token
for itself, folded to lower case, and up to two further ones that it shares with other words:

- a word of seven or more letters gives its first four and its last three letters;
- a number gives its length;
- a word with capitals gives the shape of its case.

So a rare word, a number or a name still carries signal where its own row was never trained. What counts as a letter
is written out below as ranges of code points; only case folding, NFKC and the notion of a digit or blank come from
Python's Unicode tables, which keep assigned characters stable.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator

__all__ = ["PIECE_MARK", "hashed_row", "split_words", "word_tokens"]

PIECE_MARK = "##"
"""Starts every token that is not a word: no word can start so, since '#' always stands alone."""

_LONG = 7
_PREFIX, _SUFFIX = 4, 3
_LONGEST = 64  # characters of a word that are looked at; a longer one is told apart by its start

_ALONE = (  # scripts without blanks between words: one word per character
    "\u3040-\u30ff\u3100-\u312f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_SYMBOLS = (  # neither letters nor digits nor blanks
    "\u0000-\u002f\u003a-\u0040\u005b-\u0060\u007b-\u00a9\u00ab-\u00b4\u00b6-\u00b9\u00bb-\u00bf\u00d7\u00f7"
    "\u02c2-\u02c5\u02d2-\u02df\u037e\u0387\u055a-\u055f\u0589\u058a\u05be\u05c0\u05c3\u060c\u061b\u061f\u066a-\u066d"
    "\u06d4\u0964\u0965\u0e2f\u0e4f\u0e5a\u0e5b\u1680-\u169c\u2000-\u2bff\u2e00-\u2e7f\u3000-\u303f\ud800-\uf8ff"
    "\ufe10-\ufe6f\uff00-\uff20\uff3b-\uff40\uff5b-\uff65\uffe0-\uffff\U0001f000-\U0001faff\U000e0000-\U0010ffff"
)
_LETTER = rf"[^\s\d{_ALONE}{_SYMBOLS}]"
_CONTRACTION = rf"['’](?:s|t|d|m|re|ve|ll|S|T|D|M|RE|VE|LL)(?!{_LETTER})"
_WORD = re.compile(rf"{_CONTRACTION}|{_LETTER}+|\d+|\S")
_FIRST_LETTER = re.compile(_LETTER)


def split_words(text: str) -> Iterator[re.Match[str]]:
    """Return the words of a text from left to right, each as a match that knows its place.

    >>> [match.group() for match in split_words("Wake me at 7:30, it's Ann's 2nd day")]
    ['Wake', 'me', 'at', '7', ':', '30', ',', 'it', "'s", 'Ann', "'s", '2', 'nd', 'day']
    """
    return _WORD.finditer(text)


def word_tokens(word: str) -> tuple[str, ...]:
    """Return the tokens of one word as `split_words` finds it: the folded word, then its pieces.

    >>> word_tokens("Playlist")
    ('playlist', '##play', '##ist', '##Aa')
    >>> word_tokens("2024")
    ('2024', '##<4>')
    """
    word = word[:_LONGEST]
    folded = unicodedata.normalize("NFKC", word).casefold().replace("’", "'")
    if word[0].isdigit():
        return (folded, f"{PIECE_MARK}<{len(word)}>")
    if not _FIRST_LETTER.match(word):
        return (folded,)
    pieces = [folded]
    if len(folded) >= _LONG:
        pieces += [f"{PIECE_MARK}{folded[:_PREFIX]}", f"{PIECE_MARK}{folded[-_SUFFIX:]}"]
    shape = _case_shape(word)
    if shape:
        pieces.append(f"{PIECE_MARK}{shape}")
    return tuple(pieces)


def hashed_row(token: str, rows: int) -> int:
    """Return a token's row in [0, rows): the same on every machine and in every version.

    The hash is BLAKE2b with an 8-byte digest, read as a big-endian number, modulo `rows`.
    """
    digest = hashlib.blake2b(token.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % rows


def _case_shape(word: str) -> str:
    """Return ``Aa`` for a capital at the start, ``AA`` for all capitals, ``aA`` for others, else nothing."""
    if word == word.lower():
        return ""
    if len(word) > 1 and word == word.upper():
        return "AA"
    return "Aa" if word[1:] == word[1:].lower() else "aA"
