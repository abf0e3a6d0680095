"""What the test split of a corpus keeps to itself, and how a row chooses its templates, values and surroundings.

Choices are made from uniform numbers in [0, 1) with ``int(u * n)``: the same on every machine and with every version of
NumPy, whose higher-level draws may change.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import numpy as np

from troth.data.home_grammar import GROUPS, Around, Grammar, Phrasing, Piece, Template, Words
from troth.seeds import PublicSeeds

__all__ = [
    "Pools",
    "Side",
    "Speaker",
    "Spoken",
    "Voice",
    "bio",
    "make_pools",
    "make_voice",
    "pick",
    "skewed",
    "surround",
]

Side = Literal["train", "test"]  # validation rows come from the training side
Pools = Mapping[tuple[str, Phrasing], Sequence[Template]]
Choice = TypeVar("Choice")

_TEST_TEMPLATES = 3  # one template in three is kept for the test split
_TEST_VALUES = 5  # one value in five of an open list is kept for the test split
_FAVOURITE = 0.5  # share of slots filled with one of the user's three favourites
_STRIDE = 0.381966  # between favourites, as a share of the list
_OTHER_NAMES = 0.15  # share of people's names taken from the other group


class Spoken(NamedTuple):
    """Words with their slots: `tokens` and `tags` (BIO) of the same length, `slots` as (name, value) in order."""

    tokens: list[str]
    tags: list[str]
    slots: list[tuple[str, str]]


class Speaker(NamedTuple):
    """Who says a row: index of the group, and where in each value list the user's favourites lie."""

    group: int
    habits: Sequence[float]


def pick(choices: Sequence[Choice], uniform: float) -> Choice:
    """Return the choice that a uniform number in [0, 1) falls on."""
    return choices[int(uniform * len(choices))]


def skewed(choices: Sequence[Choice], uniform: float) -> Choice:
    """Return a choice, early ones more often: the first tenth takes about a third of the draws."""
    return choices[int(uniform * uniform * len(choices))]


def bio(slot: str, length: int) -> list[str]:
    """Return the tags of a slot's words; an empty slot is no slot.

    >>> bio("room", 2), bio("", 1)
    (['B-room', 'I-room'], ['O'])
    """
    return [f"B-{slot}", *[f"I-{slot}"] * (length - 1)] if slot else ["O"] * length


def _order(count: int, generator: np.random.Generator) -> list[int]:
    order: list[int] = np.argsort(generator.random(count), kind="stable").tolist()
    return order


def make_pools(templates: Sequence[Template], side: Side, seeds: PublicSeeds) -> Pools:
    """Return the templates one side may use, by intent and phrasing, in an order drawn from the seed.

    Of the templates with the same intents and phrasing the test side gets a third, at least one.

    Guarantees:
    - no template is in a pool of both sides.
    """
    families: dict[tuple[Words, Phrasing], list[Template]] = {}
    for template in templates:
        families.setdefault((template.intents, template.phrasing), []).append(template)
    pools: dict[tuple[str, Phrasing], list[Template]] = {}
    for (intents, phrasing), family in families.items():
        order = _order(len(family), seeds.generator("home", "templates", *intents, phrasing))
        held = max(1, len(family) // _TEST_TEMPLATES)
        for intent in intents:
            chosen = order[:held] if side == "test" else order[held:]
            pools.setdefault((intent, phrasing), []).extend(family[i] for i in chosen)
    return pools


@dataclass(frozen=True)
class Voice:
    """Turns templates into words for one side of a corpus.

    Attributes:
        grammar: where lists and markers come from.
        numbers: value list -> its column in a user's habits.
        orders: value list -> its entries in an order drawn from the seed; those kept for the test split come last.
        limits: value list -> how many of the ordered entries this side may use.
    """

    grammar: Grammar
    numbers: Mapping[str, int]
    orders: Mapping[str, Sequence[int]]
    limits: Mapping[str, int]

    def choose(self, name: str, speaker: Speaker, uniforms: Sequence[float], avoid: Collection[str] = ()) -> str:
        """Return a value of a list that is not one to avoid: often one of the speaker's three favourites, else any.

        Names of people are those of the speaker's own group but for a few.

        Args:
            name: the list.
            speaker: who speaks.
            uniforms: two numbers in [0, 1): which value, and whether a name is the other group's.
            avoid: values not to take, fewer than the list has.
        """
        uniform, crossing = uniforms
        if uniform < _FAVOURITE:
            uniform = (speaker.habits[self.numbers[name]] + int(uniform * 3 / _FAVOURITE) * _STRIDE) % 1.0
        else:
            uniform = (uniform - _FAVOURITE) / (1 - _FAVOURITE)
        owner = (speaker.group + 1) % len(GROUPS) if crossing < _OTHER_NAMES else speaker.group
        entries, order, limit = self.grammar.values[name].entries[owner], self.orders[name], self.limits[name]
        index = int(uniform * limit)
        while entries[order[index % limit]] in avoid:
            index += 1
        return entries[order[index % limit]]

    def say(self, pieces: Sequence[Piece], speaker: Speaker, uniforms: Sequence[float]) -> Spoken:
        """Return the words of a template's variant; each slot takes two of the uniform numbers, markers the last.

        No value occurs twice.
        """
        tokens: list[str] = []
        tags: list[str] = []
        slots: list[tuple[str, str]] = []
        for piece in pieces:
            slot = ""
            if piece.kind == "words":
                words = piece.words
            elif piece.kind == "marker":
                words = pick(self.grammar.markers[piece.name][speaker.group], uniforms[-1])
            else:
                k = 2 * len(slots)
                value = self.choose(piece.name, speaker, uniforms[k : k + 2], [v for _, v in slots])
                slot, words = self.grammar.values[piece.name].slot, tuple(value.split())
                slots.append((slot, value))
            tokens += words
            tags += bio(slot, len(words))
        return Spoken(tokens, tags, slots)


def make_voice(grammar: Grammar, side: Side, seeds: PublicSeeds) -> Voice:
    """Return the voice of one side: of each open list the training side uses four values in five, the test side all."""
    orders, limits = {}, {}
    for name, values in grammar.values.items():
        orders[name] = _order(len(values), seeds.generator("home", "values", name))
        limits[name] = len(values) - (len(values) // _TEST_VALUES if values.open and side == "train" else 0)
    return Voice(grammar, {name: i for i, name in enumerate(grammar.values)}, orders, limits)


def surround(around: Around, group: int, command: bool, uniforms: Sequence[float]) -> tuple[Words, Words]:
    """Return the words before and after an utterance: nothing, a group's marker, a common phrase or an aside.

    Args:
        around: the phrases.
        group: the speaker's, an index into `GROUPS`.
        command: whether the utterance starts with a verb, so that "could you" may stand before it.
        uniforms: six numbers in [0, 1).
    """
    opening, opener, prefixing, prefix, closing, closer = uniforms
    before: Words = ()
    if opening < 0.22:
        before = pick(around.group_openers[group], opener)
    elif opening < 0.32:
        before = pick(around.openers, opener)
    elif opening < 0.40:
        before = pick(around.asides_before, opener)
    if command and prefixing < 0.35:
        before += pick(around.command, prefix)
    after: Words = ()
    if closing < 0.18:
        after = pick(around.group_closers[group], closer)
    elif closing < 0.28:
        after = pick(around.closers, closer)
    elif closing < 0.36:
        after = pick(around.asides_after, closer)
    return before, after
