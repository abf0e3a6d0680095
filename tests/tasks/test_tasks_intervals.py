"""Every metric of every task on made-up scores: skewed labels, singletons, all wrong, all right, one row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.stock_checkpoints import bert_tokenizer
from troth.data import Table, from_rows
from troth.results import Measurement
from troth.seeds import PublicSeeds
from troth.tasks import Classification, QuestionAnswering, Scores, Seq2Seq, Tagging, Task
from troth.tasks.language_modeling import CausalLanguageModeling
from troth.tasks.measures import Measures

LABELS = tuple(f"l{i:02}" for i in range(50))
QUALITIES = ["all wrong", "all right", "mixed", "one right", "one wrong", "all alike"]


def measured(task: Task, scores: Scores, table: Table) -> dict[str, Measurement]:
    found = task.measure(scores, table, prefix="test", seeds=PublicSeeds(0), outside_guarantee=False)
    return {m.name.removeprefix("test."): m for m in found}


def quality(name: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """[rows] how much of each row is right, between 0 and 1."""
    shares = {
        "all wrong": np.zeros(n),
        "all right": np.ones(n),
        "all alike": np.full(n, 0.5),
        "mixed": rng.choice([0, 0.1, 0.5, 1], n),
    }
    if name in shares:
        return shares[name]
    wrong = float(name == "one wrong")
    return np.r_[1 - wrong, np.full(n - 1, wrong)]


def classified(right: np.ndarray, losses: np.ndarray, rng: np.random.Generator) -> tuple[Task, Scores, Table]:
    """Two frequent labels, and many that occur once or twice."""
    n = len(right)
    gold = np.where(rng.random(n) < 0.6, rng.integers(0, 2, n), rng.integers(0, len(LABELS), n))
    prediction = np.where(right > rng.random(n), gold, (gold + 1 + rng.integers(0, 2, n)) % len(LABELS))
    table = from_rows([{"text": f"text {i}", "label": LABELS[label]} for i, label in enumerate(gold)], "rows")
    correct = (prediction == gold).astype(float)
    return Classification(bert_tokenizer(), LABELS), Scores(losses, correct, None, {"prediction": prediction}), table


def tagged(right: np.ndarray, losses: np.ndarray, rng: np.random.Generator) -> tuple[Task, Scores, Table]:
    """Sentences of very different length, half of them without spans."""
    n = len(right)
    words = rng.geometric(0.2, n) * np.where(rng.random(n) < 0.1, 10, 1)
    gold = np.where(rng.random(n) < 0.5, 0, rng.integers(1, 5, n))
    hits = np.floor(right * gold).astype(np.int64)
    predicted = hits + np.where(right < 1, rng.integers(0, 3, n), 0)
    detail = {"true_positives": hits, "predicted": predicted, "gold": gold, "words": words, "labelled": words}
    detail |= {"right": np.floor(right * words).astype(np.int64), "words_cut": np.zeros(n, dtype=np.int64)}
    table = from_rows([{"tokens": ["a"], "tags": ["O"]} for _ in range(n)], "rows")
    return Tagging(bert_tokenizer(), ("O",)), Scores(losses, right, None, detail), table


def answered(right: np.ndarray, losses: np.ndarray, rng: np.random.Generator) -> tuple[Task, Scores, Table]:
    table = from_rows([{"text": "unread"}] * len(right), "rows")
    return QuestionAnswering(bert_tokenizer()), Scores(losses, np.floor(right), None, {"f1": right}), table


def written(right: np.ndarray, losses: np.ndarray, rng: np.random.Generator) -> tuple[Task, Scores, Table]:
    table = from_rows([{"text": "unread"}] * len(right), "rows")
    return Seq2Seq(bert_tokenizer()), Scores(losses, np.floor(right), None, {"rouge_l": right}), table


def predicted(right: np.ndarray, losses: np.ndarray, rng: np.random.Generator) -> tuple[Task, Scores, Table]:
    """Texts of different length, some without a token to predict."""
    tokens = rng.integers(0, 40, len(right))
    tokens[0] = 3
    detail = {"nats": losses * tokens, "tokens": tokens, "right": np.floor(right * tokens).astype(np.int64)}
    table = from_rows([{"text": "unread"}] * len(right), "rows")
    return CausalLanguageModeling(bert_tokenizer()), Scores(losses, right, None, detail), table


MADE = [classified, tagged, answered, written, predicted]


@pytest.mark.parametrize("make", MADE)
@given(
    st.sampled_from([1, 2, 9, 10, 31, 300]) | st.integers(1, 60),
    st.sampled_from(QUALITIES),
    st.sampled_from(["losses all alike", "losses of all sizes", "no loss"]),
    st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_every_metric_lies_in_its_interval_and_none_claims_certainty(
    make: Any, n: int, right: str, losses: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    made = {"losses all alike": np.full(n, 0.1), "losses of all sizes": rng.lognormal(0, 2, n), "no loss": np.zeros(n)}
    for name, m in measured(*make(quality(right, n, rng), made[losses], rng)).items():
        assert m.value is not None and m.low is not None and m.high is not None, name
        assert m.low <= m.value <= m.high, name
        if m.unit == "fraction":
            assert 0 <= m.low < m.high <= 1, name
        if m.supported:
            assert m.low < m.high, name
        if m.interval_method == "bayesian-bootstrap":
            assert m.supported <= (n >= 10), name


@pytest.mark.parametrize("n", [400, 1287])
def test_nothing_right_is_not_certainly_nothing(n: int) -> None:
    """The reported faults: span F1 and ROUGE-L of 0.0 with the interval [0.0, 0.0], supported."""
    rng = np.random.default_rng(0)
    none, losses = np.zeros(n), rng.exponential(size=n)
    unseen = 1 - 0.025 ** (1 / n)
    rouge = measured(*written(none, losses, rng))["rouge_l"]
    assert (rouge.low, rouge.value, rouge.interval_method) == (0, 0, "zero-event-bound")
    assert rouge.supported and rouge.high == pytest.approx(unseen)
    f1 = measured(*tagged(none, losses, rng))["span_f1"]
    assert (f1.low, f1.value, f1.interval_method, f1.supported) == (0, 0, "zero-event-bound", True)
    assert unseen < f1.high < 6 * unseen  # about half of the sentences have spans, of different number
    assert "replicates" not in f1.protocol


def test_a_span_f1_of_no_spans_at_all_says_nothing() -> None:
    task, scores, table = tagged(np.ones(50), np.ones(50), np.random.default_rng(0))
    scores.detail["gold"][:] = scores.detail["true_positives"][:] = scores.detail["predicted"][:] = 0
    f1 = measured(task, scores, table)["span_f1"]
    assert (f1.value, f1.low, f1.high, f1.supported) == (0, 0, 1, False)
    assert f1.protocol["rows_that_count"] == 0


def test_sentences_without_spans_do_not_count_towards_support() -> None:
    task, scores, table = tagged(np.full(60, 0.5), np.ones(60), np.random.default_rng(0))
    gold, hits = (np.zeros(60, dtype=np.int64) for _ in range(2))
    gold[:9], hits[:4] = 1, 1
    scores.detail.update(gold=gold, true_positives=hits, predicted=hits)
    assert not measured(task, scores, table)["span_f1"].supported
    gold[9] = 1
    assert measured(task, scores, table)["span_f1"].supported


@pytest.mark.parametrize(("n", "supported"), [(1, False), (29, False), (30, True)])
def test_losses_and_perplexity_want_thirty_rows(n: int, supported: bool) -> None:
    rng = np.random.default_rng(0)
    task, scores, table = predicted(np.full(n, 0.5), rng.exponential(size=n), rng)
    scores.detail["tokens"][:] = 40
    found = measured(task, scores, table)
    assert found["perplexity"].supported == found["loss"].supported == supported


def test_rows_all_alike_in_loss_do_not_support_a_loss_without_width() -> None:
    rng = np.random.default_rng(0)
    found = measured(*predicted(np.full(200, 0.5), np.full(200, 0.3), rng))
    for name in ("loss", "perplexity"):
        assert found[name].low == found[name].value == found[name].high
        assert not found[name].supported


def test_a_perplexity_without_a_number_is_not_supported() -> None:
    task, scores, table = predicted(np.full(40, 0.5), np.full(40, 800.0), np.random.default_rng(0))
    perplexity = measured(task, scores, table)["perplexity"]
    assert (perplexity.value, perplexity.supported) == (None, False)


@pytest.mark.parametrize(("singletons", "supported"), [(5, True), (6, False)])
def test_many_labels_with_few_rows_do_not_support_a_macro_f1(singletons: int, supported: bool) -> None:
    gold = np.r_[np.zeros(100), np.ones(100), np.arange(2, 2 + singletons)].astype(np.int64)
    prediction = np.where(np.arange(len(gold)) < 10, 1, gold)
    f1 = Measures("test", PublicSeeds(0), False).macro_f1(gold, prediction)
    assert f1.supported == supported
    assert (f1.protocol["labels"], f1.protocol["labels_below_5_rows"]) == (2 + singletons, singletons)
    assert (f1.n, f1.interval_method) == (200 + singletons, "bayesian-bootstrap")
