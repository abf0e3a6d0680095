"""Figures over devices: against loops, derivatives by differences, exact coverage; small cohorts are not shown."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from troth.errors import DataError
from troth.federated.device_intervals import (
    device_ratio_interval,
    difference_interval,
    effective_devices,
    linearised_interval,
    quantile_interval,
    worst_tenth,
    worst_tenth_interval,
)
from troth.federated.device_measures import DeviceMeasures
from troth.federated.device_metrics import (
    DECILES,
    POOLED_METRICS,
    device_measurements,
    slices,
    unseen_device_measurements,
)
from troth.federated.evaluation import DeviceStatistics, Ratio, device_statistics
from troth.federated.pooled_figures import calibration_error, macro_scores, roc_area
from troth.intervals import Interval, clopper_pearson, share_interval
from troth.results import Measurement, Record
from troth.seeds import PublicSeeds
from troth.tasks.task import Scores

SEEDS = PublicSeeds(1)


def population(devices: int, seed: int = 0, shift: float = 0.0) -> tuple[Scores, np.ndarray, np.ndarray]:
    """Return scores, gold labels and devices of a two-class task on which devices are served unequally well."""
    rng = np.random.default_rng(seed)
    sizes = np.minimum(rng.zipf(1.6, devices), 60)
    owner = np.repeat(np.arange(devices), sizes)
    gold = rng.integers(0, 2, len(owner))
    logits = rng.normal(size=(len(owner), 2))
    logits[np.arange(len(owner)), gold] += rng.normal(1.0 + shift, 1.0, devices)[owner]
    logs = logits - np.logaddexp(logits[:, 0], logits[:, 1])[:, None]
    prediction = logs.argmax(axis=1)
    losses = -logs[np.arange(len(owner)), gold]
    return Scores(losses, (prediction == gold).astype(float), logs, {"prediction": prediction}), gold, owner


def statistics(devices: int = 200, seed: int = 0, extra: int = 3, shift: float = 0.0) -> DeviceStatistics:
    scores, gold, owner = population(devices, seed, shift)
    return device_statistics(scores, owner, devices + extra, kind="classification", gold=gold, labels=2)


def by_name(measurements: tuple[Measurement, ...], prefix: str = "federated.devices.") -> dict[str, Measurement]:
    return {m.name.removeprefix(prefix): m for m in measurements}


def test_both_means_deciles_and_the_worst_tenth_by_hand() -> None:
    scores, _, owner = population(200)
    found = by_name(device_measurements(statistics(), seeds=SEEDS))
    for metric, values, worst in (("accuracy", scores.correct, 1), ("loss", scores.losses, -1)):
        own = [values[owner == device].mean() for device in range(200)]
        ranked = sorted(own, key=lambda v: worst * v)
        assert found[f"{metric}.sample_weighted"].value == pytest.approx(values.mean(), rel=1e-12)
        assert found[f"{metric}.device_weighted"].value == pytest.approx(np.mean(own), rel=1e-12)
        assert found[f"{metric}.worst_decile"].value == pytest.approx(np.mean(ranked[:20]), abs=1e-12)
        for figure in DECILES:
            level = int(figure[1:]) / 100
            want = sorted(own)[math.ceil(round(level * 200, 9)) - 1]
            assert found[f"{metric}.{figure}"].value == pytest.approx(want, rel=1e-12)
    for name, m in found.items():
        assert m.low <= m.value <= m.high, name
        assert m.n == 200 and m.protocol["devices"] == 200 and m.protocol["rows"] == len(owner)
        assert m.direction == ("lower" if name.startswith(("loss", "cal")) else "higher")
        assert m.unit == ("nats" if name.startswith("loss") else "fraction")
    assert {name.split(".")[0] for name in found} == {"accuracy", "loss", *POOLED_METRICS}
    assert found["accuracy.worst_decile"].protocol["devices_in_tail"] == 20


def test_names_are_unique_and_go_through_a_record() -> None:
    made = (
        *device_measurements(statistics(), seeds=SEEDS, outside_guarantee=True),
        *unseen_device_measurements(statistics(40, 7), statistics(), seeds=SEEDS, outside_guarantee=True),
    )
    record = Record("federate", "x", "now", "0", measurements=made)
    assert Record.from_json(record.to_json()).measurements == made
    assert all(m.outside_guarantee for m in made)
    again = device_measurements(statistics(), seeds=SEEDS, outside_guarantee=True)
    assert again == made[: len(again)]


def test_a_perplexity_is_averaged_in_nats() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 30, 300)
    nats = tokens * rng.gamma(2, 1, 300)
    detail = {"nats": nats, "tokens": tokens, "right": np.zeros(300, dtype=int)}
    owner = np.arange(300) % 50
    found = by_name(
        device_measurements(
            device_statistics(Scores(nats / tokens, np.zeros(300), None, detail), owner, 50, kind="language_modeling"),
            seeds=SEEDS,
        )
    )
    own = np.bincount(owner, nats) / np.bincount(owner, tokens)
    assert found["perplexity.sample_weighted"].value == pytest.approx(np.exp(nats.sum() / tokens.sum()))
    assert found["perplexity.device_weighted"].value == pytest.approx(np.exp(own.mean()))
    assert found["perplexity.p50"].value == pytest.approx(np.exp(np.sort(own)[24]))
    assert found["perplexity.worst_decile"].value == pytest.approx(np.exp(np.sort(own)[-5:].mean()))
    assert not found["perplexity.worst_decile"].supported  # five devices show no tail
    for name, m in found.items():
        if name.startswith("perplexity"):
            assert m.unit == "ratio" and m.direction == "lower" and m.low <= m.value


@pytest.mark.parametrize("figure", ["macro_f1", "macro_precision", "macro_recall", "calibration_error", "auc"])
@pytest.mark.parametrize("weighted", [False, True])
def test_influence_is_the_derivative(figure: str, weighted: bool) -> None:
    found = statistics(30, extra=0)
    weights = 1 / found.rows if weighted else np.ones(30)

    def value(step: np.ndarray) -> float:
        scale = weights + step
        confusion = found.confusion.multiply(scale[:, None]).tocsr()
        made = [
            *macro_scores(confusion, found.confusion),
            calibration_error(found.calibration * scale[:, None, None]),
            roc_area(found.scores.multiply(scale[:, None]).tocsr()),
        ]
        return next(pooled for pooled in made if pooled.name == figure)

    base = value(np.zeros(30))
    assert base.influence.sum() == pytest.approx(0, abs=1e-12)
    for device in (0, 7, 29):
        step = np.zeros(30)
        step[device] = 1e-6 * weights[device]
        slope = (value(step).value - value(-step).value) / 2e-6
        assert base.influence[device] == pytest.approx(slope, abs=1e-8)


def test_the_linearised_interval_agrees_with_the_bootstrap() -> None:
    """n = 3,000 devices: both widths within 10 %, both middles within a tenth of a width."""
    rng = np.random.default_rng(0)
    sizes = np.minimum(rng.zipf(1.8, 3_000), 50).astype(float)
    for parts, largest in (
        (rng.binomial(sizes.astype(int), rng.beta(4, 2, 3_000)), 1.0),
        (sizes * rng.gamma(2, 1, 3_000), math.inf),
    ):
        drawn = device_ratio_interval(parts.astype(float), sizes, rng, largest=largest)
        value = parts.sum() / sizes.sum()
        computed = linearised_interval(value, (parts - value * sizes) / sizes.sum(), largest=largest)
        width = drawn.high - drawn.low
        assert computed.method == "linearised-t" and drawn.method == "bayesian-bootstrap"
        assert (computed.high - computed.low) / width == pytest.approx(1, abs=0.1)
        assert (computed.high + computed.low - drawn.high - drawn.low) / 2 == pytest.approx(0, abs=width / 10)


def test_many_devices_need_no_draws() -> None:
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 5, 20_000).astype(float)
    right = rng.binomial(sizes.astype(int), 0.7).astype(float)
    found = device_ratio_interval(right, sizes, rng, largest=1.0)
    assert found.method == "linearised-t"
    rows = clopper_pearson(int(right.sum()), int(sizes.sum()))  # rows are independent here, so both are right
    assert (found.low, found.high) == pytest.approx((rows.low, rows.high), abs=5e-4)
    values = rng.beta(4, 2, 20_000)
    tail = worst_tenth_interval(values, rng, limits=(0.0, 1.0))
    drawn = np.array([worst_tenth(rng.choice(values, 20_000)) for _ in range(60)])
    assert tail.method == "linearised-t"
    assert (tail.high - tail.low) / (2 * 1.96 * drawn.std()) == pytest.approx(1, abs=0.35)


def test_rows_of_one_device_are_not_taken_for_independent() -> None:
    """200 devices of 50 rows, each all right or all wrong: as wide as 200 coin tosses, not 10,000."""
    right = (np.random.default_rng(0).random(200) < 0.5) * 50.0
    found = by_name(
        device_measurements(
            DeviceStatistics(np.full(200, 50), {"accuracy": Ratio(right, np.full(200, 50.0))}), seeds=SEEDS
        )
    )["accuracy.sample_weighted"]
    honest, naive = clopper_pearson(int(right.sum() / 50), 200), clopper_pearson(int(right.sum()), 10_000)
    assert found.high - found.low == pytest.approx(honest.high - honest.low, rel=0.1)
    assert found.high - found.low > 5 * (naive.high - naive.low)


@pytest.mark.parametrize("devices", [10, 20, 57, 400])
@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_the_quantile_interval_covers_exactly_as_it_says(devices: int, level: float) -> None:
    """For continuous values the chance to cover is a binomial sum, which the interval's own places give."""
    ranked = (np.arange(devices) + 1.0) / (devices + 1)
    found = quantile_interval(ranked, level, largest=math.inf)
    first = round(found.low * (devices + 1))  # 0: the limit
    last = devices + 1 if found.high is None else round(found.high * (devices + 1))
    missed_low = stats.binom.cdf(first - 1, devices, level) if first else 0.0
    missed_high = stats.binom.sf(last - 1, devices, level) if last <= devices else 0.0
    assert missed_low <= 0.025 and missed_high <= 0.025
    assert stats.binom.cdf(first, devices, level) > 0.025  # one place further in would not do
    assert last == 1 or stats.binom.sf(last - 2, devices, level) > 0.025


