"""What a run would cost before it starts: noise, steps, epsilon, and a measured estimate of time and memory."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from troth import __version__
from troth.accounting import PrivacyPlan, epsilon_curve, make_plan
from troth.config import RunConfig
from troth.config_federated import FederatedConfig
from troth.data import load, privacy_units
from troth.dp.inspect import refuse_unsupported
from troth.errors import ConfigError
from troth.federated import simulate
from troth.results import Json, Measurement, Record, computed, now
from troth.runs import stages
from troth.runs.federated_stage import federation
from troth.runs.preflight import check_data, check_file
from troth.runs.provenance import Clock, peak_memory_bytes
from troth.tasks import make_model
from troth.training import Progress, SilentProgress, TrainInputs, probe

__all__ = ["plan", "plan_of"]

_POINTS = 20
_STRETCHES = 9  # of equal length, whose paces are compared
_ROUNDS = 3  # timed at least; more where they are short
_SECONDS = 6.0


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

    The time is that of a few of the run's own steps (or rounds), made on a model that is thrown away, scaled to the
    whole run; it speaks of the record's ``cost.work_seconds``. The ledger is neither asked nor told.

    Raises:
        TrothError: what the run would be refused for before it trains.
    """
    check_file(config, "plan")
    clock = Clock()
    prepared = stages.prepare(config, base, progress)
    check_data(prepared, "plan")
    made = None
    found: list[Measurement] = []
    if config.privacy is not None:
        progress.message("calibrating the noise")
        units = privacy_units(prepared.splits.train, config.privacy.unit)
        made = make_plan(config.privacy, config.train, len(units))
        found += _promised(made)
    try:
        if config.federated is None:
            found += _training(prepared, made)
        else:
            found += _federation(prepared, config.federated)
    finally:
        progress.stop()
    found.append(
        computed(
            "plan.peak_memory_bytes",
            peak_memory_bytes(),
            1,
            "bytes",
            direction="lower",
            protocol={"measured": "largest resident size of the process that made the timed steps"},
        )
    )
    return Record(
        "plan",
        config.run.name,
        now(),
        __version__,
        config.to_dict(),
        config.run.seed,
        tuple(found),
        {} if made is None else {"privacy.epsilon": epsilon_curve(made, _POINTS)},
        cost=clock.cost(),
    )


def _promised(made: PrivacyPlan) -> list[Measurement]:
    n = made.examples
    return [
        computed("plan.noise_multiplier", made.noise_multiplier, n, "ratio"),
        computed("plan.sampling_rate", made.sampling_rate, n, "fraction"),
        computed("plan.epsilon", made.epsilon(), n, "natural-log units", direction="lower"),
        computed("plan.sum_noise_std", made.sum_noise_std, n, "gradient norm"),
    ]


def _training(prepared: stages.Prepared, made: PrivacyPlan | None) -> list[Measurement]:
    """Return steps, physical batch size and seconds of the training loop."""
    config = prepared.config
    model = make_model(config, prepared.task, prepared.seeds, prepared.base)
    if made is not None:
        refuse_unsupported(model)
    inputs = TrainInputs(
        task=prepared.task,
        model=model,
        train=prepared.task.encode(prepared.splits.train),
        config=config,
        seeds=prepared.seeds,
        folder=prepared.base,
        device=prepared.device,
        units=None if config.privacy is None else privacy_units(prepared.splits.train, config.privacy.unit),
    )
    probed = probe(inputs, plan=made, progress=prepared.progress)
    paces = _paces(probed.seconds)
    protocol: dict[str, Json] = {
        "measured": "whole steps as the run makes them, on a model that is thrown away"
        + (": sampling, clipping and noise included" if made else ""),
        "timed_steps": len(probed.seconds),
        "seconds_a_step": statistics.fmean(probed.seconds),
        "seconds_of_the_first_step_beyond": probed.extra_seconds,
        "checkpoints": probed.checkpoints,
        "seconds_a_checkpoint": probed.checkpoint_seconds,
        "speaks_of": "cost.work_seconds of the training loop; loading, scoring, attacks and the report come on top",
    }
    ends = probed.work_seconds(min(paces)), probed.work_seconds(max(paces))
    value = probed.work_seconds(statistics.fmean(probed.seconds))
    return [
        computed("plan.steps", probed.steps, len(inputs.train), "steps"),
        computed("plan.physical_batch_size", probed.physical_batch_size, len(inputs.train), "examples"),
        _seconds(value, ends, len(paces), protocol, private=made is not None),
    ]


def _paces(seconds: Sequence[float]) -> list[float]:
    """Return the mean seconds a step of each of `_STRETCHES` stretches of consecutive steps, or of each step."""
    stretches = np.array_split(np.asarray(seconds), min(_STRETCHES, len(seconds)))
    return [float(stretch.mean()) for stretch in stretches]


def _seconds(
    value: float, ends: tuple[float, float], n: int, protocol: dict[str, Json], *, private: bool
) -> Measurement:
    """Return the estimate with the range of its stretches, scaled.

    One more stretch of the same kind lies between the least and the greatest of n with chance (n - 1) / (n + 1),
    whatever the distribution; the mean over a whole run strays less than one stretch does.
    """
    shared: dict[str, Json] = {
        "interval": "pace of the fastest and of the slowest of n timed stretches, kept up for the whole run; "
        "confidence is the chance that a further stretch lies between them",
        "assumes": "the machine is as busy during the run as it was while this was timed",
    }
    return Measurement(
        "plan.seconds",
        value,
        *ends,
        (n - 1) / (n + 1),
        "range",
        n,
        "seconds",
        "lower",
        outside_guarantee=private,
        protocol={**protocol, **shared},
    )


def _federation(prepared: stages.Prepared, federated: FederatedConfig) -> list[Measurement]:
    """Return rounds and seconds of the federation."""
    model = stages.on_device(make_model(prepared.config, prepared.task, prepared.seeds, prepared.base), prepared.device)
    made, _ = federation(prepared, federated, model)

    def timed(rounds: int) -> list[float]:
        short = federated.model_copy(update={"rounds": rounds, "evaluate_every": 1, "stream": None})
        outcome = simulate(
            replace(made, config=short, stream=None),
            evaluate=lambda _: (),
            progress=SilentProgress() if rounds == 1 else prepared.progress,
        )
        ends = [float(row["seconds"]) for row in outcome.series["federated.round"] if isinstance(row["seconds"], float)]
        return [after - before for before, after in zip([0.0, *ends], ends, strict=False)]

    warm_up = timed(1)[0]
    more = max(_ROUNDS, min(2 * _STRETCHES, int(_SECONDS / max(warm_up, 1e-3))))
    seconds = timed(more)
    paces = _paces(seconds)
    protocol: dict[str, Json] = {
        "measured": "whole rounds as the run makes them, on a model that is thrown away",
        "timed_rounds": len(seconds),
        "seconds_a_round": statistics.fmean(seconds),
        "speaks_of": "cost.work_seconds of the federation; loading, evaluation, attacks and the report come on top",
    }
    rounds = federated.rounds
    if made.stream is not None and federated.stream is not None:
        rounds = len(made.stream) * federated.stream.rounds_per_period
    ends = rounds * min(paces), rounds * max(paces)
    return [
        computed("plan.rounds", rounds, rounds, "rounds"),
        _seconds(rounds * statistics.fmean(seconds), ends, len(paces), protocol, private=False),
    ]
