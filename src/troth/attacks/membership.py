"""Membership inference: from scores of members and non-members to measurements that can be defended.

An attack turns what a model says about an example into a score, higher = more likely a member. `measure_membership`
turns the scores of any attack into the measurements of the contract; `loss_attack` is the first attack. Arrays in,
records out: a model trained anywhere can be audited.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from troth.attacks.roc import MINIMUM_FALSE_POSITIVES, OperatingPoint, auc, roc_points, scores_of, tpr_at_fpr
from troth.errors import DataError
from troth.intervals import Interval
from troth.results import Json, Measurement
from troth.seeds import PublicSeeds

__all__ = ["FALSE_POSITIVE_RATES", "MembershipResult", "loss_attack", "measure_membership", "overlapping_nonmembers"]

MINIMUM_EXAMPLES = 30  # on each side, below which DeLong's normal approximation is not relied on
FALSE_POSITIVE_RATES = (0.001, 0.01, 0.1)
PRIORS = (0.01, 0.1, 0.5)
_PREDICTED_AT = 0.01  # the false-positive rate at which the predictive value is taken
_BINS = 40
_SHARED_CONFIDENCE = 0.975  # of each of two intervals that together give one of 95 %


class MembershipResult(NamedTuple):
    """What a membership attack found.

    Attributes:
        measurements: area under the curve, for each false-positive rate the true-positive rate and the rate achieved,
            and for each prior the predictive value; warnings stand in each one's protocol.
        series: ``<prefix>.roc`` -> points of the curve, ``<prefix>.histogram`` -> counts by score, for plotting.
    """

    measurements: tuple[Measurement, ...]
    series: dict[str, list[dict[str, Json]]]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Each warning of the measurements once, with the measurement's name."""
        found = [(m.name, w) for m in self.measurements for w in _texts(m.protocol.get("warnings"))]
        return tuple(dict.fromkeys(f"{name}: {text}" for name, text in found))


def _texts(value: Json) -> list[str]:
    return [str(v) for v in value] if isinstance(value, list) else []


def overlapping_nonmembers(member_ids: Sequence[object], nonmember_ids: Sequence[object]) -> np.ndarray:
    """Return a mask [non-members]: True where a non-member's id (or row hash, or text) is also a member's.

    >>> overlapping_nonmembers(["a", "b"], ["b", "c"])
    array([ True, False])
    """
    known = set(np.asarray(member_ids, dtype=object).tolist())
    return np.array([i in known for i in np.asarray(nonmember_ids, dtype=object).tolist()], dtype=bool)


def _refuse_overlap(ids: tuple[Sequence[object], Sequence[object]], members: int, nonmembers: int) -> None:
    """Refuse ids that do not fit the scores, and examples on both sides. Ids may be texts: only rows are named."""
    for side, given, scores in (("member", ids[0], members), ("non-member", ids[1], nonmembers)):
        if len(given) != scores:
            raise DataError(f"{len(given)} {side} ids for {scores} {side} scores: give one id per score")
    both = np.flatnonzero(overlapping_nonmembers(*ids))
    if len(both):
        raise DataError(
            f"{len(both)} of {nonmembers} non-members are members too (first: non-member row {both[0]}); "
            "leave them out of the non-members: no attack can tell them apart"
        )


