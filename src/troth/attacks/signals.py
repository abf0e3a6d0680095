"""What a model says about a table, gathered once for every attack that needs no other model.

`signals_of` scores a table in one pass; `signal_scores` turns the signals into the score of a named attack. Signals
hold numbers only, never text.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from troth.attacks.scores import modified_entropy_scores
from troth.attacks.token_attacks import margin_scores, min_k_plus_plus_scores, min_k_scores, zlib_scores
from troth.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from troth.data import Table
    from troth.tasks import Scores, ScoringProgress, Task
    from troth.tasks.token_scores import TokenScores

__all__ = ["Signals", "available", "signal_scores", "signals_of"]

_OUTSIDE = "O"
_LEVEL = 6  # of zlib, its own default, written down since the score depends on it
_TEXT_ROLES = {"language_modeling": "text", "seq2seq": "target"}  # the column that the model predicts


@dataclass(frozen=True, eq=False)
class Signals:
    """What a model says about each row of a table; None where the task, or the caller's scores, have no such thing.

    Attributes:
        losses: [rows] float64 nats; NaN where a row has nothing to predict.
        log_probabilities: [rows, classes] float64 of a classifier.
        labels: [rows] int64, the row's class; -1 where the model does not know it.
        tokens: statistics of each predicted token.
        entities: [total] bool, for a tagger: whether the token's own tag is other than ``O``.
        compressed_bytes: [rows] int64, the length of the predicted text (language modeling: the text; seq2seq: the
            target) in UTF-8 after zlib at level 6. The whole text counts, also what the maximum length cuts.
    """

    losses: np.ndarray
    log_probabilities: np.ndarray | None = None
    labels: np.ndarray | None = None
    tokens: TokenScores | None = None
    entities: np.ndarray | None = None
    compressed_bytes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.losses)

    @property
    def usable(self) -> np.ndarray:
        """[rows] bool: whether the row has something to predict."""
        return np.asarray(~np.isnan(self.losses))

    def take(self, rows: np.ndarray) -> Signals:
        """Return the signals of the rows at `rows` [k], in that order."""
        chosen = np.asarray(rows, dtype=np.int64)
        kept = [
            None if column is None else column[chosen]
            for column in (self.log_probabilities, self.labels, self.compressed_bytes)
        ]
        tokens = None if self.tokens is None else self.tokens.take(chosen)
        return Signals(self.losses[chosen], kept[0], kept[1], tokens, self._taken_entities(chosen), kept[2])

    def _taken_entities(self, rows: np.ndarray) -> np.ndarray | None:
        from troth.tasks.token_scores import taken

        if self.entities is None or self.tokens is None:
            return None
        return np.asarray(self.entities[taken(self.tokens.offsets, rows)[1]])


def signals_of(
    task: Task,
    model: PreTrainedModel,
    table: Table,
    *,
    scores: Scores | None = None,
    batch_size: int = 64,
    progress: ScoringProgress | None = None,
) -> Signals:
    """Return the signals of a model on a table, from one pass over it.

    Args:
        task: how text becomes losses.
        model: looked into, and left as it was.
        table: rows of the task.
        scores: what ``task.score(model, table, tokens=True)`` returned, where it is there already; without tokens in
            it, the signals have none either.
        batch_size: rows in a forward pass.
        progress: called with rows done and rows in all.

    Raises:
        DataError: scores of another number of rows than the table's.
    """
    found = scores
    if found is None:
        found = task.score(model, table, batch_size=batch_size, progress=progress, tokens=True)
    if len(found) != len(table):
        raise DataError(f"{table.source}: scores of {len(found)} rows for a table of {len(table)}: score it again")
    return Signals(
        found.losses,
        found.log_probabilities,
        _labels(task, table) if found.log_probabilities is not None else None,
        found.tokens,
        _entities(task, table, found.tokens) if task.kind == "tagging" and found.tokens is not None else None,
        _compressed_bytes(table, _TEXT_ROLES.get(task.kind)),
    )


def _labels(task: Task, table: Table) -> np.ndarray | None:
    if not table.has("label"):
        return None
    codes = {label: code for code, label in enumerate(task.labels)}
    return np.array([codes.get(label, -1) for label in table.column("label")], dtype=np.int64)


def _entities(task: Task, table: Table, tokens: TokenScores) -> np.ndarray | None:
    """Return which tokens carry a tag other than ``O`` [total], by the tags that the task itself kept."""
    column = task.encode(table).ragged.get("labels")
    if column is None:
        return None
    codes = column.values[column.values >= 0]
    if len(codes) != len(tokens.log_probabilities):
        raise DataError(f"{table.source}: scores of {len(tokens.log_probabilities)} words for {len(codes)}: redo")
    inside = np.array([tag != _OUTSIDE for tag in task.labels], dtype=bool)
    return np.asarray(inside[codes])


def _compressed_bytes(table: Table, role: str | None) -> np.ndarray | None:
    if role is None or not table.has(role):
        return None
    return np.array([len(zlib.compress(text.encode(), _LEVEL)) for text in table.column(role)], dtype=np.int64)


def _loss(signals: Signals) -> np.ndarray:
    return -signals.losses


def _modified_entropy(signals: Signals) -> np.ndarray | None:
    if signals.log_probabilities is None or signals.labels is None:
        return None
    found = np.full(len(signals), np.nan)
    known = signals.usable & (signals.labels >= 0)
    found[known] = modified_entropy_scores(signals.log_probabilities[known], signals.labels[known])
    return found


def _margin(signals: Signals) -> np.ndarray | None:
    tokens = signals.tokens
    if tokens is None or signals.entities is None:
        return None
    return margin_scores(tokens.offsets, tokens.margins, signals.entities)


def _zlib(signals: Signals) -> np.ndarray | None:
    tokens = signals.tokens
    if tokens is None or signals.compressed_bytes is None:
        return None
    return zlib_scores(tokens.offsets, tokens.log_probabilities, signals.compressed_bytes)


def _min_k(signals: Signals) -> np.ndarray | None:
    tokens = signals.tokens
    return None if tokens is None else min_k_scores(tokens.offsets, tokens.log_probabilities)


def _min_k_plus_plus(signals: Signals) -> np.ndarray | None:
    tokens = signals.tokens
    if tokens is None:
        return None
    return min_k_plus_plus_scores(tokens.offsets, tokens.log_probabilities, tokens.means, tokens.deviations)


_ATTACKS: dict[str, Callable[[Signals], Any]] = {
    "loss": _loss,
    "modified_entropy": _modified_entropy,
    "margin": _margin,
    "zlib": _zlib,
    "min_k": _min_k,
    "min_k_plus_plus": _min_k_plus_plus,
}


def available(signals: Signals) -> tuple[str, ...]:
    """Return the names of the attacks that these signals are enough for, ``loss`` first.

    ``modified_entropy`` wants a classifier's log-probabilities and labels, ``margin`` a tagger's tokens, ``zlib`` a
    text that is predicted, ``min_k`` and ``min_k_plus_plus`` tokens of any task.

    >>> available(Signals(np.zeros(3)))
    ('loss',)
    """
    has_tokens = signals.tokens is not None
    there = {
        "loss": True,
        "modified_entropy": signals.log_probabilities is not None and signals.labels is not None,
        "margin": has_tokens and signals.entities is not None,
        "zlib": has_tokens and signals.compressed_bytes is not None,
        "min_k": has_tokens,
        "min_k_plus_plus": has_tokens,
    }
    return tuple(name for name in _ATTACKS if there[name])


def signal_scores(name: str, signals: Signals) -> np.ndarray:
    """Return the score of a named attack [rows], higher = more likely a member; NaN where a row is not usable.

    ``loss`` (Yeom et al., CSF 2018) is minus the loss. ``modified_entropy`` is `modified_entropy_scores`, ``margin``
    `margin_scores` over entity tokens, ``zlib`` `zlib_scores`, ``min_k`` and ``min_k_plus_plus`` the functions of these
    names over the lowest 20 % of a row's tokens, at least one.

    Raises:
        DataError: no such attack, or signals that are not enough for it; the text names those that are there.
    """
    found = _ATTACKS[name](signals) if name in _ATTACKS else None
    if found is None:
        there = ", ".join(available(signals))
        if name not in _ATTACKS:
            raise DataError(f"no attack is called {name!r} here; with these signals: {there}")
        raise DataError(f"the attack {name} wants signals that are not there; with these: {there}")
    return np.asarray(np.where(signals.usable, found, np.nan))
