"""A federation simulated in this process: rounds, evaluation, checkpoints, resume."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from troth.config import FederatedConfig
from troth.errors import DataError, ResumeError, RunError
from troth.federated.engine import Engine, SequentialEngine
from troth.federated.fedavg import Algorithm, FedAvg, ServerState
from troth.federated.journal import ROUND, FederatedOutcome, RoundJournal, metric_of
from troth.federated.population import FederatedData
from troth.federated.selection import Selection, check_cohort, make_selection
from troth.files import failing_in_one_line, locked, remove_unfinished
from troth.results import Json, Measurement, computed
from troth.seeds import PublicSeeds
from troth.training import Checkpoint, Progress, SilentProgress, latest_checkpoint, save_checkpoint
from troth.training.checkpoints import checkpoint_steps, keep_latest, remove_checkpoints
from troth.training.identity import frozen_digest, rows_digest
from troth.training.interrupts import Interrupts, StopRequested

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from troth.tasks import Encoded, Task

__all__ = ["Evaluate", "simulate"]

Evaluate = Callable[["PreTrainedModel"], Sequence[Measurement]]
_KEPT_CHECKPOINTS = 2
_NO_MATTER = {"checkpoint_every"}  # decides nothing about the result


def simulate(  # noqa: PLR0913  five things, then options by keyword
    task: Task,
    model: PreTrainedModel,
    encoded: Encoded,
    clients: FederatedData,
    config: FederatedConfig,
    *,
    seeds: PublicSeeds,
    evaluate: Evaluate,
    progress: Progress | None = None,
    folder: Path | None = None,
    resume: bool = False,
) -> FederatedOutcome:
    """Train the model of a federation in place: ``config.rounds`` rounds of cohorts drawn from `clients`.

    Guarantees:
    - every draw depends on the seed, its purpose, the round and the client only: cohorts differ between seeds and
      rounds, and a killed and resumed run ends, on a CPU, with the same bits as an uninterrupted one;
    - the caller's torch random state and the mode of every module are left as they were found;
    - an update that is not finite is left out and counted, and the round goes on;
    - whatever happens, the model holds the global parameters after the last finished round.

    Args:
        task: collates batches and gives the per-example loss.
        model: its trainable parameters are the global model.
        encoded: the rows that `clients` points to.
        clients: the population.
        config: rounds, cohort, selection, local and server settings.
        seeds: public randomness: cohorts, batches, dropout.
        evaluate: measures the global model (in evaluation mode), every ``evaluate_every`` rounds and after the last.
        progress: where to say how far it is; None shows nothing.
        folder: where ``checkpoints/`` goes, every ``checkpoint_every`` rounds; None writes nothing.
        resume: whether to go on from the newest whole checkpoint in `folder`, or from the start where there is none.

    Raises:
        ConfigError: a cohort larger than the population, or rows counted twice by selection and weight.
        DataError: the population points to other rows than `encoded` holds.
        ModelError: nothing to train, or a layer that averaging does not cover.
        ResumeError: the checkpoint belongs to other settings, rows, clients or weights.
        RunError: checkpoints are there and `resume` is not set, or the disk is full.
        KeyboardInterrupt: Ctrl-C; the last finished round is in a checkpoint.
    """
    selection = make_selection(config.selection)
    check_cohort(len(clients), config.cohort_size)
    if int(clients.rows.max()) >= len(encoded):
        raise DataError(f"the clients hold row {clients.rows.max()}, the encoded table has {len(encoded)} rows")
    engine = SequentialEngine(task, model, encoded, clients, config.local, seeds)
    algorithm = FedAvg(config.local.learning_rate, config.server.learning_rate, config.local.optimizer)
    place = None if folder is None else folder / "checkpoints"
    with locked(place) if place else nullcontext(), _as_found(model):
        identity = _identity(model, encoded, clients, config, seeds) if place else {}
        federation = _Federation(
            config, clients, selection, algorithm, engine, seeds, place, identity, algorithm.init(engine.parameters())
        )
        if place:
            federation.take_up(_found(place, resume))
        found = federation.run(lambda: evaluate(model.train(mode=False)), progress or SilentProgress())
    return _outcome(federation, found)


@dataclass
class _Federation:
    """A federation under way: what it is made of, and where it stands."""

    config: FederatedConfig
    clients: FederatedData
    selection: Selection
    algorithm: Algorithm
    engine: Engine
    seeds: PublicSeeds
    folder: Path | None
    identity: dict[str, Json]
    state: ServerState
    journal: RoundJournal = field(default_factory=RoundJournal)
    saved: int = 0

    def take_up(self, found: Checkpoint | None) -> None:
        """Go on from a checkpoint, if there is one.

        Raises:
            ResumeError: it belongs to something else; names what has changed.
        """
        if found is None:
            return
        stored: Any = found.state["identity"]
        changed = sorted(k for k in self.identity.keys() | stored.keys() if self.identity.get(k) != stored.get(k))
        if changed:
            raise ResumeError(
                f"{', '.join(changed)}: changed since the checkpoint of round {found.step}; "
                "restore it, or start a new run without --resume"
            )
        slots = {k.removeprefix("slot-"): v for k, v in found.tensors.items() if k.startswith("slot-")}
        device = next(iter(self.state.parameters.values())).device
        placed = {name: p.to(device) for name, p in found.tensors["model"].items()}
        self.state = ServerState(placed, found.step, slots)
        stored_journal: Any = found.state["journal"]
        self.journal = RoundJournal.from_dict(stored_journal)
        self.saved = found.step

    def run(self, evaluate: Callable[[], Sequence[Measurement]], progress: Progress) -> Sequence[Measurement]:
        """Make the remaining rounds and return what the last evaluation found."""
        found: Sequence[Measurement] = ()
        progress.start(self.config.rounds, "federating")
        try:
            with Interrupts() as interrupts:
                try:
                    while self.state.round_index < self.config.rounds:
                        interrupts.check()
                        found = self._round(evaluate) or found
                        progress.update(self.state.round_index, loss=self._loss(), **_shown(found))
                    interrupts.check()
                except StopRequested:
                    if self.saved != self.state.round_index:
                        self._save()
                    raise KeyboardInterrupt from None
            return found or self._measured(evaluate)  # all rounds were done before: a resumed, finished run
        finally:
            progress.stop()
            self.engine.load(self.state.parameters)

    def _round(self, evaluate: Callable[[], Sequence[Measurement]]) -> Sequence[Measurement]:
        """Make one round; return what was measured after it, nothing where it was not."""
        begun, index = time.perf_counter(), self.state.round_index
        rng = self.seeds.generator("cohort", index)
        cohort = self.selection.draw(self.clients.counts, self.config.cohort_size, rng)
        outcome = self.engine.run_round(self.algorithm, self.state, cohort)
        if outcome.update is None:
            after = replace(self.state, round_index=index + 1)
        else:
            after = self.algorithm.server_update(self.state, outcome.update)
        self.journal.add(outcome, time.perf_counter() - begun)
        done, last = after.round_index, after.round_index == self.config.rounds
        self.state = after
        found: Sequence[Measurement] = ()
        if last or done % self.config.evaluate_every == 0:
            found = self._measured(evaluate)
            self.journal.close(done, outcome.clients, found)
        if last or done % (self.config.checkpoint_every or self.config.evaluate_every) == 0:
            self._save()
        return found

    def _measured(self, evaluate: Callable[[], Sequence[Measurement]]) -> Sequence[Measurement]:
        self.engine.load(self.state.parameters)
        return evaluate()

    def _loss(self) -> float | None:
        rows = self.journal.rows
        latest = rows[-1]["loss"] if rows else None
        return self.journal.loss if self.journal.losses else latest if isinstance(latest, float) else None

    def _save(self) -> None:
        """Write a checkpoint of the last finished round and let go of the oldest."""
        if self.folder is None:
            return
        slots = {f"slot-{name}": tensors for name, tensors in self.state.slots.items()}
        state: dict[str, Json] = {"identity": self.identity, "journal": self.journal.to_dict()}
        done = self.state.round_index
        save_checkpoint(self.folder, Checkpoint(done, {"model": self.state.parameters, **slots}, state))
        keep_latest(self.folder, _KEPT_CHECKPOINTS)
        self.saved = done


@contextmanager
def _as_found(model: PreTrainedModel) -> Iterator[None]:
    """Give the caller's torch random state and the mode of every module back at the end."""
    modes = [(module, module.training) for module in model.modules()]
    cuda = [torch.cuda.current_device()] if next(model.parameters()).is_cuda else []
    with torch.random.fork_rng(devices=cuda):
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def _found(folder: Path, resume: bool) -> Checkpoint | None:
    """Return the checkpoint to go on from; what a killed process left beyond it is removed."""
    rounds = checkpoint_steps(folder)
    if rounds and not resume:
        raise RunError(
            f"{folder}: holds checkpoints of an earlier run; continue it with --resume, or take a new folder"
        )
    with failing_in_one_line(folder):
        remove_unfinished(folder)
    found = latest_checkpoint(folder)
    remove_checkpoints(folder, [r for r in rounds if found is None or r > found.step])
    return found


