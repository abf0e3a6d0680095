"""What the sections say: n and unit with every number, whence non-members came, numbers where a plot has no shape."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hostile import finished, hostile_record, read_aloud

from troth.config import parse
from troth.report import write_report
from troth.report.nonmembers import nonmembers_told
from troth.report.sections import Section, build
from troth.report.tables import Table
from troth.results import Json, Measurement, Record
from troth.runs.attack_stage import attack
from troth.runs.folders import RunFolder
from troth.runs.stages import prepare
from troth.tasks import make_model
from troth.training import SilentProgress

pytestmark = pytest.mark.usefixtures("undrawn")
AUC = "attack.membership.loss.auc"


def section(folders: list[RunFolder], anchor: str) -> Section:
    """The section of that anchor."""
    return next(s for s in build(folders) if s.anchor == anchor)


def with_series(name: str, rows: int) -> Record:
    """The hostile record with the first rows of one series."""
    record = hostile_record()
    full: dict[str, list[dict[str, Json]]] = {
        "train": [{"epoch": e, "step": 10 * e, "loss": 2.5 - e / 4} for e in range(1, 6)],
        "federated.round": list(record.series["federated.round"]),
        "privacy.epsilon": list(record.series["privacy.epsilon"]),
    }
    return replace(record, series={**record.series, name: full[name][:rows]})


def without_split(record: Record, **attack: Json) -> Record:
    """The record as written before the protocol said where non-members came from."""
    area = record.measurement(AUC)
    assert area is not None
    return replace(record, measurements=(replace(area, protocol={}),), config={**record.config, "attack": attack})


def test_every_table_of_measurements_gives_n_and_unit(tmp_path: Path) -> None:
    folders = [finished(with_series("train", 2), tmp_path), finished(with_series("federated.round", 2), tmp_path)]
    tables = [t for s in build(folders) for t in s.tables if t.measured]
    assert {s.anchor for s in build(folders) if any(t.measured for t in s.tables)} == {
        "summary", "quality", "training", "membership", "fairness", "federation",
    }  # fmt: skip
    for table in tables:
        assert "unit" in table.head or all(row[0].note.startswith("unit: ") for row in table.rows), table.caption
        values = [cell for row in table.rows for cell in row[1:] if cell.kind == "number"]
        assert values, table.caption
        assert all("n = " in v.note or "computed bound" in v.note for v in values), table.caption


def test_a_gate_gives_the_n_of_its_measurement(hostile_run: RunFolder) -> None:
    ((rule, *_, actual, _reason),) = section([hostile_run], "gates").tables[0].rows
    assert (rule.text, actual.text, actual.note) == ("test.accuracy >= 0.95", "0.9", "n = 700, unit: fraction")


def test_many_runs_are_cut_into_tables_that_fit_a_page(tmp_path: Path) -> None:
    folders = [finished(hostile_record(name=f"r{i}"), tmp_path) for i in range(7)]
    tables = section(folders, "summary").tables
    assert [t.head for t in tables] == [
        ("measurement", "r0", "r1", "r2"), ("measurement", "r3", "r4", "r5"), ("measurement", "r6"),
    ]  # fmt: skip
    assert all(len(row) == len(t.head) for t in tables for row in t.rows)
    assert [t.caption for t in tables] == [f"All runs side by side ({i} of 3)" for i in (1, 2, 3)]


def test_what_a_run_did_not_measure_is_absent(tmp_path: Path) -> None:
    record = hostile_record()
    plain = replace(record, measurements=tuple(m for m in record.measurements if m.name != AUC))
    (table,) = section([finished(plain, tmp_path), finished(record, tmp_path)], "summary").tables
    (row,) = [r for r in table.rows if r[0].text == AUC]
    assert [cell.kind for cell in row] == ["name", "absent", "number"]


@pytest.mark.parametrize(("name", "anchor"), [("train", "training"), ("federated.round", "federation")])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_fewer_than_three_points_are_said_not_drawn(tmp_path: Path, name: str, anchor: str, rows: int) -> None:
    found = section([finished(with_series(name, rows), tmp_path)], anchor)
    said = [t for t in found.tables if t.caption.startswith(("Mean loss", "Quality by round"))]
    if rows < 3:
        assert not found.plots
        assert [len(t.rows) for t in said] == [rows]
    else:
        assert len(found.plots) == (1 if name == "train" else 3) and not said


def test_one_epoch_reads_as_a_sentence_of_numbers(tmp_path: Path) -> None:
    (table,) = section([finished(with_series("train", 1), tmp_path)], "training").tables
    assert table.head == ("run", "step", "loss", "unit")
    assert [(c.text, c.note) for c in table.rows[0]] == [
        ("hostile", ""),
        ("10", ""),
        ("2.25", "n = 4,321"),
        ("nats", ""),
    ]


def test_two_rounds_give_quality_with_interval_and_all_three_costs(tmp_path: Path) -> None:
    table = section([finished(with_series("federated.round", 2), tmp_path)], "federation").tables[-1]
    assert table.head == ("round", "run", "examples processed", "bytes sent", "accuracy", "unit")
    assert [c.text for c in table.rows[1]] == ["2", "hostile", "20", "2e+06", "0.2", "fraction"]
    assert (table.rows[1][4].detail, table.rows[1][4].note) == ("[0.18, 0.22]", "n = 650")


def test_a_short_line_beside_a_long_one_is_said_and_the_long_one_drawn(tmp_path: Path) -> None:
    folders = [finished(with_series("train", rows), tmp_path) for rows in (1, 5)]
    found = section(folders, "training")
    (plot,), (table,) = found.plots, found.tables
    assert {row["line"] for row in plot.rows} == {"hostile-2"}
    assert [row[0].text for row in table.rows] == ["hostile"]


HOME: dict[str, Json] = {"builtin": {"name": "home", "rows": 400}}


@pytest.mark.parametrize(
    ("data", "source", "told"),
    [
        (HOME, "validation", "rows of the validation split, made from the templates of the training rows"),
        (HOME, "test", "rows of the test split, made from other templates than the training rows"),
        (HOME, "others.jsonl", "rows of others.jsonl, never trained on; where they are of another distribution"),
        (None, "validation", "rows of the validation split, never trained on; where they are of another distribution"),
        (None, "test", "rows of the test split, never trained on; where they are of another distribution"),
        (HOME, None, "the record does not say where they came from; rows of another distribution"),
    ],
)
def test_whence_non_members_came_is_told_by_the_protocol_or_else_by_the_run_file(
    data: dict[str, Json] | None, source: str | None, told: str
) -> None:
    record = hostile_record()
    record = replace(record, config={**record.config, "data": data or record.config["data"]})
    old = without_split(record) if source is None else without_split(record, nonmembers=source)
    sentence = nonmembers_told(old.measurements[0], old)
    assert sentence.startswith(told) and "shift as well" in sentence
    assert sentence.replace(".jsonl", "").count(".") == 1
    if source is not None:
        said = replace(old.measurements[0], protocol={"nonmembers_from": source})
        assert nonmembers_told(said, without_split(record, nonmembers="elsewhere")) == sentence


def test_runs_of_the_same_source_share_a_sentence_and_others_have_their_own(tmp_path: Path) -> None:
    record = hostile_record()
    folders = [
        finished(without_split(replace(record, name=name), nonmembers=source), tmp_path)
        for name, source in (("a", "test"), ("b", "validation"), ("c", "test"))
    ]
    starts = [p.partition(":")[0] for p in section(folders, "membership").paragraphs if p.startswith("Non-members")]
    assert starts == ["Non-members of hostile, hostile-3", "Non-members of hostile-2"]


def test_a_later_attack_on_other_rows_is_told_by_its_own_record(tmp_path: Path) -> None:
    folder = finished(without_split(hostile_record(), nonmembers="validation"), tmp_path)
    folder.write_record(without_split(hostile_record("attack"), nonmembers="test"), "attack")
    (sentence,) = [p for p in section([folder], "membership").paragraphs if p.startswith("Non-members")]
    assert "the test split" in sentence


def test_an_attack_stage_writes_down_its_non_members(tmp_path: Path) -> None:
    config = parse(
        {
            "run": {"name": "x", "seed": 1},
            "model": {"preset": "tiny-bert", "max_length": 16},
            "data": {"builtin": {"name": "home", "rows": 200}},
            "task": {"kind": "classification"},
            "attack": {"nonmembers": "validation"},
        }
    )
    prepared = prepare(config, tmp_path, SilentProgress())
    model = make_model(config, prepared.task, prepared.seeds, tmp_path)
    found = attack(prepared, model, tmp_path / "attack").measurements
    whole = [m for m in found if not m.groups and ".auc_by_" not in m.name]
    assert len(whole) >= 4 and all(m.protocol["nonmembers_from"] == "validation" for m in whole)
    assert all(m.protocol["score"] == "-loss" for m in whole if ".loss." in m.name)


def methods_of(*measurements: Measurement, folder: Path) -> Section:
    """The methods section of runs that measured one thing each."""
    record = hostile_record()
    return section([finished(replace(record, measurements=(m,)), folder) for m in measurements], "methods")


def test_methods_say_what_runs_share_once_and_leave_out_what_is_empty(tmp_path: Path) -> None:
    area = hostile_record().measurement(AUC)
    assert area is not None
    first = replace(
        area, protocol={"score": "-loss", "threshold": -1.5, "warnings": [], "small_groups": [], "none": None}
    )
    second = replace(first, protocol={**first.protocol, "threshold": -0.25, "warnings": ["few rows", "fewer"]})
    (method,) = methods_of(first, second, folder=tmp_path).methods
    assert method.name == AUC
    facts = {f.key: f.values for f in method.facts}
    assert facts["score"] == (("", "-loss"),)
    assert facts["none"] == (("", "not defined"),)
    assert facts["threshold"] == (("hostile", "-1.5"), ("hostile-2", "-0.25"))
    assert facts["warnings"] == (("hostile-2", "few rows, fewer"),)
    assert "small groups" not in facts


def test_no_empty_list_stands_on_the_page(hostile_run: RunFolder) -> None:
    html = write_report([hostile_run], hostile_run.path / "report.html").read_text(encoding="utf-8")
    assert "[]" not in read_aloud(html).partition("How it was measured")[2].partition("Run file of")[0]


def test_small_groups_are_marked(tmp_path: Path) -> None:
    record = hostile_record()
    gap = record.measurement("fairness.accuracy_gap")
    assert gap is not None
    small = replace(gap, supported=False, protocol={"small_groups": ["b"]})
    tables: tuple[Table, ...] = section([finished(replace(record, measurements=(small,)), tmp_path)], "fairness").tables
    marks = {row[0].text: row[1].mark for row in tables[-1].rows}
    assert marks["b"] == "too few examples for this claim"
    assert [mark for group, mark in marks.items() if group != "b"] == ["", ""]
