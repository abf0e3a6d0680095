"""Utterances of the built-in corpus: rows for classification, tagging, seq2seq and language modelling."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from troth.data.home_grammar import GROUPS, Grammar, Phrasing, Template, load_grammar
from troth.data.home_partition import Pools, Side, Speaker, Spoken, Voice, make_pools, make_voice, skewed, surround
from troth.data.home_partition import pick as pick_one
from troth.data.home_people import Bias, People, draw_times
from troth.seeds import PublicSeeds

__all__ = ["Crowd", "Made", "Row", "command_of", "make_utterances", "parse_command", "utterance_roles"]

Row = dict[str, object]

_SHARED_SHARE = 0.05  # rows whose words mean more than one thing
_SLOTS = 4  # most slots of a template
_COLUMNS = 5 + 6 + 2 * _SLOTS + 1
_COMMAND = re.compile(r"([A-Za-z]+)\((.*)\)")


@dataclass(frozen=True)
class Crowd:
    """What all rows of a corpus share: people, bias and the seed's generators."""

    people: People
    bias: Bias
    seeds: PublicSeeds


@dataclass
class Made:
    """Generated rows and the truth about them, in the same order.

    Attributes:
        rows: values by role, `id`, `user`, `group` and `time` included.
        texts: what a reader sees of a row; rows with the same text stay on one side of a split.
        templates: ids of the templates a row was made of.
        phrasings: ``plain``, ``rare`` or ``shared``.
        right: id -> role -> right gold, for rows whose gold is wrong.
    """

    rows: list[Row] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    templates: list[tuple[str, ...]] = field(default_factory=list)
    phrasings: list[str] = field(default_factory=list)
    right: dict[str, Row] = field(default_factory=dict)


def command_of(intent: str, slots: Sequence[tuple[str, str]]) -> str:
    """Return the command that does what was asked.

    >>> command_of("set_temperature", [("room", "kitchen"), ("value", "21")])
    'SetTemperature(room=kitchen, value=21)'
    """
    name = "".join(part.capitalize() for part in intent.split("_"))
    return f"{name}({', '.join(f'{slot}={value}' for slot, value in slots)})"


def parse_command(command: str) -> tuple[str, list[tuple[str, str]]]:
    """Return the intent and the slots of a command, the inverse of `command_of`.

    Raises:
        ValueError: the text is no command.
    """
    match = _COMMAND.fullmatch(command)
    if match is None:
        raise ValueError(f"{command!r} is no command such as SetTemperature(room=kitchen, value=21)")
    intent = re.sub(r"(?<!^)([A-Z])", r"_\1", match[1]).lower()
    pairs = [part.partition("=") for part in match[2].split(", ")] if match[2] else []
    return intent, [(slot, value) for slot, _, value in pairs]


def utterance_roles(kind: str, spoken: Spoken, intent: str) -> Row:
    """Return the roles of a task's row for an utterance."""
    text = " ".join(spoken.tokens)
    if kind == "classification":
        return {"text": text, "label": intent}
    if kind == "tagging":
        return {"tokens": spoken.tokens, "tags": spoken.tags}
    if kind == "seq2seq":
        return {"source": text, "target": command_of(intent, spoken.slots)}
    return {"text": text}


def _without_first_slot(spoken: Spoken) -> Spoken:
    """Return the words with their first slot overlooked, as a careless annotator would."""
    start = next((i for i, tag in enumerate(spoken.tags) if tag != "O"), len(spoken.tags))
    end = next((i for i in range(start + 1, len(spoken.tags)) if spoken.tags[i][0] != "I"), len(spoken.tags))
    tags = [*spoken.tags[:start], *["O"] * (end - start), *spoken.tags[end:]]
    return Spoken(spoken.tokens, tags, spoken.slots[1:])


