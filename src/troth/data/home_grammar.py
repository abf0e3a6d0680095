"""The grammar of the built-in corpus: templates, slot values and their partition between training and test.

The words lie in ``assets/home_*.toml``, whose heads explain the notation. A `Grammar` is the same for every corpus; a
`Partition` is drawn from the corpus' seed and says which templates and which values the test split keeps to itself.
"""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any, Literal

__all__ = ["GROUPS", "Around", "Grammar", "Piece", "Template", "ValueList", "asset", "load_grammar"]

GROUPS = ("north", "south")

Phrasing = Literal["plain", "rare", "shared"]
Words = tuple[str, ...]

_CHOICE = re.compile(r"\[([^\]]*)\]")
_WORD = re.compile(r"\((\w+)\)")


@dataclass(frozen=True)
class Piece:
    """A part of a template: fixed words, a dialect marker or a slot.

    Attributes:
        kind: what the part is.
        words: the fixed words; empty for the other kinds.
        name: the marker, or the list the slot's value comes from; empty for words.
    """

    kind: Literal["words", "marker", "slot"]
    words: Words = ()
    name: str = ""


@dataclass(frozen=True)
class Template:
    """One line of the grammar with all its choices written out.

    Attributes:
        id: such as ``set_alarm/3``; the same in every corpus.
        intents: what it can mean; more than one for shared templates, or the fact a question asks for.
        phrasing: ``plain``, ``rare`` or ``shared``.
        command: whether it starts with a verb, so that "could you" may stand before it.
        variants: one tuple of pieces for each combination of choices.
    """

    id: str
    intents: Words
    phrasing: Phrasing
    command: bool
    variants: tuple[tuple[Piece, ...], ...]


@dataclass(frozen=True)
class ValueList:
    """The values a slot can take.

    Attributes:
        name: the list's name in templates.
        slot: the slot's tag.
        open: whether the test split keeps a fifth of the values to itself.
        entries: the values of each group of `GROUPS`, as many for each; the same ones but for people's names.
    """

    name: str
    slot: str
    open: bool
    entries: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.entries[0])


@dataclass(frozen=True)
class Around:
    """Words that may stand around an utterance. The group lists hold one tuple of phrases for each of `GROUPS`."""

    group_openers: tuple[tuple[Words, ...], ...]
    group_closers: tuple[tuple[Words, ...], ...]
    openers: tuple[Words, ...]
    closers: tuple[Words, ...]
    command: tuple[Words, ...]
    asides_before: tuple[Words, ...]
    asides_after: tuple[Words, ...]


@dataclass(frozen=True)
class Grammar:
    """All that can be said.

    Attributes:
        intents: names, in the order of the file.
        weights: how often each is asked for.
        partners: intent -> the intent an annotator mistakes it for.
        templates: utterances, over all intents.
        facts: name of a fact -> lists of its entity and of its value.
        statements: notes that state a fact.
        questions: questions that ask for one.
        note_openers: what a note may start with.
        values: the lists slots draw from, by name.
        markers: dialect marker -> its phrases for each group.
        around: words around an utterance.
    """

    intents: Words
    weights: tuple[float, ...]
    partners: Mapping[str, str]
    templates: tuple[Template, ...]
    facts: Mapping[str, tuple[str, str]]
    statements: tuple[Template, ...]
    questions: tuple[Template, ...]
    note_openers: tuple[Words, ...]
    values: Mapping[str, ValueList]
    markers: Mapping[str, tuple[tuple[Words, ...], ...]]
    around: Around


def asset(name: str) -> dict[str, Any]:
    """Return the mapping of one of the package's own TOML files."""
    return tomllib.loads(resources.files("troth.data").joinpath("assets", name).read_text(encoding="utf-8"))


def _words(lines: Sequence[str]) -> tuple[Words, ...]:
    return tuple(tuple(line.split()) for line in lines)


