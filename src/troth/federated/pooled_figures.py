"""Figures that are functions of sums over devices but no ratios: macro scores, calibration error, ROC area.

Each comes with what every device moves it by to first order: the derivative of the figure with respect to the sums,
times the device's part of them. All figures here stay the same when all sums are multiplied by a number, hence these
influences add up to zero (Euler) and their spread alone gives the variance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from troth.results import Json
from troth.tasks.macro_f1 import THIN

__all__ = ["Pooled", "calibration_error", "macro_scores", "roc_area"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Pooled:
    """A figure between 0 and 1 of sums over devices.

    Attributes:
        name: the metric.
        value: in [0, 1].
        influence: [devices] what each moves the figure by.
        bound: how far the figure may be from that of the rows themselves, because rows share bins; 0 where it is exact.
        thin: labels that occur on so few devices that their part of the figure rests on little.
        protocol: how it was made.
    """

    name: str
    value: float
    influence: Floats
    bound: float = 0.0
    thin: int = 0
    protocol: Mapping[str, Json] = field(default_factory=dict)


def macro_scores(sums: csr_array, counts: csr_array) -> list[Pooled]:
    """Return ``macro_f1``, ``macro_precision`` and ``macro_recall``: means over the labels that are gold or predicted.

    Equal to scikit-learn's ``average="macro"`` with ``zero_division=0`` on the rows themselves, where sums are counts.

    Args:
        sums: [devices, 3 x labels] right, predicted and gold rows, weighted.
        counts: the same unweighted, by which thin labels are told.
    """
    right, predicted, gold = np.asarray(sums.sum(axis=0)).reshape(3, -1)
    there = (predicted + gold) > 0
    labels = int(there.sum())
    either, zero = predicted + gold, np.zeros(len(right))
    width = len(right)
    thin = int(((counts[:, width : 2 * width] + counts[:, 2 * width :]).count_nonzero(axis=0)[there] < THIN).sum())
    protocol: dict[str, Json] = {
        "averaged_over": "labels that are gold or predicted",
        "labels": labels,
        "labels_on_few_devices": thin,
    }
    out = []
    for name, scale, whole, parts in (
        ("macro_f1", 2.0, either, (zero, either, either)),
        ("macro_precision", 1.0, predicted, (zero, predicted, zero)),
        ("macro_recall", 1.0, gold, (zero, zero, gold)),
    ):
        safe = np.where(whole > 0, whole, 1.0)
        figure = np.where(whole > 0, scale * right / safe, 0.0)
        slopes = [np.where(whole > 0, scale / safe, 0.0)]
        slopes += [np.where((whole > 0) & (part > 0), -figure / safe, 0.0) for part in parts[1:]]
        influence = np.asarray(sums @ (np.concatenate(slopes) / labels))
        out.append(Pooled(name, float(figure[there].mean()), influence, thin=thin, protocol=protocol))
    return out


def calibration_error(sums: Floats) -> Pooled:
    """Return ``calibration_error`` (ECE), in [0, 1]: the mean distance of confidence and accuracy over bins.

    Guo et al., ICML 2017, equation 3: sum over bins of (rows in the bin / rows) x |accuracy - confidence|; 0 means that
    confidence is right on average in every bin. A distance cannot be below zero: with few rows a bin it is too large.

    Args:
        sums: [devices, 3, bins] rows, sum of confidence and right rows, weighted.
    """
    rows, confidence, right = sums.sum(axis=0)
    total = rows.sum()
    value = float(np.abs(right - confidence).sum() / total)
    signs = np.sign(right - confidence)
    influence = ((sums[:, 2] - sums[:, 1]) @ signs - value * sums[:, 0].sum(axis=1)) / total
    protocol: dict[str, Json] = {"bins": sums.shape[2], "bin_width": "equal on (0, 1]"}
    return Pooled("calibration_error", value, influence, protocol=protocol)


def roc_area(sums: csr_array) -> Pooled | None:
    """Return ``auc``: the chance that a positive row scores above a negative one, ties half; None without both.

    Pairs of rows that share a bin count half, where on the rows themselves they count between 0 and 1. Hence the area
    of the rows is within half the share of such pairs, `bound`, for certain.

    Args:
        sums: [devices, 2 x bins] negative and positive rows by bin of score, ascending, weighted.
    """
    negative, positive = np.asarray(sums.sum(axis=0)).reshape(2, -1)
    below, above = negative.sum(), positive.sum()
    if not below or not above:
        return None
    beaten = np.cumsum(negative) - negative / 2
    beating = above - np.cumsum(positive) + positive / 2
    pairs = below * above
    value = float(positive @ beaten / pairs)
    slopes = np.concatenate([beating / pairs - value / below, beaten / pairs - value / above])
    bound = float(positive @ negative / pairs / 2)
    protocol: dict[str, Json] = {"bins": len(negative), "bin_bound": bound, "interval_includes": "the bin bound"}
    return Pooled("auc", value, np.asarray(sums @ slopes), bound=bound, protocol=protocol)
