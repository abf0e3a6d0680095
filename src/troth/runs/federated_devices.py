"""How devices fare under the model of a federation: test rows by user, devices held out whole, personal models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from troth.data import Table
from troth.federated import FederatedData
from troth.federated.device_metrics import device_measurements, unseen_device_measurements
from troth.federated.evaluation import DeviceStatistics, device_statistics, gold_codes, take_scores
from troth.results import Measurement
from troth.runs.stages import Prepared
from troth.tasks import Scores

__all__ = ["PersonalModels", "devices_of", "measure_devices"]

Integers = NDArray[np.int64]
_NOBODY = -1
_PERSONAL_CLIENTS = 200  # whose own models are measured: each means a forward pass of its own


def devices_of(table: Table | None, clients: FederatedData) -> Integers | None:
    """Return [rows] the client of each row by its user, -1 for users who are none; None where that cannot be said."""
    if table is None or not table.has("user") or clients.names is None:
        return None
    number = {name: k for k, name in enumerate(clients.names.tolist())}
    return np.array([number.get(str(user), _NOBODY) for user in table.column("user")], dtype=np.int64)


def _statistics(prepared: Prepared, scores: Scores, table: Table, devices: Integers, count: int) -> DeviceStatistics:
    kind, labels = prepared.task.kind, prepared.task.labels
    gold = gold_codes(labels, table.column("label")) if kind == "classification" else None
    return device_statistics(scores, devices, count, kind=kind, gold=gold, labels=len(labels))


def measure_devices(
    prepared: Prepared,
    scores: Scores,
    table: Table,
    clients: FederatedData,
    held_out: tuple[Table, Integers] | None,
    score: Callable[[Table], Scores],
) -> tuple[Measurement, ...]:
    """Return ``federated.devices.*`` and, where devices are held out or unknown, ``federated.unseen_devices.*``.

    Args:
        prepared: task and seeds.
        scores: of the final model on `table`.
        table: rows nobody trained on, with a user each.
        clients: the devices that trained.
        held_out: rows of devices that were held out and [rows] whose they are; None where none were: then users of
            `table` who are no clients stand for unseen devices.
        score: scores of the final model on another table.
    """
    devices = devices_of(table, clients)
    minimum = prepared.config.federated.evaluation_minimum if prepared.config.federated else 10
    if devices is None:
        return ()
    known = np.flatnonzero(devices != _NOBODY)
    seen = _statistics(prepared, take_scores(scores, known), table.take(known), devices[known], len(clients))
    found = _worth_telling(device_measurements(seen, seeds=prepared.seeds, minimum=minimum), seen)
    if held_out is not None:
        rows, owner = held_out
        unseen = _statistics(prepared, score(rows), rows, owner, int(owner.max(initial=0)) + 1)
    else:
        strangers = np.flatnonzero(devices == _NOBODY)
        if not len(strangers):
            return found
        rows = table.take(strangers)
        owner = np.unique(np.array([str(u) for u in rows.column("user")]), return_inverse=True)[1].astype(np.int64)
        unseen = _statistics(prepared, take_scores(scores, strangers), rows, owner, int(owner.max()) + 1)
    strange = unseen_device_measurements(unseen, seen, seeds=prepared.seeds, minimum=minimum)
    return (*found, *_worth_telling(strange, unseen))


def _worth_telling(found: tuple[Measurement, ...], statistics: DeviceStatistics) -> tuple[Measurement, ...]:
    """Return the figures without the spread over devices of all metrics but the first, the task's own."""
    own = next(iter(statistics.ratios))
    whole = ("sample_weighted", "device_weighted", "gap")
    return tuple(m for m in found if m.name.split(".")[2] == own or m.name.endswith(whole))


class PersonalModels:
    """Scores each device's own model on the device's own test rows; a callback of the simulation.

    Attributes:
        clients: the clients whose models are measured: those with test rows, 200 of them drawn where there are more.
    """

    def __init__(self, prepared: Prepared, table: Table, clients: FederatedData) -> None:
        self._prepared, self._table, self._count = prepared, table, len(clients)
        devices = devices_of(table, clients)
        self._devices = np.full(len(table), _NOBODY, dtype=np.int64) if devices is None else devices
        present = np.unique(self._devices[self._devices != _NOBODY])
        rng = prepared.seeds.generator("personal models")
        self.clients = np.sort(rng.permutation(present)[:_PERSONAL_CLIENTS])
        self._sums: DeviceStatistics | None = None

    def __call__(self, model: PreTrainedModel, client: int) -> None:
        """Take the sums of one device under its own model."""
        rows = np.flatnonzero(self._devices == client)
        part = self._table.take(rows)
        scores = self._prepared.task.score(model, part)
        sums = _statistics(self._prepared, scores, part, np.full(len(rows), client), self._count)
        self._sums = sums if self._sums is None else self._sums + sums

    def measure(self) -> tuple[Measurement, ...]:
        """Return ``federated.personal.*``: the figures of devices under their own models."""
        if self._sums is None:
            return ()
        config = self._prepared.config.federated
        minimum = config.evaluation_minimum if config else 10
        found = device_measurements(
            self._sums, seeds=self._prepared.seeds, minimum=minimum, prefix="federated.personal"
        )
        told = _worth_telling(found, self._sums)
        return tuple(replace(m, protocol={**m.protocol, "model": "each device's own"}) for m in told)
