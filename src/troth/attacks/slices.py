"""Who is most exposed: the area under an attack's curve by slices of the examples.

An average hides the few: rare labels, long texts and busy users leak more than the rest. A slice's members are held
against the slice's own non-members; where a slice says something of members only (how much of the training data comes
from a user), against all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from troth.attacks.membership import MINIMUM_EXAMPLES
from troth.attacks.roc import auc, scores_of
from troth.errors import DataError
from troth.results import Group, Json, Measurement

__all__ = ["Slicing", "activity_slices", "auc_by_slice", "quantile_slices"]

Slicing = tuple[Sequence[str], Sequence[str] | None]
"""The slice of each member, and of each non-member; None where it is a matter of members alone."""

_ACTIVITY = ((1, "1 row"), (5, "2 to 5 rows"), (20, "6 to 20 rows"), (100, "21 to 100 rows"))
_MANY = "over 100 rows"


def quantile_slices(values: np.ndarray, parts: int = 4, unit: str = "tokens") -> list[str]:
    """Return the name of the range that each value lies in [examples], of up to `parts` ranges of equal counts.

    >>> quantile_slices(np.array([1, 2, 3, 4]), 2)
    ['1 to 2 tokens', '1 to 2 tokens', '3 to 4 tokens', '3 to 4 tokens']
    """
    ends = np.unique(np.quantile(values, np.linspace(0, 1, parts + 1)[1:], method="inverted_cdf"))
    place = np.searchsorted(ends, values)
    spans = [(int(values[place == i].min()), int(end)) for i, end in enumerate(ends)]
    names = [f"{low} {unit}" if low == high else f"{low} to {high} {unit}" for low, high in spans]
    return [names[i] for i in place]


def activity_slices(users: Sequence[object]) -> list[str]:
    """Return for each row how many rows its user has, as a range [rows]."""
    ids, inverse = np.unique(np.asarray(users, dtype=str), return_inverse=True)
    counts = np.bincount(inverse, minlength=len(ids))
    return [next((name for most, name in _ACTIVITY if count <= most), _MANY) for count in counts[inverse]]


def auc_by_slice(
    member_scores: np.ndarray,
    nonmember_scores: np.ndarray,
    slicings: Mapping[str, Slicing],
    *,
    prefix: str,
    confidence: float = 0.95,
    outside_guarantee: bool = True,
) -> tuple[Measurement, ...]:
    """Return ``<prefix>.auc_by_<name>`` for each slicing: the area of all as value, that of each slice as a group.

    Slices with fewer than 30 examples on a side are left out, and their number is in the protocol. Each slice's
    interval is DeLong's at 1 - (1 - confidence) / slices, so that all of them hold together (Bonferroni).

    Args:
        member_scores: [members], higher = member.
        nonmember_scores: [non-members].
        slicings: name -> slice of each member and non-member.
        prefix: start of the names.
        confidence: of each measurement.
        outside_guarantee: as in `measure_membership`.

    Raises:
        DataError: scores that are not finite, or slices that do not fit them.
    """
    members, nonmembers = scores_of(member_scores, "member scores"), scores_of(nonmember_scores, "non-member scores")
    whole = auc(members, nonmembers, confidence)
    found = []
    for name, (inner, outer) in slicings.items():
        if len(inner) != len(members) or (outer is not None and len(outer) != len(nonmembers)):
            raise DataError(f"slices by {name}: one for each of {len(members)} members and {len(nonmembers)} others")
        groups, left_out = _groups(members, nonmembers, inner, outer, confidence)
        protocol: dict[str, Json] = {
            "slices_left_out": left_out,
            "fewest_on_a_side": MINIMUM_EXAMPLES,
            "nonmembers": "of the slice" if outer is not None else "all",
            "intervals": "of the slices together (Bonferroni)",
        }
        found.append(
            Measurement(
                f"{prefix}.auc_by_{name}",
                whole.value,
                whole.interval.low,
                whole.interval.high,
                confidence,
                whole.interval.method,
                len(members) + len(nonmembers),
                "fraction",
                direction="lower",
                neutral=0.5,
                groups=groups,
                supported=bool(groups) and min(len(members), len(nonmembers)) >= MINIMUM_EXAMPLES,
                outside_guarantee=outside_guarantee,
                protocol=protocol,
            )
        )
    return tuple(found)


def _groups(
    members: np.ndarray,
    nonmembers: np.ndarray,
    inner: Sequence[str],
    outer: Sequence[str] | None,
    confidence: float,
) -> tuple[dict[str, Group], int]:
    """Return each large enough slice's area, and how many slices are too small."""
    own = np.asarray(inner, dtype=str)
    other = None if outer is None else np.asarray(outer, dtype=str)
    names = sorted(set(own.tolist()) | (set() if other is None else set(other.tolist())))
    sides = {n: (members[own == n], nonmembers if other is None else nonmembers[other == n]) for n in names}
    kept = {n: pair for n, pair in sides.items() if min(map(len, pair)) >= MINIMUM_EXAMPLES}
    each = 1 - (1 - confidence) / max(len(kept), 1)
    groups = {}
    for name, (inside, outside) in kept.items():
        area = auc(inside, outside, each)
        groups[name] = Group(area.value, area.interval.low, area.interval.high, len(inside) + len(outside))
    return groups, len(names) - len(kept)
