"""The gold of the built-in corpus, task by task: tags, commands and answers say what the words say."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from troth.config import BuiltinConfig
from troth.data import Splits, Table
from troth.data.home import home
from troth.data.home_grammar import load_grammar
from troth.data.home_utterances import command_of, parse_command


@cache
def corpus(kind: str, bias: float = 0.0) -> Splits:
    return home(BuiltinConfig(rows=2_000, seed=8, bias=bias), kind)


def all_tables(splits: Splits) -> list[Table]:
    assert splits.validation is not None
    assert splits.test is not None
    return [splits.train, splits.validation, splits.test]


def spans(tokens: list[str], tags: list[str]) -> list[tuple[str, str]]:
    """The slots that tags mark, with their words."""
    out: list[tuple[str, str]] = []
    for token, tag in zip(tokens, tags, strict=True):
        if tag[0] == "B":
            out.append((tag[2:], token))
        elif tag[0] == "I":
            out[-1] = (out[-1][0], f"{out[-1][1]} {token}")
    return out


@pytest.mark.parametrize("bias", [0.0, 1.0])
def test_tags_are_valid_bio_and_as_many_as_tokens(bias: float) -> None:
    slots = {entry.slot for entry in load_grammar().values.values()}
    for table in all_tables(corpus("tagging", bias)):
        for tokens, tags in zip(table.column("tokens"), table.column("tags"), strict=True):
            assert len(tokens) == len(tags) > 0
            for before, tag in zip(["O", *tags], tags, strict=False):
                assert tag == "O" or (tag[:2] in ("B-", "I-") and tag[2:] in slots)
                assert tag[0] != "I" or before[1:] == tag[1:]


def test_commands_parse_back_to_the_intent_and_the_tagged_slots() -> None:
    tagged, labelled = corpus("tagging"), corpus("classification")
    slots, intents = {}, {}
    for table in all_tables(tagged):
        for i, tokens, tags in zip(table.column("id"), table.column("tokens"), table.column("tags"), strict=True):
            slots[i] = (" ".join(tokens), spans(tokens, tags))
    for table in all_tables(labelled):
        intents.update(zip(table.column("id"), table.column("label"), strict=True))
    for table in all_tables(corpus("seq2seq")):
        for i, source, target in zip(table.column("id"), table.column("source"), table.column("target"), strict=True):
            assert parse_command(target) == (intents[i], slots[i][1])
            assert source == slots[i][0]


def test_most_commands_have_slots_and_some_values_are_new_in_the_test() -> None:
    splits = corpus("seq2seq")
    parts = [[parse_command(t)[1] for t in table.column("target")] for table in all_tables(splits)]
    assert sum(bool(slots) for slots in parts[0]) > 0.9 * len(parts[0])
    known = {slot for slots in parts[0] + parts[1] for slot in slots}
    tested = [slot for slots in parts[2] for slot in slots]
    assert 0.05 < sum(slot not in known for slot in tested) / len(tested) < 0.3


names = st.lists(st.text("abcdefgh", min_size=1, max_size=6), min_size=1, max_size=3).map("_".join)
words = st.lists(st.text("abcdefgh0123456789'", min_size=1, max_size=6), min_size=1, max_size=4).map(" ".join)


@given(names, st.lists(st.tuples(names, words), max_size=4))
@settings(deadline=None, derandomize=True)
def test_commands_are_read_back_as_they_were_written(intent: str, slots: list[tuple[str, str]]) -> None:
    assert parse_command(command_of(intent, slots)) == (intent, slots)


@pytest.mark.parametrize("text", ["", "SetTimer", "SetTimer(", "set timer()", "SetTimer() now"])
def test_what_is_no_command_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no command"):
        parse_command(text)


def test_a_value_named_twice_in_an_utterance_differs() -> None:
    for table in all_tables(corpus("seq2seq")):
        for target in table.column("target"):
            slots = parse_command(target)[1]
            assert len(set(slots)) == len(slots)


def test_words_are_lower_case_and_without_commas() -> None:
    for table in all_tables(corpus("classification")):
        for text in table.column("text"):
            assert text == " ".join(text.split()).lower()
            assert not set(text) & set(",()=<>{}[]|")


@pytest.mark.parametrize("bias", [0.0, 1.0])
def test_answers_stand_where_they_are_said_to_stand(bias: float) -> None:
    for table in all_tables(corpus("question_answering", bias)):
        for context, answers in zip(table.column("context"), table.column("answers"), strict=True):
            assert len(answers["text"]) == len(answers["answer_start"]) == 1
            text, start = answers["text"][0], answers["answer_start"][0]
            assert context[start : start + len(text)] == text
            assert context[start - 1 : start] in ("", " ")
            assert context[start + len(text) : start + len(text) + 1] in ("", " ")


def test_notes_state_the_fact_asked_for_and_the_same_fact_of_another_entity() -> None:
    splits = corpus("question_answering")
    names = splits.truth["templates"]
    assert isinstance(names, dict)
    for table in all_tables(splits):
        for i, context in zip(table.column("id"), table.column("context"), strict=True):
            question, asked, rival, *others = (name.split("/")[0] for name in names[i])
            assert asked == rival == f"{question}.note"
            assert asked not in others
            assert 3 <= context.count(" .") <= 6  # sentences, and sometimes a heading


def test_the_answer_is_not_to_be_guessed_from_its_place() -> None:
    order = Counter()
    for table in all_tables(corpus("question_answering")):
        for context, answers in zip(table.column("context"), table.column("answers"), strict=True):
            order[context[: answers["answer_start"][0]].count(" .")] += 1
    assert max(order.values()) < 0.4 * sum(order.values())


def test_a_wrong_answer_is_that_of_the_other_entity() -> None:
    splits = corpus("question_answering", 1.0)
    noise = splits.truth["label_noise"]
    assert isinstance(noise, dict)
    rows = {row["id"]: row for table in all_tables(splits) for row in table.arrow.to_pylist()}
    assert len(noise) > 100
    for i, right in noise.items():
        text, start = right["answers"]["text"][0], right["answers"]["answer_start"][0]
        assert rows[i]["context"][start : start + len(text)] == text
        assert rows[i]["answers"]["text"] != [text]


@pytest.mark.parametrize("kind", ["classification", "seq2seq"])
def test_the_reference_accuracy_is_one_but_for_the_shared_rows(kind: str) -> None:
    reference = corpus(kind).truth["reference_accuracy"]
    assert isinstance(reference, float)
    assert 0.95 < reference < 1.0


@pytest.mark.parametrize("kind", ["tagging", "question_answering", "language_modeling"])
def test_tasks_without_intents_have_no_reference_accuracy(kind: str) -> None:
    assert "reference_accuracy" not in corpus(kind).truth
