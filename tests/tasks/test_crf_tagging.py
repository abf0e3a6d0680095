"""Tagging by a model that scores whole rows of tags: encoding, the best path, probabilities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from contracts.task_tables import TABLES
from troth.config import parse
from troth.data import from_rows
from troth.seeds import PublicSeeds
from troth.tasks import Tagging, make_model, make_task
from troth.tasks.characters import WORD_BYTES, byte_rows, word_row
from troth.tasks.crf_tagging import CrfTagging
from troth.tasks.hashed_tokenizer import HashedTokenizer
from troth.tasks.modeling_tagger import TrothTaggerForTokenClassification

TABLE = TABLES["tagging"]


def task(max_length: int = 32) -> CrfTagging:
    return CrfTagging(HashedTokenizer(vocabulary_size=512), ("B-ACT", "I-OBJ", "O"), max_length)


def model(scale: float = 0.3) -> TrothTaggerForTokenClassification:
    config = parse(
        {
            "run": {"name": "tagger", "seed": 1},
            "model": {"preset": "bilstm-crf", "width": 16, "vocabulary_size": 512},
            "data": {"train": "rows"},
            "task": {"kind": "tagging"},
        }
    )
    made = make_model(config, make_task(config, TABLE, Path()), PublicSeeds(1), Path()).eval()
    noise = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=noise))
    return made


def test_the_preset_makes_this_task() -> None:
    raw = {"run": {"name": "t"}, "data": {"train": "rows"}, "task": {"kind": "tagging"}}
    for preset, kind in (("bilstm-crf", CrfTagging), ("tiny-bert", Tagging)):
        made = make_task(parse({**raw, "model": {"preset": preset}}), TABLE, Path())
        assert type(made) is kind
        assert made.labels == ("B-ACT", "I-OBJ", "O")


def test_every_word_is_one_token_with_its_bytes() -> None:
    rows = [
        {"tokens": ["Playlists", "7:30", "o'clock"], "tags": ["B-ACT", "O", "I-OBJ"]},
        {"tokens": ["x" * 40], "tags": ["O"]},
    ]
    made = task()
    encoded = made.encode(from_rows(rows, "rows"))
    assert encoded.ragged["input_ids"].row(0).tolist() == [word_row(w, 512) for w in rows[0]["tokens"]]
    assert encoded.ragged["labels"].row(0).tolist() == [0, 2, 1]
    batch = made.collate(encoded, np.array([1, 0]))
    assert batch["characters"].shape == (2, 3, WORD_BYTES)
    assert batch["characters"].dtype == torch.int64
    assert tuple(batch["characters"][1, 2].tolist()) == byte_rows("o'clock")
    assert batch["characters"][0, 1:].eq(0).all()
    narrow = made.collate(encoded, np.array([0]))["characters"]
    assert narrow.shape == (1, 3, len("Playlists"))


def test_words_beyond_the_maximum_length_are_predicted_outside_and_counted() -> None:
    table = from_rows([{"tokens": ["play"] * 12, "tags": ["B-ACT"] * 12}] * 10, "rows")
    made = task(max_length=8)
    encoded = made.encode(table)
    assert encoded.truncated == 10
    assert encoded.lengths.tolist() == [8] * 10
    scores = made.score(model(), table)
    assert all(found[8:] == ["O"] * 4 for found in scores.detail["prediction"])
    assert scores.detail["words_cut"].tolist() == [4] * 10


def test_a_row_without_words_is_one_unknown_word_without_a_tag() -> None:
    table = from_rows([{"tokens": [], "tags": []}, {"tokens": ["play"], "tags": ["B-ACT"]}], "rows")
    made = task()
    encoded = made.encode(table)
    assert encoded.ragged["input_ids"].row(0).tolist() == [made.tokenizer.unk_token_id]
    assert made.per_example_loss(model(), made.collate(encoded, np.arange(2)))[0] == 0
    assert made.score(model(), table).detail["prediction"][0] == []


def test_predictions_are_the_best_paths() -> None:
    made, network = task(), model()
    with torch.no_grad():
        network.crf.transitions[:, 1] -= 8  # the path avoids a tag that single words would take
    scores = made.score(network, TABLE, batch_size=5)
    encoded = made.encode(TABLE)
    argmax = []
    for row in range(len(TABLE)):
        batch = made.collate(encoded, np.array([row]))
        emissions = made._logits(network, batch).detach()
        path = network.crf.decode(emissions, torch.tensor([emissions.shape[1]]))[0]
        assert scores.detail["prediction"][row] == [made.labels[code] for code in path]
        argmax.append([made.labels[code] for code in emissions[0].argmax(1)])
    assert argmax != list(scores.detail["prediction"])


def test_probabilities_of_tags_sum_to_one_and_are_not_those_of_words_alone() -> None:
    made, network = task(), model()
    encoded = made.encode(TABLE)
    batch = made.collate(encoded, np.arange(6))
    logs = made.token_log_probabilities(network, batch)
    own = batch["attention_mask"] == 1
    assert logs.dtype == torch.float64
    torch.testing.assert_close(logs[own].exp().sum(1), torch.ones(int(own.sum())).double())
    emissions = made._logits(network, batch).detach()
    assert (logs - emissions.log_softmax(2))[own].abs().max() > 1e-2


def test_probabilities_of_a_plain_tagger_are_a_softmax() -> None:
    raw = {
        "run": {"name": "t"},
        "model": {"preset": "tiny-bert", "layers": 1, "width": 16, "heads": 2},
        "data": {"train": "rows"},
        "task": {"kind": "tagging"},
    }
    config = parse(raw)
    made = make_task(config, TABLE, Path())
    network = make_model(config, made, PublicSeeds(1), Path()).eval()
    batch = made.collate(made.encode(TABLE), np.arange(3))
    logs = made.token_log_probabilities(network, batch)
    wanted = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.log_softmax(2)
    torch.testing.assert_close(logs.float(), wanted, atol=1e-6, rtol=1e-5)


def test_tags_outside_of_the_label_set_may_be_any() -> None:
    """A row's loss is then the likelihood of its other tags: never larger than with a tag for every word."""
    made, network = task(), model()
    batch = made.collate(made.encode(TABLE), np.arange(8))
    whole = made.per_example_loss(network, batch) * batch["attention_mask"].sum(1)
    partly = {**batch, "labels": batch["labels"].clone()}
    partly["labels"][:, 0] = -100
    rest = made.per_example_loss(network, partly) * (batch["attention_mask"].sum(1) - 1)
    assert (rest < whole).all()


@pytest.mark.parametrize("draw", [0, 7])
def test_collating_draws_nothing(draw: int) -> None:
    made = task()
    encoded = made.encode(TABLE)
    one, other = made.collate(encoded, np.arange(4)), made.collate(encoded, np.arange(4), draw=draw)
    assert all(torch.equal(values, other[name]) for name, values in one.items())
