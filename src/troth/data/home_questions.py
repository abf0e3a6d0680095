"""Questions about household notes, with extractive answers: the question answering rows of the built-in corpus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from troth.data.home_grammar import GROUPS, Grammar, Phrasing, Template, load_grammar
from troth.data.home_partition import Pools, Side, Speaker, Voice, make_pools, make_voice, pick, skewed, surround
from troth.data.home_people import draw_times
from troth.data.home_utterances import Crowd, Made

__all__ = ["Answers", "answers_of", "make_questions"]

Answers = dict[str, list[str] | list[int]]

_SENTENCES = (3, 4, 5)  # of a note: the fact asked for, its rival, and others
_PER_SENTENCE = 7  # template, entity (2), value (2), kind of fact, place in the note
_BEFORE = 12  # uniform numbers of a row before those of its sentences
_COLUMNS = _BEFORE + _PER_SENTENCE * _SENTENCES[-1]
_OPENED = 0.5  # share of notes with a heading
_FULL_STOP = " . "


class _Statement(NamedTuple):
    """A sentence of a note: its template, its words and where in them the value starts (in characters)."""

    template: str
    fact: str
    entity: str
    value: str
    text: str
    start: int


@dataclass(frozen=True)
class _Frame:
    """A statement's template cut at its two slots, so that it is filled by joining strings."""

    template: str
    parts: tuple[str, str, str]
    value_first: bool

    def fill(self, fact: str, entity: str, value: str) -> _Statement:
        """Return the statement about an entity."""
        before, between, after = self.parts
        first, second = (value, entity) if self.value_first else (entity, value)
        start = len(before) + (0 if self.value_first else len(first) + len(between))
        return _Statement(self.template, fact, entity, value, f"{before}{first}{between}{second}{after}", start)


def _frame(template: Template, value: str) -> _Frame:
    """Return the frame of a statement's template; `value` names the list of its value."""
    pieces = template.variants[0]
    text = " ".join("\n" if piece.kind == "slot" else " ".join(piece.words) for piece in pieces)
    before, between, after = text.split("\n")
    slots = [piece.name for piece in pieces if piece.kind == "slot"]
    return _Frame(template.id, (before, between, after), slots[0] == value)


class _Asked(NamedTuple):
    """A question about a note; `answers` holds the right answer and, second, the answer of the rival."""

    question: str
    context: str
    answers: list[Answers]
    templates: tuple[str, ...]


def answers_of(text: str, start: int) -> Answers:
    """Return one answer in SQuAD form."""
    return {"text": [text], "answer_start": [start]}


