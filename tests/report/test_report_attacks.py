"""What the page says of attacks: values with interval and n, the blind baseline told apart, no text of a canary."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from attacked import ATTACKS, attacked, audit, by_repeats, curves, membership, share
from hostile import HOSTILE, finished, hostile_record, read_aloud

from troth.attacks import measure_membership
from troth.report import write_model_card, write_report
from troth.report.attack_names import is_detail, is_secret
from troth.report.attack_plots import Bin, Extracted, extraction, histogram
from troth.report.plots import Curve, Plot, roc
from troth.report.section import Section
from troth.report.sections import build
from troth.report.tables import Table, interval
from troth.results import Group, Json, Measurement, Record
from troth.runs.folders import RunFolder
from troth.seeds import PublicSeeds

SECRET = "4821907"
VERDICT_WORDS = r"\b(safe|unsafe|fair|private model|is private)\b"


def section(folders: list[RunFolder], anchor: str) -> Section:
    """The section of that anchor."""
    return next(s for s in build(folders) if s.anchor == anchor)


def table(found: Section, start: str) -> Table:
    """The table whose caption starts so."""
    return next(t for t in found.tables if t.caption.startswith(start))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A finished run that was attacked in every way."""
    return finished(attacked(epsilon=8.0, secret=SECRET), tmp_path)


@pytest.mark.usefixtures("undrawn")
def test_every_attack_is_a_row_and_the_blind_baseline_the_last(folder: RunFolder) -> None:
    rates = table(section([folder], "membership"), "Membership attacks on attacked")
    no_break = "\N{NO-BREAK SPACE}"
    columns = [f"TPR at FPR {rate}{no_break}%" for rate in ("0.1", "1", "10")]
    assert rates.head == ("attack", "AUC", *columns)
    assert [row[0].text for row in rates.rows] == list(ATTACKS)
    *others, blind = rates.rows
    assert blind[0].mark == "no model: the words alone" and not any(row[0].mark for row in others)
    assert [cell.kind for cell in blind[1:]] == ["number", "absent", "absent", "absent"]
    loss = others[0]
    assert (loss[1].text, loss[1].detail, loss[1].note) == ("0.55", "[0.52, 0.58]", "n = 1,000")
    assert loss[2].mark == "too few examples for this claim" and not loss[3].mark
    assert loss[3].note == "n = 500; FPR 0.011 [0,\N{NO-BREAK SPACE}0.041], n = 400"


@pytest.mark.usefixtures("undrawn")
def test_what_an_accusation_is_worth_names_its_threshold(folder: RunFolder) -> None:
    found = section([folder], "membership")
    worth = table(found, "What an accusation is worth")
    assert len(worth.head) == 4 and "blind" not in [row[0].text for row in worth.rows]
    assert all(cell.detail and "n = 900" in cell.note for row in worth.rows for cell in row[1:])
    assert any("at the threshold for an FPR of 1\N{NO-BREAK SPACE}%" in p for p in found.paragraphs)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("area", "noted"), [(0.52, 0), (0.56, 1)])
def test_a_blind_baseline_above_guessing_is_noted(tmp_path: Path, area: float, noted: int) -> None:
    record = attacked(attacks={"loss": 0.6, "blind": area}, bound=None)
    found = section([finished(record, tmp_path)], "membership")
    assert len(found.notes) == noted
    assert any("blind baseline reads the words alone" in p for p in found.paragraphs)
    if noted:
        assert "0.56 [0.53, 0.59] (n = 1,000)" in found.notes[0] and "by that alone" in found.notes[0]


