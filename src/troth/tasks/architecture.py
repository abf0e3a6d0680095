"""A checkpoint's model as it was saved, without its weights: what there is to train, for ``troth doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from troth.tasks.checkpoints import find_checkpoint, load_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

__all__ = ["open_architecture"]

_AUTO_CLASSES: tuple[Any, ...] = (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoModelForQuestionAnswering,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForMaskedLM,
    AutoModel,
)


def open_architecture(checkpoint: str, folder: Path = Path()) -> PreTrainedModel:
    """Return the model of a checkpoint folder or hub id on the meta device: every parameter, no weights read.

    Raises:
        ModelError: there is no such checkpoint, or transformers does not know its architecture.
    """
    config = load_config(find_checkpoint(checkpoint, folder), checkpoint)
    with torch.device("meta"):
        model: PreTrainedModel = _auto_class(config).from_config(config, trust_remote_code=False)
    model.tie_weights()
    return model


def _auto_class(config: PreTrainedConfig) -> Any:  # noqa: ANN401  transformers' Auto classes share no type
    """Return the Auto class that makes the architecture the checkpoint was saved from, else the plain body's."""
    saved = set(config.architectures or ())
    for auto in _AUTO_CLASSES:
        mapping = auto._model_mapping
        if type(config) in mapping:
            made = mapping[type(config)]
            classes = made if isinstance(made, tuple) else (made,)
            if saved & {c.__name__ for c in classes}:
                return auto
    return AutoModel
