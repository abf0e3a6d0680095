"""Patterns, plans and keys: round trips, what is secret stays secret, bad input."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from troth.attacks.canaries import CanaryPlan, draw_key, load_key, save_key
from troth.attacks.canary_patterns import SLOT_VALUES, parse_pattern
from troth.errors import ConfigError, DataError, RunError
from troth.seeds import PrivateRandomness

PIN = "my pin code is {d}{d}{d}{d}"


@settings(deadline=None)
@given(st.integers(0, 12 * 1000 - 1))
def test_codes_digits_and_words_are_one_to_one(code: int) -> None:
    pattern = parse_pattern("a {color} car with {d*3} seats")
    assert pattern.codes == 12_000
    digits = pattern.digits([code])
    assert pattern.numbers(digits).tolist() == [code]
    words = pattern.complete(digits[0])
    assert pattern.read(words).tolist() == digits[0].tolist()
    assert words[0] == "a"
    assert words[1] in SLOT_VALUES["color"]


def test_a_slot_is_a_word_of_its_own_however_it_is_written() -> None:
    assert (
        parse_pattern(PIN) == parse_pattern("my pin code is {d} {d} {d} {d}") == parse_pattern("my pin code is {d*4}")
    )
    assert parse_pattern(PIN).complete([0, 4, 2, 9]) == ["my", "pin", "code", "is", "0", "4", "2", "9"]
    assert parse_pattern(PIN).prefix == ("my", "pin", "code", "is")


def test_reading_stops_at_the_first_word_that_does_not_fit() -> None:
    pattern = parse_pattern("call {d}{d} or {d} now")
    assert pattern.read(["call", "4", "2", "or", "7", "now"]).tolist() == [4, 2, 7]
    assert pattern.read(["call", "4", "2", "and", "7", "now"]).tolist() == [4, 2, -1]
    assert pattern.read(["call", "four", "2"]).tolist() == [-1, -1, -1]
    assert pattern.read([]).tolist() == [-1, -1, -1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("my pin code is", "has no slot"),
        ("my {name} is {d}", r"no slot \{name\}; there are d, color"),
        ("pin:{d}", "a word of its own"),
        ("pin {d", "a word of its own"),
        ("pin {d*0x}", "a word of its own"),
        ("call {d*0}", "give 1 or more"),
        ("call {d*19}", "more than 2\\^62 codes"),
    ],
)
def test_bad_patterns_are_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_pattern(text)
    assert "\n" not in str(caught.value)


def test_codes_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.\.99"):
        parse_pattern("{d}{d}").digits([100])


def test_a_plan_survives_json_and_holds_no_code() -> None:
    plan = CanaryPlan(PIN, 7, (1, 100), 0.5, "music", 3)
    assert CanaryPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert set(plan.to_dict()) == {"pattern", "count", "repeats", "inclusion_probability", "label", "decoys"}
    assert plan.repeats_of.tolist() == [1, 100, 1, 100, 1, 100, 1]
    assert CanaryPlan(PIN, 7).decoy_count == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 0}, "canaries.count = 0"),
        ({"repeats": ()}, "canaries.repeats"),
        ({"repeats": (1, 0)}, "canaries.repeats"),
        ({"inclusion_probability": 0.0}, "inclusion_probability"),
        ({"inclusion_probability": 1.5}, "inclusion_probability"),
        ({"label": ""}, "canaries.label"),
        ({"decoys": -1}, "canaries.decoys"),
        ({"pattern": "{color}", "count": 6}, "some must be left to compare with"),
    ],
)
def test_bad_plans_are_one_line(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        CanaryPlan(**{"pattern": PIN, **change})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_unknown_keys_of_a_plan_are_refused() -> None:
    with pytest.raises(ConfigError, match="canaries: wants pattern"):
        CanaryPlan.from_dict({"pattern": PIN, "repeat": [1]})


def test_keys_are_distinct_private_and_repeatable_only_with_an_insecure_seed() -> None:
    plan = CanaryPlan(PIN, count=400, decoys=500)
    one, other = (draw_key(plan, PrivateRandomness.create()) for _ in range(2))
    assert not np.array_equal(one.codes, other.codes)
    again = [draw_key(plan, PrivateRandomness.create(insecure_seed=3)) for _ in range(2)]
    assert np.array_equal(again[0].codes, again[1].codes)
    assert again[0].insecure
    assert not one.insecure
    every = np.concatenate([one.codes, one.decoys])
    assert len(set(every.tolist())) == 900
    assert one.included.all()
    assert not any(str(code) in repr(one) for code in one.codes[one.codes > 999].tolist())


def test_codes_of_a_huge_pattern_are_drawn_without_listing_them() -> None:
    key = draw_key(CanaryPlan("call {d*18}", 5), PrivateRandomness.create(1))
    assert key.codes.max() > 10**16


def test_each_canary_is_in_with_its_probability() -> None:
    plan = CanaryPlan(PIN, count=1000, inclusion_probability=0.5, decoys=0)
    count = int(draw_key(plan, PrivateRandomness.create(1)).included.sum())
    assert binom.ppf(1e-4, 1000, 0.5) <= count <= binom.isf(1e-4, 1000, 0.5)


def test_a_saved_key_is_the_owners_alone_and_comes_back(tmp_path: Path) -> None:
    plan = CanaryPlan(PIN, 5, (1, 10), 0.5)
    key = draw_key(plan, PrivateRandomness.create())
    path = tmp_path / "deep" / "canaries.key.json"
    save_key(key, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    back = load_key(path, plan)
    for name in ("codes", "included", "decoys"):
        assert np.array_equal(getattr(back, name), getattr(key, name))
    assert (back.plan, back.insecure) == (key.plan, key.insecure)


def test_keys_of_other_plans_and_broken_files_are_refused(tmp_path: Path) -> None:
    plan, path = CanaryPlan(PIN, 5), tmp_path / "key.json"
    with pytest.raises(DataError, match="cannot be read"):
        load_key(path, plan)
    for text in ("", "[]", "{}", '{"plan": 1, "codes": ["x"], "included": [], "decoys": [], "insecure": false}'):
        path.write_text(text)
        with pytest.raises(DataError, match="is no key of canaries") as caught:
            load_key(path, plan)
        assert "\n" not in str(caught.value)
    key = draw_key(plan, PrivateRandomness.create(1))
    save_key(key, path)
    with pytest.raises(DataError, match="belongs to another plan"):
        load_key(path, CanaryPlan(PIN, 6))
    for codes in ([1, 1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4, 10_000], [int(key.decoys[0]), 1, 2, 3, 4]):
        path.write_text(json.dumps({**json.loads(path.read_text()), "codes": codes}))
        with pytest.raises(DataError, match="does not fit the plan"):
            load_key(path, plan)


def test_a_key_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError):
        save_key(draw_key(CanaryPlan(PIN, 5), PrivateRandomness.create(1)), tmp_path / "file" / "key.json")