def loss_attack(
    member_losses: np.ndarray,
    nonmember_losses: np.ndarray,
    *,
    seeds: PublicSeeds,
    prefix: str = "attack.membership.loss",
    false_positive_rates: Sequence[float] = FALSE_POSITIVE_RATES,
    ids: tuple[Sequence[object], Sequence[object]] | None = None,
    nonmembers_from: str | None = None,
    outside_guarantee: bool = True,
) -> MembershipResult:
    """Return what thresholding the loss tells about membership (Yeom et al., CSF 2018): score = -loss.

    Args:
        member_losses: [members] per-example losses of the model on rows that it was trained on.
        nonmember_losses: [non-members] losses on rows of the same distribution that it never saw.
        seeds: public seed of the split of the non-members.
        prefix: start of the measurements' names.
        false_positive_rates: rates at which the true-positive rate is taken, each in (0, 1).
        ids: ids (or row hashes) of members and of non-members; given, an overlap is refused.
        nonmembers_from: where the non-members came from, such as ``test`` or ``validation``; given, it stands in each
            protocol. Rows of another distribution than the members' let the attack see that shift as well.
        outside_guarantee: whether the members' losses lie outside of what an epsilon covers; they do, unless public.

    Raises:
        DataError: NaN, infinite or no losses, too few for an area, or non-members that are members too.
    """
    members = scores_of(member_losses, "member losses")
    nonmembers = scores_of(nonmember_losses, "non-member losses")
    if ids is not None:
        _refuse_overlap(ids, len(members), len(nonmembers))
    return measure_membership(
        -members,
        -nonmembers,
        seeds=seeds,
        prefix=prefix,
        false_positive_rates=false_positive_rates,
        protocol={"score": "-loss"} | ({} if nonmembers_from is None else {"nonmembers_from": nonmembers_from}),
        outside_guarantee=outside_guarantee,
    )