def test_a_quantile_beyond_the_sample_ends_at_the_limit() -> None:
    values = np.linspace(0.5, 0.6, 10)
    assert quantile_interval(values, 0.1, largest=1.0).low == 0.0
    assert quantile_interval(values, 0.9, largest=1.0).high == 1.0
    assert quantile_interval(values, 0.9, largest=math.inf).high is None


def test_the_worst_tenth_counts_a_device_at_the_border_by_its_share() -> None:
    values = np.random.default_rng(0).permutation(np.arange(1.0, 26.0))
    assert worst_tenth(values) == pytest.approx((1 + 2 + 0.5 * 3) / 2.5)
    assert worst_tenth(np.array([4.0])) == 4.0
    interval = worst_tenth_interval(np.full(50, 0.5), np.random.default_rng(0), limits=(0.0, 1.0))
    assert interval.low < 0.5 <= interval.high


def test_the_worst_tenths_interval_covers() -> None:
    """n = 200 samples of 60 devices; nominal 95 %: fewer than 178 hits have chance 4e-4 at 0.95."""
    rng = np.random.default_rng(0)
    truth = worst_tenth(rng.beta(4, 2, 1_000_000))
    hits = 0
    for _ in range(200):
        found = worst_tenth_interval(rng.beta(4, 2, 60), rng, limits=(0.0, 1.0))
        hits += found.low <= truth <= found.high
    assert hits >= 178


