"""ROUGE-L of one text against one reference (Lin 2004, section 3.1), tokenized as the rouge-score package does."""

from __future__ import annotations

import re

__all__ = ["longest_common_subsequence", "rouge_l"]

_NO_WORD = re.compile(r"[^a-z0-9]+")


def rouge_l(prediction: str, reference: str) -> float:
    """Return the ROUGE-L F1 between 0 and 1: 1 where both have the same words in the same order.

    Words are runs of a-z and 0-9 in lower case, without stemming; texts without any (other scripts) score 0.

    >>> rouge_l("the cat sat", "the cat sat down")
    0.8571428571428571
    """
    found, wanted = _words(prediction), _words(reference)
    if not found or not wanted:
        return 0.0
    return 2 * longest_common_subsequence(found, wanted) / (len(found) + len(wanted))


def _words(text: str) -> list[str]:
    return _NO_WORD.sub(" ", text.lower()).split()


def longest_common_subsequence(first: list[str], second: list[str]) -> int:
    """Return the length of the longest common subsequence, one bit of an integer per word of `first`.

    The bit-parallel recurrence of Hyyrö (2004), "Bit-parallel LCS-length computation revisited"; zero bits mark steps.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    full = (1 << len(first)) - 1
    row = full
    for word in second:
        matches = row & places.get(word, 0)
        row = (row + matches | row - matches) & full
    return len(first) - row.bit_count()
