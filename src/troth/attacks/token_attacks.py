"""Membership scores from the tokens of texts: pure functions of columns and offsets, higher = more likely a member.

Row i of a column is ``column[offsets[i]:offsets[i + 1]]``, as in `troth.tasks.token_scores`. A row without tokens has
no score: NaN. All functions are O(total log total), without a loop over rows.
"""

from __future__ import annotations

import numpy as np

from troth.errors import DataError

__all__ = ["margin_scores", "min_k_plus_plus_scores", "min_k_scores", "row_minima", "row_sums", "zlib_scores"]

_ROUNDING = 1e-9  # a fifth of 15 counts as 3 whatever the floating point says
_SMALLEST = 1e-12  # nats; the deviation of a distribution that is sure of itself


def min_k_scores(offsets: np.ndarray, log_probabilities: np.ndarray, *, share: float = 0.2) -> np.ndarray:
    """Return the mean of each row's lowest log-probabilities [rows], in nats, at most 0; NaN without tokens.

    Min-K% Prob (Shi et al., arXiv 2310.16789): the lowest ``floor(share * tokens)``, at least one.

    Args:
        offsets: [rows + 1], ascending from 0 to total.
        log_probabilities: of the right tokens [total].
        share: of a row's tokens, in (0, 1].

    Raises:
        DataError: NaN or infinite values, offsets that do not fit, or a share outside of (0, 1].
    """
    bounds, values = _columns(offsets, log_probabilities)
    return _lowest_means(bounds, values, share)


def min_k_plus_plus_scores(
    offsets: np.ndarray,
    log_probabilities: np.ndarray,
    means: np.ndarray,
    deviations: np.ndarray,
    *,
    share: float = 0.2,
) -> np.ndarray:
    """Return the mean of each row's lowest standardised log-probabilities [rows]; NaN without tokens.

    Min-K%++ (Zhang et al., arXiv 2404.02936): (log p - μ) / σ with μ and σ the mean and the standard
    deviation of the log-probability under the model's own distribution at that place. A σ below 1e-12 counts as 1e-12.

    Args:
        offsets: [rows + 1], ascending from 0 to total.
        log_probabilities: of the right tokens [total].
        means: μ [total].
        deviations: σ [total], at least 0.
        share: of a row's tokens, in (0, 1].

    Raises:
        DataError: NaN or infinite values, shapes that do not fit, or a share outside of (0, 1].
    """
    bounds, values = _columns(offsets, log_probabilities)
    centres, widths = _columns(offsets, means)[1], _columns(offsets, deviations)[1]
    return _lowest_means(bounds, (values - centres) / np.maximum(widths, _SMALLEST), share)


def zlib_scores(offsets: np.ndarray, log_probabilities: np.ndarray, compressed_bytes: np.ndarray) -> np.ndarray:
    """Return minus each row's total nats for each byte of its compressed text [rows], at most 0; NaN without tokens.

    The zlib ratio of Carlini et al. (arXiv 2012.07805): a text that the model finds likelier than a
    compressor does. The paper ranks by log-perplexity over zlib entropy; we take the total, whose unit fits the bytes'.

    Args:
        offsets: [rows + 1], ascending from 0 to total.
        log_probabilities: of the right tokens [total].
        compressed_bytes: length of each row's compressed text [rows], above 0.

    Raises:
        DataError: NaN or infinite values, shapes that do not fit, or a length that is not above 0.
    """
    bounds, values = _columns(offsets, log_probabilities)
    lengths = np.asarray(compressed_bytes, dtype=np.float64)
    if lengths.shape != (len(bounds) - 1,):
        raise DataError(f"compressed_bytes of shape {list(lengths.shape)} for {len(bounds) - 1} rows: give one each")
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        row = int(np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))[0])
        raise DataError(f"compressed_bytes: row {row} is {lengths[row]:g}; a compressed text has at least one byte")
    return np.where(np.diff(bounds) > 0, row_sums(bounds, values) / lengths, np.nan)


def margin_scores(offsets: np.ndarray, margins: np.ndarray, entities: np.ndarray | None = None) -> np.ndarray:
    """Return each row's smallest margin over its entity tokens [rows], in nats; NaN without tokens.

    A memorised sentence is sure of every slot, and the weakest one tells. A row without entity tokens is judged by all
    of its tokens. The score is ours.

    Args:
        offsets: [rows + 1], ascending from 0 to total.
        margins: the right tag's log-probability minus the best other's [total].
        entities: which tokens carry a tag other than ``O`` [total] bool; None takes all tokens.

    Raises:
        DataError: NaN or infinite values, or shapes that do not fit.
    """
    bounds, values = _columns(offsets, margins)
    every = row_minima(bounds, values)
    if entities is None:
        return every
    mask = np.asarray(entities)
    if mask.dtype != np.bool_ or mask.shape != values.shape:
        raise DataError(f"entities: {mask.dtype} of shape {list(mask.shape)} for {len(values)} tokens: one bool each")
    inside = np.concatenate([[0], np.cumsum(mask)])[bounds]
    return np.where(np.diff(inside) > 0, row_minima(inside, values[mask]), every)


def row_sums(offsets: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return [rows] the sum of each row's values, 0 for a row without any."""
    return np.bincount(_row_of(offsets), weights=values, minlength=len(offsets) - 1)


def row_minima(offsets: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return [rows] the least of each row's values, NaN for a row without any."""
    found = np.full(len(offsets) - 1, np.nan)
    filled = np.diff(offsets) > 0
    if filled.any():
        found[filled] = np.minimum.reduceat(values, offsets[:-1][filled])
    return found


def _lowest_means(offsets: np.ndarray, values: np.ndarray, share: float) -> np.ndarray:
    if not 0 < share <= 1:
        raise DataError(f"share = {share}: must lie above 0, at most 1")
    lengths, rows = np.diff(offsets), _row_of(offsets)
    counts = np.maximum(np.floor(share * lengths + _ROUNDING).astype(np.int64), 1)
    ranked = values[np.lexsort((values, rows))]
    low = np.arange(len(values)) - np.repeat(offsets[:-1], lengths) < np.repeat(counts, lengths)
    sums = np.bincount(rows[low], weights=ranked[low], minlength=len(lengths))
    return np.where(lengths > 0, sums / counts, np.nan)


def _row_of(offsets: np.ndarray) -> np.ndarray:
    """Return [total] the row of each token."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def _columns(offsets: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return offsets as int64 and a column as float64, checked."""
    bounds, column = np.asarray(offsets), np.asarray(values, dtype=np.float64)
    if bounds.ndim != 1 or not len(bounds) or not np.issubdtype(bounds.dtype, np.integer):
        raise DataError(f"offsets: {bounds.dtype} of shape {list(bounds.shape)}; give integers of shape [rows + 1]")
    if column.ndim != 1 or bounds[0] != 0 or bounds[-1] != len(column) or (np.diff(bounds) < 0).any():
        raise DataError(f"offsets: must ascend from 0 to the number of tokens, {column.size}")
    bad = np.flatnonzero(~np.isfinite(column))
    if len(bad):
        row = int(np.searchsorted(bounds, bad[0], side="right")) - 1
        raise DataError(f"tokens of row {row}: {column[bad[0]]}; leave the row out or score it again")
    return bounds.astype(np.int64), column
