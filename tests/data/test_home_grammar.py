"""The grammar of the built-in corpus: no two templates can say the same, and the groups' words are even-handed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import pytest

from troth.data.home_grammar import GROUPS, Grammar, Piece, Template, load_grammar
from troth.data.home_partition import make_pools
from troth.seeds import PublicSeeds

GRAMMAR = load_grammar()
ALL = {"templates": GRAMMAR.templates, "questions": GRAMMAR.questions, "statements": GRAMMAR.statements}


def phrases(piece: Piece, grammar: Grammar) -> list[tuple[str, ...]]:
    """All the words a piece can become."""
    if piece.kind == "words":
        return [piece.words]
    if piece.kind == "marker":
        return [words for group in grammar.markers[piece.name] for words in group]
    return sorted({tuple(value.split()) for group in grammar.values[piece.name].entries for value in group})


class Automaton:
    """A word automaton that accepts whatever templates can say, surroundings of either group included."""

    def __init__(self, templates: tuple[Template, ...], grammar: Grammar) -> None:
        self.grammar = grammar
        self.edges: list[dict[str, set[int]]] = []
        self.accepts: dict[int, str] = {}
        self.silent: dict[int, list[int]] = {}
        self.inner: dict[tuple[int, int, str], int] = {}
        self.start, opened, commanded = self.state(), self.state(), self.state()
        around = grammar.around
        for words in [*(w for g in around.group_openers for w in g), *around.openers, *around.asides_before]:
            self.phrase(self.start, words, opened)
        for words in around.command:
            self.phrase(opened, words, commanded)
        roots = [(template, self.template(template)) for template in templates]
        self.silent[opened] = [root for _, root in roots]
        self.silent[self.start] = [opened, *self.silent[opened]]
        self.silent[commanded] = [root for template, root in roots if template.command]

    def state(self) -> int:
        self.edges.append({})
        return len(self.edges) - 1

    def phrase(self, start: int, words: tuple[str, ...], end: int) -> None:
        for word in words[:-1]:
            if (start, end, word) not in self.inner:
                self.inner[start, end, word] = self.state()
            self.edges[start].setdefault(word, set()).add(self.inner[start, end, word])
            start = self.inner[start, end, word]
        self.edges[start].setdefault(words[-1], set()).add(end)

    def template(self, template: Template) -> int:
        root, end, closed = self.state(), self.state(), self.state()
        self.accepts[end] = self.accepts[closed] = template.id
        around = self.grammar.around
        for words in [*(w for g in around.group_closers for w in g), *around.closers, *around.asides_after]:
            self.phrase(end, words, closed)
        made: dict[tuple[int, Piece, bool], int] = {}
        for variant in template.variants:
            state = root
            for i, piece in enumerate(variant):
                last = i == len(variant) - 1
                if (state, piece, last) not in made:
                    made[state, piece, last] = end if last else self.state()
                    for words in phrases(piece, self.grammar):
                        self.phrase(state, words, made[state, piece, last])
                state = made[state, piece, last]
        return root

    def close(self, states: set[int]) -> frozenset[int]:
        return frozenset(states.union(*(self.silent.get(s, ()) for s in states)))

    def ambiguous(self) -> Iterator[tuple[str, ...]]:
        """Every set of templates that can say the same text: all reachable sets of states are looked at."""
        first = self.close({self.start})
        seen, todo = {first}, [first]
        while todo:
            here = todo.pop()
            accepted = {self.accepts[s] for s in here if s in self.accepts}
            if len(accepted) > 1:
                yield tuple(sorted(accepted))
            steps: dict[str, set[int]] = {}
            for state in here:
                for word, targets in self.edges[state].items():
                    steps.setdefault(word, set()).update(targets)
            # A lone state inside a template leads to that template only; one inside an opening leads to what the start
            # (which may skip the opening) leads to as well.
            for targets in steps.values():
                closed = self.close(targets)
                if len(closed) > 1 and closed not in seen:
                    seen.add(closed)
                    todo.append(closed)


@pytest.mark.parametrize("name", ALL)
def test_no_two_templates_can_make_the_same_text(name: str) -> None:
    assert list(Automaton(ALL[name], GRAMMAR).ambiguous()) == []


def test_the_proof_finds_a_text_that_two_templates_share() -> None:
    words = Piece("words", ("turn", "on", "the"))
    named = Template("a", ("a",), "plain", False, ((words, Piece("slot", name="lamp")),))
    fixed = Template("b", ("b",), "plain", False, ((Piece("words", ("turn", "on", "the", "ceiling", "light")),),))
    prefixed = Template("c", ("c",), "plain", True, ((words, Piece("slot", name="lamp")),))
    spelled = Template(
        "d", ("d",), "plain", False, ((Piece("words", ("could", "you", *words.words)), Piece("slot", name="lamp")),)
    )
    assert set(Automaton((named, fixed), GRAMMAR).ambiguous()) == {("a", "b")}
    assert ("c", "d") in set(Automaton((prefixed, spelled), GRAMMAR).ambiguous())


def test_there_are_many_intents_and_each_has_many_templates_to_learn_from() -> None:
    assert len(GRAMMAR.intents) == 24
    pools = make_pools(GRAMMAR.templates, "train", PublicSeeds(0))
    count = Counter(t.intents[0] for pool in pools.values() for t in pool if len(t.intents) == 1)
    assert min(count[intent] for intent in GRAMMAR.intents) >= 12


def test_every_template_id_is_used_once() -> None:
    ids = Counter(t.id for templates in ALL.values() for t in templates)
    assert max(ids.values()) == 1


def test_every_slot_and_marker_of_a_template_is_known() -> None:
    pieces = [p for templates in ALL.values() for t in templates for variant in t.variants for p in variant]
    assert {p.name for p in pieces if p.kind == "slot"} <= set(GRAMMAR.values)
    assert {p.name for p in pieces if p.kind == "marker"} == set(GRAMMAR.markers)
    words = {w for p in pieces for w in p.words}
    assert not [w for w in words if not re.fullmatch(r"[a-z0-9':.]+", w)]


def test_no_intent_is_its_own_partner() -> None:
    assert all(GRAMMAR.partners[intent] in GRAMMAR.intents for intent in GRAMMAR.intents)
    assert all(GRAMMAR.partners[intent] != intent for intent in GRAMMAR.intents)


def test_values_fit_the_command_language() -> None:
    values = [v for entry in GRAMMAR.values.values() for group in entry.entries for v in group]
    assert not [v for v in values if re.search(r"[(),=\n]|^\s|\s$|  ", v)]


def test_values_of_a_list_differ() -> None:
    assert all(len(set(group)) == len(group) for entry in GRAMMAR.values.values() for group in entry.entries)


def marker_lists() -> dict[str, tuple[tuple[tuple[str, ...], ...], ...]]:
    """All lists that differ by group, as phrases by group."""
    people = tuple(tuple(tuple(v.split()) for v in group) for group in GRAMMAR.values["contact"].entries)
    around = GRAMMAR.around
    return {**GRAMMAR.markers, "contact": people, "openers": around.group_openers, "closers": around.group_closers}


@pytest.mark.parametrize("name", sorted(marker_lists()))
def test_the_groups_have_as_many_markers_of_the_same_lengths(name: str) -> None:
    north, south = marker_lists()[name]
    assert [len(p) for p in north] == [len(p) for p in south]


def test_words_that_mark_a_group_occur_nowhere_else() -> None:
    lists = marker_lists().values()
    own = [{w for group_lists in lists for p in group_lists[g] for w in p} for g in range(len(GROUPS))]
    shared = {"a", "bit", "mrs", "mr", "uncle"}
    around = GRAMMAR.around
    common = [*around.openers, *around.closers, *around.command, *around.asides_before, *around.asides_after]
    elsewhere = {w for p in (*common, *GRAMMAR.note_openers) for w in p}
    elsewhere |= {w for templates in ALL.values() for t in templates for v in t.variants for p in v for w in p.words}
    elsewhere |= {w for e in GRAMMAR.values.values() if e.name != "contact" for v in e.entries[0] for w in v.split()}
    assert (own[0] & own[1]) - shared == set()
    assert ((own[0] | own[1]) & elsewhere) - shared == set()
