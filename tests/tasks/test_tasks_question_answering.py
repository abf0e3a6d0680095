"""Question answering: SQuAD's scores, windows, spans and offsets."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertForQuestionAnswering, PreTrainedTokenizerFast

from contracts.stock_checkpoints import bert_tokenizer, roberta_tokenizer
from contracts.task_tables import TABLES
from troth.data import Table, from_rows
from troth.errors import DataError, ModelError
from troth.tasks import QuestionAnswering
from troth.tasks.answers import answer_exact_match, answer_f1, normalize_answer
from troth.tasks.tokens import PairTemplate
from troth.tasks.windows import (
    Question,
    Window,
    best_spans,
    features,
    token_span,
    window_with_answer,
    windows,
)


def task(max_length: int = 48, tokenizer: PreTrainedTokenizerFast | None = None) -> QuestionAnswering:
    return QuestionAnswering(tokenizer or bert_tokenizer(), (), max_length)


def model(seed: int = 0) -> BertForQuestionAnswering:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = BertConfig(vocab_size=len(bert_tokenizer()), initializer_range=0.5, **shape)
        return BertForQuestionAnswering(config).eval()


def long_table(answer_words: list[str]) -> Table:
    """Contexts of 60 words in which the answer stands late; the gold answer is the caller's choice."""
    rows = []
    for place, word in enumerate(answer_words):
        context = " ".join(["it is on in the room now and"] * 7 + ["paris wrote the book with london mom"])
        rows.append(
            {
                "question": "who wrote the book" + " now" * place,
                "context": context,
                "answers": {"text": [word], "answer_start": [context.index(word)]},
            }
        )
    return from_rows(rows, "questions.json")


# Worked by hand from the definition: lower case, no punctuation, no articles, single spaces; best over gold answers.
@pytest.mark.parametrize(
    ("prediction", "golds", "exact", "f1"),
    [
        ("The Cat.", ["cat"], 1, 1),
        ("a  an the", ["THE"], 1, 0),
        ("in 1999", ["1999", "the year 1999"], 0, 2 / 3),
        ("Denver Broncos", ["Denver Broncos", "Broncos"], 1, 1),
        ("New York City", ["york city new"], 0, 1),
        ("rock-and-roll", ["rock and roll"], 0, 0),
        ("the the theatre", ["theatre"], 1, 1),
        ("", ["x"], 0, 0),
        ("to be to", ["to be"], 0, 0.8),
        ("x", [], 0, 0),
    ],
)
def test_scores_are_squads(prediction: str, golds: list[str], exact: float, f1: float) -> None:
    assert answer_exact_match(prediction, golds) == exact
    assert answer_f1(prediction, golds) == pytest.approx(f1)


def test_articles_go_after_punctuation() -> None:
    assert normalize_answer("a-b, The(n)  An 'the' x") == "ab then x"