def measure_membership(
    member_scores: np.ndarray,
    nonmember_scores: np.ndarray,
    *,
    seeds: PublicSeeds,
    prefix: str,
    false_positive_rates: Sequence[float] = FALSE_POSITIVE_RATES,
    protocol: Mapping[str, Json] = {},
    outside_guarantee: bool = True,
) -> MembershipResult:
    """Return the measurements and the curve of any attack's scores, higher = member.

    All non-members count for the area and the curve. For the rates they are split in two by the public seed: one half
    (the smaller, where their number is odd) sets the threshold, the other measures the false-positive rate achieved.

    Names: ``<prefix>.auc``, for each rate r ``<prefix>.tpr_at_fpr_r`` and ``<prefix>.fpr_at_threshold_r``, and for the
    priors 1, 10 and 50 % ``<prefix>.ppv_at_prior_p``: the chance that who is called a member is one, where a share p of
    those asked about are, at the threshold for a false-positive rate of 1 % (the first rate where that is not among
    them).

    Guarantees:
    - members and evaluation non-members never touch the threshold;
    - the threshold's expected false-positive rate on fresh non-members is at most r;
    - where fewer than 10 false positives are expected among the evaluation non-members, `supported` is False.

    Raises:
        DataError: NaN, infinite or no scores, or fewer than two on a side.
    """
    members, nonmembers = scores_of(member_scores, "member scores"), scores_of(nonmember_scores, "non-member scores")
    facts = {**protocol, "members": len(members), "nonmembers": len(nonmembers)}
    order = seeds.generator("attack", "threshold split").permutation(len(nonmembers))
    held_out, evaluation = np.split(nonmembers[order], [len(nonmembers) // 2])
    found = [_area(members, nonmembers, prefix, facts)]
    for rate in false_positive_rates:
        point = tpr_at_fpr(members, held_out, evaluation, rate)
        found += [_true_positives(point, prefix, facts), _false_positives(point, prefix, facts)]
    rate = _PREDICTED_AT if _PREDICTED_AT in false_positive_rates else false_positive_rates[0]
    point = tpr_at_fpr(members, held_out, evaluation, rate, confidence=_SHARED_CONFIDENCE)
    found += [_predictive_value(point, prior, prefix, facts) for prior in PRIORS]
    stamped = tuple(replace(m, outside_guarantee=outside_guarantee) for m in found)
    series = {f"{prefix}.roc": roc_points(members, nonmembers), f"{prefix}.histogram": _histogram(members, nonmembers)}
    return MembershipResult(stamped, series)


def _predictive_value(point: OperatingPoint, prior: float, prefix: str, facts: Mapping[str, Json]) -> Measurement:
    """Return the share of members among those called members; both rates' intervals at 97.5 % give its 95 %."""
    true, false = point.true_positive_interval, point.false_positive_interval
    made = _rate(f"{prefix}.ppv_at_prior_{prior:g}", point, 0.0, Interval(0.0, 1.0, 0.95, "clopper-pearson-both-rates"))
    value = _posterior(prior, point.true_positive_rate, point.false_positive_rate)
    return replace(
        made,
        value=None if made.value is None else value,
        low=None if made.value is None else _posterior(prior, true.low, false.high),
        high=None if made.value is None else _posterior(prior, true.high, false.low),
        n=point.members + point.evaluated,
        direction="lower",
        neutral=prior,
        protocol={**facts, **made.protocol, "prior": prior},
    )


def _posterior(prior: float, true_rate: float | None, false_rate: float | None) -> float | None:
    """Return Bayes' share of members among the accused; None where nobody is accused."""
    hits, alarms = prior * (true_rate or 0.0), (1 - prior) * (false_rate or 0.0)
    return hits / (hits + alarms) if hits + alarms else None


def _histogram(members: np.ndarray, nonmembers: np.ndarray) -> list[dict[str, Json]]:
    """Return counts of both sides in bins of equal width between the 0.5 % and 99.5 % quantiles, tails in the ends."""
    both = np.concatenate([members, nonmembers])
    low, high = np.quantile(both, [0.005, 0.995])
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    counts = [np.histogram(np.clip(side, edges[0], edges[-1]), edges)[0].tolist() for side in (members, nonmembers)]
    return [
        {"low": a, "high": b, "members": m, "nonmembers": n}
        for a, b, m, n in zip(edges[:-1].tolist(), edges[1:].tolist(), *counts, strict=True)
    ]


def _area(members: np.ndarray, nonmembers: np.ndarray, prefix: str, facts: Mapping[str, Json]) -> Measurement:
    area = auc(members, nonmembers)
    fewest = min(len(members), len(nonmembers))
    warnings: list[Json] = []
    if fewest < MINIMUM_EXAMPLES:
        warnings.append(f"{fewest} examples on the smaller side: the interval wants {MINIMUM_EXAMPLES}")
    return Measurement(
        f"{prefix}.auc",
        area.value,
        area.interval.low,
        area.interval.high,
        area.interval.confidence,
        area.interval.method,
        len(members) + len(nonmembers),
        "fraction",
        direction="lower",
        neutral=0.5,
        supported=fewest >= MINIMUM_EXAMPLES,
        protocol={**facts, "warnings": warnings},
    )


def _true_positives(point: OperatingPoint, prefix: str, facts: Mapping[str, Json]) -> Measurement:
    made = _rate(f"{prefix}.tpr_at_fpr_{point.target:g}", point, point.true_positive_rate, point.true_positive_interval)
    return replace(made, n=point.members, direction="lower", protocol={**facts, **made.protocol})


def _false_positives(point: OperatingPoint, prefix: str, facts: Mapping[str, Json]) -> Measurement:
    name = f"{prefix}.fpr_at_threshold_{point.target:g}"
    made = _rate(name, point, point.false_positive_rate, point.false_positive_interval)
    return replace(made, n=point.evaluated, protocol={**facts, **made.protocol})


def _rate(name: str, point: OperatingPoint, value: float, interval: Interval) -> Measurement:
    """Return one of the two rates; without a threshold neither has a value."""
    known = math.isfinite(point.threshold)
    return Measurement(
        name,
        value if known else None,
        interval.low if known else None,
        interval.high if known else None,
        interval.confidence,
        interval.method,
        0,
        "fraction",
        neutral=point.target,
        supported=point.supported,
        protocol={
            "target_false_positive_rate": point.target,
            "threshold": point.threshold if known else None,
            "threshold_source": "held-out non-members, split off by the public seed",
            "nonmembers_for_threshold": point.held_out,
            "nonmembers_for_evaluation": point.evaluated,
            "ties": "scores equal to the threshold count as non-members",
            "warnings": _rate_warnings(point),
        },
    )


def _rate_warnings(point: OperatingPoint) -> list[Json]:
    if not math.isfinite(point.threshold):
        return [
            f"{point.held_out} held-out non-members cannot set a threshold for a false-positive rate of "
            f"{point.target:g}: it wants {math.ceil(1 / point.target) - 1:,}"
        ]
    if not point.supported:
        wanted = math.ceil(MINIMUM_FALSE_POSITIVES / point.target - 1e-9)
        return [
            f"{point.evaluated} evaluation non-members are too few for a false-positive rate of {point.target:g}: "
            f"it wants {wanted:,}, hence {2 * wanted:,} non-members in all"
        ]
    return []