def _mistaken(kind: str, spoken: Spoken, intent: str, grammar: Grammar) -> Row:
    """Return the roles an annotator gives who takes the intent for its partner, or overlooks a slot."""
    if kind == "tagging":
        return utterance_roles(kind, _without_first_slot(spoken), intent)
    return utterance_roles(kind, spoken, grammar.partners[intent])


@dataclass(frozen=True)
class _Scene:
    """Everything needed to say one side's rows."""

    kind: str
    side: Side
    crowd: Crowd
    grammar: Grammar
    pools: Pools
    voice: Voice

    def template(self, intent: str, group: int, uniforms: Sequence[float]) -> Template:
        """Return the template of a row: shared, rare or plain by the group's shares."""
        phrasing: Phrasing = "plain"
        if uniforms[0] < _SHARED_SHARE:
            phrasing = "shared"
        elif uniforms[1] < self.crowd.bias.rare_share(group):
            phrasing = "rare"
        pool = self.pools.get((intent, phrasing)) or self.pools[intent, "plain"]
        return skewed(pool, uniforms[2])

    def speak(self, intent: str, speaker: Speaker, uniforms: Sequence[float]) -> tuple[Template, Spoken]:
        """Return a template and its words with their surroundings."""
        template = self.template(intent, speaker.group, uniforms)
        core = self.voice.say(pick_one(template.variants, uniforms[3]), speaker, uniforms[11:])
        before, after = surround(self.grammar.around, speaker.group, template.command, uniforms[5:11])
        tokens = [*before, *core.tokens, *after]
        return template, Spoken(tokens, ["O"] * len(before) + core.tags + ["O"] * len(after), core.slots)

    def make(self, users: NDArray[np.int64], intents: NDArray[np.int64], ids: Sequence[str]) -> Made:
        """Return the rows of one side."""
        generator = self.crowd.seeds.generator("home", "rows", self.side)
        times = draw_times(len(users), generator)
        uniforms = generator.random((len(users), _COLUMNS))
        people, bias, made = self.crowd.people, self.crowd.bias, Made()
        groups, habits = people.groups.tolist(), people.habits.tolist()
        for i, (user, number) in enumerate(zip(users.tolist(), intents.tolist(), strict=True)):
            speaker, row = Speaker(groups[user], habits[user]), uniforms[i].tolist()
            intent = self.grammar.intents[number]
            template, spoken = self.speak(intent, speaker, row)
            roles = utterance_roles(self.kind, spoken, intent)
            if self.side == "train" and i >= len(self.grammar.intents) and row[4] < bias.noise_share(speaker.group):
                wrong = _mistaken(self.kind, spoken, intent, self.grammar)
                if wrong != roles:
                    made.right[ids[i]] = {role: value for role, value in roles.items() if wrong[role] != value}
                roles = wrong
            who = {"user": people.names[user], "group": GROUPS[speaker.group]}
            made.rows.append({**roles, "id": ids[i], **who, "time": times[i]})
            made.texts.append(" ".join(spoken.tokens))
            made.templates.append((template.id,))
            made.phrasings.append(template.phrasing)
        return made


def make_utterances(kind: str, side: Side, crowd: Crowd, ids: Sequence[str]) -> Made:
    """Return the rows of one side of a corpus, one for each id.

    The training side starts with one row of each intent, whose gold is right at every bias.

    Args:
        kind: the task: classification, tagging, seq2seq or language_modeling.
        side: ``train`` (validation rows included) or ``test``.
        crowd: people, bias and randomness.
        ids: the ids of the rows.
    """
    grammar, generator = load_grammar(), crowd.seeds.generator("home", "who", side)
    who, what = generator.random((2, len(ids)))
    users = crowd.people.draw(who)
    pools, voice = make_pools(grammar.templates, side, crowd.seeds), make_voice(grammar, side, crowd.seeds)
    scene = _Scene(kind, side, crowd, grammar, pools, voice)
    intents = crowd.people.draw_intents(users, what)
    if side == "train":
        intents[: len(grammar.intents)] = np.arange(len(grammar.intents))
    return scene.make(users, intents, ids)
