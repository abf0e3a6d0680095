"""From numbers of devices to measurements: value, interval over devices, n and protocol, in one way for all metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from troth.federated.device_intervals import (
    device_ratio_interval,
    difference_interval,
    effective_devices,
    linearised_interval,
    quantile_interval,
    worst_tenth,
    worst_tenth_interval,
)
from troth.federated.evaluation import DeviceStatistics
from troth.federated.pooled_figures import Pooled
from troth.intervals import REPLICATES, Interval, ratio_of_sums
from troth.results import Direction, Json, Measurement
from troth.seeds import PublicSeeds
from troth.tasks.measures import CONFIDENCE, MOST_THIN_LABELS, SMALLEST_SHARE, SMALLEST_UNLIMITED

__all__ = ["DeviceMeasures", "in_unit", "largest_of", "scaled"]

Floats = NDArray[np.float64]

_UNITS = {"loss": "nats", "perplexity": "ratio"}
_LOWER_IS_BETTER = ("loss", "perplexity", "calibration_error")
_SMALLEST_TAIL = 20  # devices in the worst tenth, where a device's value has no limit


@dataclass(frozen=True)
class DeviceMeasures:
    """Makes the measurements of one set of devices; values are in nats until the end where the metric is a perplexity.

    Attributes:
        prefix: first part of the names.
        seeds: public seeds; each measurement has a stream of its own, named by it.
        minimum: devices below which no figure of single devices is given.
        outside_guarantee: stamped on each measurement.
        protocol: entries of every protocol.
    """

    prefix: str
    seeds: PublicSeeds
    minimum: int
    outside_guarantee: bool
    protocol: Mapping[str, Json] = field(default_factory=dict)

    @classmethod
    def of(
        cls, found: DeviceStatistics, prefix: str, seeds: PublicSeeds, minimum: int, outside_guarantee: bool
    ) -> DeviceMeasures:
        """Return the maker for these devices, every one of which holds a row."""
        protocol: dict[str, Json] = {
            "devices": len(found),
            "rows": int(found.rows.sum()),
            "median_rows_per_device": float(np.median(found.rows)) if len(found) else None,
        }
        return cls(prefix, seeds, minimum, outside_guarantee, protocol)

    def mean(self, metric: str, figure: str, parts: Floats, wholes: Floats) -> Measurement:
        """Return sum(parts) / sum(wholes), both [devices], wholes above 0."""
        name, devices, largest = f"{metric}.{figure}", len(parts), largest_of(metric)
        value, interval = ratio_of_sums(parts, wholes), Interval(None, None, CONFIDENCE, "bayesian-bootstrap")
        if math.isfinite(value):
            interval = device_ratio_interval(parts, wholes, self._rng(name), largest=largest, confidence=CONFIDENCE)
        effective = effective_devices(wholes)
        counted = effective if math.isinf(largest) else devices  # the interval of a share knows what it has not seen
        enough = counted >= _smallest(largest) or (interval.method == "zero-event-bound" and devices > 0)
        protocol: dict[str, Json] = {
            "weighting": "each device once" if figure == "device_weighted" else "each row once",
            "effective_devices": effective,
        }
        return self._made(name, value, interval, devices, enough=enough, protocol=protocol)

    def decile(self, metric: str, figure: str, rates: Floats) -> Measurement:
        """Return a quantile of the devices' own figures, such as ``p10``: the least that so many do not exceed."""
        level, largest, name = int(figure[1:]) / 100, largest_of(metric), f"{metric}.{figure}"
        if not np.isfinite(rates).all():
            return self._nothing(name, "order-statistics", len(rates))
        value = float(np.quantile(rates, level, method="inverted_cdf"))
        interval = quantile_interval(rates, level, largest=largest, confidence=CONFIDENCE)
        made = self._made(name, value, interval, len(rates), enough=True)
        # Order statistics cover whatever the distribution: equal ends say that so many devices have that very value.
        return replace(made, supported=made.high is not None and math.isfinite(made.high))

    def worst_decile(self, metric: str, rates: Floats) -> Measurement:
        """Return the mean over the worst-served tenth of devices of their own figures."""
        name, largest, devices = f"{metric}.worst_decile", largest_of(metric), len(rates)
        if not np.isfinite(rates).all():
            return self._nothing(name, "bayesian-bootstrap", devices)
        sign = _sign(metric)
        limits = (0.0, largest) if sign > 0 else (-largest, 0.0)
        protocol: dict[str, Json] = {"devices_in_tail": math.ceil(devices / 10)}
        value = sign * worst_tenth(sign * rates)
        tenth = quantile_interval(sign * rates, 0.1, largest=largest, confidence=CONFIDENCE)
        if tenth.high == limits[0]:  # more than a tenth of all devices are as badly served as can be
            made = self._made(name, value, _turned(tenth, sign), devices, enough=True, protocol=protocol)
            return replace(made, supported=True)
        found = worst_tenth_interval(sign * rates, self._rng(name), limits=limits, confidence=CONFIDENCE)
        enough = largest == 1 or devices // 10 >= _SMALLEST_TAIL
        return self._made(name, value, _turned(found, sign), devices, enough=enough, protocol=protocol)

    def gap(self, metric: str, seen: Floats, unseen: Floats) -> Measurement:
        """Return by how much the mean of unseen devices' own figures is worse than that of seen ones, in nats or as is.

        Args:
            metric: its name.
            seen: [seen devices] own figures.
            unseen: [unseen devices] own figures.
        """
        name, sign, largest = f"{metric}.gap", _sign(metric), largest_of(metric)
        fewest = min(len(seen), len(unseen))
        if fewest < self.minimum:
            return self.suppressed(name, fewest)
        means = [float(rates.mean()) for rates in (seen, unseen)]
        if not all(map(math.isfinite, means)):
            return self._nothing(name, "mover", len(unseen))
        sides = [
            device_ratio_interval(rates, np.ones(len(rates)), self._rng(f"{name}.{side}"), largest=largest)
            for rates, side in ((seen, "seen"), (unseen, "unseen"))
        ]
        found = _turned(difference_interval(sides[0], means[0], sides[1], means[1]), sign)
        protocol: dict[str, Json] = {"seen_devices": len(seen), "weighting": "each device once"}
        made = replace(self, protocol={**self.protocol, **protocol})._made(
            name, sign * (means[0] - means[1]), found, len(unseen), enough=fewest >= _smallest(largest), in_nats=True
        )
        return replace(made, direction="lower", neutral=0.0)

    def pooled(self, figure: str, pooled: Pooled, sizes: Floats) -> Measurement:
        """Return a figure of pooled sums; its interval is widened by what the bins leave open.

        Args:
            figure: ``sample_weighted`` or ``device_weighted``.
            pooled: the figure.
            sizes: [devices] what each device weighs in it.
        """
        found = linearised_interval(pooled.value, pooled.influence, largest=1.0, confidence=CONFIDENCE)
        effective = effective_devices(sizes)
        if found.low is not None and found.high is not None:
            low, high = max(0.0, found.low - pooled.bound), min(1.0, found.high + pooled.bound)
            found = replace(found, low=low, high=high)
        enough = effective >= SMALLEST_UNLIMITED and pooled.thin <= MOST_THIN_LABELS
        protocol: dict[str, Json] = {
            "weighting": "each device once" if figure == "device_weighted" else "each row once",
            "effective_devices": effective,
            **pooled.protocol,
        }
        name = f"{pooled.name}.{figure}"
        return self._made(name, pooled.value, found, len(sizes), enough=enough, protocol=protocol)

    def suppressed(self, name: str, devices: int) -> Measurement:
        """Return the measurement that says why there is none."""
        reason = f"{devices} devices, fewer than the minimum of {self.minimum}: no figure is given"
        made = self._nothing(name, "none", devices)
        return replace(made, protocol={"suppressed": reason, "minimum_devices": self.minimum})

    def _nothing(self, name: str, method: str, n: int) -> Measurement:
        return self._made(name, math.nan, Interval(None, None, CONFIDENCE, method), n, enough=False)

    def _rng(self, name: str) -> np.random.Generator:
        return self.seeds.generator("bootstrap", f"{self.prefix}.{name}")

    def _made(
        self,
        name: str,
        value: float,
        interval: Interval,
        n: int,
        *,
        enough: bool,
        in_nats: bool = False,
        protocol: Mapping[str, Json] | None = None,
    ) -> Measurement:
        metric = name.partition(".")[0]
        unit = "nats" if in_nats and metric == "perplexity" else _UNITS.get(metric, "fraction")
        if not in_nats:
            value, interval = in_unit(metric, value), scaled(metric, interval)
        known = math.isfinite(value)
        drawn: dict[str, Json] = {}
        if interval.method == "bayesian-bootstrap" and known:
            drawn = {"resampled": "devices, by exponential weights", "replicates": REPLICATES}
        direction: Direction = "lower" if metric in _LOWER_IS_BETTER else "higher"
        return Measurement(
            f"{self.prefix}.{name}",
            value if known else None,
            interval.low if known else None,
            interval.high if known else None,
            interval.confidence,
            interval.method,
            n,
            unit,
            direction=direction,
            supported=enough and known and _wide(interval),
            outside_guarantee=self.outside_guarantee,
            protocol={**self.protocol, **drawn, **(protocol or {})},
        )


