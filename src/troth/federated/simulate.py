"""A federation simulated on this machine: rounds, evaluation, checkpoints, resume."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from troth.config_federated import FederatedConfig
from troth.errors import DataError, ResumeError, RunError
from troth.federated.aggregation import added
from troth.federated.algorithm import Aggregate, Algorithm, ServerState
from troth.federated.chunk_runner import Layout
from troth.federated.device_store import DeviceStore
from troth.federated.engine import LocalEngine, RoundOutcome
from troth.federated.fedbuff import OldVersions
from troth.federated.journal import ROUND, FederatedOutcome, PhaseSeconds, RoundJournal, metric_of
from troth.federated.make_algorithm import describe_clients, make_algorithm, make_server
from troth.federated.participation import gini
from troth.federated.personal import PERSONAL
from troth.federated.population import FederatedData
from troth.federated.rounds import BufferedRounds, FixedRounds, RoundSource, StreamRounds, Turn
from troth.federated.row_gradients import row_gradients
from troth.federated.selection import make_selection
from troth.federated.stream import Stream
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

__all__ = ["Evaluate", "EvaluatePeriod", "EvaluatePersonal", "Federation", "simulate"]

Evaluate = Callable[["PreTrainedModel"], Sequence[Measurement]]


class EvaluatePersonal(Protocol):
    """Measures the models that devices keep for themselves."""

    @property
    def clients(self) -> NDArray[np.int64]:
        """Clients whose models are to be measured."""

    def __call__(self, model: PreTrainedModel, client: int) -> None:
        """Measure the model, which is the client's own now, in evaluation mode."""


EvaluatePeriod = Callable[["PreTrainedModel", int], Sequence[dict[str, Json]]]
_KEPT_CHECKPOINTS = 2
_NO_MATTER = {"checkpoint_every", "workers"}  # decides nothing about the result


@dataclass(frozen=True, eq=False)
class Federation:
    """What a federation is made of.

    Attributes:
        task: collates batches and gives the per-example loss.
        model: its trainable parameters are the global model.
        encoded: the rows that `clients` points to.
        clients: the population.
        config: rounds, cohort, selection, algorithm, local and server settings.
        seeds: public randomness: cohorts, batches, dropout.
        stream: the periods of a stream; None where the rows do not change.
        last_seen: [clients] day in which each last had new data, for selection by recency; None where unknown.
        head: names of the parameters of the model's head, for ``local_head``.
    """

    task: Task
    model: PreTrainedModel
    encoded: Encoded
    clients: FederatedData
    config: FederatedConfig
    seeds: PublicSeeds
    stream: Stream | None = None
    last_seen: NDArray[np.integer] | None = None
    head: Collection[str] = ()


def simulate(
    federation: Federation,
    *,
    evaluate: Evaluate,
    evaluate_period: EvaluatePeriod | None = None,
    evaluate_personal: EvaluatePersonal | None = None,
    progress: Progress | None = None,
    folder: Path | None = None,
    resume: bool = False,
) -> FederatedOutcome:
    """Train the model of a federation in place: rounds of cohorts drawn from its clients.

    Guarantees:
    - every draw depends on the seed, its purpose, the round and the client only: cohorts differ between seeds and
      rounds, and a killed and resumed run ends, on a CPU, with the same bits as an uninterrupted one;
    - the caller's torch random state and the mode of every module are left as they were found;
    - an update that is not finite, of another shape or out of bound, and a client whose data raise an error are left
      out and counted, and the round goes on;
    - of a stream, no row is read that has expired, was deleted or has not arrived;
    - whatever happens, the model holds the global parameters after the last finished round.

    Args:
        federation: model, data and settings.
        evaluate: measures the global model (in evaluation mode), every ``evaluate_every`` rounds and after the last.
        evaluate_period: measures it at the end of each period of a stream; returns rows of ``federated.period``.
        evaluate_personal: measures the models that devices keep (ditto, local_head) after the last round.
        progress: where to say how far it is; None shows nothing.
        folder: where ``checkpoints/`` goes, every ``checkpoint_every`` rounds; None writes nothing.
        resume: whether to go on from the newest whole checkpoint in `folder`, or from the start where there is none.

    Raises:
        ConfigError: a cohort larger than the population, or rows counted twice by selection and weight.
        DataError: the population points to other rows than `encoded` holds.
        ModelError: nothing to train, or a layer that averaging does not cover.
        PrivacyError: a row was about to be read that a stream does not hold any more.
        ResumeError: the checkpoint belongs to other settings, rows, clients or weights.
        RunError: checkpoints are there and `resume` is not set, or the disk is full.
        KeyboardInterrupt: Ctrl-C; the last finished round is in a checkpoint.
    """
    clients, encoded, model = federation.clients, federation.encoded, federation.model
    if len(clients.rows) and int(clients.rows.max()) >= len(encoded):
        raise DataError(f"the clients hold row {clients.rows.max()}, the encoded table has {len(encoded)} rows")
    engine = LocalEngine(federation.task, model, encoded, federation.config, federation.seeds)
    algorithm = make_algorithm(federation.config, len(clients), federation.head)
    rounds = _rounds(federation, engine)
    place = None if folder is None else folder / "checkpoints"
    with locked(place) if place else nullcontext(), _as_found(model):
        identity = _identity(federation) if place else {}
        kept = None if folder is None else folder / "devices"
        store = DeviceStore(algorithm, engine.parameters(), len(clients), kept) if algorithm.traits.memory else None
        start = algorithm.init(engine.parameters())
        run = _Run(federation, algorithm, engine, rounds, store, place, identity, start)
        engine.guard = run.rounds.guard
        try:
            if place:
                run.take_up(_found(place, resume))
            measures = _Measures(evaluate, evaluate_period)
            found = run.run(measures, progress or SilentProgress())
            if evaluate_personal is not None:
                run.personal(evaluate_personal)
        finally:
            engine.close()
            if store is not None:
                store.close()
    return _outcome(run, found)