@pytest.mark.usefixtures("undrawn")
def test_the_most_exposed_slices_come_first_and_small_ones_are_marked(tmp_path: Path) -> None:
    record = attacked(attacks={"loss": 0.6, "rmia": 0.7, "blind": 0.99}, bound=None)
    found = section([finished(record, tmp_path)], "membership")
    groups = table(found, "Who is most exposed, by group")
    assert [row[0].text for row in groups.rows] == ["old", "young", "few"]
    assert [row[1].mark for row in groups.rows] == ["", "", "too few examples for this claim"]
    assert "rmia" in groups.caption and "each interval is of its slice alone" in groups.caption
    labels = table(found, "Who is most exposed, by label")
    assert [row[0].text for row in labels.rows] == [f"intent_{i}" for i in range(14, 2, -1)]
    assert "the 12 most exposed of 15; intervals of the slices together (Bonferroni)" in labels.caption
    (fold,) = [f for f in found.folds if f.title.startswith("All slices")]
    folded = {t.caption.partition("(")[0]: len(t.rows) for t in fold.tables}
    assert folded == {
        "Who is most exposed, by label: attacked, loss ": 15,
        "Who is most exposed, by group: attacked, loss ": 3,
        "Who is most exposed, by label: attacked, rmia ": 15,
    }


@pytest.mark.usefixtures("undrawn")
def test_slices_that_are_all_too_small_are_said(tmp_path: Path) -> None:
    base = attacked(attacks={"loss": 0.6}, bound=None)
    none = [
        replace(m, groups={}, protocol={"slices_left_out": 20}) if m.name.endswith("auc_by_label") else m
        for m in base.measurements
    ]
    found = section([finished(replace(base, measurements=tuple(none)), tmp_path)], "membership")
    assert "By label, all 20 slices are too small for a value of its own: attacked." in found.paragraphs
    assert not any("by label" in t.caption for t in found.tables)


@pytest.mark.usefixtures("undrawn")
def test_the_surest_members_are_told_by_row_id_and_length(tmp_path: Path) -> None:
    """Their text stands there where the record has it, which takes ``--show-text``."""
    base = attacked(attacks={"loss": 0.6}, bound=None)
    rows: list[dict[str, Json]] = [
        {"row": 683, "id": "home-7", "words": 13, "label": "timer", "score": -1.5},
        {"row": 2, "words": 5, "label": HOSTILE, "score": -2.5},
    ]

    def table_of(rows: list[dict[str, Json]]) -> tuple[Table, str]:
        folder = finished(replace(base, series={**base.series, "attack.membership.loss.most_exposed": rows}), tmp_path)
        folds = section([folder], "membership").folds
        (shown,) = [t for f in folds for t in f.tables if "highest scores" in t.caption]
        return shown, write_report([folder], tmp_path / "report.html").read_text(encoding="utf-8")

    shown, page = table_of(rows)
    assert shown.head == ("place", "row", "id", "words", "label")
    assert [[c.text for c in row] for row in shown.rows] == [
        ["1", "683", "home-7", "13", "timer"], ["2", "2", "-", "5", HOSTILE],
    ]  # fmt: skip
    assert "<script>" not in page
    told, page = table_of([{**rows[0], "text": HOSTILE}, rows[1]])
    assert [row[-1].text for row in told.rows] == [HOSTILE, "-"] and "<script>" not in page


@pytest.mark.usefixtures("undrawn")
def test_what_is_said_of_many_measurements_is_said_once(tmp_path: Path) -> None:
    base = attacked(attacks={"loss": 0.6}, bound=None)
    few = "120 evaluation non-members are too few: it wants 1,000"
    names = [f"attack.membership.loss.{n}" for n in ("tpr_at_fpr_0.01", "fpr_at_threshold_0.01", "ppv_at_prior_0.5")]
    warnings = (*(f"{n}: {few}" for n in names), f"{names[0]}: another", "data: shared", "attack: other")
    found = section([finished(replace(base, warnings=warnings), tmp_path)], "summary")
    assert found.notes == (
        f"attacked: {names[0]} and 2 more measurements: {few}", f"attacked: {names[0]}: another",
        "attacked: data: shared", "attacked: attack: other",
    )  # fmt: skip
    two = section([finished(replace(base, warnings=warnings[:2]), tmp_path)], "summary")
    assert two.notes == tuple(f"attacked-2: {w}" for w in warnings[:2])