def test_where_a_tenth_gets_nothing_right_that_is_known() -> None:
    right = np.r_[np.zeros(40), np.ones(60)]
    found = by_name(
        device_measurements(
            DeviceStatistics(np.ones(100, dtype=int), {"accuracy": Ratio(right, np.ones(100))}), seeds=SEEDS
        )
    )
    worst = found["accuracy.worst_decile"]
    assert (worst.value, worst.low, worst.high, worst.interval_method) == (0.0, 0.0, 0.0, "order-statistics")
    assert worst.supported and found["accuracy.p10"].supported
    perfect = by_name(
        device_measurements(
            DeviceStatistics(np.ones(100, dtype=int), {"accuracy": Ratio(np.ones(100), np.ones(100))}), seeds=SEEDS
        )
    )
    assert perfect["accuracy.worst_decile"].value == 1.0 and perfect["accuracy.worst_decile"].low < 1.0
    assert perfect["accuracy.sample_weighted"].low == pytest.approx(clopper_pearson(100, 100).low)


def test_small_cohorts_show_no_figure_of_devices() -> None:
    found = by_name(device_measurements(statistics(9), seeds=SEEDS))
    for name, m in found.items():
        if name.endswith("sample_weighted"):
            assert m.value is not None
        else:
            assert m.value is m.low is m.high is None and not m.supported and m.n == 9
            assert m.protocol["suppressed"].startswith("9 devices, fewer than the minimum of 10")
    assert set(found) == set(by_name(device_measurements(statistics(10), seeds=SEEDS)))
    assert by_name(device_measurements(statistics(9), seeds=SEEDS, minimum=9))["accuracy.p50"].value is not None
    assert (
        by_name(device_measurements(statistics(12), seeds=SEEDS, minimum=13))["accuracy.device_weighted"].value is None
    )


