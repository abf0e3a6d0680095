"""Grids: one run per combination of the lists in ``[grid]``."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass

from troth.config import RunConfig, parse
from troth.errors import ConfigError

__all__ = ["GridPoint", "expand"]

_LIMIT = 1000


@dataclass(frozen=True)
class GridPoint:
    """One combination: the values that set it apart and the configuration of its run."""

    values: Mapping[str, object]
    config: RunConfig


def _slug(value: object) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", str(value)).strip("-") or "empty"


def expand(config: RunConfig) -> list[GridPoint]:
    """Return the grid's points in the order of its keys, the last key changing fastest.

    A key is a dotted path into the run file; ``seeds`` stands for ``run.seed``. The run of a point is named after the
    values that set it apart.

    Raises:
        ConfigError: a key is no path, a list is empty, or a combination is not a valid run file.
    """
    if not config.grid:
        raise ConfigError("[grid] is empty: give a dotted key or seeds a list of values, or leave the section out")
    keys = list(config.grid)
    for key in keys:
        if not config.grid[key]:
            raise ConfigError(f"grid.{key}: an empty list gives no run")
        if key != "seeds" and key.count(".") < 1:
            raise ConfigError(f"grid.{key}: write a dotted path such as 'train.learning_rate', or seeds")
    combinations = list(itertools.product(*(config.grid[k] for k in keys)))
    if len(combinations) > _LIMIT:
        raise ConfigError(f"[grid] has {len(combinations)} combinations; at most {_LIMIT} run at once")
    return [_point(config, dict(zip(keys, values, strict=True))) for values in combinations]


def _point(config: RunConfig, values: dict[str, object]) -> GridPoint:
    data = config.to_dict()
    data.pop("grid")
    suffix = []
    for key, value in values.items():
        path = ["run", "seed"] if key == "seeds" else key.split(".")
        node = data
        for part in path[:-1]:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ConfigError(f"grid.{key}: {part} is a value, not a section")
        node[path[-1]] = value
        suffix.append(f"{path[-1]}-{_slug(value)}")
    data["run"]["name"] = f"{config.run.name}_{'_'.join(suffix)}"[:100]
    return GridPoint(values, parse(data, f"[grid] {values}"))
