"""Federations side by side: by task, by partition and by algorithm, runs that differ by their seed alone together.

Beside each task stand the centralised runs on the same data with the same model: what federated training is held
against, seed by seed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from troth.report.federated_facts import is_federated, partition_told, selection_told, table_of
from troth.results import Json, Record
from troth.runs.catalogue import METRICS

__all__ = ["Group", "Place", "groups", "headline", "split_of_rounds"]

_ASIDE = ("run", "report", "gate", "grid", "attack", "fairness", "train", "federated")
_NO_MATTER = (
    "engine",
    "execution",
    "workers",
    "chunk_size",
    "evaluate_every",
    "evaluation_minimum",
    "checkpoint_every",
)  # keys of [federated] that decide nothing about what is learnt
_SELECTION = "selection."

Place = tuple[str, str]
"""A partition and an algorithm, as a table names them."""


@dataclass(frozen=True)
class Group:
    """Federations of one task, model and data set.

    Attributes:
        title: what the group is about.
        partitions: in order of appearance.
        algorithms: in order of appearance, with whatever else differs between the runs of a partition and an algorithm.
        runs: partition and algorithm -> the federations that differ by their seed alone, by seed.
        centralised: runs without a federation on the same data, by seed; empty also where they differ in more than
            their seeds.
        ambiguous: in how many ways centralised runs were trained, where that is more than one: none is held against.
        everyone: all federations of the task, those that were run again included.
    """

    title: str
    partitions: tuple[str, ...]
    algorithms: tuple[str, ...]
    runs: Mapping[Place, tuple[Record, ...]]
    centralised: tuple[Record, ...] = ()
    ambiguous: int = 0
    everyone: tuple[Record, ...] = ()

    def holds(self, record: Record) -> bool:
        """Return whether this very record is of the group."""
        return any(r is record for r in self.everyone)

    @property
    def records(self) -> tuple[Record, ...]:
        """The federations that count."""
        return tuple(r for found in self.runs.values() for r in found)

    @property
    def is_grid(self) -> bool:
        """Whether there is something to set against each other: several seeds, or partitions and algorithms."""
        seeds = max(len(found) for found in self.runs.values())
        return seeds > 1 or (len(self.partitions) > 1 and len(self.algorithms) > 1)


def groups(records: Sequence[Record]) -> tuple[Group, ...]:
    """Return the federations among some records by task, model and data, with the centralised runs that go with them.

    Where the same configuration was run twice with the same seed, the newer run counts.

    Args:
        records: of any verbs; those that trained nothing are passed over.
    """
    federated: dict[str, list[Record]] = {}
    others: dict[str, list[Record]] = {}
    for record in records:
        into = federated if is_federated(record) else others
        into.setdefault(_digest(_task_of(record)), []).append(record)
    titles = _titles([found[0] for found in federated.values()])
    return tuple(
        _group(title, found, others.get(key, ())) for title, (key, found) in zip(titles, federated.items(), strict=True)
    )


def headline(records: Sequence[Record]) -> str | None:
    """Return the measurement that quality is told by: the task's first metric, on test rows or else validation rows.

    Args:
        records: of one task.
    """
    kind = str(table_of(records[0].config, "task").get("kind"))
    metric = METRICS.get(kind, ("",))[0]
    names = [f"{split}.{metric}" for split in ("test", "validation")]
    known = (n for n in names if any((m := r.measurement(n)) is not None and m.value is not None for r in records))
    return next(known, None)


def split_of_rounds(record: Record) -> str:
    """Return the split that a federation's rounds were evaluated on: validation where there is one, else test."""
    return "validation" if any(m.name.startswith("validation.") for m in record.measurements) else "test"


def _task_of(record: Record) -> dict[str, Json]:
    return {k: v for k, v in record.config.items() if k not in _ASIDE and v is not None}


