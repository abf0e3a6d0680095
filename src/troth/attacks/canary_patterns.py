"""Patterns of canaries: words that the attacker knows, and slots whose values are the secret.

| slot | values |
|---|---|
| `{d}` | the 10 digits |
| `{color}` | 12 colours, none longer than six letters |

``{d*6}`` stands for six slots of its kind. A slot is always a word of its own: ``{d}{d}`` and ``{d} {d}`` mean the
same, and a model that reads words or word pieces sees as many unknown tokens as there are slots. A *code* is the number
of a choice of values, counted from 0 with the last slot fastest; its *digits* are the places of the values in their
slots.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from troth.errors import ConfigError

__all__ = ["SLOT_VALUES", "Pattern", "parse_pattern"]

SLOT_VALUES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "d": tuple("0123456789"),
        "color": (
            "black",
            "blue",
            "brown",
            "gray",
            "green",
            "orange",
            "pink",
            "purple",
            "red",
            "silver",
            "white",
            "yellow",
        ),
    }
)
"""The values of each kind of slot."""

_SLOT = re.compile(r"\{([a-z]+)(?:\*([0-9]{1,2}))?\}")
_MOST_CODES = 2**62  # codes are int64


@dataclass(frozen=True)
class Pattern:
    """A parsed pattern.

    Attributes:
        words: the text's words, None at a slot.
        slots: the values of each slot, in order.
    """

    words: tuple[str | None, ...]
    slots: tuple[tuple[str, ...], ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many values each slot has."""
        return tuple(len(values) for values in self.slots)

    @property
    def codes(self) -> int:
        """How many codes there are."""
        return math.prod(self.sizes)

    @property
    def prefix(self) -> tuple[str, ...]:
        """The words before the first slot."""
        known = self.words[: self.words.index(None)]
        return tuple(word for word in known if word is not None)

    def digits(self, codes: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the digits [codes, slots] of codes.

        >>> parse_pattern("call {d*3}").digits([42]).tolist()
        [[0, 4, 2]]

        Raises:
            ValueError: a code lies outside of 0..`codes` - 1.
        """
        numbers = np.asarray(codes, dtype=np.int64).reshape(-1)
        if len(numbers) and not (numbers.min() >= 0 and numbers.max() < self.codes):
            raise ValueError(f"codes must lie in 0..{self.codes - 1}")
        return np.stack(np.unravel_index(numbers, self.sizes), axis=1).astype(np.int64)

    def numbers(self, digits: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the codes [k] of digits [k, slots]."""
        found: NDArray[np.int64] = np.ravel_multi_index(tuple(np.asarray(digits).T), self.sizes).astype(np.int64)
        return found

    def complete(self, digits: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """Return the words with the values of one code's digits [slots] in their slots."""
        values = iter(slot[int(digit)] for slot, digit in zip(self.slots, digits, strict=True))
        return [next(values) if word is None else word for word in self.words]

    def read(self, words: Sequence[str]) -> NDArray[np.int64]:
        """Return the digits [slots] that stand in these words, -1 from the first word on that does not fit.

        >>> parse_pattern("my pin is {d}{d}{d}").read("my pin is 4 2 and more".split()).tolist()
        [4, 2, -1]
        """
        found = np.full(len(self.slots), -1, dtype=np.int64)
        slot = 0
        for word, seen in zip(self.words, words, strict=False):
            if word is None and seen in self.slots[slot]:
                found[slot] = self.slots[slot].index(seen)
                slot += 1
            elif word != seen:
                break
        return found


def parse_pattern(text: str) -> Pattern:
    """Return the pattern of a text such as ``my pin code is {d}{d}{d}{d}`` or ``call {d*6}``.

    Raises:
        ConfigError: no slot, an unknown one, one that touches a word, or more codes than can be numbered.
    """
    words: list[str | None] = []
    slots: list[tuple[str, ...]] = []
    for chunk in text.split():
        if "{" not in chunk and "}" not in chunk:
            words.append(chunk)
            continue
        if _SLOT.sub("", chunk):
            raise ConfigError(
                "canaries.pattern: a slot is {d}, {d*6} or {color} and a word of its own: put blanks around it"
            )
        for kind, times in _SLOT.findall(chunk):
            if kind not in SLOT_VALUES:
                raise ConfigError(f"canaries.pattern: no slot {{{kind}}}; there are {', '.join(SLOT_VALUES)}")
            number = int(times or 1)
            if not number:
                raise ConfigError(f"canaries.pattern: {{{kind}*0}} is no slot: give 1 or more")
            words += [None] * number
            slots += [SLOT_VALUES[kind]] * number
    if not slots:
        raise ConfigError("canaries.pattern: has no slot such as {d} or {color}: nothing in it would be secret")
    pattern = Pattern(tuple(words), tuple(slots))
    if pattern.codes > _MOST_CODES:
        raise ConfigError(f"canaries.pattern: {len(slots)} slots have more than 2^62 codes: leave some out")
    return pattern
