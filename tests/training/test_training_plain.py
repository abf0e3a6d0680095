"""The plain loop: what a hand-written PyTorch loop does, bit for bit, and nothing else."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from training_world import BATCH, ROWS, config, inputs, plan_of, same, train, weights

from troth.errors import DataError, PrivacyError, RunError
from troth.tasks import length_buckets
from troth.training import SilentProgress, TrainInputs, fit
from troth.training.checkpoints import checkpoint_steps


def by_hand(given: TrainInputs) -> list[float]:
    """Descend the mean loss with nothing but PyTorch; return the mean loss of each epoch."""
    settings, model = given.config.train, given.model
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0, fused=True)
    total, step, means = settings.epochs * -(-len(given.train) // settings.expected_batch_size), 0, []
    model.train()
    for epoch in range(settings.epochs):
        losses = []
        batches = length_buckets(
            given.train.lengths, settings.expected_batch_size, given.seeds.generator("epoch", epoch)
        )
        for rows in batches:
            torch.manual_seed(given.seeds.integer("dropout", step))
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * (1 - step / total)
            loss = given.task.per_example_loss(model, given.task.collate(given.train, rows))
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
            losses.append(loss.detach().sum())
            step += 1
        means.append(float(sum(losses)) / len(given.train))
    model.eval()
    return means


def test_it_equals_a_hand_written_loop_bit_for_bit(tmp_path: Path) -> None:
    ours, theirs = inputs(tmp_path, config()), inputs(tmp_path, config())
    before = weights(ours)
    outcome = train(ours)
    means = by_hand(theirs)
    assert same(weights(ours), weights(theirs))
    assert not same(weights(ours), before)
    assert outcome.steps == 3 * ROWS // BATCH
    assert [row["loss"] for row in outcome.series] == pytest.approx(means, rel=1e-6)
    assert means[-1] < means[0]


def test_the_series_has_a_row_per_epoch(tmp_path: Path) -> None:
    outcome = train(inputs(tmp_path, config()))
    assert [(row["epoch"], row["step"]) for row in outcome.series] == [(1, 5), (2, 10), (3, 15)]
    for row in outcome.series:
        assert row["epsilon"] is None
        assert row["outside_guarantee"] is False
        assert isinstance(row["examples_per_second"], float)
        assert row["examples_per_second"] > 0
    assert outcome.privacy is None
    assert outcome.work_seconds > 0
    assert outcome.warnings == ()


def test_a_batch_in_physical_parts_gives_the_same_gradient(tmp_path: Path) -> None:
    settings = {"epochs": 1, "optimizer": "sgd"}
    whole = inputs(tmp_path / "a", config(**settings, physical_batch_size=BATCH))
    parts = inputs(tmp_path / "b", config(**settings, physical_batch_size=3))
    for given in (whole, parts):
        for module in given.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        train(given)
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(tensor, weights(parts)[name], rtol=1e-5, atol=1e-7)


def test_the_callers_random_state_is_left_alone(tmp_path: Path) -> None:
    given = inputs(tmp_path, config())
    torch.manual_seed(11)
    np.random.seed(12)
    random.seed(13)
    before = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())
    train(given)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]


def test_the_callers_random_state_does_not_matter(tmp_path: Path) -> None:
    first, second = inputs(tmp_path / "a", config()), inputs(tmp_path / "b", config())
    torch.manual_seed(1)
    train(first)
    torch.manual_seed(2)
    train(second)
    assert same(weights(first), weights(second))


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_gradients_are_as_before(tmp_path: Path, training: bool) -> None:
    given = inputs(tmp_path, config())
    given.model.train(training)
    train(given)
    assert given.model.training is training
    assert all(p.grad is None for p in given.model.parameters())


def test_a_loss_that_is_not_finite_names_the_step_and_the_way_out(tmp_path: Path) -> None:
    given = inputs(tmp_path, config(learning_rate=1e30, schedule="constant"))
    with pytest.raises(RunError, match=r"step \d+ of 15: the training loss is .*lower train\.learning_rate") as error:
        train(given)
    assert "\n" not in str(error.value)


def test_frozen_parameters_stay(tmp_path: Path) -> None:
    given = inputs(tmp_path, config())
    frozen = next(iter(dict(given.model.named_parameters())))
    given.model.get_parameter(frozen).requires_grad_(False)
    before = weights(given)
    train(given)
    assert torch.equal(weights(given)[frozen], before[frozen])
    assert not same(weights(given), before)


def test_nothing_is_overwritten_without_resume(tmp_path: Path) -> None:
    train(inputs(tmp_path, config()))
    with pytest.raises(RunError, match="holds checkpoints of an earlier run"):
        train(inputs(tmp_path, config()))


@pytest.mark.parametrize(("every", "kept"), [(4, [12, 15]), (None, [10, 15]), (100, [0, 15])])
def test_checkpoints_come_as_often_as_asked_and_at_the_end(tmp_path: Path, every: int | None, kept: list[int]) -> None:
    train(inputs(tmp_path, config(checkpoint_every=every)))
    assert checkpoint_steps(tmp_path / "checkpoints") == kept


def test_no_rows_are_an_error(tmp_path: Path) -> None:
    given = inputs(tmp_path, config())
    empty = TrainInputs(**{**vars(given), "train": given.train.take(np.array([], dtype=np.int64))})
    with pytest.raises(DataError, match="no rows"):
        train(empty)


def test_a_run_file_that_asks_for_privacy_does_not_train_without(tmp_path: Path) -> None:
    given = inputs(tmp_path, config(private=True))
    assert plan_of(given.config) is not None
    with pytest.raises(PrivacyError, match="no plan"):
        fit(given, plan=None, reservation=None, resume=False, progress=SilentProgress())
