"""What a model says of each token it predicts: the right one's probability, and how sure it was of any."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from troth.tasks.task import IGNORED

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["TokenGathering", "TokenScores", "token_statistics"]

_LEAST = float(np.log(np.finfo(np.float64).tiny))  # nats; a probability that came out 0 counts as the smallest float64
_AT_ONCE = 2**18  # numbers in one piece of float64 logits, which stays in the cache: twice as fast as 2**22


@dataclass(frozen=True, eq=False)
class TokenScores:
    """Statistics of predicted tokens as columns and offsets: row i is ``column[offsets[i]:offsets[i + 1]]``.

    A token is what the task predicts one by one: a tagged word, the start and the end of an answer, a token of the
    target, a token of the text (masked language modeling: a masked one). All but `offsets` are float64 [total]; natural
    logarithms throughout. A probability that came out 0 counts as the smallest positive float64.

    Attributes:
        offsets: [rows + 1] int64, ascending from 0 to total; a row without targets has no tokens.
        log_probabilities: of the right token.
        means: of the log-probability under the model's own distribution over all tokens, Σ p log p.
        deviations: its standard deviation, at least 0; 0 where the model is sure or all are alike.
        margins: the right token's log-probability minus that of the best other; 0 where there is no other.
    """

    offsets: NDArray[np.int64]
    log_probabilities: NDArray[np.float64]
    means: NDArray[np.float64]
    deviations: NDArray[np.float64]
    margins: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[rows] how many tokens each row has."""
        return np.diff(self.offsets)

    def take(self, rows: NDArray[Any]) -> TokenScores:
        """Return the rows at `rows` [k], in that order."""
        offsets, places = taken(self.offsets, rows)
        columns = (self.log_probabilities, self.means, self.deviations, self.margins)
        return TokenScores(offsets, *(column[places] for column in columns))


def taken(offsets: NDArray[np.int64], rows: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the offsets [k + 1] of the rows at `rows` [k], and where their tokens stand in the columns [new total]."""
    chosen = np.asarray(rows, dtype=np.int64)
    starts, lengths = offsets[:-1][chosen], np.diff(offsets)[chosen]
    found = np.zeros(len(chosen) + 1, dtype=np.int64)
    np.cumsum(lengths, out=found[1:])
    return found, np.repeat(starts - found[:-1], lengths) + np.arange(found[-1])


def token_statistics(scores: Tensor, gold: Tensor) -> Tensor:
    """Return [tokens, 4] float64: log-probability, mean, deviation and margin, as `TokenScores` names them.

    Args:
        scores: [tokens, classes] logits or log-probabilities, any floating dtype; minus infinity where impossible.
        gold: [tokens] int64, the right class of each.
    """
    place = gold[:, None]
    best = scores.amax(dim=1, keepdim=True)
    other = scores.scatter(1, place, -torch.inf).amax(dim=1)
    # Below the best, so that the moments of a sure distribution do not cancel; in place, since memory sets the pace.
    below = scores.double().sub_(best).clamp_(min=_LEAST)
    weights = below.exp()
    total = weights.sum(dim=1)
    log_total = total.log()
    own = (below.gather(1, place)[:, 0] - log_total).clamp(min=_LEAST)
    mean = weights.mul_(below).sum(dim=1) / total
    square = weights.mul_(below).sum(dim=1) / total
    deviation = (square - mean.square()).clamp(min=0).sqrt()
    runner_up = other.double() - best[:, 0] - log_total
    margin = torch.where(other == -torch.inf, 0.0, own - runner_up)
    return torch.stack([own, mean - log_total, deviation, margin], dim=1)


@dataclass(frozen=True, eq=False)
class TokenGathering:
    """Token statistics of a table, gathered batch by batch in any order of rows."""

    _parts: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]] = field(default_factory=list)

    def add(self, rows: NDArray[np.int64], scores: Tensor, labels: Tensor) -> None:
        """Add a batch; a row may be added once.

        Args:
            rows: [batch] row numbers in the table.
            scores: [batch, time, classes] logits or log-probabilities; minus infinity where impossible.
            labels: [batch, time] int64, `IGNORED` where nothing is predicted.
        """
        chosen = labels != IGNORED
        picked, gold = scores[chosen], labels[chosen]
        step = max(1, _AT_ONCE // max(1, scores.shape[2]))
        pieces = [
            token_statistics(picked[start : start + step], gold[start : start + step]).cpu().numpy()
            for start in range(0, len(gold), step)
        ]
        found = np.concatenate(pieces) if pieces else np.zeros((0, 4))
        self._parts.append((np.asarray(rows, dtype=np.int64), chosen.sum(dim=1).cpu().numpy(), found))

    def scores(self, rows: int) -> TokenScores:
        """Return the statistics of a table of so many rows; a row that was not added has no tokens."""
        order = np.concatenate([np.zeros(0, dtype=np.int64), *(part[0] for part in self._parts)])
        counts = np.concatenate([np.zeros(0, dtype=np.int64), *(part[1] for part in self._parts)])
        values = np.concatenate([np.zeros((0, 4)), *(part[2] for part in self._parts)])
        lengths = np.zeros(rows, dtype=np.int64)
        lengths[order] = counts
        offsets = np.zeros(rows + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        before = np.cumsum(counts) - counts
        columns = np.empty_like(values)
        columns[np.repeat(offsets[order] - before, counts) + np.arange(len(values))] = values
        logs, means, deviations, margins = (column.copy() for column in columns.T)
        return TokenScores(offsets, logs, means, deviations, margins)
