"""What a run would cost before it starts: noise, steps, epsilon, and a measured estimate of time and memory."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np
import torch

from troth import __version__
from troth.accounting import PrivacyPlan, epsilon_curve, make_plan
from troth.config import RunConfig
from troth.data import load, privacy_units
from troth.errors import ConfigError
from troth.results import Measurement, Record, computed, now
from troth.runs.provenance import Clock, peak_memory_bytes
from troth.runs.stages import Prepared, on_device, prepare
from troth.tasks import make_model
from troth.training import Progress

__all__ = ["plan", "plan_of"]

_PROBES = 7
_POINTS = 20


def plan_of(config: RunConfig, base: Path) -> PrivacyPlan:
    """Return the privacy plan of a run file; reads the training data to count its rows.

    Raises:
        ConfigError: the run file has no [privacy].
    """
    if config.privacy is None:
        raise ConfigError("the run file has no [privacy]: a plain run has no plan; epsilon is infinity")
    units = privacy_units(load(config.data, config.task, base).train, config.privacy.unit)
    return make_plan(config.privacy, config.train, len(units))


def plan(config: RunConfig, base: Path, progress: Progress) -> Record:
    """Return noise multiplier, steps, sampling rate, epsilon curve, and estimated time and memory.

    The time is that of forward and backward passes of a few batches of the training data, times the number of batches;
    nothing is updated. Clipping, noise and accounting come on top for a private run.
    """
    clock = Clock()
    found: list[Measurement] = []
    series = {}
    prepared = prepare(config, base, progress)
    examples = len(prepared.splits.train)
    steps = config.train.epochs * -(-examples // config.train.expected_batch_size)
    if config.privacy is not None:
        made = plan_of(config, base)
        steps = made.steps
        found += [
            computed("plan.noise_multiplier", made.noise_multiplier, examples, "ratio"),
            computed("plan.sampling_rate", made.sampling_rate, examples, "fraction"),
            computed("plan.epsilon", made.epsilon(), examples, "natural-log units", direction="lower"),
            computed("plan.sum_noise_std", made.sum_noise_std, examples, "gradient norm"),
        ]
        series["privacy.epsilon"] = epsilon_curve(made, _POINTS)
    seconds = _batch_seconds(prepared)
    found += [
        computed("plan.steps", steps, examples, "steps"),
        Measurement(
            "plan.seconds",
            statistics.median(seconds) * steps,
            min(seconds) * steps,
            max(seconds) * steps,
            1.0,
            "range of probes",
            len(seconds),
            "seconds",
            "lower",
            protocol={"measured": "forward and backward passes of whole batches, without clipping, noise or updates"},
        ),
        computed("plan.peak_memory_bytes", peak_memory_bytes(), 1, "bytes", direction="lower"),
    ]
    progress.stop()
    return Record(
        "plan",
        config.run.name,
        now(),
        __version__,
        config.to_dict(),
        config.run.seed,
        tuple(found),
        series,
        cost=clock.cost(),
    )


def _batch_seconds(prepared: Prepared) -> list[float]:
    """Return the wall seconds of forward and backward passes of a few batches, the first left out."""
    config, task = prepared.config, prepared.task
    encoded = task.encode(prepared.splits.train)
    model = on_device(make_model(config, task, prepared.seeds, prepared.base), prepared.device)
    model.train()
    rng = prepared.seeds.generator("plan", "probe")
    size = min(config.train.expected_batch_size, len(encoded))
    physical = config.train.physical_batch_size if isinstance(config.train.physical_batch_size, int) else min(size, 64)
    seconds = []
    for _ in range(_PROBES + 1):
        rows = rng.choice(len(encoded), size, replace=False)
        rows = rows[np.argsort(encoded.lengths[rows], kind="stable")]
        start = time.perf_counter()
        for begin in range(0, size, physical):
            batch = {k: v.to(prepared.device) for k, v in task.collate(encoded, rows[begin : begin + physical]).items()}
            torch.autograd.backward(task.per_example_loss(model, batch).sum())
        seconds.append(time.perf_counter() - start)
        model.zero_grad(set_to_none=True)
    return seconds[1:]
