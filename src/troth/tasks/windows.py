"""Questions on contexts longer than the model: windows of tokens, answers as token spans, the best span over all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from troth.tasks.encoded import Encoded, Ragged
from troth.tasks.tokens import Ids, Offsets, PairTemplate

__all__ = ["Question", "Window", "best_spans", "features", "span_text", "token_span", "window_with_answer", "windows"]


@dataclass(frozen=True)
class Question:
    """One question on its context, as tokens.

    Attributes:
        question: its tokens, already cut to what it may have.
        context: all tokens of the context.
        offsets: the characters [start, end) of the context that each token covers; an answer neither starts nor ends
            at a token that covers none, such as a further piece of a word already covered.
        answer: first and last token of the answer in the context.
    """

    question: Ids
    context: Ids
    offsets: Offsets
    answer: tuple[int, int]


@dataclass(frozen=True)
class Window:
    """The context's tokens [start, end) beside the question of one row."""

    row: int
    start: int
    end: int


def token_span(offsets: Offsets, start: int, end: int) -> tuple[int, int] | None:
    """Return the first and last token that share a character with [start, end), or None where no token does."""
    inside = [place for place, (first, last) in enumerate(offsets) if first < end and last > start and last > first]
    return (inside[0], inside[-1]) if inside else None


def window_with_answer(row: int, question: Question, room: int) -> Window:
    """Return the one window of at most `room` tokens with the answer in its middle, or at its start if it is longer."""
    size = len(question.context)
    first, last = question.answer
    start = (first + last + 1 - room) // 2 if last - first < room else first
    start = max(0, min(start, size - room))
    return Window(row, start, min(size, start + room))


def windows(row: int, size: int, room: int) -> list[Window]:
    """Return the windows that cover a context of `size` tokens, each half a window after the one before it."""
    last = max(0, size - room)
    starts = [*range(0, last, max(1, room // 2)), last]
    return [Window(row, start, min(size, start + room)) for start in starts]


def features(
    questions: Sequence[Question], chosen: Sequence[Window], template: PairTemplate, *, with_types: bool, truncated: int
) -> Encoded:
    """Return model inputs, one row per window.

    ``context_mask`` is 1 where an answer may start or end. ``start_positions`` and ``end_positions`` are the first and
    last such token of the answer in the window, 0 where the window has none of it.
    """
    ids, masks, types = [], [], []
    positions = np.zeros((len(chosen), 2), dtype=np.int64)
    for place, window in enumerate(chosen):
        question = questions[window.row]
        ids.append(template.wrap(question.question, question.context[window.start : window.end]))
        first = first_context_token(question, template)
        inside = [int(end > start) for start, end in question.offsets[window.start : window.end]]
        masks.append([0] * first + inside + [0] * len(template.suffix))
        types.append(template.token_types(len(question.question), len(inside)))
        a, b = question.answer
        answer = [
            token for token in range(max(a, window.start), min(b + 1, window.end)) if inside[token - window.start]
        ]
        if answer:
            positions[place] = first - window.start + answer[0], first - window.start + answer[-1]
    ragged = {"input_ids": Ragged.from_rows(ids), "context_mask": Ragged.from_rows(masks)}
    if with_types:
        ragged["token_type_ids"] = Ragged.from_rows(types)
    scalars = {"start_positions": positions[:, 0].copy(), "end_positions": positions[:, 1].copy()}
    return Encoded(ragged, scalars, ragged["input_ids"].lengths, truncated)


def first_context_token(question: Question, template: PairTemplate) -> int:
    """Return where a feature's context starts."""
    return len(template.prefix) + len(question.question) + len(template.middle)


def best_spans(
    start: Tensor, end: Tensor, inside: Tensor, longest: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the highest sum of logits over spans of 1 to `longest` tokens, and the span's first and last token.

    Args:
        start: [batch, time] start logits, very low where `inside` is 0.
        end: [batch, time] end logits, likewise.
        inside: [batch, time] 1 where an answer may start or end; other tokens do not count in a span's length.
        longest: tokens of the longest span.

    Returns:
        sums [batch] and positions [batch, 2].
    """
    order = torch.argsort(1 - inside, dim=1, stable=True)
    start, end = start.gather(1, order), end.gather(1, order)
    time = start.shape[1]
    widths = range(min(longest, time))
    tables = [torch.max(start[:, : time - width] + end[:, width:], dim=1) for width in widths]
    sums = torch.stack([table.values for table in tables], dim=1)
    best, width = sums.max(dim=1)
    first = torch.stack([table.indices for table in tables], dim=1).gather(1, width[:, None])[:, 0]
    span = order.gather(1, torch.stack([first, first + width], dim=1))
    return best.double().cpu().numpy(), span.cpu().numpy()


def span_text(context: str, offsets: Offsets, first: int, last: int) -> str:
    """Return the text of a context from the first to the last of these tokens."""
    return context[offsets[first][0] : offsets[last][1]].strip()
