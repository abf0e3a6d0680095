"""What this version knows, as rows for ``troth ls``."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

from troth.config import ModelConfig, TaskConfig
from troth.results import Json

__all__ = ["CATALOGUES", "MEASUREMENTS"]

# name, unit, direction, neutral, what it is
MEASUREMENTS: tuple[tuple[str, str, str, float | None, str], ...] = (
    ("data.train.rows", "rows", "neutral", None, "rows trained on"),
    ("data.train.truncated_rows", "rows", "lower", None, "rows cut to model.max_length tokens"),
    ("test.accuracy", "fraction", "higher", None, "classification: share of rows whose label is right"),
    ("test.macro_f1", "fraction", "higher", None, "classification: mean over classes of F1"),
    ("test.loss", "nats", "lower", None, "mean loss per example"),
    ("test.span_f1", "fraction", "higher", None, "tagging: F1 of whole spans, as seqeval counts them"),
    ("test.token_accuracy", "fraction", "higher", None, "tagging, language modelling: share of tokens that are right"),
    ("test.exact_match", "fraction", "higher", None, "question answering, seq2seq: share of rows answered exactly"),
    ("test.f1", "fraction", "higher", None, "question answering: token F1, as SQuAD counts it"),
    ("test.rouge_l", "fraction", "higher", None, "seq2seq: F measure of the longest common subsequence"),
    ("test.perplexity", "ratio", "lower", None, "language modelling: exp of the mean token loss"),
    ("attack.membership.loss.auc", "fraction", "lower", 0.5, "chance that a member scores above a non-member"),
    (
        "attack.membership.loss.tpr_at_fpr_0.01",
        "fraction",
        "lower",
        0.01,
        "share of members found where 1 % of non-members are accused",
    ),
    (
        "attack.membership.loss.fpr_at_threshold_0.01",
        "fraction",
        "neutral",
        0.01,
        "share of evaluation non-members accused at the threshold that others set for 1 %",
    ),
    ("fairness.accuracy_gap", "fraction", "lower", 0.0, "largest minus smallest accuracy over groups"),
    ("fairness.accuracy_gap.p_value", "probability", "neutral", None, "chance of such a gap were groups exchangeable"),
    ("federated.round.accuracy", "fraction", "higher", None, "quality of the global model after the last round"),
    ("federated.clients", "clients", "neutral", None, "devices with data; their sizes stand in the protocol"),
    ("federated.samples", "examples", "lower", None, "examples processed on devices, each local epoch counted"),
    ("federated.bytes_sent", "bytes", "lower", None, "bytes to and from devices: trainable parameters, dense"),
    ("federated.rejected_updates", "updates", "lower", None, "updates left out because they were not finite"),
)


def _measurements() -> list[dict[str, Json]]:
    keys = ("name", "unit", "direction", "neutral", "meaning")
    return [dict(zip(keys, row, strict=True)) for row in MEASUREMENTS]


def _presets() -> list[dict[str, Json]]:
    options = [a for a in get_args(ModelConfig.model_fields["preset"].annotation) if a is not type(None)]
    return [{"preset": name} for name in get_args(options[0])]


def _tasks() -> list[dict[str, Json]]:
    from troth.data import REQUIRED

    kinds = get_args(TaskConfig.model_fields["kind"].annotation)
    return [{"task": kind, "roles": ", ".join(REQUIRED[kind])} for kind in kinds]


def _formats() -> list[dict[str, Json]]:
    rows = (
        (".jsonl", "one JSON object a line"),
        (".csv, .tsv", "a header, or data.columns"),
        (".parquet", "any column types"),
        (".conll", "token TAB tag, a blank line between sentences"),
        (".txt", "one row a line"),
        (".json", "SQuAD form"),
        ("folder", "of such files, or seq.in, seq.out and label line by line"),
        ("hub id", "a data set in the local hub cache"),
    )
    return [{"format": name, "content": content} for name, content in rows]


CATALOGUES: dict[str, Callable[[], list[dict[str, Json]]]] = {
    "measurements": _measurements,
    "presets": _presets,
    "tasks": _tasks,
    "formats": _formats,
}