def _identity(
    model: PreTrainedModel, encoded: Encoded, clients: FederatedData, config: FederatedConfig, seeds: PublicSeeds
) -> dict[str, Json]:
    """Return what must be the same where a federation goes on."""
    settings = config.model_dump(mode="json", exclude=_NO_MATTER)
    return {
        **{f"federated.{key}": value for key, value in json.loads(json.dumps(settings)).items()},
        "run.seed": seeds.root,
        "the training rows": rows_digest(encoded),
        "who holds which rows": clients.fingerprint,
        "the weights that are not trained": frozen_digest(model),
    }


def _shown(found: Sequence[Measurement]) -> dict[str, float | None]:
    return {metric_of(m): m.value for m in found[:1]}


def _outcome(federation: _Federation, found: Sequence[Measurement]) -> FederatedOutcome:
    """Return what the federation did: its last evaluation and its cost as measurements."""
    journal, clients, rounds = federation.journal, federation.clients, federation.state.round_index
    local = federation.config.local
    protocol: dict[str, Json] = {
        "rounds": rounds,
        "cohort_size": federation.config.cohort_size,
        "selection": federation.config.selection.by,
        "weight": federation.selection.weight,
        "client_optimizer": f"{local.optimizer}, learning rate {local.learning_rate:g}",
        "server_optimizer": f"sgd, learning rate {federation.config.server.learning_rate:g}",
    }
    last = tuple(replace(m, name=ROUND + metric_of(m), protocol={**m.protocol, **protocol}) for m in found)
    warnings = []
    if clients.dropped:
        warnings.append(f"federated: {clients.dropped} clients without a row were left out of the population")
    if journal.rejected:
        warnings.append(
            f"federated: {journal.rejected} of {rounds * federation.config.cohort_size} client updates were not finite "
            "and were left out; lower federated.local.learning_rate"
        )
    costs = (
        computed("federated.clients", len(clients), len(clients), "clients", protocol=clients.summary()),
        computed("federated.samples", journal.samples, rounds, "examples", direction="lower"),
        computed("federated.bytes_sent", journal.bytes_up + journal.bytes_down, rounds, "bytes", direction="lower"),
        computed("federated.rejected_updates", journal.rejected, rounds, "updates", direction="lower"),
    )
    return FederatedOutcome(rounds, journal.rows, (*last, *costs), journal.seconds, tuple(warnings))