def _pieces(text: str) -> tuple[Piece, ...]:
    """Return the pieces of a template without choices; neighbouring words make one piece.

    >>> [piece.kind for piece in _pieces("remind <me> to {task}")]
    ['words', 'marker', 'words', 'slot']
    """
    out: list[Piece] = []
    for word in text.split():
        if word[0] == "{":
            out.append(Piece("slot", name=word[1:-1]))
        elif word[0] == "<":
            out.append(Piece("marker", name=word[1:-1]))
        elif out and out[-1].kind == "words":
            out[-1] = Piece("words", (*out[-1].words, word))
        else:
            out.append(Piece("words", (word,)))
    return tuple(out)


def _variants(line: str) -> tuple[tuple[Piece, ...], ...]:
    """Return every way to take the choices of a template."""
    parts = _CHOICE.split(line)
    branches = [part.split("|") if i % 2 else [part] for i, part in enumerate(parts)]
    return tuple(_pieces("".join(combination)) for combination in itertools.product(*branches))


def _templates(
    intent: str, lists: Mapping[str, Sequence[str]], words: Mapping[str, Sequence[str]] = {}
) -> list[Template]:
    """Return the templates of one intent or fact, numbered in the order of the file; `words` fill ``(word)``."""
    lines = [
        (kind, _WORD.sub(lambda match: f"[{'|'.join(words[match[1]])}]", line))
        for kind, group in lists.items()
        for line in group
    ]
    return [
        Template(f"{intent}/{i}", (intent,), "rare" if kind == "rare" else "plain", kind == "command", _variants(line))
        for i, (kind, line) in enumerate(lines)
    ]


def _shared(blocks: Sequence[Mapping[str, Any]]) -> list[Template]:
    return [
        Template(f"{'+'.join(block['intents'])}/{i}", tuple(block["intents"]), "shared", False, _variants(line))
        for block in blocks
        for i, line in enumerate(block["templates"])
    ]


def _value_lists(raw: Mapping[str, Any], groups: Mapping[str, Any]) -> dict[str, ValueList]:
    out = {}
    for name, entry in raw.items():
        entries = tuple(tuple(entry.get("values") or groups[group][name]) for group in GROUPS)
        out[name] = ValueList(name, entry.get("slot", name), entry.get("open", False), entries)
    return out


def _around(words: Mapping[str, Sequence[str]], groups: Mapping[str, Any]) -> Around:
    return Around(
        group_openers=tuple(_words(groups[group]["openers"]) for group in GROUPS),
        group_closers=tuple(_words(groups[group]["closers"]) for group in GROUPS),
        **{name: _words(lines) for name, lines in words.items()},
    )


@lru_cache(maxsize=1)
def load_grammar() -> Grammar:
    """Return the grammar of the corpus, read once a process."""
    intents, values, questions = (asset(f"home_{name}.toml") for name in ("utterances", "values", "questions"))
    shared, groups, around = intents.pop("shared"), values.pop("groups"), values.pop("around")
    plain = [
        _templates(name, {kind: entry[kind] for kind in ("command", "other", "rare")}, entry.get("words", {}))
        for name, entry in intents.items()
    ]
    facts: Mapping[str, Any] = questions["facts"]
    return Grammar(
        intents=tuple(intents),
        weights=tuple(float(entry["weight"]) for entry in intents.values()),
        partners={name: str(entry["partner"]) for name, entry in intents.items()},
        templates=tuple(itertools.chain(*plain, _shared(shared))),
        facts={name: (str(fact["entity"]), str(fact["value"])) for name, fact in facts.items()},
        statements=tuple(
            t for name, fact in facts.items() for t in _templates(f"{name}.note", {"plain": fact["statements"]})
        ),
        questions=tuple(
            t
            for name, fact in facts.items()
            for t in _templates(name, {"plain": fact["questions"], "rare": fact["rare"]})
        ),
        note_openers=_words(questions["note"]["openers"]),
        values=_value_lists({**values, **questions["values"]}, groups),
        markers={name: tuple(_words(groups[group][name]) for group in GROUPS) for name in ("my", "me", "bit")},
        around=_around(around, groups),
    )
