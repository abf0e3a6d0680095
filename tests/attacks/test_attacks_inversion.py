"""Gradient inversion: the relaxed loss is the task's at one-hot shares, its gradient is right, restarts stand alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from troth.attacks.canaries import CanaryPlan
from troth.attacks.canary_candidates import Candidates, CandidateScorer
from troth.attacks.inversion import InversionSettings, invert, relaxed_candidates
from troth.config import parse
from troth.data import from_rows
from troth.errors import ConfigError, ModelError
from troth.seeds import PublicSeeds
from troth.tasks import Task, make_model, make_task
from troth.tasks.relaxed_inputs import frozen

SEEDS = PublicSeeds(1)
ROWS = {
    "tagging": [
        {"tokens": ["my", "pin"], "tags": ["O", "B-canary"]},
        {"tokens": ["play", "jazz"], "tags": ["O", "I-canary"]},
    ],
    "classification": [{"text": "my pin", "label": "canary"}, {"text": "play jazz", "label": "music"}],
    "language_modeling": [{"text": "my pin"}],
}
SHAPES = {
    "bilstm-crf": {"width": 16, "vocabulary_size": 512},
    "tiny-bert": {"width": 16, "layers": 1, "heads": 2, "vocabulary_size": 512},
    "tiny-gpt2": {"width": 16, "layers": 1, "heads": 2},
}


def made(preset: str, kind: str) -> tuple[Task, PreTrainedModel]:
    """A model with random weights, large enough that every value tells."""
    config = parse(
        {
            "run": {"name": "t", "seed": 1},
            "model": {"preset": preset, **SHAPES[preset]},
            "data": {"train": "rows"},
            "task": {"kind": kind},
        }
    )
    task = make_task(config, from_rows(ROWS[kind], "rows"), Path())
    model = make_model(config, task, SEEDS, Path())
    noise = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=noise))
    return task, model.double()


MODELS = [("bilstm-crf", "tagging"), ("tiny-bert", "tagging"), ("tiny-bert", "classification")]
PLAN = CanaryPlan("my {color} pin code is {d}{d}{d}", count=2)


def one_hot(digits: np.ndarray, widest: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.from_numpy(digits), widest).double()


@pytest.mark.parametrize(("preset", "kind"), MODELS)
def test_at_one_hot_shares_the_relaxed_loss_is_the_tasks_own(preset: str, kind: str) -> None:
    task, model = made(preset, kind)
    scorer = CandidateScorer(task, model, PLAN)
    digits = PLAN.parsed.digits(np.random.default_rng(0).integers(0, PLAN.parsed.codes, 50))
    with frozen(model), torch.no_grad():
        relaxed = relaxed_candidates(scorer.candidates, model).losses(one_hot(digits, 12))
    hard = scorer.losses(digits)
    assert np.ptp(hard) > 1e-3
    assert relaxed.numpy() == pytest.approx(hard, abs=1e-9)


def test_also_in_the_models_own_float32() -> None:
    task, model = made("bilstm-crf", "tagging")
    scorer = CandidateScorer(task, model, PLAN)
    digits = PLAN.parsed.digits(np.arange(0, 12_000, 500))
    single = model.float()
    with frozen(single), torch.no_grad():
        relaxed = relaxed_candidates(scorer.candidates, single).losses(one_hot(digits, 12).float())
    assert relaxed.numpy() == pytest.approx(scorer.losses(digits), abs=1e-5)


@pytest.mark.parametrize(("preset", "kind"), MODELS)
def test_the_gradient_equals_finite_differences(preset: str, kind: str) -> None:
    task, model = made(preset, kind)
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(2, 4, 12, generator=generator, dtype=torch.float64, requires_grad=True)
    hidden = torch.arange(12) >= torch.tensor(PLAN.parsed.sizes)[:, None]
    with frozen(model):
        relaxed = relaxed_candidates(Candidates(task, PLAN), model)

        def loss(free: torch.Tensor) -> torch.Tensor:
            return relaxed.losses(torch.softmax(free.masked_fill(hidden, -torch.inf), 2)).sum()

        (grad,) = torch.autograd.grad(loss(logits), logits)
        step, numeric = 1e-5, torch.zeros_like(logits)
        with torch.no_grad():
            for place in np.ndindex(*logits.shape):
                change = torch.zeros_like(logits)
                change[place] = step
                numeric[place] = (loss(logits + change) - loss(logits - change)) / (2 * step)
    assert float(grad.abs().max()) > 1e-4
    assert float((grad - numeric).abs().max()) < 1e-7


@pytest.mark.parametrize(("preset", "kind"), MODELS)
def test_sixteen_restarts_in_a_batch_go_where_sixteen_go_alone(preset: str, kind: str) -> None:
    task, model = made(preset, kind)
    rule = InversionSettings(restarts=16, most_steps=12, patience=3)
    alone = InversionSettings(restarts=1, most_steps=12, patience=3)
    with frozen(model):
        relaxed = relaxed_candidates(Candidates(task, PLAN), model)
        like = next(model.parameters())
        sizes = PLAN.parsed.sizes
        batch = invert(relaxed.losses, sizes, seeds=SEEDS, settings=rule, like=like)
        each = [
            invert(relaxed.losses, sizes, seeds=SEEDS, settings=alone, like=like, first_restart=r) for r in range(16)
        ]
    assert np.array_equal(batch.digits, np.concatenate([one.digits for one in each]))
    assert np.array_equal(batch.steps, np.concatenate([one.steps for one in each]))
    assert batch.relaxed_losses == pytest.approx(np.concatenate([one.relaxed_losses for one in each]), abs=1e-8)
    assert (batch.digits < np.array(sizes)).all()


def test_a_separable_loss_is_solved_from_every_start() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.rand(4, 12, generator=generator) + torch.eye(12)[[1, 0, 9, 5]] * -2
    found = invert(lambda shares: (shares * table).sum((1, 2)), (10, 10, 10, 12), seeds=SEEDS)
    assert (found.digits == np.array([1, 0, 9, 5])).all()
    assert (found.steps < 100).all()  # read out early


def test_inversion_descends_the_relaxed_loss_from_every_start() -> None:
    task, model = made("bilstm-crf", "tagging")
    with frozen(model):
        relaxed = relaxed_candidates(Candidates(task, PLAN), model)
        before, after = (
            invert(
                relaxed.losses,
                PLAN.parsed.sizes,
                seeds=SEEDS,
                settings=InversionSettings(restarts=8, most_steps=steps, temperatures=(1.0, 1.0)),
                like=next(model.parameters()),
            ).relaxed_losses
            for steps in (1, 25)
        )
    assert (after < before - 1e-3).all()


def test_the_model_is_left_as_it_was_found() -> None:
    task, model = made("bilstm-crf", "tagging")
    model.train()
    model.classifier.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with frozen(model):
        assert not model.training
        relaxed = relaxed_candidates(Candidates(task, PLAN), model)
        invert(
            relaxed.losses,
            PLAN.parsed.sizes,
            seeds=SEEDS,
            settings=InversionSettings(restarts=2, most_steps=3),
            like=next(model.parameters()),
        )
    assert model.training
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["classifier.weight"]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_reads_no_mixtures_is_refused() -> None:
    task, model = made("tiny-gpt2", "language_modeling")
    with frozen(model), pytest.raises(ModelError, match="read by classifiers and taggers"):
        relaxed_candidates(Candidates(task, CanaryPlan("my pin is {d}{d}", count=2)), model)


@pytest.mark.parametrize(
    "change",
    [{"restarts": 0}, {"learning_rate": 0.0}, {"temperatures": (0.1, 1.0)}, {"temperatures": (1.0, 0.0)}],
)
def test_bad_settings_are_one_line(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="gradient inversion"):
        InversionSettings(**change)  # type: ignore[arg-type]
