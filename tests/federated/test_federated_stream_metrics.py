"""Quality over a stream: against sums by hand, closed cases, and the coverage of the intervals."""

from __future__ import annotations

import numpy as np
import pytest

from troth.errors import DataError
from troth.federated.stream_metrics import (
    StreamScores,
    backward_transfer,
    evaluation_views,
    forgetting,
    rounds_to_catch_up,
    stream_measurements,
)
from troth.seeds import PublicSeeds


def test_forgetting_and_backward_transfer_by_hand() -> None:
    quality = np.random.default_rng(0).random((6, 6))
    lost, back = forgetting(quality), backward_transfer(quality)
    assert np.isnan(lost[0]) and np.isnan(back[0])
    for now in range(1, 6):
        assert lost[now] == pytest.approx(
            np.mean([max(quality[before, past] for before in range(now)) - quality[now, past] for past in range(now)])
        )
        assert back[now] == pytest.approx(np.mean([quality[now, past] - quality[past, past] for past in range(now)]))


def test_lower_is_better_turns_the_signs_round() -> None:
    quality = np.random.default_rng(1).random((4, 4))
    np.testing.assert_allclose(forgetting(quality, "lower"), forgetting(-quality))
    np.testing.assert_allclose(backward_transfer(quality, "lower"), backward_transfer(-quality))
    worse = np.array([[1.0, 9.0], [3.0, 1.0]])  # a loss that rose from 1 to 3
    assert forgetting(worse, "lower")[1] == 2.0 and backward_transfer(worse, "lower")[1] == -2.0


def test_the_two_agree_with_the_opposite_sign_where_each_period_was_best_when_present() -> None:
    quality = np.tril(np.ones((5, 5))) * np.linspace(1, 0.5, 5)[:, None]
    np.testing.assert_allclose(forgetting(quality)[1:], -backward_transfer(quality)[1:])
    same = np.full((3, 3), 0.7)
    assert forgetting(same)[1:].tolist() == backward_transfer(same)[1:].tolist() == [0.0, 0.0]


def test_a_period_without_test_rows_is_left_out() -> None:
    quality = np.random.default_rng(2).random((4, 4))
    quality[:, 1] = np.nan
    assert forgetting(quality)[3] == pytest.approx(np.mean([max(quality[:3, j]) - quality[3, j] for j in (0, 2)]))
    only = np.full((2, 2), np.nan)
    assert np.isnan(forgetting(only)).all() and np.isnan(backward_transfer(only)).all()


def test_many_matrices_at_once() -> None:
    stack = np.random.default_rng(3).random((5, 4, 4))
    for measure in (forgetting, backward_transfer):
        np.testing.assert_array_equal(measure(stack), [measure(one) for one in stack])
    for bad in (np.zeros(3), np.zeros((2, 3))):
        with pytest.raises(ValueError, match="over the same periods"):
            forgetting(bad)


def test_rounds_to_catch_up() -> None:
    rounds, quality = [2, 4, 6, 8, 10, 12], [0.5, 0.7, 0.9, 0.6, 0.1, 0.2]
    references = [0.7, 0.9, 0.5]
    assert rounds_to_catch_up(rounds, quality, 4, references) == [4, 2, None]
    assert rounds_to_catch_up(rounds, quality, 4, references, margin=0.2) == [2, 2, None]
    assert rounds_to_catch_up(rounds[::-1], quality[::-1], 4, references) == [4, 2, None]
    assert rounds_to_catch_up(rounds, quality, 4, references, better="lower") == [2, 2, 2]
    assert rounds_to_catch_up([1], [0.9], 4, [float("nan"), 0.1]) == [None, None]
    with pytest.raises(ValueError, match="round 13 is in none of 3 periods of 4 rounds"):
        rounds_to_catch_up([13], [0.9], 4, references)
    with pytest.raises(ValueError, match="2 rounds and 1 qualities"):
        rounds_to_catch_up([1, 2], [0.9], 4, references)


def test_views_split_the_test_rows() -> None:
    found = evaluation_views(np.array([-1, 0, 1, 1, 2, 3, 0]), 1)
    assert {name: rows.tolist() for name, rows in found.items()} == {"current": [2, 3], "past": [1, 6], "next": [4]}
    assert not len(evaluation_views(np.array([0, 1]), 1)["next"])


def scores(seed: int, trained: int = 4, rows: int = 60) -> StreamScores:
    rng = np.random.default_rng(seed)
    wholes = rng.integers(0, 5, rows).astype(float)
    parts = np.floor(rng.random((trained, rows)) * (wholes + 1))
    return StreamScores.of(parts, wholes, rng.integers(-1, trained + 1, rows), rng.integers(0, 15, rows))


