"""The stages a run file can hold, each `config + inputs -> result`: train, fairness.

The attack stage and the federated stage have modules of their own, `attack_stage` and `federated_stage`.
`Prepared` is what every stage shares: the data, the task and the seeds of one configuration, read once. Scores of a
model on a split are taken once and shared between evaluation, attack and fairness.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedModel

from troth.accounting import Ledger, PrivacyPlan, Reservation, SpendRequest, epsilon_curve, make_plan
from troth.config import RunConfig, training_digest
from troth.data import Splits, Table, load, privacy_units, row_hashes
from troth.dp.inspect import refuse_unsupported
from troth.errors import ConfigError
from troth.fairness import accuracy_by_group
from troth.results import Json, Measurement, Privacy, computed
from troth.runs.folders import RunFolder
from troth.seeds import PublicSeeds
from troth.tasks import Encoded, Scores, Task, make_model, make_task, merge_adapters
from troth.training import Progress, TrainInputs, choose_device, export, fit

__all__ = [
    "Prepared",
    "ScoreBook",
    "StageResult",
    "evaluate",
    "fairness",
    "make_fresh_model",
    "prepare",
    "reserve",
    "train",
    "training_counts",
    "truncation_warning",
]


@dataclass(frozen=True)
class StageResult:
    """What a stage adds to the run's record."""

    measurements: tuple[Measurement, ...] = ()
    series: Mapping[str, list[dict[str, Json]]] = field(default_factory=dict)
    privacy: Privacy | None = None
    warnings: tuple[str, ...] = ()
    artifacts: Mapping[str, str] = field(default_factory=dict)
    work_seconds: float = 0.0

    def plus(self, other: StageResult) -> StageResult:
        """Return both results as one; the other's privacy wins where it has one."""
        return StageResult(
            (*self.measurements, *other.measurements),
            {**self.series, **other.series},
            other.privacy or self.privacy,
            (*self.warnings, *(w for w in other.warnings if w not in self.warnings)),
            {**self.artifacts, **other.artifacts},
            self.work_seconds + other.work_seconds,
        )


@dataclass(frozen=True)
class Prepared:
    """Data, task, seeds and device of one configuration."""

    config: RunConfig
    base: Path
    splits: Splits
    task: Task
    seeds: PublicSeeds
    device: torch.device
    progress: Progress

    @property
    def outside_guarantee(self) -> bool:
        """Whether measurements on this data read private rows outside of what an epsilon covers."""
        return self.config.privacy is not None

    def fingerprints(self) -> dict[str, str]:
        """Return the SHA-256 of each split's content."""
        tables = {"train": self.splits.train, "validation": self.splits.validation, "test": self.splits.test}
        return {name: table.fingerprint for name, table in tables.items() if table is not None}

    def split(self, name: str, why: str) -> Table:
        """Return a split by name.

        Raises:
            ConfigError: the run file gives no such split.
        """
        table = self.splits.test if name == "test" else self.splits.validation
        if table is None:
            raise ConfigError(f"data.{name} is not given, and {why}")
        return table


class ScoreBook:
    """Scores of one model, each table scored once."""

    def __init__(self, prepared: Prepared, model: PreTrainedModel) -> None:
        self._prepared, self._model = prepared, model
        self._scores: dict[str, Scores] = {}

    def of(self, key: str, table: Table) -> Scores:
        """Return the scores of a table; `key` names it."""
        if key not in self._scores:
            self._scores[key] = self._prepared.task.score(
                self._model, table, progress=self._prepared.progress.labelled(f"scoring {key}")
            )
        return self._scores[key]


def prepare(config: RunConfig, base: Path, progress: Progress, task: Task | None = None) -> Prepared:
    """Return data, task, seeds and device of a configuration; `base` is where its relative paths start."""
    device = choose_device(config.run.device)
    splits = load(config.data, config.task, base)
    task = task or make_task(config, splits.train, base)
    return Prepared(config, base, splits, task, PublicSeeds(config.run.seed), device, progress)


def evaluate(prepared: Prepared, book: ScoreBook) -> StageResult:
    """Return the task's metrics on the validation and test splits that are there."""
    found: list[Measurement] = []
    for name, table in (("validation", prepared.splits.validation), ("test", prepared.splits.test)):
        if table is not None:
            found += prepared.task.measure(
                book.of(name, table),
                table,
                prefix=name,
                seeds=prepared.seeds,
                outside_guarantee=prepared.outside_guarantee,
            )
    return StageResult(tuple(found))


def training_counts(encoded: Encoded) -> tuple[Measurement, ...]:
    """Return how many rows were trained on, and how many of them were cut, as measurements."""
    rows = computed("data.train.rows", len(encoded), len(encoded), "rows")
    if not encoded.truncated:
        return (rows,)
    cut = computed("data.train.truncated_rows", encoded.truncated, len(encoded), "rows", direction="lower")
    return rows, cut


