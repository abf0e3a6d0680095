"""Data sets of the Hugging Face hub, from the local cache only: no network, and nothing written to a shared cache."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import datasets
import huggingface_hub
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from troth.data.objects import read_object
from troth.data.raw import Raw, shown, shown_names
from troth.errors import DataError

__all__ = ["HubName", "parse_hub_name", "read_hub"]

_NAME = re.compile(
    r"(?P<repo>[\w][\w.-]*(?:/[\w][\w.-]*)?)(?:/(?P<config>[\w][\w.+-]*))?(?::(?P<split>[\w][\w.-]*))?", re.ASCII
)


@dataclass(frozen=True)
class HubName:
    """A split of a data set on the hub: ``owner/name``, ``owner/name:split`` or ``owner/name/config:split``."""

    repo: str
    config: str | None
    split: str


def parse_hub_name(text: str, split: str) -> HubName | None:
    """Return the parts of a hub id, or None where the text cannot be one.

    >>> parse_hub_name("owner/name/en:dev", "train")
    HubName(repo='owner/name', config='en', split='dev')
    >>> parse_hub_name("owner/name", "train")
    HubName(repo='owner/name', config=None, split='train')
    """
    match = _NAME.fullmatch(text)
    if match is None:
        return None
    return HubName(match["repo"], match["config"], match["split"] or split)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the progress bars of `datasets`, and give them back."""
    shown_before = datasets.utils.is_progress_bar_enabled()
    datasets.utils.disable_progress_bars()
    try:
        yield
    finally:
        if shown_before:
            datasets.utils.enable_progress_bars()


def _snapshot(name: HubName) -> Path | None:
    """Return the folder of a data set in the local hub cache, or None where it is not there."""
    try:
        return Path(huggingface_hub.snapshot_download(name.repo, repo_type="dataset", local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def _splits(folder: Path, config: str | None, source: str) -> dict[str, datasets.Dataset]:
    """Return all splits of a downloaded data set, in memory; what `datasets` writes on the way is deleted."""
    configs = datasets.get_dataset_config_names(str(folder))
    if config is not None and config not in configs:
        raise DataError(f"{source}: no configuration {shown(config)}; configurations: {shown_names(configs)}")
    if config is None and len(configs) > 1 and "default" not in configs:
        raise DataError(f"{source}: several configurations ({shown_names(configs)}); name one: owner/name/config:split")
    with tempfile.TemporaryDirectory(prefix="troth-") as scratch:
        found = datasets.load_dataset(str(folder), config, cache_dir=scratch, keep_in_memory=True)
    return {str(split): data for split, data in found.items()}


def read_hub(name: HubName, source: str) -> Raw | None:
    """Return a split of a data set in the local hub cache, or None where the cache does not have the data set.

    Raises:
        DataError: no such configuration or split, or its files cannot be read.
    """
    folder = _snapshot(name)
    if folder is None:
        return None
    with _quiet():
        try:
            splits = _splits(folder, name.config, source)
        except DataError:
            raise
        except Exception as error:  # whatever a foreign repository's files make `datasets` raise
            raise DataError(
                f"{source}: the copy in the local hub cache cannot be read ({type(error).__name__}); fetch it again: "
                f"hf download --repo-type dataset {name.repo}"
            ) from None
    if name.split not in splits:
        raise DataError(
            f"{source}: no split {shown(name.split)}; splits: {shown_names(splits)}: write {name.repo}:SPLIT"
        )
    raw = read_object(splits[name.split])
    return Raw(source, raw.columns, raw.rows, classes=raw.classes)