def test_few_held_out_devices_show_nothing_at_all() -> None:
    seen = statistics(100)
    for few, many in ((statistics(9, 3), seen), (statistics(0, 3), seen)):
        found = unseen_device_measurements(few, many, seeds=SEEDS)
        assert found and all(m.value is None and not m.supported for m in found)
        assert all("fewer than the minimum" in m.protocol["suppressed"] for m in found)
        assert not {"rows", "median_rows_per_device"} & set(found[0].protocol)
    one_side = by_name(unseen_device_measurements(seen, statistics(9, 3), seeds=SEEDS), "federated.unseen_devices.")
    assert one_side["accuracy.gap"].value is None and one_side["accuracy.device_weighted"].value is not None


def test_the_gap_is_above_zero_where_unseen_devices_are_served_worse() -> None:
    seen, unseen = statistics(300, 1), statistics(150, 2, shift=-1.0)
    found = by_name(unseen_device_measurements(unseen, seen, seeds=SEEDS), "federated.unseen_devices.")
    own = {
        side: {m: float(np.nanmean(s.ratios[m].rates)) for m in ("accuracy", "loss")}
        for side, s in (("seen", seen), ("unseen", unseen))
    }
    accuracy, loss = found["accuracy.gap"], found["loss.gap"]
    assert accuracy.value == pytest.approx(own["seen"]["accuracy"] - own["unseen"]["accuracy"])
    assert loss.value == pytest.approx(own["unseen"]["loss"] - own["seen"]["loss"])
    for gap in (accuracy, loss):
        assert 0 < gap.low < gap.value < gap.high and gap.supported and gap.direction == "lower" and gap.neutral == 0.0
        assert gap.n == 150 and gap.protocol["seen_devices"] == 300 and gap.interval_method == "mover"
    alike = by_name(unseen_device_measurements(statistics(150, 3), seen, seeds=SEEDS), "federated.unseen_devices.")
    assert alike["accuracy.gap"].low < 0 < alike["accuracy.gap"].high


def test_a_difference_of_normal_means_has_the_usual_interval() -> None:
    one, two = Interval(2.0, 4.0, 0.95, "x"), Interval(0.5, 1.5, 0.95, "x")
    found = difference_interval(one, 3.0, two, 1.0)
    assert (found.low, found.high) == pytest.approx((2 - math.hypot(1, 0.5), 2 + math.hypot(1, 0.5)))
    assert difference_interval(one, 3.0, Interval(None, None, 0.95, "x"), 1.0).low is None


