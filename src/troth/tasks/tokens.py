"""Tokens of text without special tokens, and the special tokens a tokenizer puts around one text or a pair.

Both are kept apart so that rows can be cut, windowed and joined in one way for every tokenizer, and so that the number
of rows cut is known exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from troth.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["PairTemplate", "Template", "pad_id", "pair_template", "template", "tokenize", "tokenize_with_offsets"]

_ROWS_AT_ONCE = 2000
Ids = list[int]
Offsets = list[tuple[int, int]]


@dataclass(frozen=True)
class Template:
    """Special tokens around one text: ``prefix + tokens + suffix``."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]

    @property
    def length(self) -> int:
        """How many special tokens there are."""
        return len(self.prefix) + len(self.suffix)

    def wrap(self, tokens: Ids, max_length: int) -> Ids:
        """Return `tokens` with the special tokens, cut at the end to `max_length` in all."""
        return [*self.prefix, *tokens[: max_length - self.length], *self.suffix]


@dataclass(frozen=True)
class PairTemplate:
    """Special tokens around two texts: ``prefix + first + middle + second + suffix``, and the type of each part."""

    prefix: tuple[int, ...]
    middle: tuple[int, ...]
    suffix: tuple[int, ...]
    types: tuple[int, int, int, int, int]

    @property
    def length(self) -> int:
        """How many special tokens there are."""
        return len(self.prefix) + len(self.middle) + len(self.suffix)

    def wrap(self, first: Ids, second: Ids) -> Ids:
        """Return both texts with the special tokens."""
        return [*self.prefix, *first, *self.middle, *second, *self.suffix]

    def token_types(self, first: int, second: int) -> Ids:
        """Return the token types of a pair whose parts have these lengths."""
        sizes = (len(self.prefix), first, len(self.middle), second, len(self.suffix))
        return [kind for kind, size in zip(self.types, sizes, strict=True) for _ in range(size)]


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the padding token.

    Raises:
        ModelError: the tokenizer has none.
    """
    value = tokenizer.pad_token_id
    if not isinstance(value, int):
        raise ModelError("the tokenizer has no padding token: set tokenizer.pad_token, for instance to its eos_token")
    return value


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[Ids]:
    """Return the token ids of each text, whole and without special tokens."""
    out: list[Ids] = []
    for start in range(0, len(texts), _ROWS_AT_ONCE):
        part = list(texts[start : start + _ROWS_AT_ONCE])
        out.extend(_call(tokenizer, part)["input_ids"])
    return out


def tokenize_with_offsets(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[tuple[Ids, Offsets]]:
    """Return for each text its token ids and, per token, the characters [start, end) it covers.

    Raises:
        ModelError: the tokenizer gives no offsets (only fast ones and the presets' own do).
    """
    out: list[tuple[Ids, Offsets]] = []
    for start in range(0, len(texts), _ROWS_AT_ONCE):
        part = list(texts[start : start + _ROWS_AT_ONCE])
        try:
            encoding = _call(tokenizer, part, return_offsets_mapping=True)
        except NotImplementedError:
            encoding = {}
        if "offset_mapping" not in encoding:
            raise ModelError(
                f"{type(tokenizer).__name__} gives no character offsets, which question answering needs: "
                "use a checkpoint with a tokenizer.json"
            )
        out.extend(zip(encoding["input_ids"], encoding["offset_mapping"], strict=True))
    return out


def _call(tokenizer: PreTrainedTokenizerBase, texts: list[str], **more: bool) -> dict[str, Any]:
    encoding = tokenizer(
        texts,
        add_special_tokens=False,
        truncation=False,
        padding=False,
        return_attention_mask=False,
        verbose=False,
        **more,
    )
    return dict(encoding)


def template(tokenizer: PreTrainedTokenizerBase) -> Template:
    """Return the special tokens around one text, found by tokenizing one.

    Raises:
        ModelError: the tokenizer changes a text's own tokens when it adds special ones.
    """
    body = list(tokenizer("one", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("one")["input_ids"])
    start = _find(whole, body, 0, tokenizer)
    return Template(tuple(whole[:start]), tuple(whole[start + len(body) :]))


def pair_template(tokenizer: PreTrainedTokenizerBase) -> PairTemplate:
    """Return the special tokens around a pair of texts, found by tokenizing one.

    Raises:
        ModelError: the tokenizer changes a text's own tokens when it adds special ones.
    """
    first, second = (list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in ("one", "two"))
    encoding = tokenizer("one", "two", return_token_type_ids=True)
    whole = list(encoding["input_ids"])
    a = _find(whole, first, 0, tokenizer)
    b = _find(whole, second, a + len(first), tokenizer)
    end = b + len(second)
    found = list(encoding["token_type_ids"])
    places = (0, a, a + len(first), b, end)
    types = tuple(found[min(place, len(whole) - 1)] for place in places)
    return PairTemplate(tuple(whole[:a]), tuple(whole[a + len(first) : b]), tuple(whole[end:]), types)


def _find(whole: Ids, part: Ids, start: int, tokenizer: PreTrainedTokenizerBase) -> int:
    for place in range(start, len(whole) - len(part) + 1):
        if part and whole[place : place + len(part)] == part:
            return place
    raise ModelError(
        f"{type(tokenizer).__name__} gives other tokens beside special ones: this tokenizer cannot be used"
    )
