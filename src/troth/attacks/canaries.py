"""Plans of canaries and their keys: which texts are planted in a twin's training data, and the secret codes in them.

The plan is public: a pattern, how many canaries, how often each is repeated. The codes, and which canaries are in, are
drawn from the operating system's entropy; they are the *key*, which is kept apart from data, record and report.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from troth.attacks.canary_patterns import Pattern, parse_pattern
from troth.errors import ConfigError, DataError
from troth.files import write_text
from troth.results import Json
from troth.seeds import PrivateRandomness

__all__ = ["OWN_LABEL", "CanaryKey", "CanaryPlan", "draw_key", "load_key", "save_key"]

OWN_LABEL = "canary"
"""The label that no other row has; an audit with it over-states what rows with ordinary labels leak."""

_KEY_MODE = 0o600


@dataclass(frozen=True)
class CanaryPlan:
    """Which canaries a twin is trained with; holds no secret.

    Attributes:
        pattern: see `troth.attacks.canary_patterns`.
        count: how many canaries, each with a code of its own.
        repeats: how often a canary stands in the data; canaries are dealt over the list in turn.
        inclusion_probability: chance of each canary to be in: 1 for extraction, 1/2 for audits.
        label: of the canaries' rows: ``canary`` for a label of their own, else one that the table has (tagging: a slot,
            without B- and I-). Kinds of task without labels have ``canary``.
        decoys: codes that are never in, for comparison; None for as many as canaries.

    Raises:
        ConfigError: a number out of range, a pattern that cannot be read, or fewer codes than are wanted.

    >>> plan = CanaryPlan("my pin code is {d}{d}{d}{d}", count=3, repeats=(1, 10))
    >>> plan.repeats_of.tolist()
    [1, 10, 1]
    >>> CanaryPlan.from_dict(plan.to_dict()) == plan
    True
    """

    pattern: str
    count: int = 10
    repeats: tuple[int, ...] = (1, 10, 100)
    inclusion_probability: float = 1.0
    label: str = OWN_LABEL
    decoys: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "repeats", tuple(self.repeats))
        if self.count < 1:
            raise ConfigError(f"canaries.count = {self.count}: give 1 or more")
        if not self.repeats or min(self.repeats) < 1:
            raise ConfigError(f"canaries.repeats = {list(self.repeats)}: give numbers from 1 on")
        if not 0 < self.inclusion_probability <= 1:
            raise ConfigError(
                f"canaries.inclusion_probability = {self.inclusion_probability}: give a number above 0, at most 1"
            )
        if not self.label:
            raise ConfigError("canaries.label: is empty; leave it out, or name a label that the data has")
        if self.decoys is not None and self.decoys < 0:
            raise ConfigError(f"canaries.decoys = {self.decoys}: give 0 or more")
        wanted = self.count + self.decoy_count
        if wanted >= self.parsed.codes:
            raise ConfigError(
                f"canaries: {self.count} codes and {self.decoy_count} decoys are wanted and the pattern has "
                f"{self.parsed.codes:,}: some must be left to compare with; add slots, or lower count"
            )

    @cached_property
    def parsed(self) -> Pattern:
        """The pattern."""
        return parse_pattern(self.pattern)

    @property
    def decoy_count(self) -> int:
        """How many decoys there are."""
        return self.count if self.decoys is None else self.decoys

    @property
    def repeats_of(self) -> NDArray[np.int64]:
        """How often each canary is repeated where it is in, int64 [count]."""
        return np.array([self.repeats[i % len(self.repeats)] for i in range(self.count)], dtype=np.int64)

    def to_dict(self) -> dict[str, Json]:
        """Return the plan as JSON values."""
        return {**asdict(self), "repeats": list(self.repeats)}

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> CanaryPlan:
        """Return the plan that `to_dict` wrote.

        Raises:
            ConfigError: other keys than a plan has.
        """
        unknown = sorted(set(data) - set(cls.__dataclass_fields__))
        if unknown or "pattern" not in data:
            raise ConfigError(f"canaries: wants {', '.join(cls.__dataclass_fields__)}; found {', '.join(sorted(data))}")
        return cls(**data)  # type: ignore[arg-type]

    def digest(self) -> str:
        """Return the SHA-256 of the plan in hex."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, repr=False, eq=False)
class CanaryKey:
    """The secret of a plan. Its text form shows no code.

    Attributes:
        codes: int64 [count], all different.
        included: bool [count], which canaries are in the twin's data.
        decoys: int64 [decoys], all different and none of `codes`.
        plan: the digest of the plan it was drawn for.
        insecure: whether it came from an insecure seed.
    """

    codes: NDArray[np.int64]
    included: NDArray[np.bool_]
    decoys: NDArray[np.int64]
    plan: str
    insecure: bool = False

    def __repr__(self) -> str:
        return f"CanaryKey({len(self.codes)} canaries, {len(self.decoys)} decoys, insecure={self.insecure})"


def draw_key(plan: CanaryPlan, randomness: PrivateRandomness) -> CanaryKey:
    """Return a fresh key: codes without replacement, and a coin for each canary.

    Guarantees:
    - canaries and decoys are exchangeable: who knows the plan alone cannot tell one from the other.
    """
    generator = randomness.generator("canaries", "codes")
    wanted = plan.count + plan.decoy_count
    codes = generator.choice(plan.parsed.codes, size=wanted, replace=False).astype(np.int64)
    included = randomness.generator("canaries", "inclusion").random(plan.count) < plan.inclusion_probability
    return CanaryKey(codes[: plan.count], included, codes[plan.count :], plan.digest(), randomness.insecure)


def save_key(key: CanaryKey, path: Path) -> None:
    """Write the key as JSON that only its owner can read (mode 600), whole or not at all.

    Raises:
        RunError: the place cannot be written.
    """
    data = {
        "plan": key.plan,
        "codes": key.codes.tolist(),
        "included": key.included.tolist(),
        "decoys": key.decoys.tolist(),
        "insecure": key.insecure,
    }
    write_text(path, json.dumps(data), _KEY_MODE)


def load_key(path: Path, plan: CanaryPlan) -> CanaryKey:
    """Return the key that `save_key` wrote for a plan.

    Raises:
        DataError: the file is missing or no key, or it belongs to another plan.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        key = CanaryKey(
            np.array(data["codes"], dtype=np.int64).reshape(-1),
            np.array(data["included"], dtype=np.bool_).reshape(-1),
            np.array(data["decoys"], dtype=np.int64).reshape(-1),
            str(data["plan"]),
            bool(data["insecure"]),
        )
    except OSError as error:
        raise DataError(f"{path}: the canaries' key cannot be read: {error.strerror or type(error).__name__}") from None
    except (ValueError, KeyError, TypeError, OverflowError):
        raise DataError(f"{path}: is no key of canaries; give the file that was written with the twin") from None
    if key.plan != plan.digest():
        raise DataError(
            f"{path}: the key belongs to another plan of canaries; give the one that was drawn for this one"
        )
    check_key(key, plan)
    return key


def check_key(key: CanaryKey, plan: CanaryPlan) -> None:
    """Refuse a key whose numbers do not fit the plan.

    Raises:
        DataError: other lengths, codes that are out of range, or codes that come up twice.
    """
    every = np.concatenate([key.codes, key.decoys])
    shapes = (len(key.codes), len(key.included), len(key.decoys)) == (plan.count, plan.count, plan.decoy_count)
    inside = bool(((every >= 0) & (every < plan.parsed.codes)).all())
    if not shapes or not inside or len(np.unique(every)) != len(every):
        raise DataError("the canaries' key does not fit the plan: give the key that was drawn for it")
