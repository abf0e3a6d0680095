"""The model card: its metadata is read by machines, so that only what holds by itself stands in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hostile import hostile_record
from huggingface_hub import ModelCard

from troth.report import write_model_card

TPR = "attack.membership.loss.tpr_at_fpr_0.01"


def indexed(path: Path) -> dict[str, float]:
    """The metrics of the card's model index."""
    return {r.metric_type: r.metric_value for r in ModelCard.load(path).data.eval_results or []}


def test_model_card_never_shows_an_epsilon_alone(tmp_path: Path) -> None:
    text = write_model_card(hostile_record(), tmp_path).read_text(encoding="utf-8")
    (line,) = [part for part in text.splitlines() if "7.99" in part]
    index = text.splitlines().index(line)
    following = "\n".join(text.splitlines()[index : index + 3])
    for word in ("delta 1e-05", "unit: example", "add_remove", "covers: the released weights"):
        assert word in following
    assert "<script>" not in text.split("---", 2)[2]


def test_the_index_holds_supported_values_only(tmp_path: Path) -> None:
    record = hostile_record()
    found = indexed(write_model_card(record, tmp_path))
    assert found == {"test.accuracy": 0.9, "fairness.accuracy_gap": 0.1, "attack.membership.loss.auc": 0.6}
    supported = replace(
        record, measurements=tuple(replace(m, supported=True) if m.name == TPR else m for m in record.measurements)
    )
    assert indexed(write_model_card(supported, tmp_path))[TPR] == 0.02


def test_the_table_marks_unsupported_values_and_gives_interval_n_and_unit(tmp_path: Path) -> None:
    lines = write_model_card(hostile_record(), tmp_path).read_text(encoding="utf-8").splitlines()
    assert "| name | value | interval | n | unit |" in lines
    (accuracy,) = [line for line in lines if line.startswith("| test.accuracy ")]
    assert (
        accuracy == "| test.accuracy | 0.9 | [0.88, 0.92], clopper-pearson at 95\N{NO-BREAK SPACE}% | 700 | fraction |"
    )
    (rate,) = [line for line in lines if line.startswith(f"| {TPR} ")]
    assert rate.startswith(f"| {TPR} | 0.02 (not supported: too few examples for this claim) | [0, 0.1], ")
    assert rate.endswith(" | 9 | fraction |")


def test_the_card_says_where_non_members_came_from(tmp_path: Path) -> None:
    text = write_model_card(hostile_record(), tmp_path).read_text(encoding="utf-8")
    assert text.count("non-members: rows of the test split, never trained on") == 1