def _rounds(federation: Federation, engine: LocalEngine) -> RoundSource:
    """Return where the rounds' cohorts come from."""
    config, clients, seeds = federation.config, federation.clients, federation.seeds
    if federation.stream is not None:

        def gradients(rows: NDArray[np.int64]) -> NDArray[np.float32]:
            return row_gradients(federation.task, federation.model, federation.encoded, rows, seeds)

        return StreamRounds(config, federation.stream, len(clients), seeds, gradients)
    if config.algorithm == "fedbuff":
        return BufferedRounds(config, clients, seeds)
    return FixedRounds(config, clients, seeds, federation.last_seen)


@dataclass(frozen=True)
class _Measures:
    """What is measured of the global model, and when."""

    rounds: Evaluate
    period: EvaluatePeriod | None


@dataclass
class _Run:
    """A federation under way: what it is made of, and where it stands."""

    federation: Federation
    algorithm: Algorithm
    engine: LocalEngine
    rounds: RoundSource
    store: DeviceStore | None
    folder: Path | None
    identity: dict[str, Json]
    state: ServerState
    journal: RoundJournal = field(default_factory=RoundJournal)
    versions: OldVersions = field(default_factory=OldVersions)
    saved: int = 0

    def __post_init__(self) -> None:
        self.participations = np.zeros(self.rounds.clients, dtype=np.int32)
        self._probed = 0

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
        device = next(iter(self.state.parameters.values())).device
        trees = {k: {n: p.to(device) for n, p in tree.items()} for k, tree in found.tensors.items() if k != "arrays"}
        slots = {k.removeprefix("slot-"): v for k, v in trees.items() if k.startswith("slot-")}
        self.state = ServerState(trees["model"], found.step, slots)
        self.versions.restore(trees)
        arrays, rest = dict(found.tensors["arrays"]), found.state
        self.participations = arrays.pop("participations").numpy()
        if self.store is not None:
            self.store.take_up(arrays.pop("device_slots").numpy())
        stored_rounds: Any = rest["rounds"]
        self.rounds.restore(stored_rounds, arrays)
        stored_journal: Any = rest["journal"]
        self.journal = RoundJournal.from_dict(stored_journal)
        stored_layout: Any = rest["layout"]
        self.engine.layout = None if stored_layout is None else Layout(**stored_layout)
        self.saved = found.step

    def run(self, measures: _Measures, progress: Progress) -> Sequence[Measurement]:
        """Make the remaining rounds and return what the last evaluation found."""
        found: Sequence[Measurement] = ()
        progress.start(self.rounds.rounds, "federating")
        try:
            with Interrupts() as interrupts:
                try:
                    while self.state.round_index < self.rounds.rounds:
                        interrupts.check()
                        found = self._round(measures) or found
                        progress.update(self.state.round_index, loss=self._loss(), **_shown(found))
                    interrupts.check()
                except StopRequested:
                    if self.saved != self.state.round_index:
                        self._save()
                    raise KeyboardInterrupt from None
            return found or self._measured(measures)  # all rounds were done before: a resumed, finished run
        finally:
            progress.stop()
            self.engine.load(self.state.parameters)

    def _round(self, measures: _Measures) -> Sequence[Measurement]:
        """Make one round; return what was measured after it, nothing where it was not."""
        begun, index = time.perf_counter(), self.state.round_index
        self.engine.load(self.state.parameters)
        turn = self.rounds.next(index, self._losses)
        if wanted := self.rounds.versions():
            self.versions.keep(index, self.state.parameters, wanted | set(turn.parts))
        drawn = time.perf_counter()
        outcome = self._clients(turn)
        worked = time.perf_counter()
        if outcome.aggregate is None:
            self.state = replace(self.state, round_index=index + 1)
        else:
            self.state = self.algorithm.server_update(self.state, outcome.aggregate)
        for cohort in turn.parts.values():
            self.participations[cohort.clients] += 1
        spent = PhaseSeconds(drawn - begun, worked - drawn, time.perf_counter() - worked)
        took_part = self.participations[self.participations > 0]
        self.journal.add(outcome, turn, spent, gini(took_part, self.rounds.clients), self._probed)
        self._probed = 0
        return self._after(measures)

    def _clients(self, turn: Turn) -> RoundOutcome:
        """Return what the clients of a round send back, each from the model that it was sent."""
        outcomes = []
        for version, cohort in turn.parts.items():
            if version == self.state.round_index:
                state = self.state
            else:
                state = ServerState(self.versions.of(version), version, self.state.slots)
            outcomes.append(self.engine.run_round(self.algorithm, state, cohort, turn.data, self.store))
        return outcomes[0] if len(outcomes) == 1 else _together(outcomes)

    def _after(self, measures: _Measures) -> Sequence[Measurement]:
        """Measure and save, where it is time."""
        done, config = self.state.round_index, self.federation.config
        last = done == self.rounds.rounds
        found: Sequence[Measurement] = ()
        if last or done % config.evaluate_every == 0:
            found = self._measured(measures)
            self.journal.close(done, found)
        rounds = self.rounds
        if isinstance(rounds, StreamRounds) and rounds.period and rounds.ends_period(done) and measures.period:
            self.engine.load(self.state.parameters)
            rows = measures.period(self.federation.model.train(mode=False), rounds.period.index)
            self.journal.periods += [{"round": done, **row} for row in rows]
        if last or done % (config.checkpoint_every or config.evaluate_every) == 0:
            self._save()
        return found

    def personal(self, evaluate: EvaluatePersonal) -> None:
        """Put each client's own model in place of the global one and have it measured; nothing where there are none."""
        if self.store is None or all(memory.name != PERSONAL for memory in self.algorithm.traits.memory):
            return
        for client in evaluate.clients.tolist():
            kept = self.store.read(self.state, np.array([client]))[PERSONAL]
            self.engine.load({**self.state.parameters, **{name: t[0] for name, t in kept.items()}})
            evaluate(self.federation.model.train(mode=False), client)
        self.engine.load(self.state.parameters)

    def _losses(self, clients: NDArray[np.int64]) -> NDArray[np.float64]:
        rounds = self.rounds
        period = rounds.period if isinstance(rounds, StreamRounds) else None
        data = self.federation.clients if period is None else period.training
        self._probed += len(clients)
        return self.engine.client_losses(self.state, data, clients)

    def _measured(self, measures: _Measures) -> Sequence[Measurement]:
        self.engine.load(self.state.parameters)
        return measures.rounds(self.federation.model.train(mode=False))

    def _loss(self) -> float | None:
        rows = self.journal.rows
        latest = rows[-1]["loss"] if rows else None
        return self.journal.loss if self.journal.losses else latest if isinstance(latest, float) else None

    def _save(self) -> None:
        """Write a checkpoint of the last finished round and let go of the oldest."""
        if self.folder is None:
            return
        slots = {f"slot-{name}": tensors for name, tensors in self.state.slots.items()}
        rounds, arrays = self.rounds.state()
        arrays = {**arrays, "participations": torch.from_numpy(self.participations)}
        if self.store is not None:
            self.store.flush()
            arrays["device_slots"] = torch.from_numpy(self.store.slots)
        layout = self.engine.layout
        state: dict[str, Json] = {
            "identity": self.identity,
            "journal": self.journal.to_dict(),
            "rounds": rounds,
            "layout": None if layout is None else asdict(layout),
        }
        done = self.state.round_index
        tensors = {"model": self.state.parameters, **slots, **self.versions.trees(), "arrays": arrays}
        save_checkpoint(self.folder, Checkpoint(done, tensors, state))
        keep_latest(self.folder, _KEPT_CHECKPOINTS)
        if self.store is not None:
            self.store.release()
        self.saved = done