def test_quality_and_views_are_ratios_of_sums() -> None:
    found = scores(0)
    quality, views = found.quality(), found.views()
    for now in range(4):
        for tested in range(4):
            rows = found.periods == tested
            assert quality[now, tested] == found.parts[now, rows].sum() / found.wholes[rows].sum()
        past = (found.periods >= 0) & (found.periods < now)
        assert views["current"][now] == quality[now, now]
        if now:
            assert views["past"][now] == pytest.approx(found.parts[now, past].sum() / found.wholes[past].sum())
        if now < 3:
            assert views["next"][now] == quality[now, now + 1]
    assert np.isnan(views["past"][0])


def test_equal_weights_give_the_quality_itself() -> None:
    found = scores(1)

    class Ones:
        def standard_exponential(self, shape: tuple[int, ...]) -> np.ndarray:
            return np.ones(shape)

        def standard_gamma(self, shape: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
            return np.ones(size)

    np.testing.assert_allclose(found.replicates(Ones(), 3), np.broadcast_to(found.quality(), (3, 4, 4)))


def test_a_model_that_is_always_right_is_so_in_every_replicate() -> None:
    wholes = np.random.default_rng(0).integers(1, 5, 60).astype(float)
    perfect = StreamScores.of(np.stack([wholes] * 3), wholes, np.arange(60) % 3, np.arange(60) // 7)
    replicates = perfect.replicates(np.random.default_rng(1), 20)
    assert replicates.shape == (20, 3, 3)
    np.testing.assert_allclose(replicates, 1.0, rtol=1e-12)


def test_measurements_hold_value_interval_and_protocol() -> None:
    found = stream_measurements(scores(2), "accuracy", seeds=PublicSeeds(1))
    again = stream_measurements(scores(2), "accuracy", seeds=PublicSeeds(1), outside_guarantee=True)
    names = [m.name for m in found]
    assert names == ["federated.stream.accuracy.forgetting", "federated.stream.accuracy.backward_transfer"]
    for one, other, make in zip(found, again, (forgetting, backward_transfer), strict=True):
        assert one.value == pytest.approx(make(scores(2).quality())[-1])
        assert one.low < one.value < one.high and one.supported and one.n == 15
        assert (one.low, one.high) == (other.low, other.high)
        assert other.outside_guarantee and one.protocol["resampled"] == "users of test rows"
    assert [m.direction for m in found] == ["lower", "higher"]


def test_few_users_or_no_past_are_not_supported() -> None:
    few = StreamScores.of(np.ones((2, 6)), np.ones(6), np.array([0, 1, 0, 1, 0, 1]))
    for measured in stream_measurements(few, "accuracy", seeds=PublicSeeds(1)):
        assert measured.value == 0.0 and not measured.supported
    first = StreamScores.of(np.ones((1, 40)), np.ones(40), np.zeros(40, dtype=int))
    for measured in stream_measurements(first, "accuracy", seeds=PublicSeeds(1)):
        assert measured.value is None and measured.low is None and not measured.supported


def test_the_interval_of_backward_transfer_covers() -> None:
    """n = 150 data sets of 80 users; nominal 95 %: fewer than 130 hits have chance 6e-5 at 0.95 (4e-3 at 0.93)."""
    rng = np.random.default_rng(4)
    truth = np.array([[0.8, 0.5], [0.6, 0.8]])
    hits = 0
    for trial in range(150):
        users = np.repeat(np.arange(80), 3)
        skill = rng.normal(scale=0.1, size=80)[users]
        periods = rng.integers(0, 2, 240)
        parts = (rng.random((2, 240)) < truth[:, periods] + skill).astype(float)
        found = stream_measurements(
            StreamScores.of(parts, np.ones(240), periods, users), "accuracy", seeds=PublicSeeds(trial)
        )[1]
        hits += found.low <= -0.2 <= found.high
    assert hits >= 130


def test_bad_scores_are_refused() -> None:
    for parts, wholes, periods, clusters in (
        (np.ones((2, 3)), np.ones(4), np.zeros(4), None),
        (np.ones(4), np.ones(4), np.zeros(4), None),
        (np.ones((2, 4)), np.ones(4), np.zeros(3), None),
        (np.ones((2, 4)), np.ones(4), np.zeros(4), np.zeros(3)),
    ):
        with pytest.raises(DataError, match="do not fit"):
            StreamScores.of(parts, wholes, periods, clusters)
    for parts, wholes in ((np.full((2, 4), np.nan), np.ones(4)), (np.ones((2, 4)), -np.ones(4))):
        with pytest.raises(DataError, match="not finite, or a whole is negative"):
            StreamScores.of(parts, wholes, np.zeros(4))