def largest_of(metric: str) -> float:
    """Return the upper limit of a metric: 1, or infinity."""
    return math.inf if metric in _UNITS else 1.0


def in_unit(metric: str, value: float) -> float:
    """Return a value in the metric's unit: a perplexity is the exponential of nats."""
    if metric != "perplexity":
        return value
    with np.errstate(over="ignore"):
        return float(np.exp(value))


def scaled(metric: str, interval: Interval) -> Interval:
    """Return an interval in the metric's unit."""
    low, high = (None if end is None else in_unit(metric, end) for end in (interval.low, interval.high))
    return replace(interval, low=low, high=high)


def _sign(metric: str) -> float:
    return -1.0 if metric in _LOWER_IS_BETTER else 1.0


def _smallest(largest: float) -> int:
    return SMALLEST_SHARE if largest == 1 else SMALLEST_UNLIMITED


def _turned(interval: Interval, sign: float) -> Interval:
    """Return the interval of the number times 1 or -1."""
    if sign > 0 or interval.low is None or interval.high is None:
        return interval
    return replace(interval, low=-interval.high, high=-interval.low)


def _wide(interval: Interval) -> bool:
    """Return whether the interval has two finite ends that differ."""
    low, high = interval.low, interval.high
    return low is not None and high is not None and math.isfinite(low) and math.isfinite(high) and low < high
