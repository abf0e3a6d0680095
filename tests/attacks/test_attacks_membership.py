"""The loss attack: known answers on a memorising model and on strangers, names of the contract, bad input."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, norm
from sklearn.linear_model import LogisticRegression

from troth import attacks
from troth.attacks import loss_attack, measure_membership, overlapping_nonmembers
from troth.errors import DataError
from troth.results import Measurement, Record
from troth.seeds import PublicSeeds

SEEDS = PublicSeeds(1)


def by_name(found: tuple[Measurement, ...]) -> dict[str, Measurement]:
    return {m.name.removeprefix("attack.membership.loss."): m for m in found}


def memorised_losses() -> tuple[np.ndarray, np.ndarray]:
    """Losses of a linear model with more weights than rows that learnt random labels by heart."""
    generator = np.random.default_rng(0)
    features, labels = generator.normal(size=(400, 300)), generator.integers(10, size=400)
    model = LogisticRegression(C=1e3, max_iter=300).fit(features[:200], labels[:200])
    assert model.score(features[:200], labels[:200]) == 1.0
    losses = -model.predict_log_proba(features)[np.arange(400), labels]
    return losses[:200], losses[200:]


def test_a_memorising_model_is_found_out() -> None:
    found = by_name(loss_attack(*memorised_losses(), seeds=SEEDS).measurements)
    assert found["auc"].value >= 0.99
    assert found["auc"].low > 0.97
    assert found["tpr_at_fpr_0.01"].value > 0.5
    assert not found["tpr_at_fpr_0.01"].supported  # 100 evaluation non-members


def test_strangers_cover_one_half() -> None:
    """400 seeds, nominal miss rate 5 %: more than the 99.9 % binomial bound (35) fails."""
    misses = 0
    for seed in range(400):
        losses = np.random.default_rng(seed).exponential(size=(2, 100))
        area = loss_attack(*losses, seeds=PublicSeeds(seed)).measurements[0]
        misses += not area.low <= 0.5 <= area.high
    assert misses <= binom.isf(1e-3, 400, 0.05)


def test_names_units_and_protocol_follow_the_contract() -> None:
    generator = np.random.default_rng(3)
    losses = generator.exponential(0.5, 500), generator.exponential(1, 2001)
    result = loss_attack(*losses, seeds=SEEDS, false_positive_rates=(0.01,))
    found = by_name(result.measurements)
    worth = [f"ppv_at_prior_{prior}" for prior in (0.01, 0.1, 0.5)]
    assert list(found) == ["auc", "tpr_at_fpr_0.01", "fpr_at_threshold_0.01", *worth]
    assert all(m.outside_guarantee and m.supported for m in result.measurements)
    area, true, false = list(found.values())[:3]
    assert (area.n, true.n, false.n) == (2501, 500, 1001)
    assert (area.direction, area.neutral, area.interval_method) == ("lower", 0.5, "delong")
    assert true.protocol["nonmembers_for_threshold"] == 1000
    assert true.protocol["threshold"] < 0  # a score is a negated loss
    assert true.protocol["score"] == "-loss"
    assert result.warnings == ()
    assert set(result.series) == {"attack.membership.loss.roc", "attack.membership.loss.histogram"}
    bins = result.series["attack.membership.loss.histogram"]
    assert sum(b["members"] for b in bins) == 500 and sum(b["nonmembers"] for b in bins) == 2001
    record = Record("attack", "x", "now", "0", measurements=result.measurements, series=result.series)
    assert Record.from_json(record.to_json()).to_json() == record.to_json()


def test_where_non_members_came_from_stands_in_every_protocol_where_it_is_known() -> None:
    losses = np.random.default_rng(3).exponential(size=(2, 100))
    said = loss_attack(*losses, seeds=SEEDS, nonmembers_from="validation").measurements
    assert {m.protocol["nonmembers_from"] for m in said} == {"validation"}
    assert not any("nonmembers_from" in m.protocol for m in loss_attack(*losses, seeds=SEEDS).measurements)


def test_result_unpacks_into_measurements_and_series() -> None:
    measurements, series = loss_attack(np.arange(50.0), np.arange(50.0), seeds=SEEDS)
    assert measurements[0].value == pytest.approx(0.5)
    assert series["attack.membership.loss.roc"][0]["fpr"] == 0


def test_the_predictive_value_is_bayes_rule_and_its_interval_covers() -> None:
    """Against normal scores of known rates: the interval holds the truth in 95 % of 200 draws or more."""
    held = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        scores = generator.normal(1.5, 1, 1000), generator.normal(0, 1, 4000)
        measured = measure_membership(
            *scores, seeds=PublicSeeds(seed), prefix="attack.membership.loss", false_positive_rates=(0.01,)
        )
        found = by_name(measured.measurements)
        made, true, false = (found[n] for n in ("ppv_at_prior_0.1", "tpr_at_fpr_0.01", "fpr_at_threshold_0.01"))
        assert made.value == pytest.approx(0.1 * true.value / (0.1 * true.value + 0.9 * false.value))
        hits, alarms = 0.1 * norm.sf(true.protocol["threshold"] - 1.5), 0.9 * norm.sf(true.protocol["threshold"])
        held += made.low <= hits / (hits + alarms) <= made.high
    assert held >= 190  # Bonferroni's interval is wider than it need be


def test_several_rates_each_have_their_names() -> None:
    generator = np.random.default_rng(3)
    scores = generator.normal(size=(2, 300))
    found = measure_membership(
        *scores, seeds=SEEDS, prefix="attack.membership.rmia", false_positive_rates=(0.001, 0.01, 0.1)
    )
    names = [m.name for m in found.measurements]
    assert "attack.membership.rmia.tpr_at_fpr_0.001" in names and "attack.membership.rmia.fpr_at_threshold_0.1" in names
    unset = next(m for m in found.measurements if m.name.endswith("tpr_at_fpr_0.001"))
    assert unset.value is None and unset.low is None and not unset.supported
    assert "cannot set a threshold" in unset.protocol["warnings"][0]
    assert any("2,000 non-members in all" in w for w in found.warnings)  # 1 % wants 1,000 + 1,000


def test_threshold_depends_on_the_seed_and_on_no_member() -> None:
    generator = np.random.default_rng(8)
    members, strangers = generator.normal(size=400), generator.normal(size=400)

    def threshold(seed: int, who: np.ndarray) -> object:
        found = by_name(loss_attack(who, strangers, seeds=PublicSeeds(seed)).measurements)
        return found["tpr_at_fpr_0.01"].protocol["threshold"]

    assert threshold(1, members) == threshold(1, members * 3)
    assert len({threshold(s, members) for s in range(5)}) > 1


def test_few_examples_are_marked() -> None:
    area = loss_attack(np.arange(10.0), np.arange(50.0), seeds=SEEDS).measurements[0]
    assert not area.supported
    assert "10 examples" in area.protocol["warnings"][0]


def test_overlap_is_refused_without_showing_ids() -> None:
    ids = (["my secret text", "b"], ["c", "my secret text"])
    assert overlapping_nonmembers(*ids).tolist() == [False, True]
    with pytest.raises(DataError, match="non-member row 1") as caught:
        loss_attack(np.zeros(2), np.ones(2), seeds=SEEDS, ids=ids)
    assert "secret" not in str(caught.value)
    with pytest.raises(DataError, match="3 member ids for 2 member scores"):
        loss_attack(np.zeros(2), np.ones(2), seeds=SEEDS, ids=(["a", "b", "c"], ["d", "e"]))


@pytest.mark.parametrize(
    ("members", "strangers", "message"),
    [
        ([], [1.0, 2.0], "member losses: empty"),
        ([1.0, 2.0], [1.0, np.nan], "non-member losses: row 1 is nan"),
        ([np.inf, 2.0], [1.0, 1.0], "member losses: row 0 is inf"),
        ([1.0], [1.0, 1.0], "two of each"),
    ],
)
def test_bad_losses_are_refused(members: list[float], strangers: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        loss_attack(np.array(members), np.array(strangers), seeds=SEEDS)


def test_public_names_are_there() -> None:
    assert all(name in vars(attacks) for name in attacks.__all__)
