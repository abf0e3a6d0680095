"""A grid gives each combination once, under a name of its own."""

import pytest

from troth.config import RunConfig, parse
from troth.errors import ConfigError
from troth.runs.grid import expand


def config(grid: dict) -> RunConfig:
    return parse(
        {
            "run": {"name": "g"},
            "model": {"preset": "tiny-bert"},
            "data": {"builtin": {}},
            "task": {"kind": "classification"},
            "grid": grid,
        }
    )


def test_every_combination_once_last_key_fastest() -> None:
    points = expand(config({"train.learning_rate": [0.1, 0.2], "seeds": [1, 2, 3]}))
    seen = [(p.config.train.learning_rate, p.config.run.seed) for p in points]
    assert seen == [(a, b) for a in (0.1, 0.2) for b in (1, 2, 3)]
    assert len({p.config.run.name for p in points}) == 6 and points[0].config.run.name == "g_learning_rate-0.1_seed-1"
    assert all(p.config.grid is None for p in points)


def test_keys_may_vary_one_at_a_time() -> None:
    grid = {"one_at_a_time": True, "train.epochs": [1, 2], "train.learning_rate": [0.1], "seeds": [7, 8]}
    points = expand(config(grid))
    seen = [(p.config.train.epochs, p.config.train.learning_rate, p.config.run.seed) for p in points]
    base = config(grid).train
    rest = [(e, base.learning_rate, s) for e in (1, 2) for s in (7, 8)]
    assert seen == [*rest, (base.epochs, 0.1, 7), (base.epochs, 0.1, 8)]
    assert len({p.config.run.name for p in points}) == 6
    alone = expand(config({"one_at_a_time": True, "seeds": [7, 8]}))
    assert [p.config.run.seed for p in alone] == [7, 8]


@pytest.mark.parametrize(
    "grid,expected",
    [
        ({"train.learnig_rate": [1]}, "did you mean learning_rate"),
        ({"train.epochs": []}, "empty list"),
        ({"epochs": [1]}, "dotted path"),
        ({"one_at_a_time": True}, "no list of values"),
        ({"train.epochs": True}, "give a list of values"),
        ({"run.name.x": [1]}, "is a value"),
        ({"train.epochs": list(range(1, 40)), "seeds": list(range(40))}, "1560 combinations"),
    ],
)
def test_broken_grids_are_refused(grid: dict, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        expand(config(grid))
