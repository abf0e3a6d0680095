"""Shadow heads: the features are what the target's own head reads, and heads remember the rows they saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from troth.attacks import auc
from troth.attacks.head_shadows import frozen_features, train_head_shadows
from troth.attacks.shadows import Pool
from troth.config import parse
from troth.data import Table, concatenated, load
from troth.errors import ConfigError
from troth.seeds import PublicSeeds
from troth.tasks import Task, make_model, make_task

SEEDS = PublicSeeds(2)
FILE = {
    "run": {"name": "x", "seed": 1},
    "model": {"preset": "tiny-bert", "max_length": 16, "layers": 1, "width": 64, "heads": 2, "vocabulary_size": 512},
    "data": {"builtin": {"name": "home", "rows": 600}},
    "train": {"epochs": 200, "learning_rate": 3e-2, "expected_batch_size": 32},
}


def made(kind: str) -> tuple[Task, torch.nn.Module, Table, Table]:
    config = parse({**FILE, "task": {"kind": kind}})
    splits = load(config.data, config.task, Path())
    assert splits.validation is not None
    task = make_task(config, splits.train, Path())
    return task, make_model(config, task, PublicSeeds(1), Path()), splits.train, splits.validation


def test_the_targets_head_on_the_features_says_what_the_target_says() -> None:
    task, model, train, _ = made("classification")
    rows = train.take(np.arange(50))
    features = torch.from_numpy(frozen_features(task, model, rows))
    head = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == len(task.labels)][-1]
    logs = head(features).log_softmax(1).detach().numpy()
    wanted = task.score(model, rows).log_probabilities
    assert wanted is not None and np.allclose(logs, wanted, atol=1e-5)
    assert not head._forward_pre_hooks


def test_heads_remember_what_they_saw() -> None:
    """With labels that features do not explain, a head is surer of the rows that it was trained on."""
    task, model, train, outside = made("classification")
    pool = Pool(
        concatenated([train.take(np.arange(60)), outside.take(np.arange(40))], "pool"), 60, train.take([70, 71])
    )
    labels = np.random.default_rng(0).integers(len(task.labels), size=100)
    config = parse({**FILE, "task": {"kind": "classification"}})
    found = train_head_shadows(task, model, pool, labels, config.train, count=4, seeds=SEEDS)
    assert found.inside.shape == found.log_likelihoods.shape == (4, 100)
    assert found.log_probabilities is not None and found.log_probabilities.shape == (4, 100, len(task.labels))
    area = auc(found.confidences[found.inside], found.confidences[~found.inside])
    assert area.value > 0.8
    again = train_head_shadows(task, model, pool, labels, config.train, count=4, seeds=SEEDS)
    assert np.array_equal(again.inside, found.inside)


def test_other_tasks_are_refused() -> None:
    task, model, train, _ = made("tagging")
    with pytest.raises(ConfigError, match="use 'full'"):
        frozen_features(task, model, train)