def _together(outcomes: Sequence[RoundOutcome]) -> RoundOutcome:
    """Return the outcomes of clients that started from different models as one."""
    taken = [o.aggregate for o in outcomes if o.aggregate is not None]
    update: dict[str, Tensor] | None = None
    for part in taken:
        update = added(update, part.update)
    rejected: Counter[str] = Counter()
    for outcome in outcomes:
        rejected.update(outcome.rejected)
    aggregate = None if update is None else Aggregate(update, clients=sum(part.clients for part in taken))
    sums = {
        name: sum(getattr(o, name) for o in outcomes)
        for name in ("clients", "samples", "steps", "losses", "loss_sum", "bytes_down", "bytes_up", "unstacked")
    }
    return RoundOutcome(aggregate=aggregate, rejected=dict(rejected), **sums)


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


def _identity(federation: Federation) -> dict[str, Json]:
    """Return what must be the same where a federation goes on."""
    settings = federation.config.model_dump(mode="json", exclude=_NO_MATTER)
    stream = {} if federation.stream is None else {"the stream": federation.stream.fingerprint}
    return {
        **{f"federated.{key}": value for key, value in json.loads(json.dumps(settings)).items()},
        **stream,
        "run.seed": federation.seeds.root,
        "the training rows": rows_digest(federation.encoded),
        "who holds which rows": federation.clients.fingerprint,
        "the weights that are not trained": frozen_digest(federation.model),
    }