@pytest.mark.usefixtures("undrawn")
def test_every_measured_table_gives_n_and_unit_and_every_value_an_interval(folder: RunFolder) -> None:
    found = {a: section([folder], a) for a in ("membership", "audit", "canaries")}
    for part in found.values():
        for shown in (*part.tables, *(t for f in part.folds for t in f.tables)):
            if not shown.measured:
                continue
            assert "unit" in shown.head or all(row[0].note.startswith("unit: ") for row in shown.rows), shown.caption
            values = [cell for row in shown.rows for cell in row[1:] if cell.kind == "number"]
            assert values and all("n = " in v.note for v in values), shown.caption
            assert all(v.detail or "kolmogorov-smirnov" in v.note for v in values), shown.caption


@pytest.mark.usefixtures("undrawn")
def test_curves_and_histograms_of_one_run_are_of_all_attacks(folder: RunFolder) -> None:
    found = section([folder], "membership")
    drawn = {str(row["line"]) for p in found.plots if "Log-log" in p.caption for row in p.rows}
    assert drawn == set(ATTACKS) - {"blind"}
    assert all("low" in row for p in found.plots if "Log-log" in p.caption for row in p.rows)
    (fold,) = [f for f in found.folds if f.title.startswith("Histograms")]
    assert len(fold.plots) == len(ATTACKS) - 1
    assert all(set(row) == {"low", "high", "members", "nonmembers"} for p in fold.plots for row in p.rows)


@pytest.mark.usefixtures("undrawn")
def test_many_runs_show_their_tables_folded_and_no_curves(tmp_path: Path) -> None:
    folders = [finished(attacked(f"r{i}", bound=None), tmp_path) for i in range(5)]
    found = section(folders, "membership")
    assert not found.plots and [f.title for f in found.folds] == [f"Membership attacks on r{i}" for i in range(5)]
    assert all([len(t.rows) for t in f.tables] == [10, 9] for f in found.folds)
    assert any("With 5 runs on the page" in p for p in found.paragraphs)


@pytest.mark.usefixtures("undrawn")
def test_too_few_points_or_bins_are_said_not_drawn(tmp_path: Path) -> None:
    record = attacked(attacks={"loss": 0.6, "rmia": 0.7}, bound=None)
    series = {k: v[:2] for k, v in record.series.items()}
    found = section([finished(replace(record, series=series), tmp_path)], "membership")
    captions = [t.caption for t in found.tables]
    assert "ROC: attacked" in captions and "Scores, rmia: attacked" in captions
    assert not any("Log-log" in p.caption for p in found.plots) and not any("Hist" in f.title for f in found.folds)


@pytest.mark.usefixtures("undrawn")
def test_a_record_of_the_first_version_is_shown_as_before(hostile_run: RunFolder) -> None:
    found = section([hostile_run], "membership")
    assert [t.caption for t in found.tables] == ["Membership inference"]
    area, line = found.plots
    assert area.caption == "0.5 is guessing; lower is better. DeLong intervals."
    assert line.caption.endswith("accuses few and is right (n = 900 members and non-members).")
    assert line.rows[0].keys() == {"line", "false_positive_rate", "true_positive_rate", "n"}
    assert not found.folds and not found.notes
    assert not {"audit", "canaries", "theory"} & {s.anchor for s in build([hostile_run])}


@pytest.mark.usefixtures("undrawn")
def test_summaries_and_cards_keep_to_the_main_numbers(tmp_path: Path, folder: RunFolder) -> None:
    (summary,) = section([folder], "summary").tables
    names = [row[0].text for row in summary.rows]
    assert "attack.membership.rmia.auc" in names and "attack.membership.rmia.tpr_at_fpr_0.01" in names
    assert not any(is_detail(name) for name in names)
    card = write_model_card(folder.record(), tmp_path).read_text(encoding="utf-8")
    assert "| attack.audit.epsilon_lower_bound | 0.9 | [0.9, infinity), f-dp-one-run at 95" in card
    assert "ppv_at_prior" not in card and "auc_by_label" not in card


