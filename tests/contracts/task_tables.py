"""Small tables of text for tests of tasks: 24 rows of different length for each kind."""

from __future__ import annotations

from troth.data import Table, from_rows

__all__ = ["TABLES", "texts_and_labels"]

_TEXTS = [
    ("play some jazz", "music"),
    ("turn the lights off in the kitchen please now", "lights"),
    ("what is the weather", "weather"),
    ("set a timer for ten minutes", "timer"),
    ("play music", "music"),
    ("lights on", "lights"),
    ("is it on in london today", "weather"),
    ("call mom", "timer"),
]


def texts_and_labels() -> list[tuple[str, str]]:
    """24 different texts with one of four labels."""
    endings = ["", " now", " please today"]
    return [(text + ending, label) for ending in endings for text, label in _TEXTS]


def _tags(words: list[str]) -> list[str]:
    return ["B-ACT", *("I-OBJ" if place == 1 else "O" for place in range(1, len(words)))]


def _question(place: int) -> dict[str, object]:
    before = "it is on. " * (place % 6)
    answer = ["paris", "london", "mom now"][place % 3]
    context = f"{before}{answer} wrote it."
    return {
        "question": "who wrote the book" if place % 2 else "who wrote it",
        "context": context,
        "answers": {"text": [answer, answer.split()[0]], "answer_start": [len(before)] * 2},
    }


def _tables() -> dict[str, Table]:
    pairs = texts_and_labels()
    return {
        "classification": from_rows([{"text": t, "label": c} for t, c in pairs], "classification rows"),
        "tagging": from_rows([{"tokens": t.split(), "tags": _tags(t.split())} for t, _ in pairs], "tagging rows"),
        "question_answering": from_rows([_question(place) for place in range(24)], "questions"),
        "seq2seq": from_rows([{"source": t, "target": " ".join(t.split()[::-1])} for t, _ in pairs], "pairs"),
        "language_modeling": from_rows([{"text": t} for t, _ in pairs], "texts"),
    }


TABLES = _tables()
