"""Words as hashed rows and as bytes: what a word-level tagger reads, by fixed public rules.

Nothing here is learnt from text. A word's row is the hash of its folded form, as `HashedTokenizer` has it for words of
running text; its characters are the bytes of its UTF-8 form, one more than their value, 0 being padding.
"""

from __future__ import annotations

from troth.tasks.hashed_encoding import SPECIAL_TOKENS, UNKNOWN
from troth.tasks.word_pieces import hashed_row, word_tokens

__all__ = ["BYTE_ROWS", "WORD_BYTES", "byte_rows", "word_row"]

BYTE_ROWS = 257
"""Rows of a table of bytes: padding, then the 256 bytes."""
WORD_BYTES = 20
"""Bytes of a word that are read; a longer one is told apart by its start and by its hashed row."""


def word_row(word: str, rows: int) -> int:
    """Return a word's row in a hashed table of `rows`; an empty word has that of ``[UNK]``.

    Case is folded; punctuation inside a word is part of it.
    """
    if not word:
        return UNKNOWN
    return len(SPECIAL_TOKENS) + hashed_row(word_tokens(word)[0], rows - len(SPECIAL_TOKENS))


def byte_rows(word: str) -> tuple[int, ...]:
    """Return the `WORD_BYTES` rows of a word's first bytes, from 1 to 256, then 0.

    >>> byte_rows("été")[:6]
    (196, 170, 117, 196, 170, 0)
    """
    data = word.encode("utf-8", "surrogatepass")[:WORD_BYTES]
    return tuple(byte + 1 for byte in data) + (0,) * (WORD_BYTES - len(data))
