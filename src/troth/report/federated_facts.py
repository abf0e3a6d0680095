"""What a federation was: algorithm, clients, selection and weight, both optimizers; from a record, in a few words.

A record's measurements say what was run; what they do not say is taken from the run file that the record holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from troth.results import Json, Measurement, Record

__all__ = [
    "DEVICES",
    "PERSONAL",
    "ROUND",
    "UNSEEN",
    "Facts",
    "facts",
    "is_federated",
    "partition_told",
    "selection_told",
    "table_of",
]

ROUND = "federated.round."
DEVICES, UNSEEN, PERSONAL = "federated.devices.", "federated.unseen_devices.", "federated.personal."
_DEFAULT_WEIGHT = {"uniform": "samples", "recency": "samples", "top_active": "samples"}


@dataclass(frozen=True)
class Facts:
    """A federation in words.

    Attributes:
        algorithm: its name in the run file.
        clients: who they are: a column's values, or a partition.
        sizes: how many clients with how many rows; empty where the record does not say.
        cohort: clients a round, and who drops out; rounds.
        selection: the rule and the weight of updates.
        client_optimizer: of the clients.
        local: epochs, batch size and limit of rows of a client's turn.
        server_optimizer: of the server.
        aggregation: how updates become one; empty for the weighted mean.
        stream: the periods; empty where rows do not change.
        clients_run: stacked or one by one; empty where the record does not say.
    """

    algorithm: str
    clients: str
    sizes: str
    cohort: str
    selection: str
    client_optimizer: str
    local: str
    server_optimizer: str
    aggregation: str
    stream: str
    clients_run: str


def is_federated(record: Record) -> bool:
    """Return whether a record is of a federation; one of ``troth train`` on a file with [federated] is not."""
    return any(m.name.startswith("federated.") for m in record.measurements)


def facts(record: Record) -> Facts:
    """Return what a federation was; a record of an older version may know less, and says so by fewer words."""
    config = table_of(record.config, "federated")
    if not config:
        unknown = "not in the record"
        return Facts(unknown, unknown, "", "", unknown, unknown, unknown, unknown, "", "", "")
    said = _protocol(record)
    local, server = table_of(config, "local"), table_of(config, "server")
    return Facts(
        algorithm=str(said.get("algorithm") or config.get("algorithm") or "fedavg"),
        clients=partition_told(config.get("clients")),
        sizes=_sizes(record),
        cohort=_cohort(config, said),
        selection=selection_told(config, said.get("weight")),
        client_optimizer=str(said.get("client_optimizer") or _optimizer(local, "sgd")),
        local=_local(local),
        server_optimizer=str(said.get("server_optimizer") or _optimizer(server, "the algorithm's own")),
        aggregation=_aggregation(table_of(config, "aggregation")),
        stream=_stream(table_of(config, "stream")),
        clients_run=str(said.get("clients_run") or ""),
    )


def table_of(config: Mapping[str, Json], key: str) -> Mapping[str, Json]:
    """Return a table of a run file; an empty one where it is not there."""
    found = config.get(key)
    return found if isinstance(found, Mapping) else {}


def partition_told(clients: Json) -> str:
    """Return who the clients are, without their number.

    >>> partition_told({"partition": "label_dirichlet", "concentration": 0.1, "clients": 100})
    'label Dirichlet 0.1'
    """
    if not isinstance(clients, Mapping):
        return "one client a user"
    kind, told = str(clients.get("partition")), ""
    alpha = _number(clients.get("concentration", 1.0))
    by_label = ", by label" if clients.get("convention") == "per_label" else ""
    if kind == "label_dirichlet":
        told = f"label Dirichlet {alpha}{by_label}"
    elif kind == "features":
        told = f"features Dirichlet {alpha}{by_label}, {clients.get('clusters', 10)} clusters"
    elif kind == "quantity":
        law = clients.get("distribution", "dirichlet")
        key = {"zipf": "exponent", "log_normal": "sigma"}.get(str(law))
        told = f"quantity {str(law).replace('_', '-')} {_number(clients.get(key)) if key else alpha}"
    elif kind == "shards":
        told = f"shards, {clients.get('labels_per_client', 2)} labels each"
    elif kind == "natural":
        told = f"one client a {clients.get('by')}"
    else:
        told = {"iid": "IID", "time": "time slices"}.get(kind, kind)
    minimum = clients.get("minimum", 1)
    return told if minimum == 1 else f"{told}, at least {minimum} rows each"


def selection_told(config: Mapping[str, Json], weight: Json = None) -> str:
    """Return the rule of selection with its weight; they are one choice, hence one text.

    Args:
        config: the section [federated].
        weight: what the record says the weight was; None: as the run file has it, or its default.

    >>> selection_told({"selection": {"by": "activity", "power": 0.5}})
    'activity, power 0.5; weight: equal'
    """
    chosen = table_of(config, "selection")
    by = str(chosen.get("by", "uniform"))
    used = {
        "activity": ("power",),
        "mixture": ("power", "uniform_share"),
        "top_active": ("top", "top_fraction"),
        "recency": ("half_life",),
        "power_of_choice": ("candidates",),
    }.get(by, ())
    more = [f"{key.replace('_', ' ')} {_number(chosen[key])}" for key in used if chosen.get(key) is not None]
    counted = weight or chosen.get("weight") or _DEFAULT_WEIGHT.get(by, "equal")
    twice = " (rows counted twice)" if _counted_twice(by, chosen, counted) else ""
    return f"{', '.join([by.replace('_', ' '), *more])}; weight: {str(counted).replace('_', ' ')}{twice}"


def _counted_twice(by: str, chosen: Mapping[str, Json], weight: Json) -> bool:
    """Return whether clients are both drawn and weighted by their rows."""
    by_rows = by == "power_of_choice" or (by in ("activity", "mixture") and chosen.get("power") != 0)
    return weight == "samples" and by_rows and not (by == "mixture" and chosen.get("uniform_share") == 1)


def _protocol(record: Record) -> Mapping[str, Json]:
    """Return how the numbers of the last round were made."""
    return next((m.protocol for m in record.measurements if m.name.startswith(ROUND)), {})


def _sizes(record: Record) -> str:
    found: Measurement | None = record.measurement("federated.clients")
    if found is None or found.value is None:
        return ""
    told, said = f"{_number(int(found.value))} clients", found.protocol
    ends = [said.get(key) for key in ("rows_smallest", "rows_median", "rows_largest")]
    if all(isinstance(end, int | float) for end in ends):
        least, middle, most = map(_number, ends)
        told += f" of {least} to {most} rows, {middle} in the middle"
    skew = said.get("skew")
    return f"{told}; E[n²]/E[n]² = {skew:.3g}" if isinstance(skew, int | float) else told


def _cohort(config: Mapping[str, Json], said: Mapping[str, Json]) -> str:
    told = f"{_number(said.get('cohort_size', config.get('cohort_size')))} a round"
    if said.get("rounds") is not None:
        told += f", {_number(said['rounds'])} rounds"
    part = table_of(config, "participation")
    words = {
        "available": (1.0, "reachable with chance"),
        "over_selection": (1.0, "asked: times"),
        "drop_out": (0.0, "dropping out with chance"),
        "minimum_separation": (0, "rounds of rest:"),
    }
    more = [f"{word} {_number(part[key])}" for key, (usual, word) in words.items() if part.get(key, usual) != usual]
    return "; ".join([told, *more])


def _local(settings: Mapping[str, Json]) -> str:
    told = f"epochs: {settings.get('epochs', 1)}; batches of {settings.get('batch_size', 8)}"
    most = settings.get("maximum_examples")
    return told if most is None else f"{told}; at most {_number(most)} rows"


def _optimizer(settings: Mapping[str, Json], usual: str) -> str:
    rate = settings.get("learning_rate")
    told = str(settings.get("optimizer") or usual)
    return told if rate is None else f"{told}, learning rate {_number(rate)}"


def _aggregation(settings: Mapping[str, Json]) -> str:
    rule = str(settings.get("rule", "mean"))
    told = [] if rule == "mean" else [rule.replace("_", " ")]
    if rule == "trimmed_mean":
        told.append(f"{_number(settings.get('trim', 0.1))} at each end")
    for key, word in (("norm_bound", "scaled down to norm"), ("reject_above", "refused above norm")):
        if settings.get(key) is not None:
            told.append(f"{word} {_number(settings[key])}")
    return ", ".join(told)


def _stream(settings: Mapping[str, Json]) -> str:
    if not settings:
        return ""
    length = settings.get("period") or f"{settings.get('periods')} periods"
    protocol = str(settings.get("protocol", "stream"))
    if protocol != "stream":
        return f"{length}; baseline: {protocol}"
    told = [f"{length}; rows kept for {settings.get('retention', 3)} periods"]
    if settings.get("cap") is not None:
        told.append(f"at most {_number(settings['cap'])} a device")
    replay = table_of(settings, "replay")
    if replay:
        told.append(f"replay {str(replay.get('by', 'reservoir')).replace('_', ' ')} of {replay.get('size', 32)}")
    return ", ".join(told)


def _number(value: Json) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
