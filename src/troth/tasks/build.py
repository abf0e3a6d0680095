"""From a run file to a task and a model: presets and checkpoints, labels, lengths, what is trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from troth.config import ModelConfig, RunConfig
from troth.errors import ModelError
from troth.tasks.checkpoints import check_folder, find_checkpoint, load_config, load_model, load_tokenizer
from troth.tasks.classification import Classification
from troth.tasks.crf_tagging import CrfTagging
from troth.tasks.hashed_tokenizer import HashedTokenizer
from troth.tasks.language_modeling import CausalLanguageModeling, MaskedLanguageModeling
from troth.tasks.modeling_tagger import TrothTaggerConfig
from troth.tasks.presets import PRESETS, preset_model, preset_tokenizer
from troth.tasks.question_answering import QuestionAnswering
from troth.tasks.seq2seq import Seq2Seq
from troth.tasks.tagging import Tagging
from troth.tasks.task import Task
from troth.tasks.trainable import set_trainable

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from troth.data import Table
    from troth.seeds import PublicSeeds

__all__ = ["load_trained", "make_model", "make_task"]

Objective = Literal["causal", "masked"]
_RELATIVE_POSITIONS = ("t5", "mt5", "umt5", "longt5", "switch_transformers", "xlnet", "troth-tagger")
_POSITIONS_AFTER_PADDING = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "longformer", "mpnet")
_UNLIMITED = 1_000_000  # tokenizers name a huge number where they know no limit
_AUTO_CLASSES: dict[str, tuple[Any, Any]] = {
    "classification": (AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING),
    "tagging": (AutoModelForTokenClassification, MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING),
    "question_answering": (AutoModelForQuestionAnswering, MODEL_FOR_QUESTION_ANSWERING_MAPPING),
    "seq2seq": (AutoModelForSeq2SeqLM, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING),
    "causal": (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING),
    "masked": (AutoModelForMaskedLM, MODEL_FOR_MASKED_LM_MAPPING),
}


def make_task(config: RunConfig, train: Table, folder: Path) -> Task:
    """Return the task of a run file: the model's tokenizer, and the label set of the training table.

    Labels are sorted, or in the order of the checkpoint's own head where that has exactly these labels. The label set
    and the maximum length count as public; the tokenizer is the preset's or checkpoint's own, never made from `train`.

    Args:
        config: the resolved run file.
        train: the training table, for its labels.
        folder: the run file's folder, to which ``model.checkpoint`` is relative.

    Raises:
        ModelError: the checkpoint or its tokenizer cannot be used, or has fewer positions than ``model.max_length``.
    """
    labels = _label_set(config.task.kind, train)
    if config.model.checkpoint is None:
        preset, length = _preset(config.model), config.model.max_length
        _check_preset(preset, _objective(config, None) or config.task.kind)
        tokenizer = preset_tokenizer(preset, length, vocabulary_size=config.model.vocabulary_size)
        return _task(config, tokenizer, labels, length, None)
    name = config.model.checkpoint
    place = find_checkpoint(name, folder)
    architecture = load_config(place, name)
    _check_architecture(architecture, name, _objective(config, architecture) or config.task.kind)
    tokenizer = load_tokenizer(place, name)
    own = _own_labels(architecture)
    labels = own if sorted(own) == sorted(labels) else labels
    return _task(config, tokenizer, labels, _max_length(config.model, architecture, tokenizer), architecture)


def make_model(config: RunConfig, task: Task, seeds: PublicSeeds, folder: Path) -> PreTrainedModel:
    """Return the model of a run file for `task`, on the CPU in float32, trained where ``model.trainable`` says.

    Weights that a checkpoint does not hold (the head) are drawn from the public seeds; torch's global generator is left
    as it was. The configuration names the labels.

    Args:
        config: the resolved run file.
        task: what `make_task` made of it.
        seeds: the run's public seeds.
        folder: the run file's folder.

    Raises:
        ModelError: the checkpoint cannot be used for the task, or not trained as ``model.trainable`` says.
    """
    objective = _objective_of(task)
    if config.model.checkpoint is None:
        shape = {"layers", "width", "heads", "vocabulary_size", "max_length"}
        overrides = config.model.model_dump(include=shape, exclude_none=True)
        model = preset_model(_preset(config.model), task.kind, objective, task.labels, overrides, seeds)
    else:
        model = _from_checkpoint(config.model.checkpoint, folder, task, seeds.integer("model", "head"))
    model.config.pad_token_id = task.tokenizer.pad_token_id
    _check_vocabulary(model, task.tokenizer)
    set_trainable(model, config.model.trainable, task.kind, seeds.integer("model", "adapters"))
    return model


def load_trained(model_folder: Path, config: RunConfig) -> tuple[Task, PreTrainedModel]:
    """Return task and model of an exported folder, the model in eval mode, labels in the order of its head.

    Args:
        model_folder: what `troth.training.export` wrote.
        config: the run file it was trained with, for the kind of task and the maximum length.

    Raises:
        ModelError: the folder is not a model of that kind, or lacks weights.
    """
    name = str(model_folder)
    check_folder(model_folder, name)
    architecture = load_config(model_folder, name)
    tokenizer = load_tokenizer(model_folder, name)
    labels = _own_labels(architecture) if _wants_labels(config.task.kind) else ()
    task = _task(config, tokenizer, labels, _max_length(config.model, architecture, tokenizer), architecture)
    model = load_model(_auto_class(task).from_pretrained, model_folder, name, architecture, None)
    _check_vocabulary(model, tokenizer)
    return task, model


def _task(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    labels: tuple[str, ...],
    max_length: int,
    architecture: PreTrainedConfig | None,
) -> Task:
    """Return the task; `architecture` is the checkpoint's, None for a preset."""
    kind = config.task.kind
    if kind == "classification":
        return Classification(tokenizer, labels, max_length)
    if kind == "tagging":
        return (CrfTagging if _scores_paths(config, architecture) else Tagging)(tokenizer, labels, max_length)
    if kind == "question_answering":
        return QuestionAnswering(tokenizer, (), max_length)
    if kind == "seq2seq":
        return Seq2Seq(tokenizer, (), max_length)
    if _objective(config, architecture) == "causal":
        return CausalLanguageModeling(tokenizer, (), max_length)
    if tokenizer.mask_token_id is None:
        raise ModelError(
            "task.objective = 'masked' wants a tokenizer with a mask token: take 'causal' or another model"
        )
    return MaskedLanguageModeling(tokenizer, (), max_length, seed=config.run.seed)