def test_a_diverged_model_has_no_figures_and_says_so() -> None:
    found = statistics(50)
    found.ratios["loss"].parts[3] = np.inf
    made = by_name(device_measurements(found, seeds=SEEDS))
    for name, m in made.items():
        if name.startswith("loss"):
            assert m.value is None and not m.supported
    assert made["accuracy.p50"].value is not None


def test_how_many_devices_carry_a_figure() -> None:
    assert effective_devices(np.full(30, 7.0)) == 30
    assert effective_devices(np.array([1e6, 1.0, 1.0])) == pytest.approx(1, abs=1e-4)
    assert effective_devices(np.zeros(3)) == 0.0
    few = DeviceStatistics(np.ones(60, dtype=int), {"loss": Ratio(np.ones(60) * 2, np.r_[1e4, np.ones(59)])})
    made = by_name(device_measurements(few, seeds=SEEDS))
    assert not made["loss.sample_weighted"].supported


def measures(minimum: int) -> DeviceMeasures:
    return DeviceMeasures("federated.devices", SEEDS, minimum, False)


def test_slices_are_sample_weighted_and_count_devices() -> None:
    rng = np.random.default_rng(0)
    owner, codes = rng.integers(0, 100, 900), rng.integers(-1, 3, 900)
    rows = Ratio((rng.random(900) < 0.6).astype(float), np.ones(900))
    found = slices("accuracy", rows, owner, codes, ["a", "b", "c"], by="group", measures=measures(10))
    assert found.name == "federated.devices.accuracy.by_group" and found.value == rows.parts.mean() and found.n == 100
    assert set(found.groups) == {"a", "b", "c"} and found.protocol["suppressed_slices"] == 0
    for code, name in enumerate("abc"):
        mine = codes == code
        assert found.groups[name].value == pytest.approx(rows.parts[mine].mean())
        assert found.groups[name].n == len(np.unique(owner[mine]))
        by_device = share_interval(
            np.bincount(owner[mine], rows.parts[mine]), np.bincount(owner[mine]), np.random.default_rng(9)
        )
        assert found.groups[name].low == pytest.approx(by_device.low, abs=0.02)


def test_a_small_slice_takes_others_with_it_so_that_it_cannot_be_had_by_subtraction() -> None:
    owner = np.r_[np.arange(3), np.arange(12), np.arange(20), np.arange(50)]
    codes = np.repeat([0, 1, 2, 3], [3, 12, 20, 50])
    rows = Ratio(np.ones(len(owner)), np.ones(len(owner)))
    names = ["rare", "small", "middle", "large"]
    found = slices("accuracy", rows, owner, codes, names, by="group", measures=measures(10))
    assert set(found.groups) == {"middle", "large"} and found.protocol["suppressed_slices"] == 2
    assert "rare" not in found.to_dict()["protocol"].values()
    strict = slices("accuracy", rows, owner, codes, names, by="group", measures=measures(30))
    assert set(strict.groups) == set() and strict.protocol["suppressed_slices"] == 4
    enough = slices("accuracy", rows, owner, codes, names, by="group", measures=measures(3))
    assert set(enough.groups) == set(names)
    none = slices("accuracy", rows, owner, codes, names, by="group", measures=measures(51))
    assert none.value is None and none.groups is None and "fewer than the minimum of 51" in none.protocol["suppressed"]


def test_bad_slices_are_refused() -> None:
    rows = Ratio(np.ones(3), np.ones(3))
    for owner, codes in ((np.zeros(2), np.zeros(3)), (np.zeros(3), np.array([0, 1, 2])), (np.zeros(3), np.full(3, -2))):
        with pytest.raises(DataError, match="slices by group: give one device and one slice of 2"):
            slices("accuracy", rows, owner, codes, ["a", "b"], by="group", measures=measures(1))
