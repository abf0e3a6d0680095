"""Exact match and token F1 of answers as the SQuAD 1.1 evaluation defines them (Rajpurkar et al. 2016, section 6.1)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

__all__ = ["answer_exact_match", "answer_f1", "normalize_answer"]

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize_answer(text: str) -> str:
    """Return the answer in lower case without ASCII punctuation, English articles and extra white space.

    >>> normalize_answer("The  Cat's hat.")
    'cats hat'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def answer_exact_match(prediction: str, golds: Sequence[str]) -> float:
    """Return 1 where the prediction equals a gold answer after normalisation, else 0."""
    found = normalize_answer(prediction)
    return float(any(found == normalize_answer(gold) for gold in golds))


def answer_f1(prediction: str, golds: Sequence[str]) -> float:
    """Return the best F1 of the prediction's words against a gold answer's: 1 for the same bag of words, 0 for none."""
    return max(
        (_f1(normalize_answer(prediction).split(), normalize_answer(gold).split()) for gold in golds), default=0.0
    )


def _f1(found: list[str], wanted: list[str]) -> float:
    same = sum((Counter(found) & Counter(wanted)).values())
    return 2 * same / (len(found) + len(wanted)) if same else 0.0
