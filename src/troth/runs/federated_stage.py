"""The stage of [federated]: who the clients are, the stream of their data, the federation, and how devices fare."""

from __future__ import annotations

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
from troth.federated.partition_files import save_index_set
from troth.federated.partition_report import partition_picture, partition_report
from troth.results import Json, Measurement, computed
from troth.runs.federated_devices import PersonalModels, measure_devices
from troth.runs.federated_periods import PeriodEvaluation
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
    _keep_clients(prepared, made.clients, folder)
    latest: list[Scores] = []

    def evaluate_round(global_model: PreTrainedModel) -> tuple[Measurement, ...]:
        if table is None:
            return ()
        latest[:] = [prepared.task.score(global_model, table)]
        return prepared.task.measure(
            latest[0], table, prefix="federated.round", seeds=prepared.seeds, outside_guarantee=False
        )

    periods = None
    if made.stream is not None and table is not None:
        periods = PeriodEvaluation(prepared, table, made.stream, folder.path / "periods")
    personal = PersonalModels(prepared, table, made.clients) if table is not None else None
    outcome = simulate(
        made,
        evaluate=evaluate_round,
        evaluate_period=periods,
        evaluate_personal=personal,
        progress=prepared.progress,
        folder=folder.path,
        resume=resume,
    )
    skew, drawn = _population_told(prepared, made.clients)
    devices: tuple[Measurement, ...] = ()
    if table is not None and latest:
        aside = _held_out_rows(prepared.splits.train, held_out)

        def score(rows: Table) -> Scores:
            return prepared.task.score(model, rows)

        devices = measure_devices(prepared, latest[0], table, made.clients, aside, score)
    own = personal.measure() if personal is not None else ()
    own += periods.measure(model) if periods is not None else ()
    merge_adapters(model, prepared.config.model.trainable)
    export(model, prepared.task.tokenizer, folder.model, replace=resume)
    return model, StageResult(
        (*training_counts(made.encoded), *outcome.measurements, *skew, *devices, *own),
        {**outcome.series, **drawn},
        None,
        (*truncation_warning(prepared, made.encoded), *outcome.warnings, *told),
        {"model": str(folder.model)},
        outcome.work_seconds,
    )


def _keep_clients(prepared: Prepared, clients: FederatedData, folder: RunFolder) -> None:
    """Write who holds which rows into the run's folder, as an index set named ``train``."""
    federated = prepared.config.federated
    settings: dict[str, Json] = {"run.seed": prepared.seeds.root}
    if federated is not None:
        settings["federated.clients"] = federated.model_dump(mode="json")["clients"]
        settings["federated.held_out_clients"] = federated.held_out_clients
    table = prepared.splits.train.fingerprint
    save_index_set(folder.path / "clients", "train", clients, table=table, settings=settings, replace=True)


def _population_told(
    prepared: Prepared, clients: FederatedData
) -> tuple[tuple[Measurement, ...], dict[str, list[dict[str, Json]]]]:
    """Return how far the clients' labels differ, and rows to draw sizes and labels from."""
    train = prepared.splits.train
    labels = train.arrow.column("label") if train.has("label") else None
    drawn = {f"federated.population.{name}": rows for name, rows in partition_picture(clients, labels).items()}
    report = partition_report(clients, labels)
    if report.divergence is None:
        return (), drawn
    protocol = {**report.to_dict(), "definition": "mean Jensen-Shannon divergence of a client's labels from all"}
    told = computed("federated.label_divergence", report.divergence, report.clients, "bits", protocol=protocol)
    return (told,), drawn


def _held_out_rows(train: Table, held_out: FederatedData) -> tuple[Table, NDArray[np.int64]] | None:
    """Return the rows of the clients that were held out, and [rows] whose they are; None where there are none."""
    if not len(held_out):
        return None
    rows = np.asarray(held_out.rows, dtype=np.int64)
    return train.take(rows), np.repeat(np.arange(len(held_out)), held_out.counts)