def _shown(found: Sequence[Measurement]) -> dict[str, float | None]:
    return {metric_of(m): m.value for m in found[:1]}


def _outcome(run: _Run, found: Sequence[Measurement]) -> FederatedOutcome:
    """Return what the federation did: its last evaluation and its cost as measurements."""
    journal, config, rounds = run.journal, run.federation.config, run.state.round_index
    layout = run.engine.layout
    way = "merged" if layout is None else f"stacked by {layout.chunk_size}" if layout.stacked else "one by one"
    protocol: dict[str, Json] = {
        "rounds": rounds,
        "cohort_size": config.cohort_size,
        "algorithm": config.algorithm,
        "selection": config.selection.by,
        "weight": make_selection(config.selection).weight,
        "client_optimizer": describe_clients(config),
        "server_optimizer": make_server(config).describe(),
        "clients_run": way,
        "layouts_measured": layout.measured if layout is not None else "",
    }
    last = tuple(replace(m, name=ROUND + metric_of(m), protocol={**m.protocol, **protocol}) for m in found)
    clients = len(run.federation.clients)
    took_part = run.participations[run.participations > 0]
    costs = (
        computed("federated.clients", clients, clients, "clients", protocol=run.federation.clients.summary()),
        computed("federated.samples", journal.samples, rounds, "examples", direction="lower"),
        computed("federated.steps", journal.steps, rounds, "steps", direction="lower"),
        computed("federated.bytes_sent", journal.bytes_up + journal.bytes_down, rounds, "bytes", direction="lower"),
        computed("federated.rejected_updates", journal.rejections, rounds, "updates", direction="lower"),
        computed("federated.dropped_clients", journal.dropped, rounds, "clients", direction="lower"),
        computed("federated.participation_gini", gini(took_part, clients), clients, "fraction"),
        computed("federated.clients_seen", len(took_part), clients, "clients"),
    )
    series = {"federated.round": journal.rows, "federated.participation": journal.participation}
    if journal.periods:
        series["federated.period"] = journal.periods
    return FederatedOutcome(rounds, series, (*last, *costs), journal.seconds, _warnings(run))


_REASONS = {
    "not_finite": "were not finite; lower federated.local.learning_rate",
    "norm": "had an L2 norm above federated.aggregation.reject_above",
    "shape": "were of another shape than the model",
    "data": "could not be made: the client's data raised an error",
    "empty": "could not be made: the client had no rows",
}


def _warnings(run: _Run) -> tuple[str, ...]:
    journal, out = run.journal, []
    dropped = run.federation.clients.dropped
    if dropped:
        out.append(f"federated: {dropped} clients without a row were left out of the population")
    for reason, count in journal.rejected.items():
        out.append(f"federated: {count} client updates were left out, for they {_REASONS[reason]}")
    if journal.idle_rounds:
        out.append(f"federated: in {journal.idle_rounds} of {run.state.round_index} rounds no update came in")
    if journal.unstacked:
        out.append(
            f"federated: {journal.unstacked} client turns were run one by one, for stacking them raised an error"
        )
    layout = run.engine.layout
    if layout is not None and layout.reason and run.federation.config.execution == "auto":
        out.append(f"federated: clients were run one after the other, for they cannot be stacked: {layout.reason}")
    if isinstance(run.rounds, StreamRounds):
        out += list(run.federation.stream.warnings) if run.federation.stream else []
        if run.rounds.small_rounds:
            out.append(
                f"federated: in {run.rounds.small_rounds} rounds fewer clients than federated.cohort_size had rows in "
                "the window"
            )
    return tuple(out)
