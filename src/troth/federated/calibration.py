"""How clients are best run here: stacked or one after the other, and how many at a time. Tried, compared, timed.

Stacking is taken only where its gradients were found equal to those of the plain way on real rows of the table; a model
or task that ``torch.func`` cannot stack is run in a loop, and the reason is kept.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import get_args

import numpy as np
import torch
from torch import nn

from troth.accounting.cache import remembered
from troth.config_federated import FederatedConfig
from troth.federated.algorithm import Algorithm, ServerState
from troth.federated.chunk_runner import ChunkRunner, Layout
from troth.federated.device_store import blank_memory
from troth.federated.loop_problem import LoopProblem
from troth.federated.round_plan import Chunk, RoundWork, plan_chunks
from troth.federated.stacked_problem import Masks, StackedModel, StackedProblem
from troth.results import Json
from troth.tasks import Encoded, Task

__all__ = ["LOOP_CHUNK", "stackable", "timed_layout"]

_SIZES = (16, 32, 64, 128)
LOOP_CHUNK = 8
_REPEATS = 2
_HOPELESS = 1.5  # times the best: not timed again
_BUDGET_SECONDS = 0.5
_TOLERANCE = {torch.float64: 1e-9}
_DEFAULT_TOLERANCE = 2e-4  # float32: relative to the largest entry of a gradient


def stackable(
    task: Task, model: nn.Module, encoded: Encoded, trained: Sequence[str], chunk: Chunk, state: ServerState
) -> tuple[Masks | None, str]:
    """Return how a stacked model gets its masks, or None and why it cannot be stacked.

    Gradients of the clients of `chunk`, dropout off, are compared with those of the plain way.
    """
    wanted, reason = _plain_gradients(task, model, encoded, chunk, state), ""
    for masks in get_args(Masks):
        try:
            stacked = StackedModel(task, model, encoded, list(trained), masks, cut=True)
            stacked.train(mode=False)
            apart = _apart(stacked, chunk, state, wanted)
            stacked.train(mode=True)
            StackedProblem(stacked, chunk, state.parameters, {}).gradients(0)
        except Exception as error:  # whatever a model does that torch.func has no rule for
            reason = reason or f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
            continue
        dtype = next(iter(state.parameters.values())).dtype
        if apart <= _TOLERANCE.get(dtype, _DEFAULT_TOLERANCE):
            return masks, ""
        reason = f"stacked gradients differ from the plain ones by {apart:.1g} of the largest"
    return None, reason


def _plain_gradients(
    task: Task, model: nn.Module, encoded: Encoded, chunk: Chunk, state: ServerState
) -> list[dict[str, torch.Tensor]]:
    modes = [(module, module.training) for module in model.modules()]
    model.train(mode=False)
    found = []
    for k in range(len(chunk)):
        problem = LoopProblem(task, model, encoded, chunk.one(k), state.parameters, {})
        found.append({name: g[0].clone() for name, g in problem.gradients(0).items()})
    for module, mode in modes:
        module.training = mode
    return found


def _apart(stacked: StackedModel, chunk: Chunk, state: ServerState, wanted: list[dict[str, torch.Tensor]]) -> float:
    """Return the largest difference over the largest entry, of any client and parameter."""
    problem = StackedProblem(stacked, chunk, state.parameters, {})
    gradients = problem.gradients(0)
    largest, worst = 1e-30, 0.0
    for k, single in enumerate(wanted):
        pick = torch.zeros(len(chunk), dtype=torch.float64)
        pick[k] = 1.0
        mine = problem.reply_sum(gradients, pick)
        for name, g in mine.items():
            other = single.get(name, torch.zeros_like(g))
            largest = max(largest, float(other.abs().max()))
            worst = max(worst, float((g - other).abs().max()))
    return worst / largest


def timed_layout(
    make: Callable[[Layout], ChunkRunner],
    algorithm: Algorithm,
    state: ServerState,
    work: RoundWork,
    config: FederatedConfig,
    masks: Masks,
    shape: Mapping[str, Json],
) -> Layout:
    """Return the fastest layout for clients like those of `work`, by CPU time.

    A measurement is remembered: the same federation is run the same way again on this machine, to the last bit.

    Args:
        make: a runner for a layout.
        algorithm: what clients do.
        state: of the server.
        work: a round's clients.
        config: of the federation.
        masks: as `stackable` found.
        shape: what the model is, for the memory of measurements.
    """
    cohort = len(work.clients)
    sizes = [config.chunk_size] if config.chunk_size else [s for s in _SIZES if s <= max(_SIZES[0], cohort)]
    layouts = [Layout(stacked=True, chunk_size=s, masks=masks) for s in sizes]
    if config.execution != "stacked":
        layouts.append(Layout(stacked=False, chunk_size=config.chunk_size or LOOP_CHUNK))
    if len(layouts) == 1:
        return layouts[0]
    facts: dict[str, Json] = {
        **shape,
        "local": config.local.model_dump(mode="json"),
        "algorithm": config.algorithm,
        "layouts": [f"{layout.stacked} {layout.chunk_size} {layout.masks}" for layout in layouts],
        "cohort": (len(work.clients) - 1).bit_length(),
        "torch": torch.__version__,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }
    seconds = remembered(
        "client-seconds", facts, lambda: _timed([make(x) for x in layouts], algorithm, state, work, config, layouts)
    )
    chosen = layouts[int(np.argmin(seconds))]
    told = ", ".join(
        f"{'stacked by ' + str(x.chunk_size) if x.stacked else 'one by one'} {1e3 * s:.2f} ms"
        for x, s in zip(layouts, seconds, strict=True)
    )
    return replace(chosen, measured=f"CPU time of a client: {told}")


def _timed(
    runners: Sequence[ChunkRunner],
    algorithm: Algorithm,
    state: ServerState,
    work: RoundWork,
    config: FederatedConfig,
    layouts: Sequence[Layout],
) -> list[float]:
    """Return the CPU seconds of a client in each layout."""
    some = _representative(runners[-1], algorithm, state, work, config)
    best = np.full(len(layouts), np.inf)
    for _ in range(_REPEATS):
        for i, (layout, runner) in enumerate(zip(layouts, runners, strict=True)):
            if best[i] <= _HOPELESS * best.min() or np.isinf(best[i]):
                chunks = plan_chunks(some, config.local, layout.chunk_size)
                best[i] = min(best[i], _seconds(runner, algorithm, state, chunks))
    return [float(b) / len(some.clients) for b in best]


def _seconds(runner: ChunkRunner, algorithm: Algorithm, state: ServerState, chunks: Sequence[Chunk]) -> float:
    """Return the CPU seconds that these chunks take."""
    begun = time.process_time()
    for chunk in chunks:
        runner.run(algorithm, state, chunk, blank_memory(algorithm, state, len(chunk)))
    return time.process_time() - begun


def _representative(
    plain: ChunkRunner, algorithm: Algorithm, state: ServerState, work: RoundWork, config: FederatedConfig
) -> RoundWork:
    """Return every k-th client in order of work, as many as the plain way runs in about half a second."""
    order = np.lexsort((work.clients, work.counts))
    middle = work.part(order[len(order) // 2 :][:1])
    chunks = plan_chunks(middle, config.local, 1)
    _seconds(plain, algorithm, state, chunks)  # the first run allocates
    each = _seconds(plain, algorithm, state, chunks) / int(chunks[0].samples.sum())
    total = each * float(work.counts.sum()) * config.local.epochs
    stride = max(1, math.ceil(total / _BUDGET_SECONDS))
    return work.part(np.sort(order[stride // 2 :: stride] if stride < len(order) else order[len(order) // 2 :][:1]))