@pytest.mark.usefixtures("undrawn")
def test_methods_of_an_attack_with_many_numbers_are_folded(folder: RunFolder) -> None:
    found = section([folder], "methods")
    folds = {f.title: [m.name for m in f.methods] for f in found.folds}
    assert set(folds) == {"attack.canaries", *(f"attack.membership.{a}" for a in ATTACKS[:-1])}
    assert "attack.membership.blind.auc" in [m.name for m in found.methods]
    shown = [m.name for m in found.methods] + [n for names in folds.values() for n in names]
    assert len(shown) == len(set(shown)) and "attack.membership.rmia.ppv_at_prior_0.5" in shown


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ("consistent", "does not show that the claim holds"),
        ("violation", "more was proved than was claimed"),
        ("underpowered", "not even perfect guesses"),
        (None, "None: no epsilon was claimed"),
    ],
)
def test_an_audit_tells_bound_limit_claim_verdict_and_rule(tmp_path: Path, verdict: str | None, said: str) -> None:
    base = attacked(epsilon=8.0, bound=None)
    record = replace(base, measurements=(*base.measurements, *audit(9.5, 8.0, verdict)))
    found = section([finished(record, tmp_path)], "audit")
    bound, made, rest = found.tables
    (row,) = bound.rows
    assert [row[0].text, row[1].text, row[1].detail] == ["attacked", "9.5", "[9.5, infinity)"]
    assert row[1].note == "n = 1,000 canaries, 95\N{NO-BREAK SPACE}%"
    assert [c.text for c in row[2:4]] == ["5.8", "8"] and row[4].text == str(verdict).lower()
    assert any(said in p for p in found.paragraphs)
    assert "bonferroni; 200 of 250 guesses right" in [c.text for c in made.rows[0]]
    assert [r[0].text for r in rest.rows] == ["attack.audit.canary_auc"]
    assert any("no leak was found by this attack" in p for p in found.paragraphs)
    assert len(found.notes) == (verdict == "violation")
    if found.notes:
        assert "above the 8 that was claimed" in found.notes[0] and "5\N{NO-BREAK SPACE}% of audits" in found.notes[0]


@pytest.mark.usefixtures("undrawn")
def test_an_audit_without_privacy_has_no_claim(tmp_path: Path) -> None:
    found = section([finished(attacked(), tmp_path)], "audit")
    assert found.tables[0].rows[0][3].text == "infinity (no guarantee)"


@pytest.mark.usefixtures("undrawn")
def test_canaries_stand_beside_decoys_and_guessing(folder: RunFolder) -> None:
    found = section([folder], "canaries")
    overall, by_setting = found.tables
    assert overall.head == ("measurement", "canaries, planted", "decoys, never planted", "by guessing")
    assert [row[3].text for row in overall.rows] == ["0.001"] * 5 + ["-"]
    assert overall.rows[-1][0].text == "attack.canaries.decoy_rank_p_value" and overall.rows[-1][2].text == "0.43"
    assert len(by_setting.rows) == 8 and by_setting.rows[0][0].text == "planted once"
    assert [row[0].text for row in by_setting.rows].count("decoys, never planted") == 2
    assert by_setting.head == (
        "canaries", "unknown tokens", "exact match, fraction", "exposure, bits", "exact match by guessing",
    )  # fmt: skip
    exposed, extracted = found.plots
    assert [row["repeats"] for row in exposed.rows if row["line"] == "4 unknown tokens"] == [1, 10, 100]
    assert [row["line"] for row in exposed.rows if row["repeats"] == 0] == [
        "decoys, 4 unknown tokens", "decoys, 6 unknown tokens",
    ]  # fmt: skip
    assert {(row["unknown_tokens"], row["repeats"], row["n"]) for row in extracted.rows} == {
        (n, r, 10) for n in (4, 6) for r in (1, 10, 100)
    }


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("repeats", "plots"), [((100,), 0), ((10, 100), 1), ((1, 10, 100), 2)])
def test_a_curve_wants_three_repetitions_and_a_map_two_cells(
    tmp_path: Path, repeats: tuple[int, ...], plots: int
) -> None:
    base = attacked(bound=None, secret=SECRET)
    record = replace(base, series={"attack.canaries.by_repeats": by_repeats(repeats, tokens=(4,))})
    found = section([finished(record, tmp_path)], "canaries")
    assert len(found.plots) == plots
    assert len(table(found, "By repetitions").rows) == len(repeats) + 1


