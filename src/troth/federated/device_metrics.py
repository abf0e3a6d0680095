"""Quality of a model over devices, from sums alone: weighted by rows or devices, its spread, devices unseen, slices.

Names: ``federated.devices.<metric>.<figure>``, and ``federated.unseen_devices.<metric>.<figure>`` for held-out devices.

- ``sample_weighted``: the figure of all rows, each counting once; equal to what one table of all rows gives.
- ``device_weighted``: each device counts once. For a ratio (accuracy, span F1, loss...) it is the mean of the devices'
  own ratios; a perplexity is averaged in nats. For figures that mean little on a few rows (macro F1, calibration
  error, ROC area) it is the figure of the sums in which each device's rows weigh one together.
- ``p10`` to ``p90``: deciles of the devices' own ratios: the smallest value that so many of the devices do not exceed.
- ``worst_decile``: the mean over the worst-served tenth of devices.
- ``gap`` (unseen devices only): by how much the device-weighted figure is worse than on seen devices.
- ``by_<what>``: the sample-weighted figure with slices as groups.

A device's own figure rests on its few rows: the spread over devices holds their noise too (the median number of rows
stands in the protocol). Intervals take devices as units, see `troth.federated.device_intervals`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from troth.errors import DataError
from troth.federated.device_intervals import device_ratio_interval
from troth.federated.device_measures import DeviceMeasures, in_unit, largest_of, scaled
from troth.federated.evaluation import DeviceStatistics, Ratio
from troth.federated.pooled_figures import Pooled, calibration_error, macro_scores, roc_area
from troth.intervals import ratio_of_sums
from troth.results import Group, Measurement
from troth.seeds import PublicSeeds

__all__ = ["DECILES", "POOLED_METRICS", "SPREAD_METRICS", "device_measurements", "slices", "unseen_device_measurements"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

DECILES = tuple(f"p{level}" for level in range(10, 100, 10))

SPREAD_METRICS = ("accuracy", "span_f1", "token_accuracy", "exact_match", "f1", "rouge_l", "perplexity", "loss")
"""Ratios of which the spread over devices is given; precision and recall of spans have their means only."""

POOLED_METRICS = ("macro_f1", "macro_precision", "macro_recall", "calibration_error", "auc")
"""Figures of pooled sums, which have no spread over devices."""


def device_measurements(
    statistics: DeviceStatistics,
    *,
    seeds: PublicSeeds,
    minimum: int = 10,
    prefix: str = "federated.devices",
    outside_guarantee: bool = False,
) -> tuple[Measurement, ...]:
    """Return every figure that the statistics allow, see the module's text.

    Figures of single devices (all but ``sample_weighted``) are given for `minimum` devices or more; below that a
    measurement without a value says so in its protocol.

    Args:
        statistics: sums of each device; devices without a row do not count.
        seeds: public seeds of the bootstraps.
        minimum: devices that a figure of devices has to rest on.
        prefix: first part of the names.
        outside_guarantee: whether the rows are private data that no epsilon covers.
    """
    found = statistics.with_rows()
    measures = DeviceMeasures.of(found, prefix, seeds, minimum, outside_guarantee)
    out = [made for metric, ratio in found.ratios.items() for made in _of_ratio(measures, metric, ratio)]
    ones = np.ones(len(found))
    out += [
        measures.pooled("sample_weighted", pooled, found.rows.astype(np.float64)) for pooled in _pooled(found, ones)
    ]
    for pooled in _pooled(found, 1 / found.rows):
        if len(found) < minimum:
            out.append(measures.suppressed(f"{pooled.name}.device_weighted", len(found)))
        else:
            out.append(measures.pooled("device_weighted", pooled, ones))
    return tuple(out)


def unseen_device_measurements(
    unseen: DeviceStatistics,
    seen: DeviceStatistics,
    *,
    seeds: PublicSeeds,
    minimum: int = 10,
    outside_guarantee: bool = False,
) -> tuple[Measurement, ...]:
    """Return the figures of held-out devices, and for each ratio the ``gap`` to the devices that train.

    The gap is the device-weighted figure of seen devices minus that of unseen ones, turned round where lower is better
    (in nats for a perplexity): above 0 where unseen devices are served worse. Held-out devices are a slice: with fewer
    than `minimum` of them no figure is given at all.

    Args:
        unseen: sums of the devices that never train.
        seen: sums of the devices that train, on rows that nobody trained on.
        seeds: public seeds of the bootstraps.
        minimum: devices that a figure has to rest on, on either side.
        outside_guarantee: whether the rows are private data that no epsilon covers.
    """
    prefix = "federated.unseen_devices"
    few, many = unseen.with_rows(), seen.with_rows()
    measures = DeviceMeasures.of(few, prefix, seeds, minimum, outside_guarantee)
    own = device_measurements(few, seeds=seeds, minimum=minimum, prefix=prefix, outside_guarantee=outside_guarantee)
    if len(few) < minimum:
        own = tuple(measures.suppressed(made.name.removeprefix(f"{prefix}."), len(few)) for made in own)
    metrics = [metric for metric in few.ratios if metric in SPREAD_METRICS and metric in many.ratios]
    gaps = [measures.gap(metric, *(_own(side.ratios[metric]) for side in (many, few))) for metric in metrics]
    return (*own, *gaps)


def slices(
    metric: str,
    rows: Ratio,
    devices: NDArray[np.integer],
    codes: NDArray[np.integer],
    names: Sequence[str],
    *,
    by: str,
    measures: DeviceMeasures,
) -> Measurement:
    """Return ``<metric>.by_<by>``: the sample-weighted figure, with that of each slice of rows as a group.

    A slice on fewer devices than the minimum is not given. Since it could be had by subtraction, the smallest others
    are left out as well until those that are left out together rest on the minimum; how many they are stands in the
    protocol, and their names do not. A group's n is its number of devices.

    Args:
        metric: its name, such as ``accuracy``.
        rows: parts and wholes of each row, from `row_ratios`.
        devices: [rows] device numbers, not negative.
        codes: [rows] slice numbers; -1 for a row in no slice.
        names: [slices] what slices are called.
        by: what they are slices by, such as ``group``.
        measures: makes measurements of these rows' devices, see `DeviceMeasures.of`.

    Raises:
        DataError: lengths differ, or a slice without a name.
    """
    kinds = np.asarray(codes, dtype=np.int64)
    fits = len(rows.parts) == len(devices) == len(kinds)
    if not fits or kinds.max(initial=-1) >= len(names) or kinds.min(initial=-1) < -1:
        raise DataError(f"slices by {by}: give one device and one slice of {len(names)} for each row")
    _, owner = np.unique(devices, return_inverse=True)
    whole = measures.mean(metric, f"by_{by}", *_summed(rows, owner, np.arange(len(owner))))
    if whole.n < measures.minimum:
        return measures.suppressed(f"{metric}.by_{by}", whole.n)
    counting = np.flatnonzero((kinds >= 0) & (rows.wholes > 0))
    shown = _shown(kinds[counting], owner[counting], measures.minimum)
    rng = measures.seeds.generator("bootstrap", f"{measures.prefix}.{metric}.by_{by}", "slices")
    groups = {}
    for code in shown.tolist():
        parts, wholes = _summed(rows, owner, counting[kinds[counting] == code])
        interval = scaled(metric, device_ratio_interval(parts, wholes, rng, largest=largest_of(metric)))
        value = in_unit(metric, ratio_of_sums(parts, wholes))
        groups[names[code]] = Group(value, interval.low, interval.high, len(parts))
    left_out = len(np.unique(kinds[counting])) - len(shown)
    protocol = {**whole.protocol, "minimum_devices": measures.minimum, "suppressed_slices": left_out}
    return replace(whole, groups=groups, protocol=protocol)


def _shown(codes: Integers, owner: Integers, minimum: int) -> Integers:
    """Return the slices that may be given, ascending."""
    pairs = np.unique(np.stack([codes, owner], axis=1), axis=0)
    found, sizes = np.unique(pairs[:, 0], return_counts=True)
    order = np.argsort(sizes, kind="stable")
    hidden = int((sizes < minimum).sum())
    while 0 < hidden < len(found):
        together = pairs[np.isin(pairs[:, 0], found[order[:hidden]]), 1]
        if len(np.unique(together)) >= minimum:
            break
        hidden += 1
    return np.sort(found[order[hidden:]])


def _summed(rows: Ratio, owner: Integers, chosen: Integers) -> tuple[Floats, Floats]:
    """Return [devices] parts and wholes of the devices that count in the chosen rows."""
    parts = np.bincount(owner[chosen], rows.parts[chosen]).astype(np.float64)
    wholes = np.bincount(owner[chosen], rows.wholes[chosen]).astype(np.float64)
    some = wholes > 0
    return parts[some], wholes[some]


def _own(ratio: Ratio) -> Floats:
    """Return the devices' own figures, of those that have one."""
    return np.asarray(ratio.rates[ratio.wholes > 0])