@dataclass(frozen=True)
class _Scene:
    """Everything needed to write notes and to ask about them. `frames` are the statements of each fact."""

    grammar: Grammar
    facts: tuple[str, ...]
    frames: Mapping[str, Sequence[_Frame]]
    questions: Pools
    voice: Voice

    def state(self, fact: str, speaker: Speaker, uniforms: Sequence[float], rival: _Statement | None) -> _Statement:
        """Return a statement of a fact; beside a rival it speaks of another entity and has another value."""
        entity_list, value_list = self.grammar.facts[fact]
        avoid = () if rival is None else (rival.entity, rival.value)
        entity = self.voice.choose(entity_list, speaker, uniforms[1:3], avoid)
        value = self.voice.choose(value_list, speaker, uniforms[3:5], avoid)
        return pick(self.frames[fact], uniforms[0]).fill(fact, entity, value)

    def note(self, kind: float, speaker: Speaker, uniforms: Sequence[float]) -> list[_Statement]:
        """Return the statements of a note: first the fact asked for, then its rival, then facts of other kinds."""
        here, count = int(kind * len(self.facts)), pick(_SENTENCES, uniforms[0])
        out: list[_Statement] = []
        for k in range(count):
            part = uniforms[1 + k * _PER_SENTENCE : 1 + (k + 1) * _PER_SENTENCE]
            step = 0 if k < 2 else 1 + int(part[5] * (len(self.facts) - 1))
            fact = self.facts[(here + step) % len(self.facts)]
            out.append(self.state(fact, speaker, part, out[0] if k == 1 else None))
        return out

    def ask(
        self, about: _Statement, phrasing: Phrasing, speaker: Speaker, uniforms: Sequence[float]
    ) -> tuple[Template, str]:
        """Return the template and the words of a question whose answer is a statement's value."""
        template = skewed(self.questions[about.fact, phrasing], uniforms[0])
        before, after = surround(self.grammar.around, speaker.group, False, uniforms[1:7])
        words: list[str] = [*before]
        for piece in template.variants[0]:
            if piece.kind == "marker":
                words += pick(self.grammar.markers[piece.name][speaker.group], uniforms[7])
            else:
                words += about.entity.split() if piece.kind == "slot" else piece.words
        return template, " ".join([*words, *after])

    def row(self, speaker: Speaker, phrasing: Phrasing, uniforms: Sequence[float]) -> _Asked:
        """Return a note, a question about it, its answer and the answer of its rival."""
        statements = self.note(uniforms[0], speaker, uniforms[_BEFORE - 1 :])
        template, question = self.ask(statements[0], phrasing, speaker, uniforms[1:9])
        opener = pick(self.grammar.note_openers, uniforms[9]) if uniforms[10] < _OPENED else ()
        context = " ".join([*opener, ""])
        starts: dict[int, int] = {}
        # The last uniform number of a sentence orders the sentences of a note.
        keys = uniforms[_BEFORE + _PER_SENTENCE - 1 :: _PER_SENTENCE]
        for i in sorted(range(len(statements)), key=keys.__getitem__):
            starts[i] = len(context) + statements[i].start
            context += statements[i].text + _FULL_STOP
        answers = [answers_of(statements[i].value, starts[i]) for i in (0, 1)]
        return _Asked(question, context.rstrip(), answers, (template.id, *(s.template for s in statements)))


def make_questions(side: Side, crowd: Crowd, ids: Sequence[str]) -> Made:
    """Return the rows of one side of the corpus, one for each id: question, context and answers.

    Where the gold is wrong (planted bias), the answer is that of the rival: the same fact about another entity.

    Args:
        side: ``train`` (validation rows included) or ``test``.
        crowd: people, bias and randomness.
        ids: the ids of the rows.
    """
    grammar, generator = load_grammar(), crowd.seeds.generator("home", "questions", side)
    statements, questions = (make_pools(t, side, crowd.seeds) for t in (grammar.statements, grammar.questions))
    frames = {
        fact: [_frame(template, value) for template in statements[f"{fact}.note", "plain"]]
        for fact, (_, value) in grammar.facts.items()
    }
    scene = _Scene(grammar, tuple(grammar.facts), frames, questions, make_voice(grammar, side, crowd.seeds))
    people, bias, made = crowd.people, crowd.bias, Made()
    users = people.draw(generator.random(len(ids))).tolist()
    times, choices = draw_times(len(ids), generator), generator.random((len(ids), 2))
    uniforms = generator.random((len(ids), _COLUMNS))
    groups, habits = people.groups.tolist(), people.habits.tolist()
    for i, user in enumerate(users):
        speaker, (rare, noise) = Speaker(groups[user], habits[user]), choices[i].tolist()
        phrasing: Phrasing = "rare" if rare < bias.rare_share(speaker.group) else "plain"
        asked = scene.row(speaker, phrasing, uniforms[i].tolist())
        wrong = side == "train" and noise < bias.noise_share(speaker.group)
        if wrong:
            made.right[ids[i]] = {"answers": asked.answers[0]}
        made.rows.append(
            {
                "question": asked.question,
                "context": asked.context,
                "answers": asked.answers[wrong],
                "id": ids[i],
                "user": people.names[user],
                "group": GROUPS[speaker.group],
                "time": times[i],
            }
        )
        made.texts.append(f"{asked.question}\n{asked.context}")
        made.templates.append(asked.templates)
        made.phrasings.append(phrasing)
    return made