def truncation_warning(prepared: Prepared, encoded: Encoded) -> tuple[str, ...]:
    """Return a warning where rows were cut."""
    if not encoded.truncated:
        return ()
    limit = prepared.task.max_length
    return (f"{encoded.truncated} of {len(encoded)} training rows were cut to {limit} tokens (model.max_length)",)


def on_device(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Move a model in place and return it."""
    torch.nn.Module.to(model, device)
    return model


def make_fresh_model(prepared: Prepared) -> PreTrainedModel:
    """Return the model of [model] before training, on its device."""
    made = make_model(prepared.config, prepared.task, prepared.seeds, prepared.base)
    return on_device(made, prepared.device)


def train(prepared: Prepared, folder: RunFolder, *, resume: bool) -> tuple[PreTrainedModel, StageResult]:
    """Train the model of [train], privately where [privacy] is present, and export it.

    The ledger is asked before anything is trained: a private run reserves its whole plan, a plain one is refused where
    the data set has a budget.
    """
    config = prepared.config
    encoded = prepared.task.encode(prepared.splits.train)
    plan = units = None
    if config.privacy is not None:
        prepared.progress.message("calibrating the noise")
        units = privacy_units(prepared.splits.train, config.privacy.unit)
        plan = make_plan(config.privacy, config.train, len(units))
    model = make_fresh_model(prepared)
    if plan is not None:
        refuse_unsupported(model)
    reservation, told = reserve(prepared, plan, folder, resume=resume)
    inputs = TrainInputs(
        task=prepared.task,
        model=model,
        train=encoded,
        config=config,
        seeds=prepared.seeds,
        folder=folder.path,
        device=prepared.device,
        units=units,
    )
    outcome = fit(inputs, plan=plan, reservation=reservation, resume=resume, progress=prepared.progress)
    merge_adapters(model, config.model.trainable)
    export(model, prepared.task.tokenizer, folder.model, replace=resume)
    series = {"train": outcome.series}
    if plan is not None:
        series["privacy.epsilon"] = epsilon_curve(plan, 20)
    return model, StageResult(
        training_counts(encoded),
        series,
        outcome.privacy,
        (*truncation_warning(prepared, encoded), *outcome.warnings, *told),
        {"model": str(folder.model)},
        outcome.work_seconds,
    )


def reserve(
    prepared: Prepared, plan: PrivacyPlan | None, folder: RunFolder, *, resume: bool
) -> tuple[Reservation | None, tuple[str, ...]]:
    """Return the run's entry in the ledger and what the ledger has to tell.

    A private run reserves its whole plan, or takes up the reservation that it was started with; the id is kept in the
    run folder, durably, before the first step. A run without privacy has no entry, unless it gives up the guarantee of
    a data set: that is written down, as infinity.
    """
    config, ledger = prepared.config, Ledger()
    entry = folder.reservation_id() if resume else None
    if entry is not None:
        return ledger.resume(entry, training_digest(config)), ()
    request = SpendRequest(
        dataset_id=config.data.dataset_id,
        run_name=folder.path.name,
        plan=plan,
        guarantee="none" if config.run.guarantee == "none" else "differential_privacy",
        row_hashes=row_hashes(prepared.splits.train, ledger.key),
        config_hash=training_digest(config),
        kind="federate" if config.federated else "train",
    )
    if plan is None and request.guarantee != "none":
        return None, ledger.check_plain(request)
    reservation = ledger.reserve(request)
    folder.keep_reservation_id(reservation.id)
    return reservation, reservation.warnings


def finish(config: RunConfig, folder: RunFolder) -> None:
    """Close the ledger's entry of a run whose record is written: it is whole, and cannot be resumed any more."""
    entry = folder.reservation_id()
    if entry is not None:
        Ledger().resume(entry, training_digest(config)).finish()


def discard(folder: RunFolder) -> None:
    """Remove the folder of a run that was refused before its first step, and give its reservation back."""
    if any(folder.checkpoints.glob("*/*")) or folder.model.exists():
        return
    entry = folder.reservation_id()
    if entry is not None:
        Ledger().release(entry)
    shutil.rmtree(folder.path, ignore_errors=True)


def fairness(prepared: Prepared, book: ScoreBook) -> StageResult:
    """Measure how well each group of the test split is served.

    Raises:
        ConfigError: there is no test split, or it has no group column.
    """
    if prepared.config.fairness is None:
        raise ConfigError("the run file has no [fairness]; add it")
    start = time.perf_counter()
    table = prepared.split("test", "[fairness] measures on it")
    if not table.has("group"):
        raise ConfigError("[fairness] needs data.group: name the column that holds each row's group")
    found = accuracy_by_group(
        book.of("test", table).correct,
        table.column("group"),
        seeds=prepared.seeds,
        outside_guarantee=prepared.outside_guarantee,
    )
    warnings = tuple(dict.fromkeys(f"{m.name}: {w}" for m in found for w in _texts(m.protocol.get("warnings"))))
    return StageResult(tuple(found), warnings=warnings, work_seconds=time.perf_counter() - start)


def _texts(value: Json) -> list[str]:
    return [str(v) for v in value] if isinstance(value, list) else []
