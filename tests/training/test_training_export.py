"""The exported folder: what `from_pretrained` reads, nothing else, whole or not at all."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from training_world import config, inputs, same, table, train, weights

from troth.errors import RunError
from troth.tasks import load_trained
from troth.training import TrainInputs, export


def exported(folder: Path, **options: Any) -> TrainInputs:
    given = inputs(folder / "run", config(epochs=1, **options))
    train(given)
    export(given.model, given.task.tokenizer, folder / "out" / "model")
    return given


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    given = exported(tmp_path)
    task, model = load_trained(tmp_path / "out" / "model", given.config)
    assert same(dict(model.state_dict()), weights(given))
    assert task.labels == given.task.labels
    before = given.task.score(given.model, table())
    assert (task.score(model, table()).losses == before.losses).all()


def test_it_holds_no_pickle_and_nothing_of_the_training(tmp_path: Path) -> None:
    exported(tmp_path, private=True)
    names = sorted(p.name for p in (tmp_path / "out" / "model").iterdir())
    assert "model.safetensors" in names
    assert "config.json" in names
    assert not [n for n in names if n.endswith((".bin", ".pt", ".pkl", ".pth")) or "optim" in n or "step" in n]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["model"]


def test_nothing_is_overwritten_unless_asked(tmp_path: Path) -> None:
    given = exported(tmp_path)
    folder = tmp_path / "out" / "model"
    (folder / "note").write_text("mine")
    with pytest.raises(RunError, match="exists already"):
        export(given.model, given.task.tokenizer, folder)
    assert (folder / "note").exists()
    export(given.model, given.task.tokenizer, folder, replace=True)
    assert not (folder / "note").exists()
    assert (folder / "model.safetensors").exists()


@pytest.mark.parametrize("replace", [False, True])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace: bool) -> None:
    given = exported(tmp_path)
    before = (tmp_path / "out" / "model" / "model.safetensors").read_bytes()
    target = tmp_path / "out" / ("model" if replace else "other")

    def full(folder: Path, **options: Any) -> None:
        (Path(folder) / "tokenizer.json").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(given.task.tokenizer, "save_pretrained", full, raising=False)
    with torch.no_grad():
        next(iter(given.model.parameters())).add_(1)
    with pytest.raises(RunError, match="no space left on the disk") as error:
        export(given.model, given.task.tokenizer, target, replace=replace)
    assert "\n" not in str(error.value)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["model"]
    assert (tmp_path / "out" / "model" / "model.safetensors").read_bytes() == before


def test_what_a_killed_export_left_is_removed(tmp_path: Path) -> None:
    given = exported(tmp_path)
    left = tmp_path / "out" / ".model.writing-0123"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    export(given.model, given.task.tokenizer, tmp_path / "out" / "model", replace=True)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["model"]
