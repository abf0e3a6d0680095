"""Entity spans of BIO tags, found as seqeval's default mode (and conlleval) finds them, malformed tags included."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Span", "spans"]

Span = tuple[str, int, int]
"""Type, first word, last word."""


def spans(tags: Sequence[str]) -> set[Span]:
    """Return the entities of one sentence's tags, such as ``B-PER I-PER O``.

    The lenient reading: an entity also starts at an ``I-`` that follows no entity of its type. ``B``, ``I``, ``E`` and
    ``S`` prefixes are known; any other first letter is read as inside where a type follows, as seqeval reads it.

    >>> sorted(spans(["B-PER", "I-PER", "O", "I-LOC"]))
    [('LOC', 3, 3), ('PER', 0, 1)]
    """
    found: set[Span] = set()
    start = 0
    mark, kind = "O", ""
    for place, tag in enumerate((*tags, "O")):
        next_mark, next_kind = _split(tag)
        if _ends(mark, next_mark, kind != next_kind):
            found.add((kind, start, place - 1))
        if _starts(mark, next_mark, kind != next_kind):
            start = place
        mark, kind = next_mark, next_kind
    return found


def _split(tag: str) -> tuple[str, str]:
    """Return the mark (``B``, ``I``, ``E``, ``S``, ``O``) and the type; a mark without a type has type ``_``."""
    return tag[:1], tag[1:].split("-", maxsplit=1)[-1] or "_"


def _ends(mark: str, following: str, other_kind: bool) -> bool:
    if mark in ("E", "S"):
        return True
    if mark in ("B", "I") and following in ("B", "S", "O"):
        return True
    return mark not in ("O", ".") and other_kind


def _starts(previous: str, mark: str, other_kind: bool) -> bool:
    if mark in ("B", "S"):
        return True
    if previous in ("E", "S", "O") and mark in ("E", "I"):
        return True
    return mark not in ("O", ".") and other_kind
