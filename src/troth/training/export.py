"""The trained model as a Hugging Face folder, whole or not at all."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from troth.errors import RunError
from troth.files import failing_in_one_line, new_folder, remove_unfinished
from troth.tasks.checkpoints import quietly

__all__ = ["export"]


def export(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, replace: bool = False) -> None:
    """Write weights (safetensors), configuration and tokenizer to `folder`, which appears only when it is complete.

    The folder holds what `from_pretrained` reads and nothing else: no optimizer, no generator state.

    Args:
        model: the trained model.
        tokenizer: its tokenizer.
        folder: where to; its parents are made.
        replace: whether a folder that is already there gives way (a resumed run exports again).

    Raises:
        RunError: `folder` exists and `replace` is not set, the disk is full, or the place cannot be written.
    """
    if folder.exists() and not replace:
        raise RunError(f"{folder}: exists already, and nothing is overwritten; choose another folder")
    with failing_in_one_line(folder):
        remove_unfinished(folder.parent, folder.name)
        with new_folder(folder, replace=replace) as temporary, quietly():
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
