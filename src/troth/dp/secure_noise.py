"""Gaussian noise from a cryptographic keystream: AES-256 in counter mode, shaped without rounding.

The step's noise is cut into segments of a fixed number of elements. Each segment has a stream of its own, told apart by
the upper half of the counter, so that segments can be made in any order and by any number of threads with the same
result. It is read once, front to back: hats' centres, the rare remainder, places under the hats.

One draw is z = h (k + l - r), see `troth.dp.normal_mixture`: k a hat's centre from 16 bits, l = i / 2^32 and
r = (1 - 2^-32) j / 2^32 with i and j uniform in [-2^31, 2^31). Rounded to whole 2^-32, l - r is i - j, whose law is the
hat's, exactly; what r is short of j / 2^32 spreads it over that cell, so that the draws lie on no lattice. The law of z
is thus the normal one up to moves of less than 2^-36 standard deviations. The three terms are scaled and added in
float64 and rounded once to the buffer's type: in float32 no number is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

from troth.dp.normal_mixture import REMAINDER, SPACING, normal_mixture

__all__ = ["SEGMENT", "Keystream", "SecureWriter"]

SEGMENT = 1 << 18  # elements with streams of their own
_BLOCK = 1 << 15  # elements worked on at once: the scratch memory, 1.3 MB, stays in the cache
_WORDS = 2  # four-byte words that place a draw under its hat
_PROPOSALS = 1.8  # per wanted draw of the remainder, of which 0.65 are kept
_ZEROS = bytes(4 * _WORDS * _BLOCK)


class Keystream:
    """Bytes of AES-256-CTR under one key, from the counter block that belongs to a segment.

    Guarantees:
    - two segments or draws never share a counter block: its upper 8 bytes hold the draw (2 bytes) and the segment
      (6 bytes), the lower 8 count from 0 and cannot run over (2^64 blocks are 2^68 bytes).
    """

    def __init__(self, key: bytes, draw: int, segment: int) -> None:
        """Start the stream.

        Args:
            key: 32 bytes, of one step only.
            draw: which of the draws that are summed, below 2^16.
            segment: index of the segment, below 2^48.
        """
        counter = draw.to_bytes(2, "big") + segment.to_bytes(6, "big") + bytes(8)
        self._encryptor = Cipher(AES256(key), CTR(counter)).encryptor()

    def fill(self, out: np.ndarray) -> None:
        """Overwrite `out` [bytes], uint8, with the next bytes of the stream."""
        for start in range(0, len(out), len(_ZEROS)):
            part = out[start : start + len(_ZEROS)]
            self._encryptor.update_into(memoryview(_ZEROS)[: len(part)], part.data)


class SecureWriter:
    """Writes segments of N(0, standard_deviation²) draws; holds scratch memory, so each thread has its own.

    Guarantees:
    - a segment depends on the key, its index and the settings only: not on threads, order or the other segments;
    - the draws' law is the normal one, its tails included, up to the rounding named above; nothing beyond 9.32
      standard deviations comes out (probability 1.2e-20);
    - apart from the number of remainder draws, which the keystream alone decides, what is executed does not depend on
      the values drawn, and nothing depends on data.
    """

    def __init__(self, key: bytes, standard_deviation: float, draws: int = 1) -> None:
        """Prepare to write.

        Args:
            key: 32 bytes, of one step only.
            standard_deviation: of the result, positive.
            draws: independent draws summed, and divided by √draws, for each element.
        """
        self._key = key
        self._draws = draws
        self._scale = standard_deviation / math.sqrt(draws)
        hat = self._scale * SPACING
        self._units = np.array([[hat * 2.0**-32], [-hat * (2.0**-32 - 2.0**-64)], [hat]])
        self._mixture = normal_mixture()
        self._index, self._wide = np.empty(_BLOCK, dtype="<u2"), np.empty(_BLOCK, dtype=np.intp)
        self._centres = np.empty((draws, SEGMENT), dtype=np.int8)
        self._words, self._terms = np.empty(_WORDS * _BLOCK, dtype="<i4"), np.empty((_WORDS + 1) * _BLOCK)
        self._sum = np.empty(_BLOCK)

    def write(self, segment: int, out: np.ndarray) -> None:
        """Overwrite `out` [elements <= SEGMENT], float32 or float64, with the segment's noise."""
        parts = [self._blocks(segment, draw, len(out)) for draw in range(self._draws)]
        for start in range(0, len(out), _BLOCK):
            target = out[start : start + _BLOCK]
            total = next(parts[0])
            if self._draws > 1:
                np.copyto(self._sum[: len(target)], total)
                total = self._sum[: len(target)]
                for blocks in parts[1:]:
                    np.add(total, next(blocks), out=total)
            np.copyto(target, total, casting="same_kind")

    def _blocks(self, segment: int, draw: int, elements: int) -> Iterator[np.ndarray]:
        """Yield the segment's scaled draws block by block [<= _BLOCK], float64, always in the same memory."""
        stream = Keystream(self._key, draw, segment)
        centres = self._centres[draw, :elements]
        self._look_up(stream, centres)
        where = np.flatnonzero(centres == REMAINDER)
        rare = self._scale * self._remainder(stream, len(where))
        for start in range(0, elements, _BLOCK):
            count = min(_BLOCK, elements - start)
            words = self._words[: _WORDS * count]
            stream.fill(words.view(np.uint8))
            values = self._shape(words.reshape(_WORDS, count), centres[start : start + count])
            low, high = np.searchsorted(where, (start, start + count))
            values[where[low:high] - start] = rare[low:high]
            yield values

    def _shape(self, words: np.ndarray, centres: np.ndarray) -> np.ndarray:
        """Return scale·h (k + l - r) [count] from the words of l and r [2, count] and the centres k [count]."""
        terms = self._terms[: (_WORDS + 1) * len(centres)].reshape(_WORDS + 1, len(centres))
        np.copyto(terms[:_WORDS], words)
        np.copyto(terms[_WORDS], centres)
        np.multiply(terms, self._units, out=terms)
        values: np.ndarray = terms[0]
        for term in terms[1:]:
            np.add(values, term, out=values)
        return values

    def _look_up(self, stream: Keystream, centres: np.ndarray) -> None:
        """Overwrite `centres` [elements], int8, with the draws' hats, `REMAINDER` where the draw is a rare one."""
        for start in range(0, len(centres), _BLOCK):
            out = centres[start : start + _BLOCK]
            index, wide = self._index[: len(out)], self._wide[: len(out)]
            stream.fill(index.view(np.uint8))
            np.copyto(wide, index)
            out[:] = self._mixture.centres[wide]

    def _remainder(self, stream: Keystream, count: int) -> np.ndarray:
        """Return `count` draws of the remainder [count], float64."""
        found = np.empty(0)
        while len(found) < count:
            words = np.empty((int(_PROPOSALS * (count - len(found))) + 16, 3), dtype="<u8")
            stream.fill(words.reshape(-1).view(np.uint8))
            found = np.concatenate((found, self._mixture.remainder(words)))
        return found[:count]
