"""Small wheels made in the test, and the real folders where they are here."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from packaged_fakes import MEMBERS, METADATA, ON_IMPORT, Wheel

from troth.packaged import CATALOGUE, fault


def _users_models() -> Path:
    """Return where the user's packaged models lie; read before a test gets a home of its own."""
    home = os.environ.get("TROTH_HOME", "").strip() or "~/.local/share/troth"
    return Path(os.environ.get("TROTH_MODELS", "").strip() or Path(home) / "models").expanduser()


USERS_MODELS = _users_models()


@pytest.fixture
def wheel(tmp_path: Path) -> Wheel:
    """Write a wheel that pip accepts; `members` is path -> content, `folder` is where to."""

    def write(members: Mapping[str, bytes] = MEMBERS, folder: Path = tmp_path / "wheels") -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "tiny_words-0.3-py3-none-any.whl"
        info = "tiny_words-0.3.dist-info"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("tiny_words/__init__.py", ON_IMPORT)
            for member, content in members.items():
                archive.writestr(member, content)
            archive.writestr(f"{info}/METADATA", METADATA)
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
        return path

    return write


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """The folder of packaged models of this test; not made yet."""
    return tmp_path / "home" / "models"


@pytest.fixture
def packaged() -> Callable[[str], Path]:
    """Return the folder of a real packaged model that is here and intact, or skip with the reason."""

    def find(name: str) -> Path:
        folder = USERS_MODELS / name
        if not folder.is_dir():
            pytest.skip(f"no {folder}: troth models get {name}, or set TROTH_MODELS")
        assert fault(CATALOGUE[name], folder) is None
        return folder

    return find
