"""Rows of hashed tokens with what each stems from: cut, windowed, joined to pairs, padded. Pure functions of tuples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers.tokenization_utils_base import TruncationStrategy

from troth.errors import ModelError

__all__ = ["PAD", "SEPARATOR", "SPECIAL_TOKENS", "UNKNOWN", "HashedEncoding", "Limit", "join", "pad"]

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[SEP]", "[MASK]")
"""Rows 0 to 3. ``[UNK]`` stands only for a text without any word: nothing is unknown to a hash."""

PAD, UNKNOWN, SEPARATOR = 0, 1, 2


@dataclass(frozen=True)
class HashedEncoding:
    """One row of ids with what each token stems from; every tuple is [time].

    Attributes:
        ids: rows of the table.
        tokens: what was hashed.
        offsets: characters [start, end) of the word at its first token; the empty span at the word's end at its
            further pieces, so that spans never overlap; (0, 0) at special tokens.
        word_ids: which word of its text, counted from 0; None at special tokens.
        sequence_ids: 0 in the first text, 1 in the second; None at separators and padding.
        n_sequences: 1 or 2 texts.
    """

    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    offsets: tuple[tuple[int, int], ...]
    word_ids: tuple[int | None, ...]
    sequence_ids: tuple[int | None, ...]
    n_sequences: int = 1

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> HashedEncoding:
        return HashedEncoding(
            self.ids[part],
            self.tokens[part],
            self.offsets[part],
            self.word_ids[part],
            self.sequence_ids[part],
            self.n_sequences,
        )

    def __add__(self, other: HashedEncoding) -> HashedEncoding:
        return HashedEncoding(
            self.ids + other.ids,
            self.tokens + other.tokens,
            self.offsets + other.offsets,
            self.word_ids + other.word_ids,
            self.sequence_ids + other.sequence_ids,
            max(self.n_sequences, other.n_sequences),
        )

    @classmethod
    def special(cls, row: int, count: int = 1) -> HashedEncoding:
        """Return `count` copies of a special token."""
        nowhere = (None,) * count
        return cls((row,) * count, (SPECIAL_TOKENS[row],) * count, ((0, 0),) * count, nowhere, nowhere)

    @property
    def attention_mask(self) -> tuple[int, ...]:
        """0 at padding, else 1."""
        return tuple(int(row != PAD) for row in self.ids)

    @property
    def special_tokens_mask(self) -> tuple[int, ...]:
        """1 at separators and padding, 0 at tokens of a text."""
        return tuple(int(sequence is None) for sequence in self.sequence_ids)

    @property
    def type_ids(self) -> tuple[int, ...]:
        """1 in the second text, else 0."""
        return tuple(sequence or 0 for sequence in self.sequence_ids)


@dataclass(frozen=True)
class Limit:
    """How long a row may be and what is cut.

    Attributes:
        length: most tokens in a row, separators included; None for no limit.
        strategy: which text of a pair is cut.
        side: ``right`` cuts the end, ``left`` the start.
        stride: tokens that a window shares with the one before it.
        windows: whether what is cut comes back as further rows.
    """

    length: int | None
    strategy: TruncationStrategy
    side: str
    stride: int
    windows: bool

    def apply(self, first: HashedEncoding, second: HashedEncoding | None, specials: int) -> list[_Parts]:
        """Return the parts of each row: one, or several where windows are wanted and the row is too long.

        Raises:
            ModelError: the part that is not to be cut leaves no room, or windows are wanted of two texts at once.
        """
        both = len(first) + (len(second) if second is not None else 0)
        if self.length is None or self.strategy is TruncationStrategy.DO_NOT_TRUNCATE or both + specials <= self.length:
            return [(first, second)]
        room = self.length - specials
        if second is None:
            return [(part, None) for part in self._pieces(first, room)]
        if self.strategy is TruncationStrategy.ONLY_SECOND:
            return [(first, part) for part in self._pieces(second, room - len(first))]
        if self.strategy is TruncationStrategy.ONLY_FIRST:
            return [(part, second) for part in self._pieces(first, room - len(second))]
        if self.windows:
            raise ModelError("overflowing windows of a pair want truncation = 'only_first' or 'only_second'")
        kept = min(len(first), max(room - len(second), (room + 1) // 2))
        return [(self._cut(first, kept), self._cut(second, room - kept))]

    def _pieces(self, whole: HashedEncoding, room: int) -> list[HashedEncoding]:
        if room < 1:
            raise ModelError(f"max_length = {self.length} leaves no token for the text that is cut: raise it")
        if not self.windows or len(whole) <= room:
            return [self._cut(whole, room)]
        if not 0 <= self.stride < room:
            raise ModelError(f"stride = {self.stride} must be at least 0 and below the {room} tokens of a window")
        starts = range(0, len(whole) - self.stride, room - self.stride)
        return [whole[start : start + room] for start in starts]

    def _cut(self, whole: HashedEncoding, room: int) -> HashedEncoding:
        if len(whole) <= room:
            return whole
        return whole[len(whole) - room :] if self.side == "left" else whole[:room]


_Parts = tuple[HashedEncoding, HashedEncoding | None]


def join(first: HashedEncoding, second: HashedEncoding | None, *, separated: bool) -> HashedEncoding:
    """Return a pair as one row, with a separator between the texts where wanted; one text as it is."""
    if second is None:
        return first
    middle = HashedEncoding.special(SEPARATOR, 1 if separated else 0)
    return first + middle + second


def pad(rows: Sequence[HashedEncoding], length: int, side: str) -> list[HashedEncoding]:
    """Return the rows with padding up to `length` on that side; longer ones as they are."""
    out = []
    for row in rows:
        padding = HashedEncoding.special(PAD, max(0, length - len(row)))
        out.append(padding + row if side == "left" else row + padding)
    return out