@pytest.mark.usefixtures("undrawn")
def test_token_accuracy_is_shown_once_it_has_an_interval(tmp_path: Path) -> None:
    rows = [{**row, "token_accuracy_low": 0.4, "token_accuracy_high": 0.6} for row in by_repeats()]
    record = replace(attacked(secret=SECRET), series={"attack.canaries.by_repeats": rows})
    found = table(section([finished(record, tmp_path)], "canaries"), "By repetitions")
    place = found.head.index("token accuracy, fraction")
    assert {row[place].detail for row in found.rows} == {"[0.4, 0.6]"} and "Hamming distance, tokens" not in found.head


@pytest.mark.parametrize(
    ("name", "key", "value", "secret"),
    [
        ("attack.canaries.rank", "code", 4821, True),
        ("attack.canaries.rank", "best_codes", ["4821"], True),
        ("attack.canaries.rank", "Canary-Text", "my pin", True),
        ("attack.canaries.rank", "codes", 10_000, False),
        ("attack.canaries.rank", "unknown_tokens", 4, False),
        ("attack.audit.canary_auc", "prompts", ["x"], True),
        ("test.accuracy", "text", "of the test split", False),
    ],
)
def test_entries_that_may_hold_a_code_are_secret(name: str, key: str, value: Json, secret: bool) -> None:
    assert is_secret(name, key, value) is secret


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of an attacked run with hostile names, all of it drawn."""
    groups = {HOSTILE: Group(0.6, 0.55, 0.65, 50), "b": Group(0.7, 0.6, 0.8, 60)}
    base = attacked(epsilon=8.0, secret=SECRET, attacks={"loss": 0.6, "rmia": 0.7, "blind": 0.56})
    measured = tuple(m for m in base.measurements if not m.name.startswith("attack.membership.rmia"))
    rmia = tuple(replace(m, protocol={**m.protocol, "note": HOSTILE}) for m in membership("rmia", 0.7, groups))
    folder = finished(replace(base, measurements=(*measured, *rmia)), tmp_path_factory.mktemp("attacked"))
    return write_report([folder], folder.path / "report.html").read_text(encoding="utf-8")


def test_no_code_or_text_of_a_canary_reaches_the_page(page: str) -> None:
    assert "By repetitions and unknown tokens" in page
    assert SECRET not in page


def test_text_is_escaped_and_no_verdict_is_given(page: str) -> None:
    assert "<script>" not in page and "onerror=" in read_aloud(page)
    told = read_aloud(page).partition("Run file of")[0].replace("fair coin", "")
    assert not re.search(VERDICT_WORDS, told)


def test_every_figure_has_a_caption_and_a_csv_of_what_it_draws(page: str) -> None:
    from urllib.parse import unquote

    links = re.findall(r'href="data:text/csv;charset=utf-8,([^"]*)"', page)
    assert len(links) == page.count("<svg ") == len(re.findall(r"<figcaption>[^<]+ <a download", page)) > 5
    assert all(list(csv.DictReader(io.StringIO(unquote(link)))) for link in links)
    files = re.findall(r'download="([^"]*)"', page)
    assert len(files) == len(set(files))


def test_bands_and_cells_are_drawn() -> None:
    x, y = [0.0, 0.01, 0.1, 1.0], [0.0, 0.02, 0.3, 1.0]
    bare = roc("r", [Curve("a", x, y)], "c")
    banded = roc("r", [Curve("a", x, y, [0.0, 0.01, 0.2, 1.0], [0.1, 0.05, 0.4, 1.0])], "c")
    assert banded.svg.count("<path") > bare.svg.count("<path")
    assert "low" in banded.rows[0] and "low" not in bare.rows[0]
    flat = roc("r", [Curve("a", x, y, [0.1, 0.05, 0.4, 1.0], [0.1, 0.05, 0.4, 1.0])], "c")
    assert flat.svg != banded.svg
    cells = [Extracted(4, r, v, 0.0, 1.0, 10) for r, v in ((1, 0.0), (10, 0.55), (100, 1.0))]
    drawn = extraction("e", cells, "c")
    assert all(f">{v}<" in drawn.svg for v in ("0.00", "0.55", "1.00")) and drawn.svg.count(">n = 10<") == 3


def test_a_histogram_draws_shares_and_keeps_open_bins_for_the_csv() -> None:
    bins = [Bin(None, -1.0, 1, 9), Bin(-1.0, 0.0, 30, 50), Bin(0.0, 1.0, 69, 41)]
    even = histogram("h", bins, "c")
    assert isinstance(even, Plot) and len(even.rows) == 3 and "share of each side" in even.svg
    assert "density" in histogram("h", [*bins, Bin(1.0, 3.0, 5, 5)], "c").svg


def test_what_the_attacks_measure_is_what_the_page_reads(tmp_path: Path, undrawn: None) -> None:
    """The names and keys are a contract with `troth.attacks`: real scores make a curve, a histogram and a table."""
    rng = np.random.default_rng(0)
    made = measure_membership(
        rng.normal(1, 1, 400), rng.normal(0, 1, 400), seeds=PublicSeeds(1), prefix="attack.membership.rmia",
        protocol={"nonmembers_from": "test"},
    )  # fmt: skip
    base = attacked(bound=None, attacks={})
    record = replace(base, measurements=(*base.measurements, *made.measurements), series=made.series)
    found = section([finished(record, tmp_path)], "membership")
    (row,) = table(found, "Membership attacks on").rows
    assert all(cell.kind != "absent" for cell in row[1:])
    assert any("Log-log" in p.caption and "low" in p.rows[0] for p in found.plots)
    assert any(f.plots for f in found.folds)


def test_one_sided_intervals_read_as_such() -> None:
    assert interval(1.5, None) == "[1.5, infinity)" and interval(None, 2) == "(-infinity, 2]"


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("source", ["protocol", "run file"])
def test_held_out_training_rows_are_told_as_of_the_same_distribution(tmp_path: Path, source: str) -> None:
    facts: dict[str, Json] = {"nonmembers_from": "held out of the training rows"} if source == "protocol" else {}
    found = tuple(replace(m, protocol=facts) for m in membership("rmia", 0.6))
    base = attacked(bound=None, attacks={})
    config = {**base.config, "attack": {"nonmembers": {"holdout": 0.5}}}
    folder = finished(replace(base, measurements=found), tmp_path)
    folder.write_record(replace(base, measurements=found, config=config))
    (sentence,) = [p for p in section([folder], "membership").paragraphs if p.startswith("Non-members")]
    assert "held out by chance" in sentence and "a twin trained on the rest" in sentence


def test_scores_of_a_file_do_not_name_a_split(tmp_path: Path, undrawn: None) -> None:
    found = (share("attack.membership.scores.auc", 0.6, neutral=0.5),)
    base: Record = attacked(bound=None, attacks={})
    folder = finished(base, tmp_path)
    config = {**base.config, "attack": {"scores": "scores.csv", "nonmembers": "test"}}
    folder.write_record(replace(base, measurements=found, config=config))
    (sentence,) = [p for p in section([folder], "membership").paragraphs if p.startswith("Non-members")]
    assert "file of scores" in sentence and "test split" not in sentence


def test_hostile_records_may_hold_new_numbers_too(tmp_path: Path, undrawn: None) -> None:
    """Old and new keys of one series side by side: the new ones are read."""
    record = hostile_record()
    more: list[Measurement] = membership("rmia", 0.6)
    series = {**record.series, **curves("rmia", 0.6, band=False)}
    folder = finished(replace(record, measurements=(*record.measurements, *more), series=series), tmp_path)
    lines = {row["line"] for p in section([folder], "membership").plots if "Log-log" in p.caption for row in p.rows}
    assert lines == {"loss", "rmia"}
