"""The stage of [federated]: who the clients are, the stream of their data, the federation, and how devices fare."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from troth.config_federated import FederatedConfig
from troth.data import Table
from troth.errors import ConfigError
from troth.federated import (
    Events,
    FederatedData,
    Federation,
    Stream,
    by_user,
    deletion_periods,
    make_periods,
    partition,
    partition_inputs,
    read_deletions,
    simulate,
    split_clients,
    table_times,
)
from troth.federated.evaluation import take_scores
from troth.results import Json, Measurement
from troth.runs.federated_devices import PersonalModels, measure_devices
from troth.runs.folders import RunFolder
from troth.runs.stages import Prepared, StageResult, make_fresh_model, reserve, training_counts, truncation_warning
from troth.tasks import Scores, head_names, merge_adapters
from troth.training import export

__all__ = ["federate", "federation", "population"]

_DAY = 86_400.0


def population(prepared: Prepared, federated: FederatedConfig) -> FederatedData:
    """Return the population: one client a user, or a partition of the rows.

    Raises:
        ConfigError: there is no user column, or the partition cannot be made.
    """
    train = prepared.splits.train
    if federated.clients != "user":
        return partition(federated.clients, partition_inputs(train), seeds=prepared.seeds)
    if not train.has("user"):
        raise ConfigError(
            "federated.clients = 'user' needs data.user: name the column, or write clients = { partition = ... }"
        )
    return by_user(train.arrow.column("user"), train.source)


def federation(
    prepared: Prepared, federated: FederatedConfig, model: PreTrainedModel
) -> tuple[Federation, FederatedData]:
    """Return what the federation is made of, and the clients that are held out.

    Raises:
        ConfigError: the clients, the stream or the algorithm cannot be made of this data and model.
    """
    clients = population(prepared, federated)
    held_out = clients.subset(np.zeros(0, dtype=np.int64))
    if federated.held_out_clients:
        clients, held_out = split_clients(
            clients, federated.held_out_clients, prepared.seeds.generator("held-out clients")
        )
    stream = _stream(prepared, federated, clients) if federated.stream is not None else None
    made = Federation(
        prepared.task,
        model,
        prepared.task.encode(prepared.splits.train),
        clients,
        federated,
        prepared.seeds,
        stream,
        _last_seen(prepared, federated, clients),
        head_names(model) if federated.algorithm == "local_head" else (),
    )
    return made, held_out


def _last_seen(prepared: Prepared, federated: FederatedConfig, clients: FederatedData) -> NDArray[np.int64] | None:
    """Return [clients] the day of each client's newest row, from 1; None where nothing goes by it."""
    if federated.selection.by != "recency" or federated.stream is not None:
        return None
    times = table_times(prepared.splits.train)[clients.rows]
    newest = np.maximum.reduceat(times, clients.offsets[:-1].astype(np.int64))
    return np.asarray((newest - times.min()) // _DAY, dtype=np.int64) + 1


def _stream(prepared: Prepared, federated: FederatedConfig, clients: FederatedData) -> Stream:
    train, config = prepared.splits.train, federated.stream
    if config is None:
        raise ConfigError("federated.stream is not there")
    events = Events.of_population(clients, table_times(train))
    periods = make_periods(config, events.times[events.devices >= 0])
    deletions = None
    if config.deletions is not None:
        deletions = deletion_periods(
            read_deletions(prepared.base / config.deletions, f"federated.stream.deletions = {config.deletions!r}"),
            periods,
            len(train),
            users=train.column("user") if train.has("user") else None,
            ids=train.column("id") if train.has("id") else None,
        )
    return Stream(events, config, seeds=prepared.seeds, deletions=deletions, periods=periods)


def federate(prepared: Prepared, folder: RunFolder, *, resume: bool) -> tuple[PreTrainedModel, StageResult]:
    """Train the model by the federation of [federated], simulated on this machine, and export it.

    Quality by round is measured on the validation split where there is one, else on the test split.
    """
    federated = prepared.config.federated
    if federated is None:
        raise ConfigError("the run file has no [federated]; add it")
    table = prepared.splits.validation or prepared.splits.test
    model = make_fresh_model(prepared)
    made, held_out = federation(prepared, federated, model)
    _, told = reserve(prepared, None, folder, resume=resume)
    latest: list[Scores] = []

    def evaluate_round(global_model: PreTrainedModel) -> tuple[Measurement, ...]:
        if table is None:
            return ()
        latest[:] = [prepared.task.score(global_model, table)]
        return prepared.task.measure(
            latest[0], table, prefix="federated.round", seeds=prepared.seeds, outside_guarantee=False
        )

    def evaluate_period(global_model: PreTrainedModel, period: int) -> list[dict[str, Json]]:
        return _by_period(prepared, global_model, table, made.stream, period)

    personal = PersonalModels(prepared, table, made.clients) if table is not None else None
    outcome = simulate(
        made,
        evaluate=evaluate_round,
        evaluate_period=evaluate_period if made.stream is not None else None,
        evaluate_personal=personal,
        progress=prepared.progress,
        folder=folder.path,
        resume=resume,
    )
    devices: tuple[Measurement, ...] = ()
    if table is not None and latest:
        aside = _held_out_rows(prepared.splits.train, held_out)

        def score(rows: Table) -> Scores:
            return prepared.task.score(model, rows)

        devices = measure_devices(prepared, latest[0], table, made.clients, aside, score)
    own = personal.measure() if personal is not None else ()
    merge_adapters(model, prepared.config.model.trainable)
    export(model, prepared.task.tokenizer, folder.model, replace=resume)
    return model, StageResult(
        (*training_counts(made.encoded), *outcome.measurements, *devices, *own),
        outcome.series,
        None,
        (*truncation_warning(prepared, made.encoded), *outcome.warnings, *told),
        {"model": str(folder.model)},
        outcome.work_seconds,
    )


def _held_out_rows(train: Table, held_out: FederatedData) -> tuple[Table, NDArray[np.int64]] | None:
    """Return the rows of the clients that were held out, and [rows] whose they are; None where there are none."""
    if not len(held_out):
        return None
    rows = np.asarray(held_out.rows, dtype=np.int64)
    return train.take(rows), np.repeat(np.arange(len(held_out)), held_out.counts)


def _by_period(
    prepared: Prepared, model: PreTrainedModel, table: Table | None, stream: Stream | None, period: int
) -> list[dict[str, Json]]:
    """Return the global model's quality on the test rows of each period, by their time; one row a tested period."""
    if table is None or stream is None:
        return []
    scores = prepared.task.score(model, table)
    if not table.has("time"):
        return [{"period": period, "tested": None, **_quality(prepared, scores, table)}]
    belongs = stream.periods.of(table_times(table))
    out: list[dict[str, Json]] = []
    for tested in np.unique(belongs[(belongs >= 0) & (belongs < len(stream))]).tolist():
        rows = np.flatnonzero(belongs == tested)
        found = _quality(prepared, take_scores(scores, rows), table.take(rows))
        out.append({"period": period, "tested": tested, **found})
    return out


def _quality(prepared: Prepared, scores: Scores, table: Table) -> dict[str, Json]:
    found: Sequence[Measurement] = prepared.task.measure(
        scores, table, prefix="federated.round", seeds=prepared.seeds, outside_guarantee=False
    )
    first = found[0]
    name = first.name.removeprefix("federated.round.")
    return {"metric": name, "value": first.value, "low": first.low, "high": first.high, "n": first.n}
