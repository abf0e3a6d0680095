"""Runs one chunk of a round and sums what its clients send back; the same in this process and in a worker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from troth.config_federated import AggregationConfig
from troth.errors import TrothError
from troth.federated.aggregation import added, screen
from troth.federated.algorithm import Algorithm, ClientReply, Parameters, ServerState
from troth.federated.local_vocabulary import token_table
from troth.federated.loop_problem import LoopProblem
from troth.federated.round_plan import Chunk
from troth.federated.stacked_problem import Masks, StackedModel, StackedProblem
from troth.tasks import Encoded, Task

__all__ = ["ChunkResult", "ChunkRunner", "Layout", "upload_bytes"]

Memory = Mapping[str, Parameters]
_ROW_NUMBER_BYTES = 4  # a touched row of the token table is sent with its number


@dataclass(frozen=True)
class Layout:
    """How clients are run.

    Attributes:
        stacked: whether clients are stacked, or run one after the other.
        chunk_size: clients in a chunk at most.
        masks: how a stacked model gets its attention mask.
        reason: why clients cannot be stacked; empty where they can.
        measured: what the choice went by.
    """

    stacked: bool
    chunk_size: int
    masks: Masks = "as it is"
    reason: str = ""
    measured: str = ""


@dataclass(eq=False)
class ChunkResult:
    """What came back from a chunk.

    Attributes:
        update: sum of weight x update of the clients taken; None where none was, or where updates are kept apart.
        updates: the updates themselves [clients taken, ...], where the aggregation rule wants them.
        numbers: sums of weight x number.
        summed: plain sums of trees.
        clients: numbers of the clients taken.
        memory: what these keep, tree -> name -> [clients taken, ...].
        weight: sum of their weights.
        rejected: clients left out, by reason.
        first_error: type of the first error that a client's data raised: a message could hold its text.
        unstacked: clients that were to be stacked and were run one after the other, for one's data raised an error.
        samples: examples processed, by all.
        steps: gradient steps, by all.
        losses: examples of the clients taken.
        loss_sum: sum of their losses, nats.
        bytes_up: bytes sent back.
        bytes_down: bytes sent to clients.
    """

    update: dict[str, Tensor] | None = None
    updates: list[dict[str, Tensor]] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)
    summed: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    clients: list[int] = field(default_factory=list)
    memory: list[tuple[NDArray[np.int64], dict[str, dict[str, Tensor]]]] = field(default_factory=list)
    weight: float = 0.0
    rejected: Counter[str] = field(default_factory=Counter)
    first_error: str = ""
    unstacked: int = 0
    samples: int = 0
    steps: int = 0
    losses: int = 0
    loss_sum: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0

    def add(self, other: ChunkResult) -> None:
        """Add another chunk's result; the order of additions decides the last bits."""
        if other.update is not None:
            self.update = added(self.update, other.update)
        for name, tree in other.summed.items():
            self.summed[name] = added(self.summed.get(name), tree)
        for name, number in other.numbers.items():
            self.numbers[name] = self.numbers.get(name, 0.0) + number
        self.updates += other.updates
        self.clients += other.clients
        self.memory += other.memory
        self.weight += other.weight
        self.rejected += other.rejected
        self.first_error = self.first_error or other.first_error
        self.unstacked += other.unstacked
        self.samples += other.samples
        self.steps += other.steps
        self.losses += other.losses
        self.loss_sum += other.loss_sum
        self.bytes_up += other.bytes_up
        self.bytes_down += other.bytes_down


