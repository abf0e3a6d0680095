"""Grids: one run per combination of the lists in ``[grid]``, or per value where keys vary one at a time."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from troth.config import RunConfig, parse
from troth.errors import ConfigError

__all__ = ["GridPoint", "expand"]

_LIMIT = 1000
_ONE_AT_A_TIME = "one_at_a_time"


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
    values that set it apart. With ``one_at_a_time = true`` each key takes its values while the others stay as the run
    file has them, for every seed, instead of every combination.

    Raises:
        ConfigError: a key is no path, a list is empty, or a combination is not a valid run file.
    """
    if not config.grid:
        raise ConfigError("[grid] is empty: give a dotted key or seeds a list of values, or leave the section out")
    lists = {key: values for key, values in config.grid.items() if isinstance(values, list)}
    for key, values in config.grid.items():
        if not isinstance(values, list) and key != _ONE_AT_A_TIME:
            raise ConfigError(f"grid.{key}: give a list of values")
        if values == []:
            raise ConfigError(f"grid.{key}: an empty list gives no run")
        if key not in ("seeds", _ONE_AT_A_TIME) and key.count(".") < 1:
            raise ConfigError(f"grid.{key}: write a dotted path such as 'train.learning_rate', or seeds")
    if not lists:
        raise ConfigError("[grid] has no list of values: give a dotted key or seeds one")
    combinations = _one_at_a_time(lists) if config.grid.get(_ONE_AT_A_TIME) else _all(lists)
    if len(combinations) > _LIMIT:
        raise ConfigError(f"[grid] has {len(combinations)} combinations; at most {_LIMIT} run at once")
    return [_point(config, values) for values in combinations]


def _all(lists: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]


def _one_at_a_time(lists: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    seeds = [{"seeds": seed} for seed in lists.get("seeds", [])] or [{}]
    single = [{key: value} for key, values in lists.items() if key != "seeds" for value in values] or [{}]
    return [{**one, **seed} for one in single for seed in seeds]


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