def _scores_paths(config: RunConfig, architecture: PreTrainedConfig | None) -> bool:
    """Return whether the model scores whole rows of tags."""
    if architecture is None:
        return PRESETS[_preset(config.model)].family == "tagger"
    return isinstance(architecture, TrothTaggerConfig)


def _wants_labels(kind: str) -> bool:
    return kind in ("classification", "tagging")


def _label_set(kind: str, train: Table) -> tuple[str, ...]:
    """Return the sorted labels or tags of the training table; empty for kinds without."""
    if kind == "classification":
        return tuple(sorted(set(train.column("label"))))
    if kind == "tagging":
        return tuple(sorted({tag for tags in train.column("tags") for tag in tags}))
    return ()


def _own_labels(architecture: PreTrainedConfig) -> tuple[str, ...]:
    """Return the labels of a configuration in the order of its outputs."""
    names = {int(index): label for index, label in (architecture.id2label or {}).items()}
    return tuple(names[index] for index in sorted(names))


def _preset(model: ModelConfig) -> str:
    if model.preset is None:
        raise ModelError("model: give exactly one of model.preset and model.checkpoint")
    return model.preset


def _objective(config: RunConfig, architecture: PreTrainedConfig | None) -> Objective | None:
    """Return what a language model learns: as the run file says, else what its architecture was made for."""
    if config.task.kind != "language_modeling" or config.task.objective is not None:
        return config.task.objective
    if architecture is None:
        return "masked" if PRESETS[_preset(config.model)].family == "bert" else "causal"
    bidirectional = type(architecture) in MODEL_FOR_MASKED_LM_MAPPING and not architecture.to_dict().get("is_decoder")
    return "masked" if bidirectional else "causal"


