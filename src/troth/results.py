"""Frozen records that every stage returns: a value, its interval, how many it rests on, and how it was made.

The JSON form is a contract (scripts and CI pipelines read it): see `Record.to_dict`. Infinity and NaN become null, so
a round trip through JSON is exact for every finite number and idempotent for the rest.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Cost", "Group", "Json", "Measurement", "Privacy", "Record", "computed", "now"]

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
Direction = Literal["lower", "higher", "neutral"]
_NAME = re.compile(r"^[a-z0-9_]+(\.[A-Za-z0-9_@=-]+|\.\d+\.\d+)*$")


def now() -> str:
    """Return the present time in UTC, to the second, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _finite(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else None


def plain_json(value: object) -> Json:
    """Return `value` with tuples as lists, NumPy scalars as Python numbers and non-finite numbers as null."""
    if isinstance(value, Mapping):
        return {str(k): plain_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain_json(v) for v in value]
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return _finite(float(value))
    for method in ("tolist", "isoformat"):
        convert = getattr(value, method, None)
        if convert is not None:
            return plain_json(convert())
    return str(value)


@dataclass(frozen=True)
class Group:
    """One group's share of a measurement: the same quantity on that group's rows alone."""

    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Measurement:
    """One measured number with all that is needed to defend it.

    Attributes:
        name: dotted path, unique within its record, such as ``test.accuracy``.
        value: the number, in `unit`; None where it could not be computed.
        low: lower end of the interval.
        high: upper end of the interval.
        confidence: coverage the interval aims at, between 0 and 1; 1 for exact numbers.
        interval_method: such as ``clopper-pearson``, ``bayesian-bootstrap``, ``delong``, or ``exact``.
        n: how many independent units the number rests on.
        unit: the value's unit, such as ``fraction`` or ``nats``.
        direction: which way is better: ``lower``, ``higher`` or ``neutral``.
        neutral: the value that means 'no effect' (0.5 for an AUC, 0 for a gap), where there is one.
        groups: the same quantity by group, where it was taken by group.
        supported: False where n is too small for the claim; a gate on it is not met.
        outside_guarantee: True where private data were read to make it, outside of what epsilon covers.
        protocol: how it was made: what was resampled, thresholds, data set, settings.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    confidence: float
    interval_method: str
    n: int
    unit: str
    direction: Direction = "neutral"
    neutral: float | None = None
    groups: Mapping[str, Group] | None = None
    supported: bool = True
    outside_guarantee: bool = False
    protocol: Mapping[str, Json] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _NAME.match(self.name):
            raise ValueError(f"measurement name {self.name!r} is not a dotted path such as test.accuracy")

    def renamed(self, name: str) -> Measurement:
        """Return the same measurement under another name."""
        return replace(self, name=name)

    def to_dict(self) -> dict[str, Json]:
        """Return the JSON form of the contract."""
        return {
            "name": self.name,
            "value": _finite(self.value),
            "low": _finite(self.low),
            "high": _finite(self.high),
            "confidence": self.confidence,
            "interval_method": self.interval_method,
            "n": self.n,
            "unit": self.unit,
            "direction": self.direction,
            "neutral": _finite(self.neutral),
            "groups": None if self.groups is None else {k: plain_json(asdict(g)) for k, g in self.groups.items()},
            "supported": self.supported,
            "outside_guarantee": self.outside_guarantee,
            "protocol": plain_json(self.protocol),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Measurement:
        """Return the measurement that `to_dict` wrote."""
        fields = dict(data)
        groups = fields.pop("groups", None)
        if isinstance(groups, Mapping):
            fields["groups"] = {k: Group(**g) for k, g in groups.items()}
        return cls(**fields)  # type: ignore[arg-type]


def computed(
    name: str, value: float, n: int, unit: str, *, direction: Direction = "neutral", protocol: Mapping[str, Json] = {}
) -> Measurement:
    """Return a count, cost or computed bound: a number without sampling error (``interval_method = "exact"``)."""
    return Measurement(name, value, value, value, 1.0, "exact", n, unit, direction=direction, protocol=dict(protocol))


@dataclass(frozen=True)
class Privacy:
    """What epsilon a run's released weights carry, and of what exactly it speaks.

    `epsilon` is None (infinity) and `guarantee` is ``none`` where no guarantee holds. Epsilon is in natural-log units.
    """

    epsilon: float | None
    delta: float | None
    noise_multiplier: float
    noise: Literal["cryptographic", "non-cryptographic"]
    sampler: Literal["poisson", "truncated_poisson", "fixed_size", "none"]
    sampling_rate: float
    steps: int
    clipping_norm: float
    unit: Literal["example", "user"]
    neighboring_relation: Literal["add_remove", "zero_out", "replace_one"]
    accountant: str
    covers: tuple[str, ...]
    guarantee: Literal["differential_privacy", "none"]

    def to_dict(self) -> dict[str, Json]:
        """Return the JSON form of the contract."""
        out = plain_json(asdict(self))
        if not isinstance(out, dict):
            raise TypeError("a privacy record is a mapping")
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Privacy:
        """Return the privacy part that `to_dict` wrote."""
        fields = dict(data)
        fields["covers"] = tuple(fields["covers"])  # type: ignore[arg-type]
        return cls(**fields)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Cost:
    """What a stage cost. `work_seconds` is the stage's own work; imports, loading and calibration are set-up."""

    seconds: float
    setup_seconds: float
    work_seconds: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class Record:
    """What a stage returns, a run keeps and ``--json`` prints.

    Attributes:
        kind: the verb that made it: ``train``, ``run``, ``attack``...
        name: the run's name.
        config: the resolved run file.
        seed: the run's public seed.
        measurements: each name once.
        series: values per step, epoch or round: name -> list of rows (mappings).
        privacy: None where no model was trained privately.
        artifacts: name -> path.
        items: rows of list-like verbs.
        runs: records of verbs that make several runs.
    """

    kind: str
    name: str
    created: str
    version: str
    config: Mapping[str, Json] = field(default_factory=dict)
    seed: int | None = None
    measurements: tuple[Measurement, ...] = ()
    series: Mapping[str, list[dict[str, Json]]] = field(default_factory=dict)
    privacy: Privacy | None = None
    cost: Cost | None = None
    warnings: tuple[str, ...] = ()
    artifacts: Mapping[str, str] = field(default_factory=dict)
    items: tuple[Mapping[str, Json], ...] | None = None
    runs: tuple[Record, ...] | None = None

    def __post_init__(self) -> None:
        names = [m.name for m in self.measurements]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"measurement {twice[0]} occurs twice in record {self.name}")

    def measurement(self, name: str) -> Measurement | None:
        """Return the measurement of that name, or None."""
        return next((m for m in self.measurements if m.name == name), None)

    def with_measurements(self, more: Iterable[Measurement]) -> Record:
        """Return the record with further measurements."""
        return replace(self, measurements=(*self.measurements, *more))

    def to_dict(self) -> dict[str, Json]:
        """Return the JSON form of the contract (DESIGN section 3)."""
        out: dict[str, Json] = {
            "kind": self.kind,
            "name": self.name,
            "created": self.created,
            "version": self.version,
            "config": plain_json(self.config),
            "seed": self.seed,
            "measurements": [m.to_dict() for m in self.measurements],
            "series": plain_json(self.series),
            "privacy": None if self.privacy is None else self.privacy.to_dict(),
            "cost": None if self.cost is None else plain_json(asdict(self.cost)),
            "warnings": list(self.warnings),
            "artifacts": dict(self.artifacts),
        }
        if self.items is not None:
            out["items"] = [plain_json(i) for i in self.items]
        if self.runs is not None:
            out["runs"] = [r.to_dict() for r in self.runs]
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Record:
        """Return the record that `to_dict` wrote."""
        fields = dict(data)
        fields["measurements"] = tuple(Measurement.from_dict(m) for m in fields.get("measurements", ()))  # type: ignore[attr-defined]
        fields["warnings"] = tuple(fields.get("warnings", ()))  # type: ignore[arg-type]
        if fields.get("privacy") is not None:
            fields["privacy"] = Privacy.from_dict(fields["privacy"])  # type: ignore[arg-type]
        if fields.get("cost") is not None:
            fields["cost"] = Cost(**fields["cost"])  # type: ignore[arg-type]
        if fields.get("items") is not None:
            fields["items"] = tuple(fields["items"])  # type: ignore[arg-type]
        if fields.get("runs") is not None:
            fields["runs"] = tuple(cls.from_dict(r) for r in fields["runs"])  # type: ignore[attr-defined]
        return cls(**fields)  # type: ignore[arg-type]

    def to_json(self, indent: int | None = None) -> str:
        """Return one JSON object; never contains NaN or Infinity."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Return the record of a JSON text."""
        return cls.from_dict(json.loads(text))

    def to_frame(self) -> pd.DataFrame:
        """Return the measurements as a pandas table, one row each, groups as rows of their own (column ``group``)."""
        import pandas as pd

        rows: list[dict[str, object]] = []
        for m in self.measurements:
            row = m.to_dict()
            groups = row.pop("groups")
            rows.append({**row, "group": None})
            rows.extend({**row, **g, "group": k} for k, g in (groups or {}).items())  # type: ignore[union-attr,dict-item]
        return pd.DataFrame(rows)
