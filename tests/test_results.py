"""Records survive JSON exactly and refuse to be ambiguous."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from troth.results import Cost, Group, Measurement, Privacy, Record, computed

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


def measurement(name: str = "test.accuracy", **changes: object) -> Measurement:
    values = {
        "value": 0.9,
        "low": 0.8,
        "high": 0.95,
        "confidence": 0.95,
        "interval_method": "clopper-pearson",
        "n": 100,
        "unit": "fraction",
    } | changes
    return Measurement(name, **values)  # type: ignore[arg-type]


PRIVACY = Privacy(
    8.0, 1e-5, 1.1, "non-cryptographic", "poisson", 0.01, 100, 0.1, "example", "add_remove", "pld", ("weights",), "none"
)


@given(value=NUMBERS, low=NUMBERS, high=NUMBERS, text=st.text())
def test_json_round_trip_is_exact(value: float, low: float, high: float, text: str) -> None:
    record = Record(
        "run",
        text,
        "2026-01-01T00:00:00+00:00",
        "0",
        {"a": {"b": [1, text, None, True, value]}},
        3,
        (measurement(value=value, low=low, high=high, groups={text: Group(value, low, high, 3)}, neutral=0.0),),
        {"s": [{"step": 1, "loss": value}]},
        PRIVACY,
        Cost(1.5, 0.5, 1.0, 7),
        (text,),
        {"model": text},
        ({"k": text},),
        (Record("train", "inner", "x", "0"),),
    )
    again = Record.from_json(record.to_json())
    assert again == record
    assert again.to_json() == record.to_json()


def test_infinity_and_nan_become_null() -> None:
    record = Record("run", "r", "x", "0", measurements=(measurement(value=math.inf, low=math.nan, high=-math.inf),))
    data = json.loads(record.to_json(), parse_constant=lambda c: pytest.fail(f"{c} in JSON"))
    assert [data["measurements"][0][k] for k in ("value", "low", "high")] == [None, None, None]


def test_numpy_values_and_tuples_become_plain_json() -> None:
    record = Record("run", "r", "x", "0", config={"a": np.float64(1.5), "b": (np.int64(2), np.array([1, 2]))})  # type: ignore[dict-item]
    assert json.loads(record.to_json())["config"] == {"a": 1.5, "b": [2, [1, 2]]}


def test_a_name_occurs_once() -> None:
    with pytest.raises(ValueError, match=r"test\.accuracy occurs twice"):
        Record("run", "r", "x", "0", measurements=(measurement(), measurement()))


@pytest.mark.parametrize("name", ["", "Test.accuracy", "test..accuracy", "test accuracy", ".test"])
def test_names_are_dotted_paths(name: str) -> None:
    with pytest.raises(ValueError, match="dotted path"):
        measurement(name)


@pytest.mark.parametrize(
    "name", ["attack.membership.loss.tpr_at_fpr_0.01", "test.accuracy", "fairness.accuracy_gap.p_value"]
)
def test_contract_names_are_accepted(name: str) -> None:
    assert measurement(name).name == name


def test_computed_numbers_are_exact() -> None:
    m = computed("data.train.rows", 5, 5, "rows")
    assert (m.low, m.high, m.confidence, m.interval_method) == (5, 5, 1.0, "exact")


def test_frame_has_a_row_a_measurement_and_a_group() -> None:
    record = Record("run", "r", "x", "0", measurements=(measurement(groups={"a": Group(0.5, 0.4, 0.6, 10)}),))
    frame = record.to_frame()
    assert frame["group"].isna().tolist() == [True, False] and frame["group"].iloc[1] == "a"
    assert frame["value"].tolist() == [0.9, 0.5] and frame["n"].tolist() == [100, 10]


def test_contract_keys_of_a_record() -> None:
    keys = set(Record("run", "r", "x", "0").to_dict())
    assert keys == {
        "kind", "name", "created", "version", "config", "seed", "measurements", "series", "privacy", "cost", "warnings",
        "artifacts",
    }  # fmt: skip
    assert set(measurement().to_dict()) == {
        "name", "value", "low", "high", "confidence", "interval_method", "n", "unit", "direction", "neutral", "groups",
        "supported", "outside_guarantee", "protocol",
    }  # fmt: skip
    assert set(PRIVACY.to_dict()) == {
        "epsilon", "delta", "noise_multiplier", "noise", "sampler", "sampling_rate", "steps", "clipping_norm", "unit",
        "neighboring_relation", "accountant", "covers", "guarantee",
    }  # fmt: skip