def _objective_of(task: Task) -> Objective | None:
    if isinstance(task, MaskedLanguageModeling):
        return "masked"
    return "causal" if isinstance(task, CausalLanguageModeling) else None


def _auto_class(task: Task) -> Any:  # noqa: ANN401  transformers' Auto classes share no public base
    return _AUTO_CLASSES[_objective_of(task) or task.kind][0]


def _max_length(model: ModelConfig, architecture: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the wanted length, or the model's number of positions where the run file leaves the length open."""
    positions = _positions(architecture)
    if positions is None and tokenizer.model_max_length < _UNLIMITED:
        positions = int(tokenizer.model_max_length)
    if positions is None or model.max_length <= positions:
        return model.max_length
    if "max_length" in model.model_fields_set:
        raise ModelError(
            f"model.max_length = {model.max_length}: {model.checkpoint or model.preset} has {positions} positions; "
            f"write at most {positions}"
        )
    return positions


def _positions(architecture: PreTrainedConfig) -> int | None:
    """Return how many tokens the model has positions for; None where it does not say."""
    if architecture.model_type in _RELATIVE_POSITIONS:
        return _UNLIMITED
    fields = architecture.to_dict()
    value = fields.get("max_position_embeddings", fields.get("n_positions"))
    if not isinstance(value, int) or value < 1:
        return None
    if architecture.model_type in _POSITIONS_AFTER_PADDING:
        return value - int(fields.get("pad_token_id") or 0) - 1
    return value


def _check_preset(preset: str, goal: str) -> None:
    """Refuse a preset that does not do the task, before anything is encoded or reserved."""
    if goal not in PRESETS[preset].goals:
        others = [name for name, other in PRESETS.items() if goal in other.goals]
        raise ModelError(
            f"model.preset = {preset!r} does {', '.join(map(_spoken, PRESETS[preset].goals))}, not {_spoken(goal)}: "
            f"take {' or '.join(others)}"
        )


def _check_architecture(architecture: PreTrainedConfig, name: str, goal: str) -> None:
    """Refuse a checkpoint whose architecture has no model for the task."""
    if type(architecture) not in _AUTO_CLASSES[goal][1]:
        raise ModelError(
            f"model.checkpoint = {name!r}: {architecture.model_type} models do no {_spoken(goal)}; take another"
        )


def _spoken(goal: str) -> str:
    return f"{goal} language modeling" if goal in ("causal", "masked") else goal


def _from_checkpoint(checkpoint: str, folder: Path, task: Task, seed: int) -> PreTrainedModel:
    place = find_checkpoint(checkpoint, folder)
    architecture = load_config(place, checkpoint)
    labels = ("start", "end") if task.kind == "question_answering" else task.labels
    if labels:
        architecture.id2label = dict(enumerate(labels))
        architecture.label2id = {label: index for index, label in enumerate(labels)}
    architecture.pad_token_id = task.tokenizer.pad_token_id
    return load_model(_auto_class(task).from_pretrained, place, checkpoint, architecture, seed)


def _check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    embedding = model.get_input_embeddings()
    rows = next(embedding.parameters()).shape[0]
    if len(tokenizer) > rows:
        raise ModelError(
            f"the tokenizer has {len(tokenizer)} tokens and the model's embedding {rows} rows: "
            "give a checkpoint whose tokenizer is its own"
        )
    if isinstance(tokenizer, HashedTokenizer) and len(tokenizer) != rows:  # it would look up other rows, silently
        raise ModelError(
            f"the tokenizer hashes words into {len(tokenizer)} rows and the model's embedding has {rows}: give a "
            "checkpoint whose tokenizer is its own"
        )
