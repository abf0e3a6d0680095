"""A federation of the built-in corpus' users, for each task with its own preset, made small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from troth.config import parse
from troth.data import load
from troth.federated import Federation, by_user, simulate
from troth.results import Measurement
from troth.seeds import PublicSeeds
from troth.tasks import make_model, make_task

SMALL = {"layers": 1, "width": 16, "heads": 2, "max_length": 48}


@pytest.mark.parametrize(
    ("task", "preset"),
    [
        ({"kind": "classification"}, "tiny-bert"),
        ({"kind": "tagging"}, "tiny-bert"),
        ({"kind": "question_answering"}, "tiny-bert"),
        ({"kind": "seq2seq"}, "tiny-t5"),
        ({"kind": "language_modeling", "objective": "causal"}, "tiny-gpt2"),
        ({"kind": "language_modeling", "objective": "masked"}, "tiny-bert"),
    ],
    ids=lambda v: "-".join(v.values()) if isinstance(v, dict) else v,
)
def test_every_task_federates(task: dict[str, str], preset: str, tmp_path: Path) -> None:
    config = parse(
        {
            "run": {"name": "x"},
            "model": {"preset": preset, **SMALL},
            "data": {"builtin": {"rows": 300, "users": 20}},
            "task": task,
            "federated": {
                "rounds": 2,
                "cohort_size": 3,
                "selection": {"by": "activity", "weight": "inverse_probability"},
                "local": {"optimizer": "adamw", "learning_rate": 1e-3},
            },
        }
    )
    splits = load(config.data, config.task, tmp_path)
    made, seeds = make_task(config, splits.train, tmp_path), PublicSeeds(0)
    few = splits.test.take(np.arange(8))

    def evaluate(model: PreTrainedModel) -> tuple[Measurement, ...]:
        return made.measure(made.score(model, few), few, prefix="federated.round", seeds=seeds, outside_guarantee=False)

    def run() -> tuple[PreTrainedModel, list[dict[str, object]], tuple[Measurement, ...]]:
        model = make_model(config, made, seeds, tmp_path)
        users = by_user(splits.train.column("user"))
        federation = Federation(made, model, made.encode(splits.train), users, config.federated, seeds)
        outcome = simulate(federation, evaluate=evaluate)
        return model, outcome.series["federated.round"], outcome.measurements

    start = make_model(config, made, seeds, tmp_path)
    model, series, measurements = run()
    moved = [not torch.equal(a, b) for a, b in zip(start.parameters(), model.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2
    assert series[-1]["rejected"] == 0 and series[-1]["samples"] >= 6 and series[-1]["loss"] > 0
    assert all(m.name.startswith("federated.") for m in measurements)
    assert any(m.name.startswith("federated.round.") and m.value is not None for m in measurements)
    again, _, _ = run()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
