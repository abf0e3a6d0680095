"""Masks of masked language modeling, a pure function of row, public seed and draw: counter-based, without a state."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from troth.errors import ModelError
from troth.tasks.encoded import Ragged
from troth.tasks.task import IGNORED
from troth.tasks.tokens import Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Masking", "row_keys"]

Integers = NDArray[np.int64]
_SHARE = 0.15
_MASK, _RANDOM = 0.8, 0.1  # of the chosen tokens; the rest stay as they are (Devlin et al. 2019, section 3.1)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def row_keys(ids: Ragged, seed: int) -> Integers:
    """Return [rows] keys made from each row's own tokens and a public seed; equal rows have equal keys."""
    key = seed.to_bytes(8, "little")
    digests = [hashlib.blake2b(ids.row(i).tobytes(), digest_size=8, key=key).digest() for i in range(len(ids))]
    return np.frombuffer(b"".join(digests), dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Masking:
    """Which tokens of a row are to be found, and what stands in their place.

    Attributes:
        mask_id: the mask token.
        candidates: [vocabulary] ordinary tokens, from which random replacements come.
        before: special tokens at a row's start, never masked.
        after: special tokens at its end.
    """

    mask_id: int
    candidates: Integers
    before: int
    after: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, template: Template) -> Masking:
        """Return the masking of a tokenizer.

        Raises:
            ModelError: it has no mask token.
        """
        if not isinstance(tokenizer.mask_token_id, int):
            raise ModelError("task.objective = 'masked' wants a tokenizer with a mask token: take 'causal' instead")
        special = np.array(sorted(set(tokenizer.all_special_ids)), dtype=np.int64)
        candidates = np.setdiff1d(np.arange(len(tokenizer), dtype=np.int64), special)
        return cls(tokenizer.mask_token_id, candidates, len(template.prefix), len(template.suffix))

    def __call__(self, ids: Integers, lengths: Integers, keys: Integers, draw: int) -> tuple[Integers, Integers]:
        """Return the ids with masks and the labels, both [batch, time].

        Args:
            ids: [batch, time] padded rows.
            lengths: [batch] tokens of each row, special ones included.
            keys: [batch] from `row_keys`.
            draw: which of the masks of these rows, 0 or more.
        """
        width = ids.shape[1]
        columns = np.arange(width)
        ordinary = (columns >= self.before) & (columns < (lengths - self.after)[:, None])
        total = ordinary.sum(axis=1)
        wanted = np.where(total > 0, np.maximum(1, np.rint(_SHARE * total)), 0)
        order = np.where(ordinary, _uniform(keys, draw, 0, width), 2.0)
        chosen = np.argsort(np.argsort(order, axis=1), axis=1) < wanted[:, None]
        kind = _uniform(keys, draw, 1, width)
        picked = (_uniform(keys, draw, 2, width) * len(self.candidates)).astype(np.int64)
        masked = np.where(chosen & (kind < _MASK), self.mask_id, ids)
        masked = np.where(chosen & (kind >= _MASK) & (kind < _MASK + _RANDOM), self.candidates[picked], masked)
        return masked, np.where(chosen, ids, IGNORED)


def _uniform(keys: Integers, draw: int, stream: int, width: int) -> NDArray[np.float64]:
    """Return [batch, width] numbers in [0, 1): column j of a row does not depend on `width` or on other rows."""
    start = _mix(np.array([3 * draw + stream], dtype=np.uint64) * _GOLDEN)
    row = _mix(keys.view(np.uint64) ^ start)
    bits = _mix(row[:, None] + np.arange(1, width + 1, dtype=np.uint64) * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: NDArray[Any]) -> NDArray[Any]:
    """Return the finaliser of SplitMix64 (Steele, Lea and Flood 2014) of each 64-bit word."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    out: NDArray[Any] = x ^ (x >> np.uint64(31))
    return out
