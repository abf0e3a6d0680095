"""Shadows: who sees what, that an interrupted attack goes on, and what calibration sees that the loss does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from troth.attacks import auc, rmia_scores
from troth.attacks import shadows as module
from troth.attacks.shadows import Pool, Shadows, inclusion, row_confidence, train_shadows
from troth.attacks.twins import Recipe, train_twin
from troth.config import parse
from troth.data import Table, concatenated, load, privacy_units
from troth.errors import DataError
from troth.seeds import PublicSeeds
from troth.tasks import make_task
from troth.training import SilentProgress

SEEDS = PublicSeeds(3)
FILE = {
    "run": {"name": "x", "seed": 1},
    "model": {"preset": "tiny-bert", "max_length": 16, "layers": 1, "width": 32, "heads": 2, "vocabulary_size": 512},
    "data": {"builtin": {"name": "home", "rows": 600}},
    "task": {"kind": "classification"},
    "train": {"epochs": 2, "learning_rate": 2e-3, "expected_batch_size": 32},
}


def make_recipe(**sections: dict[str, object]) -> tuple[Recipe, Table, Table]:
    config = parse({**FILE, **sections})
    splits = load(config.data, config.task, Path())
    assert splits.validation is not None
    task = make_task(config, splits.train, Path())
    return Recipe(config, Path(), task, torch.device("cpu")), splits.train, splits.validation


def make_pool(train: Table, outside: Table) -> Pool:
    inner = train.take(np.arange(40))
    return Pool(concatenated([inner, outside.take(np.arange(20))], "pool"), 40, train.take(np.arange(40, 100)))


def test_every_row_is_in_exactly_half_of_the_shadows() -> None:
    inside = inclusion(101, 8, SEEDS)
    assert (inside.sum(0) == 4).all()
    assert all((inside[k] == ~inside[k + 1]).all() for k in range(0, 8, 2))
    assert not (inside[0] == inside[2]).all()
    assert (inclusion(101, 8, SEEDS) == inside).all()
    for shadows, rows in ((3, 100), (0, 100), (2, 3)):
        with pytest.raises(DataError, match="even number"):
            inclusion(rows, shadows, SEEDS)


def test_a_shadow_sees_its_half_and_what_is_common() -> None:
    _, train, outside = make_recipe()
    pool = make_pool(train, outside)
    inside = inclusion(60, 2, SEEDS)[0]
    rows = pool.training_rows(inside)
    wanted = pool.table.take(np.flatnonzero(inside)).column("id")
    assert sorted(rows.column("id")) == sorted([*train.take(np.arange(40, 100)).column("id"), *wanted])


def test_without_class_probabilities_the_confidence_is_that_of_the_loss() -> None:
    losses = np.array([1e-9, 0.5, 30.0])
    found = row_confidence(losses, None, None)
    assert np.allclose(found, -losses - np.log1p(-np.exp(-losses)), rtol=1e-6)
    two = np.log(np.array([[0.25, 0.75]]))
    assert row_confidence(-two[:, 1], two, np.array([1]))[0] == pytest.approx(np.log(3))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Pool, np.ndarray, Path, Shadows]:
    recipe, train, outside = make_recipe()
    pool = make_pool(train, outside)
    labels = np.array([recipe.task.labels.index(label) for label in pool.table.column("label")])
    folder = tmp_path_factory.mktemp("shadows")
    found = train_shadows(recipe, pool, labels, count=4, seeds=SEEDS, folder=folder, progress=SilentProgress())
    return recipe, pool, labels, folder, found


def test_shadows_say_what_their_models_say(trained: tuple[Recipe, Pool, np.ndarray, Path, Shadows]) -> None:
    recipe, pool, labels, _, found = trained
    assert found.log_probabilities is not None
    assert found.log_likelihoods.shape == (4, 60)
    assert np.allclose(found.log_likelihoods, found.log_probabilities[:, np.arange(60), labels], atol=1e-5)
    own = PublicSeeds(SEEDS.integer("attack", "shadow", 1))
    twin = train_twin(recipe, pool.training_rows(found.inside[1]), seeds=own, folder=Path(trained[3]))
    again = recipe.task.score(twin.model, pool.table)
    assert np.allclose(-again.losses, found.log_likelihoods[1], atol=1e-3)  # threads may differ


def test_an_interrupted_attack_goes_on(
    trained: tuple[Recipe, Pool, np.ndarray, Path, Shadows], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shadows that are there are not trained again; one that is missing is; another game starts anew."""
    recipe, pool, labels, folder, found = trained
    made: list[int] = []
    right = module._train_one

    def counted(*arguments: object) -> None:
        made.append(arguments[4])  # type: ignore[arg-type]
        right(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_train_one", counted)
    monkeypatch.setattr(module, "_processes", lambda recipe, table, wanted: 1)
    options = {"count": 4, "seeds": SEEDS, "folder": folder, "progress": SilentProgress()}
    again = train_shadows(recipe, pool, labels, **options)
    assert not made and np.array_equal(again.log_likelihoods, found.log_likelihoods)
    (place,) = folder.glob("shadows-*")
    assert oct((place / "shadow-2.npz").stat().st_mode)[-3:] == "600"
    (place / "shadow-2.npz").unlink()
    train_shadows(recipe, pool, labels, **options)
    assert made == [2]
    other = replace(
        recipe, config=recipe.config.model_copy(update={"train": parse(FILE).train.model_copy(update={"epochs": 1})})
    )
    train_shadows(other, pool, labels, **options)
    assert made == [2, 0, 1, 2, 3]


def test_nothing_is_left_of_a_twin_but_what_it_says(trained: tuple[Recipe, Pool, np.ndarray, Path, Shadows]) -> None:
    assert not list(trained[3].rglob("*.safetensors"))
    assert not list(trained[3].rglob(".twin-*"))


def test_private_twins_are_private_and_need_no_ledger(tmp_path: Path) -> None:
    recipe, train, _ = make_recipe(privacy={"target_epsilon": 4.0, "target_delta": 1e-4})
    rows = train.take(np.arange(200))
    twin = train_twin(recipe, rows, seeds=SEEDS, folder=tmp_path)
    assert twin.plan is not None and twin.plan.examples == len(privacy_units(rows, "example"))
    assert twin.plan.epsilon() <= 4.0 + 1e-6
    again = train_twin(recipe, rows, seeds=SEEDS, folder=tmp_path)
    first, second = (next(iter(t.model.state_dict().values())) for t in (twin, again))
    assert not torch.equal(first, second)  # the noise is the operating system's


def test_shadow_attacks_see_what_the_loss_does_not(tmp_path: Path) -> None:
    """Rows differ in difficulty far more than by membership: calibrated attacks win, as the literature says."""
    generator = np.random.default_rng(0)
    rows, shadows = 600, 8
    difficulty = generator.normal(0, 3, rows)
    inside = inclusion(rows, shadows, SEEDS)
    member = np.arange(rows) < 300

    def said(seen: np.ndarray) -> np.ndarray:
        return -np.log1p(np.exp(difficulty - 1.0 * seen + 0.5 * generator.normal(size=rows)))

    target, others = said(member), np.stack([said(inside[k]) for k in range(shadows)])
    outer = np.flatnonzero(~member)
    calibrated = rmia_scores(
        target, others, inside, target[outer], others[:, outer], population_inside=inside[:, outer]
    )
    by_loss = auc(target[member], target[~member]).value
    assert auc(calibrated[member], calibrated[~member]).interval.low > by_loss + 0.1
