"""The built-in corpus as a whole: sizes, people, times, splits, determinism, and what planted bias may change."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from datetime import datetime, timedelta
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from troth.config import BuiltinConfig
from troth.data import REQUIRED, Splits, Table
from troth.data.home import hold_out, home
from troth.data.home_grammar import load_grammar
from troth.errors import ConfigError

KINDS = ("classification", "tagging", "question_answering", "seq2seq", "language_modeling")
WHO = {"id", "user", "group", "time"}
NORTH_ONLY = {"aye", "och", "ach", "pal", "ta", "pet", "duck", "our", "us", "wee", "smidge"}
SOUTH_ONLY = {"howdy", "shoot", "dang", "y'all", "thanks", "hon", "darlin", "my", "me", "lil", "tad"}


@cache
def corpus(kind: str = "classification", rows: int = 5_000, seed: int = 3, bias: float = 0.0) -> Splits:
    return home(BuiltinConfig(rows=rows, seed=seed, bias=bias), kind)


def tables(splits: Splits) -> dict[str, Table]:
    assert splits.validation is not None
    assert splits.test is not None
    return {"train": splits.train, "validation": splits.validation, "test": splits.test}


def contents(splits: Splits) -> dict[str, dict[str, object]]:
    """Every row of a corpus by its id."""
    return {row["id"]: row for table in tables(splits).values() for row in table.arrow.to_pylist()}


def texts(table: Table) -> list[str]:
    """What a reader sees of each row."""
    if table.has("tokens"):
        return [" ".join(tokens) for tokens in table.column("tokens")]
    if table.has("question"):
        return ["\n".join(pair) for pair in zip(table.column("question"), table.column("context"), strict=True)]
    return table.column("source" if table.has("source") else "text")


def digest(splits: Splits) -> str:
    rows = [[name, table.arrow.to_pylist()] for name, table in tables(splits).items()]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


@pytest.mark.parametrize("kind", KINDS)
def test_every_task_gets_its_roles_and_who_said_it_when(kind: str) -> None:
    for name, table in tables(corpus(kind)).items():
        assert set(table.roles) == WHO | set(REQUIRED[kind])
        assert table.source == f"builtin home/{name}"


def test_of_ten_thousand_rows_two_thousand_are_kept_twice_as_non_members() -> None:
    assert {name: len(table) for name, table in tables(corpus("classification", 10_000)).items()} == {
        "train": 6_000,
        "validation": 2_000,
        "test": 2_000,
    }
    assert corpus().truth["nonmembers"] == "validation"


@pytest.mark.parametrize("kind", KINDS)
def test_no_template_is_on_both_sides_and_validation_shares_those_of_train(kind: str) -> None:
    splits = corpus(kind)
    names = splits.truth["templates"]
    assert isinstance(names, dict)
    used = {n: {t for i in table.column("id") for t in names[i]} for n, table in tables(splits).items()}
    assert used["train"] & used["test"] == set()
    assert used["validation"] & used["test"] == set()
    assert len(used["validation"] - used["train"]) < 0.05 * len(used["validation"])
    assert len(used["test"]) > 40


@given(
    kind=st.sampled_from(KINDS),
    rows=st.integers(200, 1_000),
    seed=st.integers(0, 2**40),
    bias=st.sampled_from([0.0, 0.3, 1.0]),
    users=st.integers(2, 200),
)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_every_corpus_keeps_its_promises(kind: str, rows: int, seed: int, bias: float, users: int) -> None:
    splits = home(BuiltinConfig(rows=rows, seed=seed, bias=bias, users=users), kind)
    parts = tables(splits)
    seen = {name: set(texts(table)) for name, table in parts.items()}
    assert not seen["train"] & seen["test"]
    assert not seen["validation"] & seen["test"]
    assert not seen["train"] & seen["validation"]
    assert sum(map(len, parts.values())) == rows
    assert len(parts["test"]) == rows // 5
    ids = [i for table in parts.values() for i in table.column("id")]
    assert len(set(ids)) == rows
    assert set(ids) == set(splits.truth["templates"]) == set(splits.truth["phrasings"])  # type: ignore[call-overload]
    if kind == "classification":
        assert set(parts["train"].column("label")) == set(load_grammar().intents)


def test_texts_repeat_rarely() -> None:
    seen = texts(corpus().train)
    assert len(set(seen)) > 0.9 * len(seen)


def test_intents_are_moderately_skewed() -> None:
    counts = Counter(corpus().train.column("label"))
    most, least = max(counts.values()), min(counts.values())
    assert len(counts) == 24
    assert 2 < most / least < 8


def test_activity_is_zipf() -> None:
    users = [u for table in tables(corpus()).values() for u in table.column("user")]
    counts = np.array(sorted(Counter(users).values(), reverse=True), dtype=float)
    slope = np.polyfit(np.log(np.arange(1, 31)), np.log(counts[:30]), 1)[0]
    assert -1.15 < slope < -0.85
    assert len(counts) > 150
    assert 0.55 < counts[:20].sum() / counts.sum() < 0.67  # Zipf with exponent 1 gives 0.61


def test_a_users_name_tells_nothing_about_activity() -> None:
    users = [u for table in tables(corpus()).values() for u in table.column("user")]
    counts = Counter(users)
    rank = [user for user, _ in counts.most_common()]
    position = np.array([rank.index(user) for user in sorted(rank)])
    assert abs(np.corrcoef(position, np.arange(len(position)))[0, 1]) < 0.25


@pytest.mark.parametrize("kind", ["classification", "question_answering"])
def test_times_lie_within_thirty_days_and_go_up(kind: str) -> None:
    for table in tables(corpus(kind)).values():
        times = [datetime.fromisoformat(t) for t in table.column("time")]
        assert times == sorted(times)
        assert times[-1] - times[0] < timedelta(days=30)
        assert {t.day for t in times} == {(times[0] + timedelta(days=d)).day for d in range(30)}
        assert all(6 <= t.hour < 24 for t in times)


def test_every_user_has_one_group_and_the_groups_talk_equally_much() -> None:
    splits = corpus()
    groups = splits.truth["groups"]
    assert isinstance(groups, dict)
    for table in tables(splits).values():
        assert [groups[u] for u in table.column("user")] == table.column("group")
        assert 0.46 < np.mean([g == "north" for g in table.column("group")]) < 0.54


@pytest.mark.parametrize("kind", KINDS)
def test_the_group_shows_in_the_text(kind: str) -> None:
    shown = []
    for table in tables(corpus(kind)).values():
        for text, group in zip(texts(table), table.column("group"), strict=True):
            words = set(text.split())
            own, other = (NORTH_ONLY, SOUTH_ONLY) if group == "north" else (SOUTH_ONLY, NORTH_ONLY)
            assert not words & other
            shown.append(bool(words & own))
    assert 0.35 < np.mean(shown) < 0.75


def test_names_are_mostly_but_not_always_those_of_the_group() -> None:
    north, _ = load_grammar().values["contact"].entries
    own, all_names = 0, 0
    train = corpus("seq2seq").train
    for target, group in zip(train.column("target"), train.column("group"), strict=True):
        if "contact=" in target:
            name = target.split("contact=")[1].split(", ")[0].rstrip(")")
            own += (name in north) == (group == "north")
            all_names += 1
    assert all_names > 300
    assert 0.8 < own / all_names < 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_corpus(kind: str) -> None:
    config = BuiltinConfig(rows=300, seed=5, bias=0.5, users=20, canaries=2, canary_repeats=2)
    first, second = home(config, kind), home(config, kind)
    assert digest(first) == digest(second)
    assert first.truth == second.truth
    assert first.train.fingerprint == second.train.fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_another_seed_gives_another_corpus(kind: str) -> None:
    a, b = corpus(kind, 1_000, 1), corpus(kind, 1_000, 2)
    assert len(set(texts(a.test)) & set(texts(b.test))) < 20  # type: ignore[arg-type]
    assert set(a.truth["templates"].values()) != set(b.truth["templates"].values())  # type: ignore[attr-defined]


GOLDEN = {
    "classification": "b828fb2477a9a74f16865933e1d90c9627813b3c339d357d698056290616e2a1",
    "tagging": "f515183c2a1d9c45444ae0cea5a9735f1154d3078ea7be8eab99490b9a584101",
    "question_answering": "b5f7e22b8e56b4511bfdb06e2d9afcef22d465729adb350ac8789c8a743d358f",
    "seq2seq": "ef3c1a8ae16464df1cac0e2b78dab03ffff15a59aea53763345dfc7c90e63aa9",
    "language_modeling": "9d65a42415566ac6a11626ff858d7c6eb98db0e6f3802e9495b7917f079cb51b",
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_are_the_same_on_every_machine(kind: str) -> None:
    config = BuiltinConfig(rows=400, seed=11, bias=0.5, users=40, canaries=3, canary_repeats=2)
    assert digest(home(config, kind)) == GOLDEN[kind], (
        "the corpus changed: say so in the changelog, with the new digest"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_bias_leaves_the_other_group_alone(kind: str) -> None:
    fair, unfair = (contents(corpus(kind, 1_000, 4, bias)) for bias in (0.0, 1.0))
    north = [i for i, row in fair.items() if row["group"] == "north"]
    assert all(fair[i] == unfair[i] for i in north)
    south = [i for i in fair if fair[i]["group"] == "south"]
    assert sum(fair[i] != unfair[i] for i in south) > 0.3 * len(south)


@pytest.mark.parametrize("kind", KINDS)
def test_more_bias_adds_to_what_less_bias_did(kind: str) -> None:
    rare, wrong = [], []
    for bias in (0.0, 0.25, 0.5, 0.75, 1.0):
        truth = corpus(kind, 1_000, 4, bias).truth
        assert isinstance(truth["phrasings"], dict)
        rare.append({i for i, phrasing in truth["phrasings"].items() if phrasing == "rare"})
        assert isinstance(truth["label_noise"], dict)
        wrong.append(len(truth["label_noise"]))
    assert all(a < b for a, b in itertools.pairwise(rare))
    assert wrong[0] == 0
    if kind != "language_modeling":
        assert wrong == sorted(set(wrong))


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "language_modeling"])
def test_wrong_gold_is_the_biased_groups_never_tested_on_and_listed_with_the_right_one(kind: str) -> None:
    splits = corpus(kind, 1_000, 4, 1.0)
    assert splits.truth["biased_group"] == "south"
    noise = splits.truth["label_noise"]
    assert isinstance(noise, dict)
    rows = contents(splits)
    assert {rows[i]["group"] for i in noise} == {"south"}
    assert not set(noise) & set(splits.test.column("id"))  # type: ignore[union-attr]
    assert set(noise) & set(splits.validation.column("id"))  # type: ignore[union-attr]
    assert all(rows[i][role] != value for i, right in noise.items() for role, value in right.items())
    south = [i for i in rows if rows[i]["group"] == "south" and i not in set(splits.test.column("id"))]  # type: ignore[union-attr]
    assert 0.2 < len(noise) / len(south) < 0.36


def test_right_gold_is_that_of_the_unbiased_corpus_where_the_words_are_the_same() -> None:
    fair, unfair = corpus("classification", 1_000, 4, 0.0), corpus("classification", 1_000, 4, 1.0)
    rows, noise = contents(fair), unfair.truth["label_noise"]
    assert isinstance(noise, dict)
    assert all(right == {"label": rows[i]["label"]} for i, right in noise.items())


def test_more_users_than_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^data\.builtin\.users = 300: more users than rows \(200\).*raise rows$"):
        home(BuiltinConfig(rows=200, users=300), "classification")


@given(st.lists(st.sampled_from("abcdefghij"), max_size=40), st.integers(0, 40), st.integers(0, 9), st.integers(0, 5))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_holding_out_keeps_copies_together_and_never_holds_too_many(
    letters: list[str], count: int, seed: int, anchors: int
) -> None:
    held = hold_out(letters, count, seed, anchors)
    inside = {t for t, h in zip(letters, held, strict=True) if not h}
    outside = {t for t, h in zip(letters, held, strict=True) if h}
    assert not inside & outside
    assert not outside & set(letters[:anchors])
    assert sum(held) <= count


@given(st.integers(1, 60), st.integers(0, 60), st.integers(0, 2**62))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_holding_out_is_exact_where_texts_are_unique(rows: int, count: int, seed: int) -> None:
    held = hold_out([str(i) for i in range(rows)], count, seed)
    assert sum(held) == min(rows, count)


def test_who_is_held_out_depends_on_the_seed() -> None:
    names = [str(i) for i in range(100)]
    assert hold_out(names, 50, 1) != hold_out(names, 50, 2)