class ChunkRunner:
    """Runs chunks in the layout that was chosen; a chunk that cannot be stacked is run client by client."""

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        encoded: Encoded,
        trained: Sequence[str],
        aggregation: AggregationConfig,
        layout: Layout,
    ) -> None:
        self._task, self._model, self._encoded, self._trained = task, model, encoded, list(trained)
        self._aggregation, self._layout = aggregation, layout
        self._table = token_table(model, trained)
        self._stacked: dict[bool, StackedModel] = {}

    def run(self, algorithm: Algorithm, state: ServerState, chunk: Chunk, memory: Memory) -> ChunkResult:
        """Return the sums over a chunk.

        Args:
            algorithm: what clients do.
            state: of the server.
            chunk: who, and which rows.
            memory: what the chunk's clients keep, tree -> name -> [clients, ...].
        """
        if self._layout.stacked:
            try:
                return self._run_stacked(algorithm, state, chunk, memory)
            except TrothError:
                raise
            except Exception:  # one client's data are enough: the loop finds out whose
                result = self._run_loop(algorithm, state, chunk, memory)
                result.unstacked += len(chunk)
                return result
        return self._run_loop(algorithm, state, chunk, memory)

    def _run_stacked(self, algorithm: Algorithm, state: ServerState, chunk: Chunk, memory: Memory) -> ChunkResult:
        torch.manual_seed(int(chunk.seeds[0]))
        stacked = self.stacked(cut=not algorithm.traits.moves_all)
        problem = StackedProblem(stacked, chunk, state.parameters, memory)
        reply = algorithm.client_update(state, problem)
        return self._sum(problem, reply, chunk, algorithm, state)

    def stacked(self, *, cut: bool) -> StackedModel:
        """Return the stacked model, made once; `cut` cuts the token table to the clients' own rows."""
        if cut not in self._stacked:
            self._stacked[cut] = StackedModel(
                self._task, self._model, self._encoded, self._trained, self._layout.masks, cut=cut
            )
        return self._stacked[cut]

    def _run_loop(self, algorithm: Algorithm, state: ServerState, chunk: Chunk, memory: Memory) -> ChunkResult:
        total = ChunkResult()
        self._model.train()
        for k in range(len(chunk)):
            single = chunk.one(k)
            own = {tree: {n: t[k : k + 1] for n, t in tensors.items()} for tree, tensors in memory.items()}
            torch.manual_seed(int(single.seeds[0]))
            try:
                problem = LoopProblem(self._task, self._model, self._encoded, single, state.parameters, own)
                reply = algorithm.client_update(state, problem)
            except TrothError:
                raise
            except Exception as error:
                total.rejected["data"] += 1
                total.first_error = total.first_error or type(error).__name__
                continue
            total.add(self._sum(problem, reply, single, algorithm, state))
        return total

    @torch.no_grad()
    def _sum(
        self,
        problem: LoopProblem | StackedProblem,
        reply: ClientReply,
        chunk: Chunk,
        algorithm: Algorithm,
        state: ServerState,
    ) -> ChunkResult:
        """Return what is summed of the clients whose update is taken."""
        clients = len(chunk)
        sound = screen(reply.update, problem.start, clients, self._aggregation)
        out = ChunkResult(rejected=Counter(sound.rejected), samples=int(chunk.samples.sum()))
        out.steps = int(chunk.steps.sum())
        self._count_bytes(out, reply, chunk, algorithm, state)
        taken = sound.taken
        if not bool(taken.any()):
            return out
        chosen = taken.nonzero()[:, 0]
        update = {n: _only(u, taken) for n, u in reply.update.items()}
        weights = torch.from_numpy(chunk.weights)
        if self._aggregation.rule == "mean":
            out.update = problem.reply_sum(update, weights * sound.scale)
        else:
            out.updates = [self._dense(problem, update, chosen, sound.scale)]
        out.numbers = {n: float((v.double() * weights)[taken].sum()) for n, v in reply.numbers.items()}
        for name, tree in reply.summed.items():
            out.summed[name] = problem.reply_sum({n: _only(t, taken) for n, t in tree.items()}, taken.double())
        out.clients = chunk.clients[chosen.numpy()].tolist()
        if reply.memory:
            kept = {tree: {n: t[chosen] for n, t in tensors.items()} for tree, tensors in reply.memory.items()}
            out.memory = [(chunk.clients[chosen.numpy()], kept)]
        out.weight = float(weights[taken].sum())
        out.losses = int(chunk.samples[chosen.numpy()].sum())
        out.loss_sum = float(problem.loss_sums[taken].sum())
        return out

    @staticmethod
    def _dense(
        problem: LoopProblem | StackedProblem, update: Parameters, chosen: Tensor, scale: Tensor
    ) -> dict[str, Tensor]:
        """Return [clients taken, ...] the updates in the model's own layout."""
        clients = len(scale)
        rows = []
        for k in chosen.tolist():
            one = torch.zeros(clients, dtype=torch.float64)
            one[k] = scale[k]
            rows.append(problem.reply_sum(update, one))
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def _count_bytes(
        self, out: ChunkResult, reply: ClientReply, chunk: Chunk, algorithm: Algorithm, state: ServerState
    ) -> None:
        """Count what travels: the trained parameters down and the update up, and the trees that are summed both ways.

        Where only the token rows that a client looks up can have moved, it sends only those back, however it is run.
        """
        sent = {name: state.parameters[name] for name in reply.update if name in state.parameters}
        trees = sum(t.nbytes for tree in reply.summed.values() for t in tree.values())
        out.bytes_down = len(chunk) * sum(p.nbytes for p in sent.values()) + trees
        table = None if algorithm.traits.moves_all else self._table
        out.bytes_up = upload_bytes(sent, table, chunk.touched) + trees


def upload_bytes(sent: Parameters, table: str | None, touched: NDArray[np.int64]) -> int:
    """Return what clients upload: the parameters, of the token table only the rows that each has looked up.

    Args:
        sent: the parameters that updates have.
        table: the name of the token table; None where all of it can have moved.
        touched: [clients] rows of the table that each looks up.
    """
    dense = sum(p.nbytes for p in sent.values())
    if table is None or table not in sent:
        return len(touched) * dense
    row = sent[table][0].nbytes + _ROW_NUMBER_BYTES
    return len(touched) * (dense - sent[table].nbytes) + int(touched.sum()) * row


def _only(tensor: Tensor, taken: Tensor) -> Tensor:
    """Return the tensor with zeros at clients that are not taken: a weight of 0 alone would let NaN through."""
    if bool(taken.all()):
        return tensor
    return torch.where(taken.view(-1, *[1] * (tensor.dim() - 1)), tensor, 0.0)
