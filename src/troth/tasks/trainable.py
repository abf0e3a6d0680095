"""What of a model is trained: all, the head, all but what patterns freeze, or low-rank adapters (LoRA) and the head.

Adapters are peft's (the extra ``lora``), put into the model that is there: its class, and with it every task, stays
what it is. `merge_adapters` adds what they learned to the weights they stand beside and takes them out again, so that
an exported folder is a plain checkpoint that nobody needs peft to load.
"""

from __future__ import annotations

import difflib
import fnmatch
from typing import TYPE_CHECKING, Literal

from transformers.pytorch_utils import Conv1D

from troth.errors import ModelError
from troth.tasks.checkpoints import seeded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Trainable", "head_names", "merge_adapters", "set_trainable"]

Trainable = Literal["all", "head", "lora"] | dict[Literal["freeze"], list[str]]

_RANK, _ALPHA = 8, 16
_NEW_HEADS = ("classification", "tagging", "question_answering")  # kinds whose head no checkpoint brings along
_QUERY_AND_VALUE = (("query", "value"), ("q_lin", "v_lin"), ("q_proj", "v_proj"), ("q", "v"), ("qkv_proj",))
"""What architectures that peft has no choice for call their query and value projections."""


def set_trainable(model: PreTrainedModel, trainable: Trainable, kind: str, seed: int) -> None:
    """Take the gradient from parameters that are not to be trained, and put adapters in where they are.

    Args:
        model: changed in place.
        trainable: as ``model.trainable`` of a run file.
        kind: of the task; heads of classification, tagging and question answering are trained beside adapters.
        seed: public seed of the adapters' initial weights.

    Raises:
        ModelError: a pattern matches no parameter, no parameter is left, the model has no head of its own, peft is
            missing, or the model has no projections that adapters are known for.
    """
    if trainable == "all":
        return
    if trainable == "lora":
        head = {name for name, _ in model.named_parameters()} - _body(model) if kind in _NEW_HEADS else set()
        _add_adapters(model, seed)
        for name, parameter in model.named_parameters():
            parameter.requires_grad = parameter.requires_grad or name in head
        return
    names = [name for name, _ in model.named_parameters()]
    if isinstance(trainable, dict):
        frozen = _matched(names, trainable["freeze"])
    else:
        frozen = _body(model)
        if len(frozen) == len(names):
            raise ModelError(
                "model.trainable = 'head': this model has no head apart from its body (it shares the embedding); "
                "write trainable = { freeze = [...] } or 'all'"
            )
    if len(frozen) == len(names):
        raise ModelError("model.trainable: the patterns freeze every parameter; leave some to train")
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad = False


def merge_adapters(model: PreTrainedModel, trainable: Trainable) -> None:
    """Add what adapters learned to the weights they stand beside and take them out; in place, without them nothing."""
    if trainable != "lora":
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)]:
        layer.merge()
        model.set_submodule(name, layer.get_base_layer())
    del model.peft_config


def head_names(model: PreTrainedModel) -> frozenset[str]:
    """Return the names of the trained parameters that are no part of the model's body; empty where there are none."""
    body = _body(model)
    return frozenset(name for name, p in model.named_parameters() if p.requires_grad and name not in body)


def _body(model: PreTrainedModel) -> set[str]:
    """Return the names of the parameters that belong to the body, those that a head shares with it included."""
    body = {id(parameter) for parameter in model.base_model.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in body}


def _add_adapters(model: PreTrainedModel, seed: int) -> None:
    """Put a low-rank adapter beside each query and value projection; all other parameters are frozen."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ModelError(
            "model.trainable = 'lora' needs peft, which is not installed: pip install 'troth[lora]'"
        ) from None
    targets = _targets(model)
    transposed = any(isinstance(m, Conv1D) for name, m in model.named_modules() if name.rpartition(".")[2] in targets)
    config = LoraConfig(r=_RANK, lora_alpha=_ALPHA, target_modules=targets, fan_in_fan_out=transposed)
    with seeded(seed):
        inject_adapter_in_model(config, model)


def _targets(model: PreTrainedModel) -> list[str] | str:
    """Return which modules get adapters: peft's choice for the architecture, else its query and value projections."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as CHOICES

    kind = model.config.model_type
    if kind in CHOICES:
        chosen = CHOICES[kind]  # names, or one pattern
        return chosen if isinstance(chosen, str) else list(chosen)
    present = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    for names in _QUERY_AND_VALUE:
        if present.issuperset(names):
            return list(names)
    raise ModelError(
        f"model.trainable = 'lora': no projections are known that adapters go beside in {kind} models; "
        "write 'all', 'head' or { freeze = [...] }"
    )


def _matched(names: list[str], patterns: list[str]) -> set[str]:
    """Return the names that match a shell pattern such as ``*.embeddings.*``."""
    found: set[str] = set()
    for pattern in patterns:
        matching = fnmatch.filter(names, pattern)
        if not matching:
            near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.3) or names[:1]
            raise ModelError(
                f"model.trainable.freeze: {pattern!r} matches no parameter; names look like {near[0]!r}, "
                "and * stands for any characters"
            )
        found.update(matching)
    return found