@given(st.integers(1, 200), st.integers(1, 60))
def test_windows_cover_the_context_and_overlap_by_half(size: int, room: int) -> None:
    found = windows(0, size, room)
    covered = {token for window in found for token in range(window.start, window.end)}
    assert covered == set(range(size))
    assert all(window.end - window.start == min(size, room) for window in found)
    assert all(b.start - a.start <= max(1, room // 2) for a, b in itertools.pairwise(found))


@given(st.integers(1, 200), st.integers(1, 60), st.data())
def test_the_training_window_holds_the_answer(size: int, room: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, size - 1))
    last = data.draw(st.integers(first, size - 1))
    window = window_with_answer(0, Question([], [0] * size, [], (first, last)), room)
    assert 0 <= window.start < window.end <= size
    assert window.end - window.start == min(size, room)
    assert window.start <= first < window.end
    if last - first < room:
        assert last < window.end


@given(st.integers(1, 9), st.integers(1, 12), st.integers(0, 10_000))
def test_the_best_span_is_that_of_the_double_loop(longest: int, time: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    inside = (torch.rand(3, time, generator=generator) < 0.7).long()
    inside[:, 0] = 1
    start, end = torch.randn(2, 3, time, generator=generator).masked_fill(inside == 0, -1e9)
    sums, found = best_spans(start, end, inside, longest)
    for row in range(3):
        places = inside[row].nonzero()[:, 0].tolist()
        spans = [(a, b) for i, a in enumerate(places) for b in places[i : i + longest]]
        best = max(spans, key=lambda span: float(start[row, span[0]] + end[row, span[1]]))
        assert tuple(found[row]) == best
        assert sums[row] == pytest.approx(float(start[row, best[0]] + end[row, best[1]]))


def test_an_answer_neither_starts_nor_ends_at_a_token_without_characters() -> None:
    """Further pieces of a hashed word cover no character; a long answer is cut to the window's last word."""
    offsets = [(0, 4), (4, 4), (5, 9), (9, 9), (9, 9)]
    question = Question([7], [1, 2, 3, 4, 5], offsets, (0, 2))
    template = PairTemplate((), (0,), (), (0, 0, 0, 1, 0))
    whole, part = (features([question], [Window(0, 0, end)], template, with_types=False, truncated=0) for end in (5, 2))
    assert whole.ragged["context_mask"].row(0).tolist() == [0, 0, 1, 0, 1, 0, 0]
    assert (whole.scalars["start_positions"][0], whole.scalars["end_positions"][0]) == (2, 4)
    assert (part.scalars["start_positions"][0], part.scalars["end_positions"][0]) == (2, 2)


def test_an_answer_maps_to_the_tokens_that_share_a_character_with_it() -> None:
    offsets = [(0, 3), (4, 9), (9, 10), (11, 14)]
    assert token_span(offsets, 4, 10) == (1, 2)
    assert token_span(offsets, 5, 6) == (1, 1)
    assert token_span(offsets, 2, 12) == (0, 3)
    assert token_span(offsets, 20, 22) is None


@pytest.mark.parametrize(("tokenizer", "max_length"), [(bert_tokenizer(), 24), (roberta_tokenizer(), 48)])
def test_the_encoded_positions_decode_to_the_answer(tokenizer: PreTrainedTokenizerFast, max_length: int) -> None:
    table = TABLES["question_answering"]
    encoded = task(max_length, tokenizer).encode(table)
    assert encoded.truncated > 0
    for row, answers in enumerate(table.column("answers")):
        start, end = (int(encoded.scalars[name][row]) for name in ("start_positions", "end_positions"))
        ids = encoded.ragged["input_ids"].row(row)
        assert tokenizer.decode(ids[start : end + 1]).strip() == answers["text"][0]
        mask = encoded.ragged["context_mask"].row(row)
        assert mask[start] == mask[end] == 1
        assert not mask[ids == tokenizer.sep_token_id].any()


def test_token_types_are_those_of_the_tokenizer() -> None:
    table, made = TABLES["question_answering"], task(max_length=64)
    encoded = made.encode(table)
    expected = made.tokenizer(table.column("question")[2], table.column("context")[2])
    assert encoded.ragged["input_ids"].row(2).tolist() == expected["input_ids"]
    assert encoded.ragged["token_type_ids"].row(2).tolist() == expected["token_type_ids"]
    assert "token_type_ids" not in task(tokenizer=roberta_tokenizer()).encode(table).ragged


def test_the_loss_is_a_softmax_over_the_context_alone() -> None:
    made, network = task(), model()
    encoded = made.encode(TABLES["question_answering"])
    batch = made.collate(encoded, np.array([1]))
    names = ("input_ids", "attention_mask", "token_type_ids")
    output = network(**{name: batch[name] for name in names})
    inside = batch["context_mask"][0].bool()
    first = int(inside.int().argmax())
    start = torch.log_softmax(output.start_logits[0, inside], 0)[int(batch["start_positions"][0]) - first]
    end = torch.log_softmax(output.end_logits[0, inside], 0)[int(batch["end_positions"][0]) - first]
    assert made.per_example_loss(network, batch)[0].item() == pytest.approx(-(start + end).item(), rel=1e-5)


class Pointing(torch.nn.Linear):
    """A model whose logits are a function of the token ids [batch, time]; its weights mean nothing."""

    def __init__(self, logits: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__(1, 1)
        self.logits = logits

    def forward(self, input_ids: torch.Tensor, **_: object) -> object:  # type: ignore[override]
        logits = self.logits(input_ids)
        return SimpleNamespace(start_logits=logits, end_logits=logits)


def test_the_gold_answer_does_not_steer_where_a_long_context_is_searched() -> None:
    """A model that points at the middle of what it sees would find the answer, did scoring show it that window."""
    made = task(max_length=32)
    near, far = long_table(["it", "room"]), long_table(["mom", "london"])
    assert made.encode(near).truncated == 2
    middle = Pointing(lambda ids: -(torch.arange(ids.shape[1]) - 18.0).abs().expand(ids.shape))
    for network in (middle, model(0), model(1)):
        first, second = (made.score(network, table) for table in (near, far))
        assert first.detail["prediction"].tolist() == second.detail["prediction"].tolist()
        assert not np.allclose(first.losses, second.losses)


def test_an_answer_at_the_end_of_a_long_context_can_be_found() -> None:
    """A model that always points at the word 'paris' finds it, whichever window it stands in."""
    made, table = task(max_length=32), long_table(["paris", "paris"])
    wanted = made.tokenizer.convert_tokens_to_ids("paris")
    scores = made.score(Pointing(lambda ids: (ids == wanted).float() * 9), table)
    assert scores.detail["prediction"].tolist() == ["paris", "paris"]
    assert scores.correct.tolist() == [1, 1]
    assert scores.detail["f1"].tolist() == [1, 1]


def test_a_row_without_an_answer_is_refused_by_number() -> None:
    rows = [
        {"question": "who", "context": "mom wrote it", "answers": {"text": ["mom"], "answer_start": [0]}},
        {"question": "who", "context": "mom wrote it", "answers": {"text": [], "answer_start": []}},
    ]
    with pytest.raises(DataError, match=r"^q.json: row 2: .*SQuAD 1.1") as caught:
        task().encode(from_rows(rows, "q.json"))
    assert "\n" not in str(caught.value)
    assert "mom" not in str(caught.value)


def test_a_length_without_room_for_a_context_is_refused() -> None:
    with pytest.raises(ModelError, match=r"max_length = 12.*at least 19"):
        task(max_length=12).encode(TABLES["question_answering"])
