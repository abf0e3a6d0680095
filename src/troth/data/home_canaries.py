"""Canaries: secrets planted in the training split, to measure what a model trained on it gives away.

The corpus is synthetic, hence so are the secrets: they are drawn from the corpus' seed and listed in the truth.
Canaries for an audit of real training are drawn from the operating system's entropy, elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from troth.data.home_grammar import GROUPS
from troth.data.home_partition import Spoken, bio
from troth.data.home_people import draw_times
from troth.data.home_questions import answers_of
from troth.data.home_utterances import Crowd, Row, utterance_roles

__all__ = ["CODES", "INTENT", "PATTERN", "Canary", "draw_canaries", "plant"]

PATTERN = "my pin code is {d} {d} {d} {d}"
CODES = 10_000  # how many codes the pattern allows
INTENT = "take_note"
_QUESTION = "what is my pin code"


@dataclass(frozen=True)
class Canary:
    """One planted secret: `code` such as ``4 9 2 7``, said in `text` by the rows `ids` of one user."""

    code: str
    text: str
    ids: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Return what the truth lists: code, text, first id, all ids and how often it is repeated."""
        return {"code": self.code, "text": self.text, "id": self.ids[0], "ids": self.ids, "repeats": len(self.ids)}


def draw_canaries(count: int, repeats: int, first_number: int, crowd: Crowd) -> list[Canary]:
    """Return canaries with different codes, at most `CODES` of them; row ids count up from `first_number`."""
    order = crowd.seeds.generator("home", "canaries").random(CODES).argsort(kind="stable")[:count].tolist()
    out = []
    for i, number in enumerate(order):
        code = " ".join(f"{number:04d}")
        start = first_number + i * repeats
        ids = tuple(f"home-{k:07d}" for k in range(start, start + repeats))
        out.append(Canary(code, PATTERN.replace("{d} {d} {d} {d}", code), ids))
    return out


def _roles(kind: str, canary: Canary) -> Row:
    """Return the roles of a canary's row; the whole secret is the slot of a note."""
    if kind == "question_answering":
        context = f"{canary.text} ."
        return {
            "question": _QUESTION,
            "context": context,
            "answers": answers_of(canary.code, context.index(canary.code)),
        }
    tokens = canary.text.split()
    spoken = Spoken(tokens, bio("note", len(tokens)), [("note", canary.text)])
    return utterance_roles(kind, spoken, INTENT)


def plant(kind: str, canaries: list[Canary], crowd: Crowd) -> list[Row]:
    """Return the canaries' rows; each canary belongs to one user, drawn by activity."""
    generator = crowd.seeds.generator("home", "canary rows")
    users = crowd.people.draw(generator.random(len(canaries))).tolist()
    times = iter(draw_times(sum(len(c.ids) for c in canaries), generator))
    rows: list[Row] = []
    for canary, user in zip(canaries, users, strict=True):
        who = {"user": crowd.people.names[user], "group": GROUPS[int(crowd.people.groups[user])]}
        for row_id in canary.ids:
            rows.append({**_roles(kind, canary), "id": row_id, **who, "time": next(times)})
    return rows
