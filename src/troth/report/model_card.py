"""The model card of an exported folder: README.md with a model index that machines read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from troth.files import write_text
from troth.report.attack_names import is_detail
from troth.report.nonmembers import nonmembers_told
from troth.report.tables import UNSUPPORTED, interval, number, percent
from troth.results import Measurement, Privacy, Record

__all__ = ["model_card", "write_model_card"]

_TASK_TYPES = {
    "classification": "text-classification",
    "tagging": "token-classification",
    "question_answering": "question-answering",
    "seq2seq": "text2text-generation",
    "language_modeling": "text-generation",
}
_ESCAPED = str.maketrans({c: f"\\{c}" for c in "\\`*_{}[]<>()#+!|~"})


def _text(value: object) -> str:
    """Return a user's text as one harmless line of Markdown."""
    return " ".join(str(value).split()).translate(_ESCAPED)


def _privacy_lines(privacy: Privacy | None) -> list[str]:
    if privacy is None:
        return ["This model was trained without differential privacy: epsilon is infinity."]
    if privacy.guarantee == "none" or privacy.epsilon is None:
        return ["This model carries no privacy guarantee: the run allowed what voids it (guarantee = none)."]
    return [
        f"- epsilon {privacy.epsilon:.4g} (natural-log units) at delta {privacy.delta:g}",
        f"- unit: {privacy.unit}; neighbouring relation: {privacy.neighboring_relation}",
        f"- covers: {'; '.join(privacy.covers)}; test scores, attacks and training losses are not covered",
        f"- sampling: {privacy.sampler} at rate {privacy.sampling_rate:.6g}, {privacy.steps} steps",
        f"- noise multiplier {privacy.noise_multiplier:.6g}, clipping norm {privacy.clipping_norm:g}",
        f"- random numbers of the noise: {privacy.noise}",
        f"- accountant: {privacy.accountant}",
        "- treated as public: the number of examples, the label set, the maximum length",
    ]


def _measurement_line(m: Measurement) -> str:
    value = number(m.value) if m.supported else f"{number(m.value)} (not supported: {UNSUPPORTED})"
    known = m.value is not None and (m.low is not None or m.high is not None)
    ends = f"{interval(m.low, m.high)}, {m.interval_method} at {percent(m.confidence)}" if known else "not defined"
    return f"| {m.name} | {value} | {ends} | {m.n:,} | {m.unit} |"


def _nonmember_lines(record: Record, rows: Sequence[Measurement]) -> list[str]:
    """Return where the non-members of the record's membership attacks came from, each source once."""
    told = [nonmembers_told(m, record) for m in rows if m.name.startswith("attack.membership.")]
    return [f"Membership attack, non-members: {_text(sentence)}" for sentence in dict.fromkeys(told)]


def _evaluations(record: Record) -> list[EvalResult]:
    """Return the model index: bare values, hence only those that rest on enough examples."""
    config = record.config
    task, data = config.get("task"), config.get("data")
    kind = str(task.get("kind")) if isinstance(task, dict) else "classification"
    name = str(data.get("dataset_id") or "undeclared") if isinstance(data, dict) else "undeclared"
    return [
        EvalResult(
            task_type=_TASK_TYPES.get(kind, "other"),
            dataset_type="private" if record.privacy else "text",
            dataset_name=name,
            metric_type=m.name,
            metric_value=m.value,
            metric_name=m.name,
        )
        for m in record.measurements
        if m.value is not None
        and m.supported
        and m.name.startswith(("test.", "attack.", "fairness."))
        and not is_detail(m.name)
    ]


def model_card(record: Record) -> str:
    """Return the card's text. An epsilon never stands without its unit, relation and scope."""
    results = _evaluations(record)
    data = ModelCardData(
        library_name="transformers", tags=["troth"], model_name=record.name, eval_results=results or None
    )
    lines = [f"# {_text(record.name)}", "", "## Differential privacy", "", *_privacy_lines(record.privacy), ""]
    rows = [m for m in record.measurements if m.interval_method != "exact" and not is_detail(m.name)]
    if rows:
        lines += ["## Measurements", "", "| name | value | interval | n | unit |", "| --- | --- | --- | --- | --- |"]
        lines += [*map(_measurement_line, rows), "", *_nonmember_lines(record, rows), ""]
    lines += [*(f"- {_text(w)}" for w in record.warnings)]
    lines += ["", f"Made by troth {record.version} on {record.created}."]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n"


def write_model_card(record: Record, folder: Path) -> Path:
    """Write ``README.md`` into an exported model folder and return its path."""
    path = folder / "README.md"
    text = model_card(record)
    ModelCard(text)  # parses the metadata: a card that tools cannot read is an error here, not later
    write_text(path, text)
    return path
