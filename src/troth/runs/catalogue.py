"""What this version knows, as rows for ``troth ls``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import get_args

from troth.config import Membership, ModelConfig, TaskConfig
from troth.results import Json

__all__ = ["CATALOGUES", "MEASUREMENTS", "METRICS"]

METRICS: Mapping[str, tuple[str, ...]] = {
    "classification": ("accuracy", "macro_f1", "loss"),
    "tagging": ("span_f1", "token_accuracy", "loss"),
    "question_answering": ("exact_match", "f1", "loss"),
    "seq2seq": ("rouge_l", "exact_match", "loss"),
    "language_modeling": ("perplexity", "token_accuracy", "loss"),
}
"""What each kind of task measures on a split, its headline first."""

# name, unit, direction, neutral, what it is
Row = tuple[str, str, str, float | None, str]

_QUALITY: tuple[Row, ...] = (
    ("accuracy", "fraction", "higher", None, "classification: share of rows whose label is right"),
    ("macro_f1", "fraction", "higher", None, "classification: mean over classes of F1"),
    ("loss", "nats", "lower", None, "mean loss per example"),
    ("span_f1", "fraction", "higher", None, "tagging: F1 of whole spans, as seqeval counts them"),
    ("token_accuracy", "fraction", "higher", None, "tagging, language modelling: share of tokens that are right"),
    ("exact_match", "fraction", "higher", None, "question answering, seq2seq: share of rows answered exactly"),
    ("f1", "fraction", "higher", None, "question answering: token F1, as SQuAD counts it"),
    ("rouge_l", "fraction", "higher", None, "seq2seq: F measure of the longest common subsequence"),
    ("perplexity", "ratio", "lower", None, "language modelling: exp of the mean token loss"),
)


def _under(prefix: str, where: str) -> tuple[Row, ...]:
    """Return the metrics of all tasks under the name of what they are measured on."""
    return tuple(
        (f"{prefix}.{name}", unit, way, neutral, f"{meaning}{where}") for name, unit, way, neutral, meaning in _QUALITY
    )


def _membership(attack: str, where: str = "") -> tuple[Row, ...]:
    """Return what a membership attack measures."""
    name = f"attack.membership.{attack}"
    rates = [
        row
        for rate, said in ((0.001, "0.1 %"), (0.01, "1 %"), (0.1, "10 %"))
        for row in (
            (
                f"{name}.tpr_at_fpr_{rate:g}",
                "fraction",
                "lower",
                rate,
                f"share of members found where {said} of non-members are accused{where}",
            ),
            (
                f"{name}.fpr_at_threshold_{rate:g}",
                "fraction",
                "neutral",
                rate,
                f"share of evaluation non-members accused at the threshold that others set for {said}{where}",
            ),
        )
    ]
    predicted = [
        (
            f"{name}.ppv_at_prior_{prior:g}",
            "fraction",
            "lower",
            prior,
            f"share of members among the accused, where {said} of those asked about are members{where}",
        )
        for prior, said in ((0.01, "1 %"), (0.1, "10 %"), (0.5, "half"))
    ]
    slices = [
        (f"{name}.auc_by_{what}", "fraction", "lower", 0.5, f"the area by {said}{where}")
        for what, said in (
            ("label", "label"),
            ("length", "length"),
            ("group", "group"),
            ("user_activity", "the number of the user's training rows"),
        )
        if attack != "scores"
    ]
    area = (f"{name}.auc", "fraction", "lower", 0.5, f"chance that a member scores above a non-member{where}")
    return (area, *rates, *predicted, *slices)


_SPREAD = tuple(
    (name, "fraction") for name in ("accuracy", "span_f1", "token_accuracy", "exact_match", "f1", "rouge_l")
)
_SPREAD_IN_NATS = (("perplexity", "nats"), ("loss", "nats"))
_POOLED = ("macro_f1", "macro_precision", "macro_recall", "calibration_error", "auc")
_MEANS = (("sample_weighted", "each row counts once"), ("device_weighted", "each device counts once"))
_OVER_DEVICES = (
    *_MEANS,
    ("p10", "a tenth of the devices has no more"),
    ("p50", "the median device"),
    ("p90", "nine tenths of the devices have no more"),
    ("worst_decile", "mean over the worst-served tenth"),
)


def _devices(prefix: str, which: str) -> tuple[Row, ...]:
    """Return what is measured of devices; of the nine deciles three stand for all."""
    measured: list[tuple[str, str, tuple[tuple[str, str], ...]]] = [
        *((name, unit, _OVER_DEVICES) for name, unit in _SPREAD),
        ("perplexity", "ratio", _OVER_DEVICES),
        ("loss", "nats", _OVER_DEVICES),
        *((name, "fraction", _MEANS) for name in ("span_precision", "span_recall", *_POOLED)),
    ]
    lower = ("perplexity", "loss", "calibration_error")
    return tuple(
        (f"{prefix}.{name}.{figure}", unit, "lower" if name in lower else "higher", None, f"{which}: {said}")
        for name, unit, figures in measured
        for figure, said in figures
    )


MEASUREMENTS: tuple[Row, ...] = (
    ("data.train.rows", "rows", "neutral", None, "rows trained on"),
    ("data.train.truncated_rows", "rows", "lower", None, "rows cut to model.max_length tokens"),
    *_under("test", ""),
    *_under("validation", " (validation split)"),
    ("privacy.epsilon", "natural-log units", "lower", None, "what the released weights spend, at privacy.delta"),
    ("privacy.delta", "probability", "lower", None, "the delta that epsilon is given at"),
    ("privacy.noise_multiplier", "ratio", "neutral", None, "noise standard deviation over sensitivity"),
    ("privacy.clipping_norm", "gradient norm", "neutral", None, "bound on one unit's gradient"),
    ("privacy.sampling_rate", "fraction", "neutral", None, "chance of each unit to be in a batch"),
    ("privacy.steps", "steps", "neutral", None, "steps that epsilon counts"),
    *(row for attack in get_args(Membership) for row in _membership(attack)),
    ("attack.membership.blind.auc", "fraction", "neutral", 0.5, "the same by the text alone, without any model"),
    *_membership("scores", " (attack.scores)"),
    ("attack.audit.epsilon_lower_bound", "nats", "lower", 0.0, "epsilon that canaries in a twin prove at least"),
    ("attack.audit.canary_auc", "fraction", "lower", 0.5, "chance that an inserted canary scores above one left out"),
    ("attack.canaries.exact_match", "fraction", "lower", None, "share of planted codes that are read out whole"),
    ("attack.canaries.token_accuracy", "fraction", "lower", None, "share of a planted code's places read out right"),
    ("attack.canaries.hamming_distance", "places", "higher", None, "places of a code that are read out wrong"),
    ("attack.canaries.rank", "rank", "higher", None, "place of the planted code among all, the likeliest first"),
    ("attack.canaries.exposure", "bits", "lower", 1.44, "log2 of the number of codes over the rank"),
    ("attack.canaries.decoy.exposure", "bits", "neutral", 1.44, "the same for codes that were never planted"),
    ("attack.canaries.decoy_rank_p_value", "probability", "neutral", None, "chance of such ranks were they uniform"),
    ("fairness.accuracy_gap", "fraction", "lower", 0.0, "largest minus smallest accuracy over groups"),
    ("fairness.accuracy_gap.p_value", "probability", "neutral", None, "chance of such a gap were groups exchangeable"),
    *_under("federated.round", " (global model after the last round)"),
    ("federated.clients", "clients", "neutral", None, "devices with data; their sizes stand in the protocol"),
    ("federated.clients_seen", "clients", "neutral", None, "devices that took part at least once"),
    ("federated.samples", "examples", "lower", None, "examples processed on devices, each local epoch counted"),
    ("federated.steps", "steps", "lower", None, "local gradient steps"),
    (
        "federated.bytes_sent",
        "bytes",
        "lower",
        None,
        "bytes to and from devices, whether they counted or not",
    ),
    ("federated.rejected_updates", "updates", "lower", None, "updates left out; the reasons stand in the warnings"),
    ("federated.dropped_clients", "clients", "lower", None, "devices that were asked and did not report"),
    ("federated.participation_gini", "fraction", "neutral", None, "how unevenly turns fell on devices; 0: all alike"),
    ("federated.label_divergence", "bits", "neutral", None, "mean Jensen-Shannon divergence of devices' labels"),
    *(
        (f"federated.stream.{name}.{last}", unit, way, 0.0, f"after the last period of a stream: {said}")
        for name, unit in (
            ("accuracy", "fraction"),
            ("span_f1", "fraction"),
            ("f1", "fraction"),
            ("rouge_l", "fraction"),
            ("perplexity", "perplexity"),
        )
        for last, way, said in (
            ("forgetting", "lower", "how much worse on past periods than the best model before"),
            ("backward_transfer", "higher", "change on past periods since each was the present one"),
        )
    ),
    *_devices("federated.devices", "devices that train"),
    *_devices("federated.unseen_devices", "devices held out whole"),
    *(
        (f"federated.unseen_devices.{name}.gap", unit, "lower", 0.0, "by how much device_weighted is worse on them")
        for name, unit in (*_SPREAD, *_SPREAD_IN_NATS)
    ),
    *_devices("federated.personal", "devices that train, each with its own model"),
    ("plan.noise_multiplier", "ratio", "neutral", None, "troth plan: the noise multiplier the run will use"),
    ("plan.sampling_rate", "fraction", "neutral", None, "troth plan: chance of each unit to be in a batch"),
    ("plan.sum_noise_std", "gradient norm", "neutral", None, "troth plan: noise on the sum of clipped gradients"),
    ("plan.epsilon", "natural-log units", "lower", None, "troth plan: what the whole run will spend"),
    ("plan.steps", "steps", "neutral", None, "troth plan: optimizer steps of the run"),
    ("plan.rounds", "rounds", "neutral", None, "troth plan: rounds of the federation"),
    ("plan.physical_batch_size", "examples", "neutral", None, "troth plan: examples through the model at once"),
    ("plan.seconds", "seconds", "lower", None, "troth plan: the run's work_seconds, from a few of its steps"),
    ("plan.peak_memory_bytes", "bytes", "lower", None, "troth plan: peak memory while these steps were made"),
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
