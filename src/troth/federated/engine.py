"""The engine of this machine: takes a round apart into chunks, runs them here or in worker processes, sums in order.

Memory does not grow with the cohort: there is one running sum. One thread works at a time in each process: on small
models several threads are slower than one, and the sums come out the same on every number of workers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from troth.config_federated import FederatedConfig
from troth.errors import ModelError
from troth.federated.aggregation import added, finite, robust
from troth.federated.algorithm import Aggregate, Algorithm, Parameters, ServerState
from troth.federated.calibration import LOOP_CHUNK, stackable, timed_layout
from troth.federated.chunk_runner import ChunkResult, ChunkRunner, Layout, upload_bytes
from troth.federated.device_store import DeviceStore
from troth.federated.local_vocabulary import token_table
from troth.federated.merged_round import merged_gradient, plan_merged
from troth.federated.population import FederatedData
from troth.federated.round_plan import Chunk, RoundWork, plan_chunks, round_work
from troth.federated.selection import Cohort
from troth.federated.worker_pool import WorkerPool, Workplace
from troth.results import Json
from troth.seeds import PublicSeeds
from troth.tasks import Encoded, Task

__all__ = ["LocalEngine", "RoundOutcome", "one_thread"]

Integers = NDArray[np.int64]
_PROBE_CLIENTS = 4


@dataclass(frozen=True, eq=False)
class RoundOutcome:
    """What the clients of a round sent back, summed.

    Attributes:
        aggregate: the replies as one; None where none was taken.
        clients: clients that trained, or tried to.
        rejected: clients whose update was left out, by reason: ``not_finite``, ``norm``, ``shape``, ``data`` (the
            client's data raised an error), ``empty`` (no rows).
        samples: examples processed, each local epoch counted.
        steps: local gradient steps.
        losses: how many of those examples belong to updates that were taken.
        loss_sum: sum of these examples' losses, nats, each at the parameters of its step.
        bytes_down: bytes sent to clients.
        bytes_up: bytes sent back; where clients hold only the token rows they look up, only those.
        unstacked: clients that were to be stacked and were run one after the other.
    """

    aggregate: Aggregate | None
    clients: int
    rejected: Mapping[str, int]
    samples: int
    steps: int
    losses: int
    loss_sum: float
    bytes_down: int
    bytes_up: int
    unstacked: int = 0


@dataclass(eq=False)
class LocalEngine:
    """Runs the clients of a round on this machine.

    Guarantees:
    - a client's batches depend on seed, round and client alone; its dropout on these and, where clients are stacked,
      on who stands in its chunk;
    - with a fixed chunk size the sums are the same to the last bit whatever the order of clients and the number of
      workers.

    Attributes:
        task: collates batches and gives the per-example loss.
        model: its trainable parameters are the global model's place.
        encoded: the rows.
        config: of the federation.
        seeds: public seeds.
        guard: called with the rows of each round before they are read; raises where one must not be.
        layout: how clients are run; chosen at the first round unless set before.
    """

    task: Task
    model: nn.Module
    encoded: Encoded
    config: FederatedConfig
    seeds: PublicSeeds
    guard: Callable[[Integers], None] | None = None
    layout: Layout | None = None
    _trained: dict[str, nn.Parameter] = field(init=False, repr=False)
    _table: str | None = field(init=False, default=None, repr=False)
    _runner: ChunkRunner | None = field(init=False, default=None, repr=False)
    _pool: WorkerPool | None = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        self._trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self._table = token_table(self.model, self._trained)
        if not self._trained:
            raise ModelError("model.trainable: no parameter is trained; a federation needs at least one")
        for name, module in self.model.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                raise ModelError(f"{name} is a BatchNorm layer: averaging parameters leaves out its running statistics")

    def parameters(self) -> Parameters:
        """Return the model's trainable parameters by name, live."""
        return self._trained

    @torch.no_grad()
    def load(self, parameters: Parameters) -> None:
        """Put parameters into the model."""
        for name, place in self._trained.items():
            place.copy_(parameters[name])

    def run_round(
        self, algorithm: Algorithm, state: ServerState, cohort: Cohort, data: FederatedData, store: DeviceStore | None
    ) -> RoundOutcome:
        """Return what the cohort makes of round ``state.round_index``.

        Raises:
            ModelError: every client's data raised an error: then it is not the data.
        """
        lengths = self.encoded.lengths
        with one_thread():
            ids = None if algorithm.traits.moves_all or self._table is None else self.encoded.ragged["input_ids"]
            clients, weights, local = cohort.clients, cohort.weights, self.config.local
            work = round_work(data, clients, weights, lengths, local, state.round_index, self.seeds, ids)
            if self.guard is not None:
                self.guard(work.rows)
            total = ChunkResult(rejected=Counter({"empty": len(cohort.clients) - len(work.clients)}))
            total.rejected += Counter()  # drops a count of zero
            merged = np.zeros(len(work.clients), dtype=bool)
            if self._merges(algorithm):
                merged = work.steps == 1
                done = self._run_merged(algorithm, state, work, merged) if merged.any() else None
                if done is None:
                    merged[:] = False
                else:
                    total.add(done)
            rest = work.part(np.flatnonzero(~merged))
            if len(rest.clients):
                self._choose(algorithm, state, rest)
                for result in self._results(algorithm, state, rest, store):
                    self._keep(store, result)
                    total.add(result)
        self._refuse_hopeless(total, work)
        return self._outcome(total, cohort, len(work.clients))

    def client_losses(self, state: ServerState, data: FederatedData, clients: Integers) -> NDArray[np.float64]:
        """Return [clients] the mean loss of each client's rows under the global model, nats; dropout off."""
        rows, offsets = data.gather(clients)
        if self.guard is not None:
            self.guard(rows)
        self.load(state.parameters)
        self.model.train(mode=False)
        losses = np.zeros(len(rows))
        order = np.argsort(self.encoded.lengths[rows], kind="stable")
        device = next(iter(self._trained.values())).device
        with torch.no_grad(), one_thread():
            for begin in range(0, len(order), 64):
                places = order[begin : begin + 64]
                batch = {n: v.to(device) for n, v in self.task.collate(self.encoded, rows[places]).items()}
                losses[places] = self.task.per_example_loss(self.model, batch).double().cpu().numpy()  # type: ignore[arg-type]
        return np.asarray(np.add.reduceat(losses, offsets[:-1]) / np.diff(offsets))

    def _merges(self, algorithm: Algorithm) -> bool:
        rules = self.config.aggregation
        plain = rules.rule == "mean" and rules.norm_bound is None and rules.reject_above is None
        return plain and self.config.execution != "loop" and algorithm.traits.one_step_factor is not None

    def _run_merged(
        self, algorithm: Algorithm, state: ServerState, work: RoundWork, merged: NDArray[np.bool_]
    ) -> ChunkResult | None:
        """Return the sums over clients of one step; None where they have to be looked at one by one."""
        self.load(state.parameters)
        self.model.train()
        gradient: dict[str, Tensor] | None = None
        loss_sum, rows = 0.0, 0
        draw = state.round_index * self.config.local.epochs
        try:
            for batch in plan_merged(work, merged, self.encoded.lengths, draw):
                found, losses = merged_gradient(self.task, self.model, self.encoded, batch, self._trained)
                gradient = added(gradient, found)
                loss_sum, rows = loss_sum + losses, rows + len(batch.rows)
        except (ValueError, IndexError, RuntimeError, TypeError, KeyError):  # one client's data: find out whose
            return None
        factor = algorithm.traits.one_step_factor
        if gradient is None or factor is None or not finite(gradient):
            return None
        update = {
            n: gradient[n].mul_(factor) if n in gradient else torch.zeros_like(p) for n, p in self._trained.items()
        }
        clients = int(merged.sum())
        sent = clients * sum(p.nbytes for p in self._trained.values())
        table = None if algorithm.traits.moves_all else self._table
        return ChunkResult(
            update={n: u.detach() for n, u in update.items()},
            clients=work.clients[merged].tolist(),
            weight=float(work.weights[merged].sum()),
            samples=rows,
            steps=clients,
            losses=rows,
            loss_sum=loss_sum,
            bytes_up=upload_bytes(self._trained, table, work.touched[merged]),
            bytes_down=sent,
        )

    def _choose(self, algorithm: Algorithm, state: ServerState, work: RoundWork) -> None:
        """Choose the layout, once."""
        if self._runner is not None:
            return
        if self.layout is None:
            self.layout = self._chosen(algorithm, state, work)
        self._runner = self._make(self.layout)

    def _make(self, layout: Layout) -> ChunkRunner:
        return ChunkRunner(self.task, self.model, self.encoded, list(self._trained), self.config.aggregation, layout)

    def _chosen(self, algorithm: Algorithm, state: ServerState, work: RoundWork) -> Layout:
        size = self.config.chunk_size or LOOP_CHUNK
        if self.config.execution == "loop":
            return Layout(stacked=False, chunk_size=size)
        if next(iter(self._trained.values())).device.type != "cpu":
            return Layout(stacked=False, chunk_size=size, reason="clients are stacked on CPUs only")
        probe = plan_chunks(work.part(np.arange(min(_PROBE_CLIENTS, len(work.clients)))), self.config.local, 2)[0]
        masks, reason = stackable(self.task, self.model, self.encoded, list(self._trained), probe, state)
        if masks is None:
            if self.config.execution == "stacked":
                raise ModelError(
                    f"federated.execution = 'stacked': this model cannot be stacked: {reason}; write 'auto'"
                )
            return Layout(stacked=False, chunk_size=size, reason=reason)
        shape: dict[str, Json] = {
            "model": type(self.model).__name__,
            "shapes": [[name, *p.shape] for name, p in self.model.named_parameters()],
            "trained": list[Json](sorted(self._trained)),
            "dtype": str(next(iter(self._trained.values())).dtype),
        }
        return timed_layout(self._make, algorithm, state, work, self.config, masks, shape)

    def _results(
        self, algorithm: Algorithm, state: ServerState, work: RoundWork, store: DeviceStore | None
    ) -> Iterator[ChunkResult]:
        """Yield each chunk's result in the order of chunks."""
        if self.layout is None or self._runner is None:
            return
        chunks = plan_chunks(work, self.config.local, self.layout.chunk_size)

        def memory(chunk: Chunk) -> Mapping[str, Parameters]:
            return {} if store is None else store.read(state, chunk.clients)

        if self.config.workers > 1 and len(chunks) > 1:
            yield from self._workers(self.layout).results(algorithm, state, chunks, memory)
        else:
            for chunk in chunks:
                yield self._runner.run(algorithm, state, chunk, memory(chunk))

    def _workers(self, layout: Layout) -> WorkerPool:
        if self._pool is None:
            place = Workplace(self.task, self.model, self.encoded, list(self._trained), self.config.aggregation, layout)
            self._pool = WorkerPool(place, self.config.workers)
        return self._pool

    def close(self) -> None:
        """End the worker processes, if there are any."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    @staticmethod
    def _keep(store: DeviceStore | None, result: ChunkResult) -> None:
        if store is not None:
            for clients, memory in result.memory:
                store.write(clients, memory)
        result.memory = []

    @staticmethod
    def _refuse_hopeless(total: ChunkResult, work: RoundWork) -> None:
        if total.rejected["data"] and total.rejected["data"] == len(work.clients):
            raise ModelError(
                f"all {len(work.clients)} clients of a round failed, the first with {total.first_error}: "
                "model and data do not go together"
            )

    def _outcome(self, total: ChunkResult, cohort: Cohort, clients: int) -> RoundOutcome:
        update = robust(total.updates, self.config.aggregation) if total.updates else total.update
        aggregate = None
        if update is not None and total.clients:
            numbers = total.numbers
            left_out = len(total.clients) < len(cohort.clients)
            if left_out and cohort.sums_to_one and not total.updates:
                update = {name: u / total.weight for name, u in update.items()}
                numbers = {name: n / total.weight for name, n in numbers.items()}
            aggregate = Aggregate(update, numbers, total.summed, len(total.clients))
        return RoundOutcome(
            aggregate,
            clients,
            dict(total.rejected),
            total.samples,
            total.steps,
            total.losses,
            total.loss_sum,
            total.bytes_down,
            total.bytes_up,
            total.unstacked,
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread within."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
