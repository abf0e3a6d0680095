"""A small package made in the test, and entries of a catalogue that pin it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from troth.packaged import PackagedModel, PinnedFile

WEIGHTS = bytes(range(256)) * 40
CONFIG = b'{"model_type": "bert"}'
MEMBERS = {"tiny_words/model/model.safetensors": WEIGHTS, "tiny_words/model/config.json": CONFIG}
METADATA = "Metadata-Version: 2.1\nName: tiny-words\nVersion: 0.3\nRequires-Dist: no-such-package-at-all\n"
ON_IMPORT = b"raise SystemExit('a carrying package is never imported')\n"


def pin(member: str, content: bytes, name: str | None = None) -> PinnedFile:
    """Return the pin of a file as it should be."""
    return PinnedFile(member, hashlib.sha256(content).hexdigest(), len(content), name or member.rpartition("/")[2])


def entry(**changes: object) -> PackagedModel:
    """Return an entry that pins the fake wheel's two files."""
    fields: dict[str, object] = {
        "name": "tiny",
        "kind": "model",
        "what": "a fake",
        "licence": "MIT",
        "origin": "Made in a test.",
        "use": "in {folder}",
        "package": "tiny-words",
        "version": "0.3",
        "download_megabytes": 0.1,
        "folder_megabytes": 0.1,
        "files": tuple(pin(member, content) for member, content in MEMBERS.items()),
    }
    return PackagedModel(**{**fields, **changes})  # type: ignore[arg-type]


Wheel = Callable[..., Path]
