"""What a run file, its places and its data show is refused before any work is done."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path
from typing import Any

import pytest

from troth.config import RunConfig, parse
from troth.errors import ConfigError
from troth.runs.preflight import check_file, check_home, check_writable, gated


def config(**sections: Any) -> RunConfig:
    base = {
        "run": {"name": "x"},
        "model": {"preset": "tiny-bert"},
        "data": {"train": "t.jsonl", "test": "e.jsonl"},
        "task": {"kind": "classification"},
    }
    return parse({**base, **sections})


def rules(*texts: str) -> dict[str, Any]:
    return {"rules": list(texts)}


WRONG = {
    "malformed rule": ({"gate": rules("accuracy is good")}, "write NAME"),
    "unmeasurable rule": ({"gate": rules("test.acuracy >= 0.9")}, "did you mean test.accuracy?"),
    "rule on an attack that is not made": ({"gate": rules("attack.membership.loss.auc <= 1")}, "no [attack]"),
    "second rule": ({"gate": rules("test.accuracy >= 0", "test.f1 >= 0")}, "'test.f1 >= 0'"),
    "empty grid": ({"grid": {}}, "[grid] is empty"),
    "empty list": ({"grid": {"seeds": []}}, "grid.seeds: an empty list"),
    "misspelt key in the grid": ({"grid": {"train.learnig_rate": [1]}}, "did you mean learning_rate?"),
    "wrong value in the grid": ({"grid": {"train.epochs": [1, 0]}}, "train.epochs = 0"),
    "rule that a point of the grid cannot measure": (
        {"grid": {"task.kind": ["classification", "tagging"]}, "gate": rules("test.accuracy >= 0")},
        "tagging has no such measurement",
    ),
    "attack without non-members": ({"data": {"train": "t.jsonl"}, "attack": {}}, "data.test is not given"),
    "attack on another split": ({"attack": {"nonmembers": "validation"}}, "data.validation is not given"),
    "groups of nothing": ({"data": {"train": "t.jsonl"}, "fairness": {}}, "data.test is not given"),
}


@pytest.mark.parametrize("sections,expected", WRONG.values(), ids=WRONG.keys())
def test_a_file_is_refused_by_what_it_says(sections: dict, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_file(config(**sections), "run")
    assert expected in str(caught.value) and "\n" not in str(caught.value)


GOOD_GATE = rules("privacy.epsilon <= 8", "attack.membership.loss.auc.high <= 0.6", "test.accuracy.low >= 0.5")
GOOD = {
    "everything": {"attack": {}, "fairness": {}, "gate": GOOD_GATE, "grid": {"seeds": [1, 2]}},
    "built in": {"data": {"builtin": {}}, "attack": {"nonmembers": "validation"}, "fairness": {}},
    "non-members of their own": {"attack": {"nonmembers": "others.jsonl"}, "data": {"train": "t.jsonl"}},
}


@pytest.mark.parametrize("sections", GOOD.values(), ids=GOOD.keys())
def test_a_good_file_passes(sections: dict) -> None:
    refused = ""
    try:
        check_file(config(**sections), "run")
    except ConfigError as error:
        refused = str(error)
    assert refused == ""


def test_each_verb_is_held_to_its_own() -> None:
    file = config(attack={}, gate=rules("test.accuracy >= 1", "attack.membership.loss.auc <= 1", "privacy.epsilon < 8"))
    assert gated(file, "run") == list(file.gate.rules)  # type: ignore[union-attr]
    assert gated(file, "attack") == ["attack.membership.loss.auc <= 1", "privacy.epsilon < 8"]
    assert gated(file, "train") == []
    unmeasured = config(gate=rules("attack.membership.loss.auc <= 1"))
    check_file(unmeasured, "train")
    for verb, expected in (("attack", "no [attack]"), ("fairness", "no [fairness]"), ("federate", "no [federated]")):
        with pytest.raises(ConfigError, match=rf"{expected[:3]}\[{expected[4:-1]}\]"):
            check_file(config(), verb)
    with pytest.raises(ConfigError, match=r"gate\.rules"):
        check_file(config(gate=rules("broken")), "train")


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    for place in (file, file / "below" / "it"):
        with pytest.raises(ConfigError, match=r"run\.out = 'x': .*file is a file; choose a folder"):
            check_writable(place, "run.out = 'x'")
    check_writable(tmp_path / "new" / "folder", "run.out")
    assert not (tmp_path / "new").exists()
    monkeypatch.setenv("TROTH_HOME", str(file))
    with pytest.raises(ConfigError, match="TROTH_HOME"):
        check_home()


@pytest.mark.parametrize("code,refused", [(errno.EROFS, True), (errno.EACCES, True), (errno.ENOSPC, False)])
def test_a_full_disk_is_no_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, refused: bool) -> None:
    def fail(**options: object) -> None:
        raise OSError(code, "no")

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    if refused:
        with pytest.raises(ConfigError, match=r"run\.out: .* cannot be written: no"):
            check_writable(tmp_path, "run.out")
    else:
        check_writable(tmp_path, "run.out")
