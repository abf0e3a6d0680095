"""Where the time of private training goes: the engine with one of its parts left out at a time.

Run ``python benchmarks/dp_profile.py``. It prints a table for three settings of ``dp_overhead.py`` and writes
``results/dp_profile.md``. A part's cost is what the same physical batch takes less without it, so cache and memory
effects are in it, which a profiler of single operations leaves out. The variants take turns batch by batch, plain
training among them, so that slow spells of the machine fall on all; the mean of the middle half of each is used, in
CPU seconds of one thread. Results without a part are wrong, of course: this is for timing only.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import torch
from dp_overhead import WORKS, Work, limit, losses, make_data, make_model
from torch import Tensor

from troth.accounting.plan import PrivacyPlan
from troth.dp import PrivateEngine, engine, linear
from troth.dp.embedding import EmbeddingBlock
from troth.dp.linear import LinearBlock
from troth.dp.norm import VectorBlock, _Context, _LayerNorm, _write
from troth.dp.workspace import Workspace
from troth.seeds import PrivateRandomness

if TYPE_CHECKING:
    from troth.dp.tape import LinearUse

RESULTS = Path(__file__).parent / "results"
SETTINGS = ((WORKS[0], 60), (WORKS[2], 12), (WORKS[4], 10))
_UNCLIPPED_BIAS = LinearBlock._add_use


def _no_norms(x: Tensor, g: Tensor, work: Workspace, *, with_bias: bool) -> Tensor:
    return torch.ones(len(x))


def _no_scaling(self: Workspace, tensor: Tensor) -> Tensor:
    return tensor


def _no_bias(self: LinearBlock, use: LinearUse, views: Mapping[torch.nn.Parameter, Tensor], work: Workspace) -> None:
    bias, self.bias = self.bias, None
    _UNCLIPPED_BIAS(self, use, views, work)
    self.bias = bias


def _no_weights(self: LinearBlock, views: Mapping[torch.nn.Parameter, Tensor], work: Workspace) -> None:
    return


def _no_norm_gradients(ctx: _Context, g: Tensor) -> tuple[Tensor, None, None, None]:
    x, weight, mean, rstd = ctx.saved_tensors
    for attribute in ("weight", "bias"):
        _write(ctx, attribute, torch.zeros(len(x), weight.numel()))
    wanted = [True, False, False]
    dx = torch.ops.aten.native_layer_norm_backward(g, x, weight.shape, mean, rstd, weight, None, wanted)[0]
    return dx, None, None, None


@contextmanager
def _embeddings_out() -> Iterator[None]:
    with (
        mock.patch.object(EmbeddingBlock, "norms_squared", lambda self, work: torch.ones(len(self.uses[0].g))),
        mock.patch.object(EmbeddingBlock, "add_clipped", lambda self, views, work: None),
    ):
        yield


PARTS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "ghost norms of linear layers": lambda: mock.patch.object(linear, "_ghost_norms", _no_norms),
    "scaling by the clip factors": lambda: mock.patch.object(Workspace, "scaled", _no_scaling),
    "bias sums": lambda: mock.patch.object(LinearBlock, "_add_use", _no_bias),
    "layer norms' own gradients": lambda: mock.patch.object(_LayerNorm, "backward", staticmethod(_no_norm_gradients)),
    "embeddings": _embeddings_out,
    "clipped sums of weights and biases": lambda: mock.patch.object(LinearBlock, "add_clipped", _no_weights),
    "clipped sums of vectors": lambda: mock.patch.object(VectorBlock, "add_clipped", lambda self, views, work: None),
}


def _seconds(action: Callable[[], object]) -> float:
    start = time.thread_time()
    action()
    return time.thread_time() - start


def _middle(values: list[float]) -> float:
    ordered = sorted(values)
    return statistics.mean(ordered[len(ordered) // 4 : max(len(ordered) * 3 // 4, 1)])


class Turns:
    """Private batches one after the other; the first of each step, which writes the noise, is made in between."""

    def __init__(self, work: Work) -> None:
        """Attach an engine to a model of the setting and let it check itself."""
        self.model = make_model(work)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=True)
        plan = PrivacyPlan(work.logical, work.logical, 1.0, 100_000, 1.0, 0.1, 1e-5)
        self._engine = PrivateEngine(self.model, optimizer, plan, PrivateRandomness())
        self._rows, self._labels = (part[: work.physical] for part in make_data(work))
        self._engine.check_losses(lambda rows: losses(self.model, self._rows[rows], self._labels[rows]), np.arange(4))
        self._batches, self._done = work.logical // work.physical, 0
        self.open()

    def open(self) -> None:
        """Make the batch of a new step that writes the noise, ending the old step where it is full."""
        if self._done == self._batches:
            self._engine.step()
            self._done = 0
        if self._done == 0:
            self._engine.sample()
            self.batch()

    def batch(self) -> None:
        """Make one physical batch."""
        self._engine.backward(losses(self.model, self._rows, self._labels))
        self._done += 1

    def plain(self, model: torch.nn.Module) -> None:
        """Make the same batch without an engine."""
        losses(model, self._rows, self._labels).sum().backward()


def profile(work: Work, rounds: int) -> list[str]:
    """Return the rows of one setting's table: each part's share of a plain physical batch, in percent."""
    turns, model = Turns(work), make_model(work)
    turns.plain(model)
    write, noise = engine.write_noise, []

    def timed_noise(*args: object, **kwargs: object) -> None:
        noise.append(_seconds(lambda: write(*args, **kwargs)))  # type: ignore[arg-type]

    whole: dict[str, Callable[[], AbstractContextManager[object]]] = {"whole": nullcontext, **PARTS}
    times: dict[str, list[float]] = {name: [] for name in whole}
    base: list[float] = []
    with mock.patch.object(engine, "write_noise", timed_noise):
        for _ in range(rounds):
            for name, without in whole.items():
                turns.open()
                with without():
                    times[name].append(_seconds(turns.batch))
                base.append(_seconds(lambda: turns.plain(model)))
    unit = _middle(base) / 100
    total = _middle(times["whole"])
    step = work.logical / work.physical
    rows = [f"| private batch over plain batch | {total / unit - 100:.1f} |"]
    rows += [f"| {name} | {(total - _middle(times[name])) / unit:.1f} |" for name in PARTS]
    bound = 100 * (limit(work) - 1)
    rows += [
        f"| noise, once a step | {_middle(noise) / unit / step:.1f} |",
        f"| limit: operations of the ghost norms at the speed of the model's products | {bound:.1f} |",
    ]
    return [f"## {work.name}", "", f"{rounds} rounds.", "", "| part | % of plain |", "|---|---|", *rows, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry", action="store_true", help="print, write nothing")
    parser.add_argument("--scale", type=float, default=1.0, help="more or fewer rounds")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Where the time of private training goes",
        "",
        "Each part's cost: what a physical batch takes less without it, in percent of a plain batch (forward, backward "
        "and accumulation). Plain training makes weight gradients too: the clipped sums of weights stand in their "
        "place and are no overhead.",
        "",
    ]
    for work, rounds in SETTINGS:
        lines += profile(work, max(2, round(rounds * arguments.scale)))
    facts = ", ".join(f"{p} {version(p)}" for p in ("torch", "transformers", "numpy"))
    lines += [f"{datetime.now(UTC).date().isoformat()}, {facts}, one thread.", ""]
    text = "\n".join(lines)
    print(text)
    if not arguments.dry:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "dp_profile.md").write_text(text)


if __name__ == "__main__":
    main()
