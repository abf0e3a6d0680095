"""Calibration: the smallest noise that keeps the target, quickly, and remembered."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from troth.accounting import Mechanism, calibrate_noise_multiplier, troth_home
from troth.accounting import calibrate as module
from troth.accounting.cache import remembered
from troth.accounting.pld import composed_epsilon
from troth.errors import PrivacyError


@pytest.mark.parametrize(
    ("target", "delta", "rate", "steps"),
    [
        (8.0, 1e-5, 0.05, 100),
        (1.0, 1e-5, 0.04, 312),
        (0.05, 1e-6, 0.01, 500),
        (60.0, 1e-5, 0.1, 300),
        (1.0, 1e-5, 1.0, 10),
        (0.5, 1e-6, 0.005, 4000),
    ],
)
def test_the_answer_keeps_the_target_and_a_per_mille_less_noise_does_not(
    target: float, delta: float, rate: float, steps: int
) -> None:
    sigma = calibrate_noise_multiplier(target, delta, rate, steps)
    assert composed_epsilon([(Mechanism(rate, sigma), steps)], delta) <= target
    assert composed_epsilon([(Mechanism(rate, sigma * 0.999), steps)], delta) > target


def test_one_gaussian_step_matches_the_analytic_gaussian_mechanism() -> None:
    import dp_accounting

    exact = dp_accounting.get_sigma_gaussian(1.0, 1e-5)
    assert exact <= calibrate_noise_multiplier(1.0, 1e-5, 1.0, 1) <= 1.0015 * exact


def test_few_certified_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    certified: list[float] = []
    real = module._Search.certified

    def counted(search: module._Search, sigma: float) -> float:
        certified.append(sigma)
        return real(search, sigma)

    monkeypatch.setattr(module._Search, "certified", counted)
    calibrate_noise_multiplier(8.0, 1e-5, 0.05, 100)
    assert len(certified) <= 2


def test_a_second_call_reads_the_answer_from_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    first = calibrate_noise_multiplier(1.0, 1e-5, 0.2, 50)
    monkeypatch.setattr(module._Search, "run", lambda _: pytest.fail("searched again"))
    assert calibrate_noise_multiplier(1.0, 1e-5, 0.2, 50) == first
    with pytest.raises(pytest.fail.Exception):
        calibrate_noise_multiplier(1.0, 1e-5, 0.2, 51)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": 1}', "value", "check", "infinite"])
def test_a_damaged_cache_is_ignored(damage: str) -> None:
    assert remembered("test", {"x": 1.5}, lambda: 3.25) == 3.25
    (file,) = (troth_home() / "cache").glob("test-*.json")
    content = json.loads(file.read_text())
    if damage == "value":
        content["value"] = 0.001
    elif damage == "check":
        content["check"] = "0"
    elif damage == "infinite":
        content["value"] = math.inf
    file.write_text(json.dumps(content) if damage in content or damage == "infinite" else damage)
    assert remembered("test", {"x": 1.5}, lambda: 4.5) == 4.5
    assert remembered("test", {"x": 1.5}, lambda: pytest.fail("not mended")) == 4.5


def test_the_cache_is_keyed_by_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert remembered("test", {}, lambda: 1.0) == 1.0
    monkeypatch.setattr("troth.accounting.cache.__version__", "another")
    assert remembered("test", {}, lambda: 2.0) == 2.0


def test_a_home_that_cannot_be_written_means_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TROTH_HOME", str(tmp_path / "file" / "below"))
    assert remembered("test", {}, lambda: 1.0) == 1.0
    assert remembered("test", {}, lambda: 2.0) == 2.0


def test_infinity_is_not_cached() -> None:
    assert remembered("test", {}, lambda: math.inf) == math.inf
    assert remembered("test", {}, lambda: 2.0) == 2.0


@pytest.mark.parametrize(
    ("target", "delta", "rate", "steps", "named"),
    [
        (0.0, 1e-5, 0.1, 1, "target_epsilon"),
        (math.inf, 1e-5, 0.1, 1, "target_epsilon"),
        (1.0, 0.0, 0.1, 1, "target_delta"),
        (1.0, 1.0, 0.1, 1, "target_delta"),
        (1.0, 1e-5, 0.0, 1, "sampling_rate"),
        (1.0, 1e-5, 1.1, 1, "sampling_rate"),
        (1.0, 1e-5, 0.1, 0, "steps"),
        (1e-12, 1e-9, 1.0, 10**9, "target_epsilon"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(target: float, delta: float, rate: float, steps: int, named: str) -> None:
    with pytest.raises(PrivacyError, match=named) as caught:
        calibrate_noise_multiplier(target, delta, rate, steps)
    assert "\n" not in str(caught.value)


def test_home_is_the_variable_or_the_users_share_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TROTH_HOME", str(tmp_path))
    assert troth_home() == tmp_path
    monkeypatch.delenv("TROTH_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert troth_home() == tmp_path / ".local" / "share" / "troth"