def _digest(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _group(title: str, federated: Sequence[Record], others: Sequence[Record]) -> Group:
    partitions, algorithms = _partition_names(federated), _algorithm_names(federated)
    runs: dict[Place, dict[int | None, Record]] = {}
    for record, algorithm in zip(federated, algorithms, strict=True):
        _keep_newest(runs.setdefault((partitions[_digest(_clients(record))], algorithm), {}), record)
    ways: dict[str, dict[int | None, Record]] = {}
    for record in others:
        if any(m.name.startswith(("test.", "validation.")) for m in record.measurements):
            _keep_newest(ways.setdefault(_digest(record.config.get("train")), {}), record)
    centralised = next(iter(ways.values())) if len(ways) == 1 else {}
    return Group(
        title,
        tuple(dict.fromkeys(place[0] for place in runs)),
        tuple(dict.fromkeys(place[1] for place in runs)),
        {place: _by_seed(found) for place, found in runs.items()},
        _by_seed(centralised),
        len(ways) if len(ways) > 1 else 0,
        tuple(federated),
    )


def _keep_newest(found: dict[int | None, Record], record: Record) -> None:
    earlier = found.get(record.seed)
    if earlier is None or record.created >= earlier.created:
        found[record.seed] = record


def _by_seed(found: Mapping[int | None, Record]) -> tuple[Record, ...]:
    return tuple(sorted(found.values(), key=lambda r: (r.seed is None, r.seed or 0)))


def _clients(record: Record) -> Json:
    return table_of(record.config, "federated").get("clients")


def _partition_names(records: Sequence[Record]) -> dict[str, str]:
    """Return what each partition is called, with its number of clients where two would be called the same."""
    found = {_digest(_clients(r)): _clients(r) for r in records}
    short = [partition_told(clients) for clients in found.values()]
    names = []
    for name, clients in zip(short, found.values(), strict=True):
        count = clients.get("clients") if isinstance(clients, Mapping) else None
        names.append(name if short.count(name) == 1 or count is None else f"{name}, {count} clients")
    return dict(zip(found, _apart(names), strict=True))


def _apart(names: Sequence[str]) -> list[str]:
    """Return names that differ: those that would not are numbered."""
    return [n if names.count(n) == 1 else f"{n} ({names[: i + 1].count(n)})" for i, n in enumerate(names)]


def _settings(record: Record) -> dict[str, Json]:
    """Return the keys of [federated] that decide what is learnt, but for clients and algorithm; dotted."""
    config = table_of(record.config, "federated")
    wanted = {k: v for k, v in config.items() if k not in (*_NO_MATTER, "clients", "algorithm")}
    return _flat(wanted)


def _flat(data: Mapping[str, Json], prefix: str = "") -> dict[str, Json]:
    out: dict[str, Json] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            out |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            out[f"{prefix}{key}"] = value
    return out


def _varied(records: Sequence[Record]) -> list[str]:
    """Return the keys that differ between runs of the same partition and algorithm: they set columns apart."""
    same: dict[str, list[dict[str, Json]]] = {}
    for record in records:
        algorithm = table_of(record.config, "federated").get("algorithm")
        same.setdefault(_digest([_clients(record), algorithm]), []).append(_settings(record))
    varied: dict[str, None] = {}
    for found in same.values():
        for key in dict.fromkeys(k for settings in found for k in settings):
            if len({_digest(settings.get(key)) for settings in found}) > 1:
                varied[key] = None
    return list(varied)


def _algorithm_names(records: Sequence[Record]) -> list[str]:
    """Return for each federation its algorithm, and the settings that set it apart from others in its cell."""
    varied = _varied(records)
    keys = []
    for record in records:
        settings = _settings(record)
        chosen = [table_of(record.config, "federated").get("algorithm"), [settings.get(k) for k in varied]]
        keys.append(_digest(chosen))
    told = dict(zip(keys, (_algorithm_name(r, varied) for r in records), strict=True))
    names = dict(zip(told, _apart(list(told.values())), strict=True))
    return [names[key] for key in keys]


def _algorithm_name(record: Record, varied: Sequence[str]) -> str:
    config, settings = table_of(record.config, "federated"), _settings(record)
    name = [str(config.get("algorithm") or "fedavg")]
    if any(key.startswith(_SELECTION) for key in varied):
        told = selection_told(config)
        name.append(told if f"{_SELECTION}weight" in varied else told.partition(";")[0])
    for key in varied:
        if not key.startswith(_SELECTION):
            value = settings.get(key)
            said = value if isinstance(value, str) else json.dumps(value)
            name.append(f"{key.replace('_', ' ').replace('.', ' ')} {said if value is not None else 'not set'}")
    return ", ".join(name)


def _titles(firsts: Sequence[Record]) -> list[str]:
    """Return what each group is about: task, data and model; what further differs where these are the same."""
    titles = [", ".join([_kind(r), _data(r), _model(r)]) for r in firsts]
    flat = [_flat(_task_of(r)) for r in firsts]
    keys = dict.fromkeys(k for f in flat for k in f)
    differing = [k for k in keys if len({_digest(f.get(k)) for f in flat}) > 1]
    out = []
    for title, own in zip(titles, flat, strict=True):
        more = [f"{k} = {own[k]}" for k in differing if k in own]
        out.append(title if titles.count(title) == 1 else f"{title} ({', '.join(more)})")
    return out


def _kind(record: Record) -> str:
    return str(table_of(record.config, "task").get("kind")).replace("_", " ")


def _data(record: Record) -> str:
    data = table_of(record.config, "data")
    built_in = table_of(data, "builtin")
    if built_in:
        return f"built-in corpus {built_in.get('name', 'home')}"
    named = data.get("dataset_id")
    path = PurePath(str(data.get("train") or ""))
    return str(named) if named else "/".join(path.parts[-2:])


def _model(record: Record) -> str:
    model = table_of(record.config, "model")
    return str(model.get("preset") or PurePath(str(model.get("checkpoint") or "")).name)
