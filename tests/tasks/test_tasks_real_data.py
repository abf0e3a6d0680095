"""Each task encodes, descends and scores a handful of rows of one real set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from troth.config import parse
from troth.data import Table, read
from troth.seeds import PublicSeeds
from troth.tasks import make_model, make_task

pytestmark = pytest.mark.real_data
ROWS = 40

SETS = [
    ("classification", "snips/train", {}, "tiny-bert", "test.accuracy"),
    ("tagging", "wnut17/train.conll", {}, "tiny-bert", "test.span_f1"),
    ("tagging", "atis/train", {}, "bilstm-crf", "test.span_f1"),
    ("question_answering", "squadshifts_new_wiki/new_wiki_v1.0.json", {}, "tiny-bert", "test.f1"),
    ("seq2seq", "e2e_nlg/devset.csv", {"source": "mr", "target": "ref"}, "tiny-t5", "test.rouge_l"),
    ("language_modeling", "tiny_shakespeare/input.txt", {}, "tiny-gpt2", "test.perplexity"),
    ("language_modeling", "wikitext2_small/valid.txt", {}, "tiny-bert", "test.perplexity"),
]


@pytest.mark.parametrize(("kind", "file", "roles", "preset", "metric"), SETS, ids=[row[1] for row in SETS])
def test_a_real_set_is_encoded_descended_and_scored(
    kind: str,
    file: str,
    roles: dict[str, str],
    preset: str,
    metric: str,
    real_data: Path,
    tmp_path: Path,
) -> None:
    table = few(read(real_data / file, roles=roles, kind=kind))
    raw = {
        "run": {"name": "real"},
        "model": {"preset": preset},
        "data": {"train": file},
        "task": {"kind": kind},
    }
    config = parse(raw)
    task = make_task(config, table, tmp_path)
    model = make_model(config, task, PublicSeeds(0), tmp_path)
    encoded = task.encode(table)
    assert encoded.lengths.max() <= 2 * task.max_length
    losses = task.per_example_loss(model, task.collate(encoded, np.arange(8)))
    losses.sum().backward()
    assert np.isfinite(losses.detach().numpy()).all()
    assert (losses > 0).any()
    scores = task.score(model, table)
    measured = task.measure(scores, table, prefix="test", seeds=PublicSeeds(0), outside_guarantee=False)
    found = next(m for m in measured if m.name == metric)
    assert found.n == ROWS
    assert found.value is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.value <= found.high


def few(table: Table) -> Table:
    """Rows spread over the whole set, so that every label is likely to be among them."""
    return table.take(np.linspace(0, len(table) - 1, ROWS).astype(int))
