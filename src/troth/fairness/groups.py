"""Accuracy by group: each group's accuracy with its interval, the gap between the best and the worst served group.

**The gap is biased upward near zero.** The largest minus the smallest of several noisy accuracies is above zero even
where all groups are served alike, and a percentile bootstrap of it never reaches down to zero. Three things guard
against reading noise as bias: the interval is simultaneous over all pairs of groups (it does reach zero), the gap to be
expected from equal groups stands in the protocol, and a permutation p value is a measurement of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from troth.errors import DataError
from troth.intervals import Interval, clopper_pearson, share_interval
from troth.results import Group, Json, Measurement
from troth.seeds import PublicSeeds

__all__ = ["MINIMUM_GROUP_SIZE", "accuracy_by_group"]

MINIMUM_GROUP_SIZE = 30
_REPLICATES = 2000
_BLOCK = 4_000_000  # numbers in memory at a time
_TIE = 1e-12  # gaps closer than this are equal: sums of fractions round

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class _Grouped:
    """Rows counted by group and by value of `correct`; replicates are drawn from the counts, never row by row.

    Attributes:
        names: [groups] sorted.
        values: [values] the distinct values of `correct`, ascending, always with 0 and 1 among them.
        counts: [groups, values] rows.
        missing: rows without a group label, which are in no group.
    """

    names: tuple[str, ...]
    values: Floats
    counts: Integers
    missing: int

    @property
    def sizes(self) -> Integers:
        """[groups] rows."""
        return np.asarray(self.counts.sum(axis=1))

    @property
    def means(self) -> Floats:
        """[groups] accuracy."""
        return np.asarray(self.counts @ self.values / self.sizes)

    @property
    def gap(self) -> float:
        """Largest minus smallest accuracy."""
        return float(np.ptp(self.means))

    @property
    def binary(self) -> bool:
        """Whether each row is right or wrong, nothing between."""
        return len(self.values) == 2


def accuracy_by_group(
    correct: Sequence[float] | NDArray[np.generic],
    groups: Sequence[object] | NDArray[np.generic],
    *,
    seeds: PublicSeeds,
    prefix: str = "fairness",
    minimum_group_size: int = MINIMUM_GROUP_SIZE,
    confidence: float = 0.95,
    outside_guarantee: bool = False,
) -> tuple[Measurement, ...]:
    """Return ``<prefix>.accuracy_gap`` with its `groups`, and ``<prefix>.accuracy_gap.p_value``.

    The gap is the largest minus the smallest accuracy over groups, in [0, 1]; 0 means that all are served alike, lower
    is better. Its interval is the simultaneous one of `_gap_interval`; a group's own is Clopper-Pearson, or that of
    `troth.intervals.share_interval` where `correct` holds fractions (tagging). The p value is the chance of a gap at
    least this large were group labels exchangeable: 2,000 permutations, (b + 1) / (2,000 + 1); its interval is the
    Monte Carlo error.

    A gap is set by its extreme groups, and small groups are extreme by chance. Small groups are kept and listed, never
    dropped: while any group has fewer than `minimum_group_size` rows, `supported` is False for both measurements, and
    a gate on them is not met. Merge such groups, or lower the minimum and answer for it.

    Guarantees:
    - the interval covers the true gap with at least about `confidence`, at a true gap of zero too;
    - no row is dropped unseen: rows without a group label are counted in the protocol.

    Args:
        correct: [rows] in [0, 1]: right or wrong, or the share that is right.
        groups: [rows] labels of any type, compared as text; None, NaN and the empty text are missing.
        seeds: public seeds of replicates and permutations.
        prefix: start of the names.
        minimum_group_size: rows below which a group is small.
        confidence: coverage of the intervals, in (0, 1).
        outside_guarantee: whether the rows are private data that no epsilon covers.

    Raises:
        DataError: lengths differ, a value outside of [0, 1], no rows, or fewer than two groups.
    """
    grouped = _grouped(correct, groups)
    chance = _chance_gaps(grouped, seeds.generator("fairness", "accuracy by group", "permutations"))
    replicates = _replicates(grouped, seeds.generator("fairness", "accuracy by group", "replicates"))
    own = _group_intervals(grouped, seeds.generator("fairness", "accuracy by group", "groups"), confidence)
    found = _gap(grouped, replicates, chance, own, confidence), _p_value(grouped, chance, confidence)
    shared = _protocol(grouped, minimum_group_size)
    supported = bool((grouped.sizes >= minimum_group_size).all())
    return tuple(
        replace(
            m,
            name=f"{prefix}.{m.name}",
            supported=supported,
            outside_guarantee=outside_guarantee,
            protocol={**shared, **m.protocol},
        )
        for m in found
    )


def _gap(
    grouped: _Grouped, replicates: _Replicates, chance: Floats, own: Mapping[str, Interval], confidence: float
) -> Measurement:
    """Return the gap with its interval and its groups, each with its own."""
    interval = _gap_interval(grouped.means, replicates, confidence)
    return Measurement(
        "accuracy_gap",
        grouped.gap,
        interval.low,
        interval.high,
        confidence,
        interval.method,
        int(grouped.sizes.sum()),
        "fraction",
        direction="lower",
        neutral=0.0,
        groups={
            name: Group(mean, own[name].low, own[name].high, size)
            for name, mean, size in zip(grouped.names, grouped.means.tolist(), grouped.sizes.tolist(), strict=True)
        },
        protocol={
            "resampled": "rows within groups",
            "replicates": _REPLICATES,
            "gap_expected_from_equal_groups": float(chance.mean()),
            "group_interval_method": ", ".join(sorted({interval.method for interval in own.values()})),
        },
    )


def _p_value(grouped: _Grouped, chance: Floats, confidence: float) -> Measurement:
    """Return the chance of a gap at least this large under shuffled labels, with its Monte Carlo error."""
    extreme = int((chance >= grouped.gap - _TIE).sum())
    error = clopper_pearson(extreme, _REPLICATES, confidence)
    return Measurement(
        "accuracy_gap.p_value",
        (extreme + 1) / (_REPLICATES + 1),
        error.low,
        error.high,
        confidence,
        error.method,
        int(grouped.sizes.sum()),
        "probability",
        protocol={"resampled": "group labels", "permutations": _REPLICATES, "interval": "Monte Carlo error"},
    )


def _grouped(
    correct: Sequence[float] | NDArray[np.generic], groups: Sequence[object] | NDArray[np.generic]
) -> _Grouped:
    """Return the counted rows, or refuse them."""
    right = np.asarray(correct, dtype=np.float64)
    labels = np.empty(len(groups), dtype=object)
    labels[:] = list(groups)
    if right.ndim != 1 or len(right) != len(labels):
        raise DataError(
            f"correct has shape {list(right.shape)} and groups {len(labels)} rows: give one of each per row"
        )
    bad = np.flatnonzero(~((right >= 0) & (right <= 1)))
    if len(bad):
        raise DataError(f"correct: row {bad[0]} is {right[bad[0]]} ({len(bad)} such rows); must lie between 0 and 1")
    texts = np.array(
        ["" if missing else str(g) for g, missing in zip(labels, pd.isna(labels), strict=True)], dtype=object
    )
    known = texts != ""
    codes, names = pd.factorize(texts[known], sort=True)
    if len(names) < 2:
        found = f"only group {names[0]!r}" if len(names) else "no group label at all"
        raise DataError(f"groups: {found} in {len(labels)} rows; a gap between groups wants two groups or more")
    values, columns = np.unique(np.r_[0.0, 1.0, right[known]], return_inverse=True)
    cells = codes * len(values) + columns[2:]
    counts = np.bincount(cells, minlength=len(names) * len(values)).reshape(len(names), len(values))
    return _Grouped(tuple(str(n) for n in names), values, counts.astype(np.int64), int((~known).sum()))


@dataclass(frozen=True)
class _Replicates:
    """Resampled group accuracies, all replicates at once: drawing rows with replacement is a multinomial of counts.

    Attributes:
        deviations: [replicates, groups] resampled accuracy minus the accuracy of what it was drawn from.
        variances: [replicates, groups] squared standard error that each resample shows.
        own: [groups] squared standard error that the rows themselves show.
    """

    deviations: Floats
    variances: Floats
    own: Floats


def _variance(counts: Floats, values: Floats) -> Floats:
    """Return the squared standard error [...] of the mean of counted rows [..., values], one right and one wrong added.

    The two added rows (`values` starts with 0 and ends with 1) keep it above zero where no row is wrong.
    """
    rows = counts.sum(axis=-1)
    mean = (counts @ values + 1) / (rows + 2)
    return np.asarray(((counts @ values**2 + 1) / (rows + 2) - mean**2) / rows)


def _replicates(grouped: _Grouped, rng: np.random.Generator) -> _Replicates:
    """Return resamples of each group's rows, one right and one wrong row added to what is drawn from."""
    deviations = np.empty((_REPLICATES, len(grouped.names)))
    variances = np.empty_like(deviations)
    own = _variance(grouped.counts.astype(np.float64), grouped.values)
    for g, size in enumerate(grouped.sizes):
        smoothed = grouped.counts[g].astype(np.float64)
        smoothed[[0, -1]] += 1
        filled = np.flatnonzero(smoothed)
        shares, values = smoothed[filled] / (size + 2), grouped.values[filled]
        step = max(1, _BLOCK // len(filled))
        for start in range(0, _REPLICATES, step):
            drawn = rng.multinomial(size, shares, size=min(step, _REPLICATES - start)).astype(np.float64)
            deviations[start : start + step, g] = drawn @ values / size - shares @ values
            variances[start : start + step, g] = _variance(drawn, values)
    return _Replicates(deviations, variances, own)


def _gap_interval(means: Floats, replicates: _Replicates, confidence: float) -> Interval:
    """Return the simultaneous interval of the largest difference of two groups, which also holds at a gap of zero.

    With probability `confidence` all pairwise differences d lie within c standard errors at once, where c is the
    quantile of their largest studentised deviation in the replicates (max-t); then the largest of them lies between
    max(0, max |d| - c se) and max(|d| + c se). Standard errors are taken with one right and one wrong row added, so
    that a group without an error keeps an interval.
    """
    first, second = np.triu_indices(len(means), k=1)
    largest = np.zeros(_REPLICATES)
    for i, j in zip(first, second, strict=True):
        difference = np.abs(replicates.deviations[:, i] - replicates.deviations[:, j])
        np.maximum(largest, difference / np.sqrt(replicates.variances[:, i] + replicates.variances[:, j]), out=largest)
    half = np.quantile(largest, confidence) * np.sqrt(replicates.own[first] + replicates.own[second])
    differences = np.abs(means[first] - means[second])
    low, high = max(0.0, float((differences - half).max())), min(1.0, float((differences + half).max()))
    return Interval(low, high, confidence, "bootstrap-max-t")


def _chance_gaps(grouped: _Grouped, rng: np.random.Generator) -> Floats:
    """Return [permutations]: gaps of the same rows under shuffled group labels.

    For rows that are right or wrong this is a multivariate hypergeometric draw of the right ones over the groups.
    """
    sizes = grouped.sizes
    if grouped.binary:
        drawn = rng.multivariate_hypergeometric(sizes, int(grouped.counts[:, 1].sum()), size=_REPLICATES)
        return np.asarray(np.ptp(drawn / sizes, axis=1))
    values = np.repeat(grouped.values, grouped.counts.sum(axis=0))
    starts = np.r_[0, np.cumsum(sizes)[:-1]]
    out = np.empty(_REPLICATES)
    step = max(1, _BLOCK // len(values))
    for start in range(0, _REPLICATES, step):
        block = np.broadcast_to(values, (min(step, _REPLICATES - start), len(values)))
        shuffled = rng.permuted(block, axis=1)
        out[start : start + step] = np.ptp(np.add.reduceat(shuffled, starts, axis=1) / sizes, axis=1)
    return out


def _group_intervals(grouped: _Grouped, rng: np.random.Generator, confidence: float) -> Mapping[str, Interval]:
    """Return the interval of each group's accuracy, the small ones too."""
    out: dict[str, Interval] = {}
    for name, counts in zip(grouped.names, grouped.counts, strict=True):
        if grouped.binary:
            out[name] = clopper_pearson(int(counts[1]), int(counts.sum()), confidence)
        else:
            right = np.repeat(grouped.values, counts)
            out[name] = share_interval(right, np.ones(len(right)), rng, confidence=confidence)
    return out


def _protocol(grouped: _Grouped, minimum_group_size: int) -> dict[str, Json]:
    """Return what both measurements share: small groups, missing labels, and the warnings they call for."""
    small = [n for n, size in zip(grouped.names, grouped.sizes, strict=True) if size < minimum_group_size]
    warnings: list[Json] = []
    if small:
        shown = ", ".join(small[:5]) + (f" and {len(small) - 5} more" if len(small) > 5 else "")
        warnings.append(
            f"{len(small)} of {len(grouped.names)} groups have fewer than {minimum_group_size} rows ({shown}): "
            "the gap is not supported; merge small groups"
        )
    if grouped.missing:
        warnings.append(f"{grouped.missing} rows have no group label and are in no group")
    return {
        "groups": len(grouped.names),
        "small_groups": list(small),
        "minimum_group_size": minimum_group_size,
        "missing_group_labels": grouped.missing,
        "warnings": warnings,
    }
