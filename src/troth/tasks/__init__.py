"""The one seam to models: five tasks, each with its loss per example, scores and field metrics."""

from troth.tasks.build import load_trained, make_model, make_task
from troth.tasks.classification import Classification
from troth.tasks.encoded import Encoded, Ragged, length_buckets
from troth.tasks.language_modeling import CausalLanguageModeling, LanguageModeling, MaskedLanguageModeling
from troth.tasks.presets import PRESETS, Preset
from troth.tasks.question_answering import QuestionAnswering
from troth.tasks.scorer import Scorer, TaskScorer
from troth.tasks.seq2seq import Seq2Seq
from troth.tasks.tagging import Tagging
from troth.tasks.task import Batch, Scores, ScoringProgress, Task
from troth.tasks.trainable import head_names, merge_adapters

__all__ = [
    "PRESETS",
    "Batch",
    "CausalLanguageModeling",
    "Classification",
    "Encoded",
    "LanguageModeling",
    "MaskedLanguageModeling",
    "Preset",
    "QuestionAnswering",
    "Ragged",
    "Scorer",
    "Scores",
    "ScoringProgress",
    "Seq2Seq",
    "Tagging",
    "Task",
    "TaskScorer",
    "head_names",
    "length_buckets",
    "load_trained",
    "make_model",
    "make_task",
    "merge_adapters",
]