def _of_ratio(measures: DeviceMeasures, metric: str, ratio: Ratio) -> list[Measurement]:
    """Return both means of a ratio and its spread over devices."""
    counting = ratio.wholes > 0
    devices, rates = int(counting.sum()), _own(ratio)
    out = [measures.mean(metric, "sample_weighted", ratio.parts[counting], ratio.wholes[counting])]
    deciles = DECILES if metric in SPREAD_METRICS else ()
    if devices < measures.minimum:
        figures = ("device_weighted", *deciles, *(("worst_decile",) if deciles else ()))
        return out + [measures.suppressed(f"{metric}.{figure}", devices) for figure in figures]
    out.append(measures.mean(metric, "device_weighted", rates, np.ones(devices)))
    out += [measures.decile(metric, figure, rates) for figure in deciles]
    return [*out, measures.worst_decile(metric, rates)] if deciles else out


def _pooled(found: DeviceStatistics, weights: Floats) -> list[Pooled]:
    """Return the figures of pooled sums in which device d counts `weights[d]`."""
    out: list[Pooled] = []
    if not len(found):
        return out
    if found.confusion is not None:
        out += macro_scores(_weighted(found.confusion, weights), found.confusion)
    if found.calibration is not None:
        out.append(calibration_error(found.calibration * weights[:, None, None]))
    area = None if found.scores is None else roc_area(_weighted(found.scores, weights))
    return out if area is None else [*out, area]


def _weighted(matrix: csr_array, weights: Floats) -> csr_array:
    return csr_array(matrix.multiply(weights[:, None]))
