"""Loading rules for checkpoints: a folder or a hub id, safetensors only, no code from the checkpoint, float32.

A hub id is looked for in the local cache first and fetched only when it is not there; of a hub repository only JSON,
text and safetensors files are ever taken. Pickled weights are refused: loading one runs whatever code it holds.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import huggingface_hub
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging as transformers_logging

from troth.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["check_folder", "find_checkpoint", "load_config", "load_model", "load_tokenizer", "quietly", "seeded"]

_HUB_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$")
_TAKEN = ["*.json", "*.safetensors", "*.txt", "*.model"]
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_INDEX = "model.safetensors.index.json"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.*", "*.model")

T = TypeVar("T")


def find_checkpoint(checkpoint: str, folder: Path) -> Path:
    """Return the folder of a checkpoint that can be loaded safely.

    Args:
        checkpoint: a folder (relative to `folder`) or a hub id such as ``org/name``.
        folder: the folder of the run file.

    Raises:
        ModelError: nothing there, no safetensors weights, or an adapter without its model.
    """
    place = folder / Path(checkpoint).expanduser()
    if place.is_dir():
        check_folder(place, checkpoint)
        return place
    if place.exists():
        raise ModelError(f"model.checkpoint = {checkpoint!r}: is a file; give the folder that holds config.json")
    if not _HUB_ID.match(checkpoint):
        raise ModelError(f"model.checkpoint = {checkpoint!r}: no such folder, and not a hub id such as org/name")
    place = _cached_or_fetched(checkpoint)
    check_folder(place, checkpoint)
    return place


def _cached_or_fetched(hub_id: str) -> Path:
    for offline in (True, False):
        try:
            found = Path(
                huggingface_hub.snapshot_download(
                    hub_id, allow_patterns=_TAKEN, ignore_patterns=["*/*"], local_files_only=offline
                )
            )
        except LocalEntryNotFoundError:
            continue
        except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
            raise ModelError(f"model.checkpoint = {hub_id!r}: cannot be fetched: {_first_line(error)}") from None
        if (found / "config.json").is_file() and _weights(found):
            return found
        if not offline:
            return found
    raise ModelError(
        f"model.checkpoint = {hub_id!r}: neither a folder nor in the local hub cache, and the hub cannot be reached"
    )


def _weights(folder: Path) -> bool:
    return (folder / "model.safetensors").is_file() or (folder / _INDEX).is_file()


def check_folder(folder: Path, name: str) -> None:
    """Raise unless a folder holds a configuration and safetensors weights.

    Raises:
        ModelError: as in `find_checkpoint`.
    """
    if (folder / "adapter_config.json").is_file():
        raise ModelError(f"model.checkpoint = {name!r}: holds an adapter; merge it into its model and save that folder")
    if not (folder / "config.json").is_file():
        raise ModelError(f"model.checkpoint = {name!r}: has no config.json; give the folder save_pretrained wrote")
    if not _weights(folder):
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)
        if pickles:
            raise ModelError(
                f"model.checkpoint = {name!r}: has only pickled weights ({pickles[0]}), which run code when loaded; "
                "convert them once, where you trust them, with save_pretrained(folder) and give that folder"
            )
        raise ModelError(f"model.checkpoint = {name!r}: has no model.safetensors")
    if (folder / _INDEX).is_file():
        _check_index(folder / _INDEX, name)


def _check_index(index: Path, name: str) -> None:
    try:
        shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"model.checkpoint = {name!r}: {_INDEX} is not a list of shards") from None
    for shard in shards:
        if not isinstance(shard, str) or not shard.endswith(".safetensors"):
            raise ModelError(f"model.checkpoint = {name!r}: {_INDEX} names {shard!r}, which is not a safetensors file")


def load_config(place: Path, name: str) -> PreTrainedConfig:
    """Return the configuration in a checked folder; `name` is what messages call it.

    Raises:
        ModelError: it is not of an architecture that transformers knows without running the checkpoint's own code.
    """

    def load() -> PreTrainedConfig:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            str(place), trust_remote_code=False, local_files_only=True
        )
        return config

    return _foreign(load, f"model.checkpoint = {name!r}: config.json cannot be used")


def load_tokenizer(place: Path, name: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer in a checked folder, with the end-of-text token as padding where it has no padding token.

    Raises:
        ModelError: there is none, it cannot be loaded, or it has neither a padding nor an end-of-text token.
    """
    if not any(file for pattern in _TOKENIZER_FILES for file in place.glob(pattern)):
        raise ModelError(
            f"model.checkpoint = {name!r}: has no tokenizer; save it there with tokenizer.save_pretrained(folder)"
        )

    def load() -> PreTrainedTokenizerBase:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(place), trust_remote_code=False, local_files_only=True
        )
        return found

    tokenizer = _foreign(load, f"model.checkpoint = {name!r}: its tokenizer cannot be used")
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ModelError(
                f"model.checkpoint = {name!r}: its tokenizer has neither a padding nor an end-of-text token"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    from_pretrained: Callable[..., tuple[PreTrainedModel, dict[str, Any]]],
    place: Path,
    name: str,
    config: PreTrainedConfig,
    seed: int | None,
) -> PreTrainedModel:
    """Return the model of a checked folder, in eval mode and float32; only its head may be new, drawn from `seed`.

    Args:
        from_pretrained: that method of one of transformers' ``AutoModelFor...`` classes.
        place: what `find_checkpoint` returned.
        name: what messages call it.
        config: its configuration, with the labels wanted.
        seed: public seed of weights that the checkpoint does not hold; None refuses such a checkpoint.

    Raises:
        ModelError: the architecture does not do the task, or the checkpoint lacks weights below the head.
    """

    def load() -> tuple[PreTrainedModel, dict[str, Any]]:
        return from_pretrained(
            str(place),
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )

    with seeded(seed or 0):
        model, info = _foreign(load, f"model.checkpoint = {name!r}: cannot be loaded for this task")
    new = {*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])}
    prefix = f"{model.base_model_prefix}."
    lacking = sorted(key for key in new if key.startswith(prefix) and ".pooler." not in key)
    if seed is None or model.base_model is model:
        lacking = sorted(new)
    if lacking:
        raise ModelError(
            f"model.checkpoint = {name!r}: lacks {len(lacking)} of the model's weights, or has them in another shape "
            f"(first: {lacking[0]}); give a checkpoint of this architecture"
        )
    return model


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator inside the block only; models are made on the CPU, so no other generator matters."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def quietly() -> Iterator[None]:
    """Silence the load reports and bars of transformers: what matters in them is checked and raised here."""
    level, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bar:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _foreign(load: Callable[[], T], message: str) -> T:
    """Return what `load` returns; whatever a broken or hostile checkpoint makes transformers raise is one line."""
    try:
        with quietly():
            return load()
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{message}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}".rstrip(": ")
