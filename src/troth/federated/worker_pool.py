"""Worker processes that run chunks: one thread each, results handed on in the order of chunks.

A worker gets plain arrays and sends plain arrays back; it ends when its parent does.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from troth.config_federated import AggregationConfig
from troth.errors import RunError, TrothError
from troth.federated.algorithm import Algorithm, Parameters, ServerState
from troth.federated.chunk_runner import ChunkResult, ChunkRunner, Layout
from troth.federated.round_plan import Chunk
from troth.tasks import Encoded, Task

__all__ = ["WorkerPool", "Workplace"]

Memory = Mapping[str, Parameters]
_AHEAD = 4  # chunks per worker that may be done before their turn: bounds what the parent holds


@dataclass(frozen=True, eq=False)
class Workplace:
    """All that a runner is made of; sent once to each worker."""

    task: Task
    model: nn.Module
    encoded: Encoded
    trained: Sequence[str]
    aggregation: AggregationConfig
    layout: Layout

    def runner(self) -> ChunkRunner:
        """Return a runner."""
        return ChunkRunner(self.task, self.model, self.encoded, self.trained, self.aggregation, self.layout)


class WorkerPool:
    """Processes that run the chunks of rounds; close it, or use it as a context."""

    def __init__(self, workplace: Workplace, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._links: list[Connection] = []
        self._processes = []
        for _ in range(workers):
            mine, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, workplace), daemon=True)
            process.start()
            theirs.close()
            self._links.append(mine)
            self._processes.append(process)

    def results(
        self,
        algorithm: Algorithm,
        state: ServerState,
        chunks: Sequence[Chunk],
        memory: Callable[[Chunk], Memory],
    ) -> Iterator[ChunkResult]:
        """Yield the result of each chunk, in their order.

        Raises:
            RunError: a worker has died.
            TrothError: what a worker refused.
        """
        sent = _arrays(state.parameters), {k: _arrays(v) for k, v in state.slots.items()}, state.round_index
        for link in self._links:
            self._send(link, ("round", algorithm, *sent))
        idle, waiting, done, begun = list(self._links), {}, {}, 0
        for turn in range(len(chunks)):
            while turn not in done:
                while idle and begun < min(len(chunks), turn + _AHEAD * len(self._links)):
                    link = idle.pop(0)
                    kept = {tree: _arrays(t) for tree, t in memory(chunks[begun]).items()}
                    self._send(link, ("chunk", chunks[begun], kept))
                    waiting[link] = begun
                    begun += 1
                for ready in wait(list(waiting)):
                    link = next(x for x in waiting if x is ready)
                    done[waiting.pop(link)] = self._received(link)
                    idle.append(link)
            yield done.pop(turn)

    @staticmethod
    def _send(link: Connection, message: object) -> None:
        try:
            link.send(message)
        except (BrokenPipeError, OSError):
            raise RunError(_DEAD) from None

    @staticmethod
    def _received(link: Connection) -> ChunkResult:
        try:
            kind, content = link.recv()
        except (EOFError, OSError):
            raise RunError(_DEAD) from None
        if kind == "refused":
            raise content
        if kind == "failed":
            raise RunError(f"a federation worker failed with {content}; write federated.workers = 1 to see where")
        return _tensors(content)

    def close(self) -> None:
        """End the workers."""
        for link in self._links:
            link.close()
        for process in self._processes:
            process.terminate()
            process.join()
        self._links, self._processes = [], []


_DEAD = (
    "a federation worker has died (out of memory?): lower federated.workers or chunk_size, and continue with --resume"
)


def _work(link: Connection, workplace: Workplace) -> None:
    """Run chunks until the parent closes the pipe."""
    torch.set_num_threads(1)
    runner = workplace.runner()
    algorithm: Algorithm | None = None
    state: ServerState | None = None
    while True:
        try:
            message = link.recv()
        except (EOFError, OSError, KeyboardInterrupt):
            return
        if message[0] == "round":
            _, algorithm, parameters, slots, round_index = message
            state = ServerState(_tree(parameters), round_index, {k: _tree(v) for k, v in slots.items()})
            continue
        try:
            answer: tuple[str, Any] = "done", _plain(_one(runner, algorithm, state, message))
        except TrothError as error:
            answer = "refused", error
        except KeyboardInterrupt:
            return
        except Exception as error:
            answer = "failed", type(error).__name__
        try:
            link.send(answer)
        except (BrokenPipeError, OSError):
            return


def _one(runner: ChunkRunner, algorithm: Algorithm | None, state: ServerState | None, message: Any) -> ChunkResult:  # noqa: ANN401
    if algorithm is None or state is None:
        raise RunError("a federation worker got a chunk before its round")
    _, chunk, kept = message
    return runner.run(algorithm, state, chunk, {tree: _tree(t) for tree, t in kept.items()})


def _arrays(tree: Parameters) -> dict[str, np.ndarray]:
    return {name: t.detach().cpu().numpy() for name, t in tree.items()}


def _tree(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(a) for name, a in arrays.items()}


def _plain(result: ChunkResult) -> ChunkResult:
    """Return the result with arrays in place of tensors: tensors would travel as open files of a process that ends."""
    return _mapped(result, _arrays)


def _tensors(result: ChunkResult) -> ChunkResult:
    return _mapped(result, _tree)


def _mapped(result: ChunkResult, turn: Callable[[Any], Any]) -> ChunkResult:
    return replace(
        result,
        update=None if result.update is None else turn(result.update),
        updates=[turn(u) for u in result.updates],
        summed={name: turn(tree) for name, tree in result.summed.items()},
        memory=[(clients, {tree: turn(t) for tree, t in kept.items()}) for clients, kept in result.memory],
    )
