"""Real data sets beside the repository: read whole, with the numbers of rows and labels their READMEs give."""

from __future__ import annotations

import pytest

from troth.config import DataConfig, TaskConfig
from troth.data import load, read, row_hashes
from troth.errors import DataError

pytestmark = pytest.mark.real_data


def sizes(splits) -> list[int | None]:
    return [None if table is None else len(table) for table in (splits.train, splits.validation, splits.test)]


@pytest.mark.parametrize("label", ["label", "intent"])
def test_snips_intents(real_data, label):
    config = DataConfig(train="snips/train", validation="snips/dev", test="snips/test", label=label)
    splits = load(config, TaskConfig(kind="classification"), real_data)
    assert sizes(splits) == [13_084, 700, 700]
    assert len(set(splits.train.column("label"))) == 7
    assert splits.train.column("text")[0] == "listen to westbam alumb allergic on google music"


def test_snips_slots(real_data):
    config = DataConfig(train="snips/train", validation="snips/dev", test="snips/test")
    splits = load(config, TaskConfig(kind="tagging"), real_data)
    assert sizes(splits) == [13_084, 700, 700]
    assert splits.test.column("tags")[0] == ["O", "B-artist", "I-artist", "O", "O", "B-playlist", "I-playlist", "O"]
    intents = read("snips/train", kind="classification", folder=real_data)
    assert splits.train.fingerprint != intents.fingerprint


def test_atis_has_labels_unseen_in_training(real_data):
    config = DataConfig(train="atis/train", validation="atis/dev", test="atis/test")
    task = TaskConfig(kind="classification")
    with pytest.raises(DataError, match=r'^atis/dev: row 418: the label .* data\.unseen_labels = "count_as_error"$'):
        load(config, task, real_data)
    splits = load(config.model_copy(update={"unseen_labels": "count_as_error"}), task, real_data)
    assert sizes(splits) == [4_478, 500, 893]
    assert set(splits.test.column("label")) - set(splits.train.column("label"))


def test_wnut17_entities(real_data):
    config = DataConfig(train="wnut17/train.conll", validation="wnut17/dev.conll", test="wnut17/test.conll")
    splits = load(config, TaskConfig(kind="tagging"), real_data)
    assert sizes(splits) == [3_394, 1_009, 1_287]
    types = {tag[2:] for tags in splits.train.column("tags") for tag in tags if tag != "O"}
    assert types == {"person", "location", "corporation", "product", "creative-work", "group"}
    with pytest.raises(DataError, match="several splits"):
        read("wnut17", kind="tagging", folder=real_data)


def test_squadshifts_questions(real_data):
    file = "squadshifts_new_wiki/new_wiki_v1.0.json"
    table = read(file, roles={"group": "title"}, kind="question_answering", folder=real_data)
    assert len(table) == 7_938
    assert len(set(table.column("group"))) == 48
    for context, answers in zip(table.column("context"), table.column("answers"), strict=True):
        for text, start in zip(answers["text"], answers["answer_start"], strict=True):
            assert context[start : start + len(text)] == text
    folder = read("squadshifts_new_wiki", roles={"group": "title"}, kind="question_answering", folder=real_data)
    assert folder.fingerprint == table.fingerprint


def test_e2e_nlg_pairs(real_data):
    config = DataConfig(train="e2e_nlg/devset.csv", test="e2e_nlg/testset_w_refs.csv", source="mr", target="ref")
    splits = load(config, TaskConfig(kind="seq2seq"), real_data)
    assert sizes(splits) == [4_672, None, 4_693]
    assert splits.test.column("target")[0] == "A coffee shop in the city centre area called Blue Spice."


def test_tiny_shakespeare_lines(real_data):
    table = read("tiny_shakespeare/input.txt", kind="language_modeling", folder=real_data)
    lines = (real_data / "tiny_shakespeare" / "input.txt").read_text("utf-8").split("\n")
    assert table.column("text") == [line for line in lines if line.strip()]


def test_sms_spam_without_header(real_data):
    file = "sms_spam/SMSSpamCollection.tsv"
    table = read(file, kind="classification", columns=["label", "text"], folder=real_data)
    assert len(table) == 5_574
    labels = table.column("label")
    assert (labels.count("spam"), labels.count("ham")) == (747, 4_827)
    with pytest.raises(DataError, match=r"give columns = \[\.\.\.\]$"):
        read(file, kind="classification", folder=real_data)


def test_cells_of_several_lines(real_data):
    roles = {"text": "tweet", "label": "class"}
    table = read("hate_offensive/labeled_data.csv", roles=roles, kind="classification", folder=real_data)
    assert len(table) == 24_783
    assert set(table.column("label")) == {"0", "1", "2"}
    assert any("\n" in text for text in table.column("text"))


def test_a_row_has_one_hash_whatever_the_task(real_data):
    intents = read("snips/dev", roles={"text": "text"}, kind="classification", folder=real_data)
    slots = read("snips/dev", kind="tagging", folder=real_data)
    assert (row_hashes(intents, b"key") == row_hashes(slots, b"key")).all()
    assert len(set(row_hashes(intents, b"key"))) == len({" ".join(tokens) for tokens in slots.column("tokens")})
