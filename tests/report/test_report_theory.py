"""Theory against practice: settings, the Pareto set and the rank correlation, each held against a naive count."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from attacked import attacked, audit
from hostile import finished
from scipy.stats import spearmanr

from troth.report.rank_correlation import rank_correlation
from troth.report.reading import read
from troth.report.section import Section
from troth.report.sections import build
from troth.report.settings import settings, theoretical_epsilon
from troth.report.theory import pareto
from troth.report.theory_plots import Cloud, epsilon_figure
from troth.results import Measurement
from troth.runs.folders import RunFolder

EPSILONS = (1.0, 4.0, 8.0, None)


def grid(out: Path, *, seeds: int = 2, epsilons: tuple[float | None, ...] = EPSILONS) -> list[RunFolder]:
    """A sweep over epsilon with seeds: more epsilon, more leakage, more accuracy."""
    folders = []
    for i, epsilon in enumerate(epsilons):
        for seed in range(1, seeds + 1):
            areas = {"loss": 0.52 + 0.03 * i + 0.001 * seed, "rmia": 0.54 + 0.05 * i + 0.001 * seed, "blind": 0.5}
            name = f"grid_target_epsilon-{epsilon}_seeds-{seed}"
            made = attacked(
                name,
                epsilon=epsilon,
                seed=seed,
                attacks=areas,
                accuracy=0.7 + 0.05 * i,
                bound=0.2 + 0.4 * i + seed / 10,
            )
            folders.append(finished(made, out))
    return folders


def theory(folders: list[RunFolder]) -> Section | None:
    """The section, where there is one."""
    return next((s for s in build(folders) if s.anchor == "theory"), None)


def test_runs_that_differ_by_their_seed_alone_are_one_setting(tmp_path: Path) -> None:
    found = settings([read(f) for f in grid(tmp_path)])
    assert [s.epsilon for s in found] == [1.0, 4.0, 8.0, math.inf]
    assert [len(s.runs) for s in found] == [2, 2, 2, 2]
    assert [s.name for s in found] == [
        "target_epsilon = 1.0", "target_epsilon = 4.0", "target_epsilon = 8.0", "without [privacy]",
    ]  # fmt: skip


def test_settings_of_one_epsilon_are_named_by_what_else_differs(tmp_path: Path) -> None:
    base = attacked(epsilon=8.0, bound=None)
    for i, width in enumerate((64, 128)):
        config = {**base.config, "run": {"name": f"r{i}", "seed": 1}, "model": {"preset": "tiny-bert", "width": width}}
        finished(replace(base, name=f"r{i}", config=config), tmp_path)
    found = settings([read(RunFolder(tmp_path / f"r{i}")) for i in range(2)])
    assert [s.name for s in found] == ["width = 64", "width = 128"]


def test_the_same_run_file_on_more_rows_with_another_epsilon_is_another_setting(tmp_path: Path) -> None:
    base = attacked(epsilon=8.0, bound=None)
    assert base.privacy is not None
    other = replace(base, privacy=replace(base.privacy, epsilon=6.5))
    found = settings([read(finished(r, tmp_path)) for r in (base, other)])
    assert [(s.epsilon, s.name) for s in found] == [(6.5, "attacked-2"), (8.0, "attacked")]


def test_a_grid_that_varies_one_key_at_a_time_names_what_is_not_as_usual(tmp_path: Path) -> None:
    base = attacked(epsilon=8.0, bound=None)
    usual = {"epochs": 12, "expected_batch_size": 512, "learning_rate": 0.002, "physical_batch_size": 64}
    varied = [{}, {"epochs": 4}, {"expected_batch_size": 128}, {"learning_rate": 0.01}, {"physical_batch_size": 16}]
    runs = []
    for i, other in enumerate(varied):
        config = {**base.config, "run": {"name": f"r{i}", "seed": 1}, "train": {**usual, **other}}
        runs.append(read(finished(replace(base, name=f"r{i}", config=config), tmp_path)))
    assert [s.name for s in settings(runs)] == [
        "as most are", "epochs = 4", "expected_batch_size = 128", "learning_rate = 0.01", "physical_batch_size = 16",
    ]  # fmt: skip


def test_a_run_that_gave_up_its_guarantee_has_no_epsilon(tmp_path: Path) -> None:
    record = attacked(epsilon=8.0)
    assert record.privacy is not None
    given_up = replace(record, privacy=replace(record.privacy, guarantee="none"))
    assert theoretical_epsilon(read(finished(given_up, tmp_path))) == math.inf


@pytest.mark.usefixtures("undrawn")
def test_a_sweep_gives_ladder_success_tradeoff_table_and_correlation(tmp_path: Path) -> None:
    found = theory(grid(tmp_path))
    assert found is not None
    ladder, by_auc, by_rate, first, second = found.plots
    assert {row["line"] for row in ladder.rows} == {"audited"} and len(ladder.rows) == 8
    assert {row["theoretical_epsilon"] for row in ladder.rows} == {1.0, 4.0, 8.0, "infinity"}
    assert {row["largest_provable_epsilon"] for row in ladder.rows} == {5.8}
    assert "4 settings, n = 8 runs" in ladder.caption
    for plot in (by_auc, by_rate):
        assert {row["line"] for row in plot.rows} == {"loss", "rmia"}
    means = {(row["line"], row["theoretical_epsilon"]): row for row in by_auc.rows}
    assert means[("rmia", 4.0)]["mean"] == pytest.approx(0.5915)
    assert [means[("rmia", 4.0)][end] for end in ("low", "high")] == pytest.approx([0.591, 0.592])
    assert "AUC of rmia" in first.caption and "AUC of loss" in second.caption
    assert all(row["pareto"] for row in first.rows) and len(first.rows) == 4
    settings_table, correlations = found.tables
    assert settings_table.head == (
        "setting", "theoretical epsilon, nats", "test.accuracy, fraction", "audited: at least, nats",
        "AUC of rmia, fraction", "AUC of loss, fraction",
    )  # fmt: skip
    last = settings_table.rows[-1]
    assert [c.text for c in last[:3]] == ["without [privacy]", "infinity", "0.85"]
    assert (last[3].text, last[3].detail, last[3].note) == ("1.55", "[1.5, 1.6]", "range of n = 2 runs")
    assert [row[0].text for row in correlations.rows] == ["rmia", "loss"]
    assert all("n = 8 runs" in row[1].note and "all orders" in row[2].note for row in correlations.rows)


@pytest.mark.usefixtures("undrawn")
def test_two_epsilons_are_said_not_drawn(tmp_path: Path) -> None:
    found = theory(grid(tmp_path, seeds=1, epsilons=(8.0, None)))
    assert found is not None and not found.plots
    (only,) = found.tables
    assert [row[0].text for row in only.rows] == ["with [privacy]", "without [privacy]"]
    assert only.rows[0][2].detail == "[0.67, 0.73]" and only.rows[0][2].note == "n = 700"


@pytest.mark.usefixtures("undrawn")
def test_one_epsilon_is_no_comparison(tmp_path: Path) -> None:
    assert theory(grid(tmp_path, epsilons=(8.0,))) is None


@pytest.mark.usefixtures("undrawn")
def test_unsupported_areas_are_left_out_of_figures_and_marked_in_the_table(tmp_path: Path) -> None:
    folders = []
    for folder in grid(tmp_path, seeds=1):
        record = folder.record()
        weak = tuple(replace(m, supported=m.name != "attack.membership.rmia.auc") for m in record.measurements)
        folders.append(finished(replace(record, measurements=weak), tmp_path / "weak"))
    found = theory(folders)
    assert found is not None
    assert all(row["line"] != "rmia" for p in found.plots if "AUC of attacks" in p.caption for row in p.rows)
    place = found.tables[0].head.index("AUC of rmia, fraction")
    assert {row[place].mark for row in found.tables[0].rows} == {"too few examples for this claim"}
    assert [row[0].text for row in found.tables[1].rows] == ["loss"]


@pytest.mark.usefixtures("undrawn")
def test_the_audited_twin_is_placed_at_its_own_epsilon(tmp_path: Path) -> None:
    folders = []
    for i, epsilon in enumerate((1.0, 4.0, 8.0)):
        base = attacked(f"r{i}", epsilon=epsilon, bound=None)
        folders.append(finished(replace(base, measurements=(*base.measurements, *audit(0.5, 2 * epsilon))), tmp_path))
    found = theory(folders)
    assert found is not None
    assert [row["theoretical_epsilon"] for row in found.plots[0].rows] == [2.0, 8.0, 16.0]


@pytest.mark.usefixtures("undrawn")
def test_lower_is_better_where_the_metric_says_so(tmp_path: Path) -> None:
    """A perplexity: the setting with the higher one and more leakage is not in the Pareto set."""
    folders = []
    for i, epsilon in enumerate((1.0, 4.0, 8.0)):
        base = attacked(f"r{i}", epsilon=epsilon, attacks={"loss": 0.5 + 0.1 * i}, bound=None)
        perplexity = Measurement(
            "test.perplexity", 20.0 + i, 19.0 + i, 21.0 + i, 0.95, "bayesian-bootstrap", 700, "ratio", "lower"
        )
        config = {
            **base.config,
            "task": {"kind": "language_modeling"},
            "data": {"train": "t.txt", "text": "text"},
            "model": {"preset": "tiny-gpt2"},
        }
        measured = tuple(m for m in base.measurements if m.name != "test.accuracy")
        folders.append(finished(replace(base, config=config, measurements=(*measured, perplexity)), tmp_path))
    found = theory(folders)
    assert found is not None
    (spots,) = [p.rows for p in found.plots if "Pareto" in p.caption]
    assert [row["pareto"] for row in spots] == [True, False, False]


def test_the_pareto_set_is_what_no_other_point_beats() -> None:
    rng = np.random.default_rng(3)
    points = [(float(q), float(leak)) for q, leak in rng.integers(0, 6, (60, 2))]
    best = pareto(points)
    for (q, leak), kept in zip(points, best, strict=True):
        beaten = any((a > q and b <= leak) or (a >= q and b < leak) for a, b in points)
        assert kept is not beaten
    assert pareto([(-q, leak) for q, leak in points], higher=False) == best
    assert 0 < sum(best) < len(points)


@pytest.mark.parametrize("n", [3, 5, 6])
def test_the_correlation_is_scipys_and_its_p_value_counts_all_orders(n: int) -> None:
    rng = np.random.default_rng(n)
    first, second = rng.integers(0, 4, n).astype(float), rng.normal(size=n)
    first[0], first[1] = 0.0, 9.0
    found = rank_correlation(first.tolist(), second.tolist())
    assert found is not None and found.exact and found.n == n
    assert found.value == pytest.approx(float(spearmanr(first, second).statistic))
    counted = [abs(float(spearmanr(first, list(order)).statistic)) for order in itertools.permutations(second)]
    assert found.p_value == pytest.approx(np.mean(np.array(counted) >= abs(found.value) - 1e-9))
    assert -1 <= found.low <= found.value <= found.high <= 1


def test_many_runs_are_sampled_reproducibly_and_infinity_ranks_highest() -> None:
    epsilons = [1.0, 2.0, 4.0, 8.0, 16.0, math.inf] * 3
    areas = [0.5 + 0.02 * i + 0.001 * j for j in range(3) for i in range(6)]
    found = rank_correlation(epsilons, areas)
    assert found is not None and not found.exact
    assert found.value > 0.95 and found.p_value == 1 / 10_000
    assert found == rank_correlation(epsilons, areas)
    capped = rank_correlation([min(e, 32.0) for e in epsilons], areas)
    assert capped == found


def test_unrelated_orders_have_uniform_p_values() -> None:
    """400 draws of 6 runs: a p value at or below 0.1 comes about in at most a tenth of draws, up to 3 deviations."""
    rng = np.random.default_rng(11)
    p_values = []
    for _ in range(400):
        found = rank_correlation(rng.normal(size=6).tolist(), rng.normal(size=6).tolist())
        assert found is not None
        p_values.append(found.p_value)
    assert 0.04 < np.mean(np.array(p_values) <= 0.1) <= 0.1 + 3 * math.sqrt(0.09 / 400)


@pytest.mark.parametrize(("first", "second"), [([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [5, 5, 5])])
def test_without_an_order_there_is_no_correlation(first: list[float], second: list[float]) -> None:
    assert rank_correlation(first, second) is None


@pytest.mark.parametrize(("first", "second"), [([1, 2], [1, 2, 3]), ([1, math.nan, 3], [1, 2, 3])])
def test_numbers_that_are_none_are_refused(first: list[float], second: list[float]) -> None:
    with pytest.raises(ValueError, match="two numbers for each run"):
        rank_correlation(first, second)


def test_the_ladder_draws_infinity_at_the_right_edge_and_the_diagonal() -> None:
    clouds = [
        Cloud("audited", f"e{e}", e, (0.2, 0.4), 0.2, 0.4, largest=5.8) for e in (0.5, 2.0, 8.0, math.inf)
    ]  # fmt: skip
    svg = epsilon_figure("ladder", clouds, "audited", "c").svg
    assert "infinity" in svg and "audited = theoretical" in svg and "largest provable" in svg
    finite = epsilon_figure("ladder", clouds[:-1], "audited", "c").svg
    assert "infinity" not in finite
    plain = [replace(c, largest=None) for c in clouds]
    assert "audited = theoretical" not in epsilon_figure("plain", plain, "AUC", "c", neutral=0.5).svg
