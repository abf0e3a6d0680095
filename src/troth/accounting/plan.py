"""A privacy plan: the value that training executes, the ledger records and the report prints."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from troth.accounting.mechanism import Mechanism
from troth.errors import ConfigError, PrivacyError
from troth.results import Json

if TYPE_CHECKING:
    import dp_accounting

    from troth.config import PrivacyConfig, TrainConfig

__all__ = ["PrivacyPlan", "check_plan", "make_plan", "plan_for"]


_QUANTILE_STEP = 0.2  # Andrew et al. found it to work across six data sets (arXiv 1905.03871, section 3)


@dataclass(frozen=True)
class PrivacyPlan:
    """A run of DP-SGD, fixed before it starts: `steps` steps, each a Poisson sample, a clipped sum and Gaussian noise.

    Attributes:
        examples: n, the number of units to protect: examples (with all their augmentations), or users; public.
        expected_batch_size: B, in units; the sum of clipped gradients is divided by what B implies, never by the batch
            that was drawn.
        sampling_rate: q = B / n, in (0, 1]: the chance of each unit to be in a batch.
        steps: optimizer steps of the whole run.
        noise_multiplier: sigma, what the accountants see: noise standard deviation divided by the sensitivity of what
            it is added to; 0 (tests) gives epsilon infinity.
        clipping_norm: C, the bound on one clipped gradient in the L2 norm; where it adapts, its first value.
        delta: below 1/n.
        unit: what neighbouring data sets differ in.
        neighboring_relation: how they differ in it: ``add_remove``, or ``zero_out`` (n fixed) where truncated.
        sampler: how batches are drawn.
        accountant: what `epsilon` is computed with.
        clipping: ``flat`` (Abadi et al., arXiv 1607.00133); ``automatic``: AUTO-S, C / (norm + 0.01) (Bu et al.,
            arXiv 2206.07136); ``adaptive``: C follows a quantile of the norms by noisy counts, which are paid for
            (Andrew et al., arXiv 1905.03871); ``per_layer``: every module clips to its share of C.
        clip_unit: ``example`` clips the gradient of each unit; ``microbatch`` clips mean gradients of randomly drawn
            groups, at twice the sensitivity.
        microbatch_size: m, the expected number of units in a micro-batch; 1 where units are clipped.
        max_batch_size: the cap of ``truncated_poisson``; None for plain Poisson.
        examples_per_user: how many examples one user adds to a step at most; None where the unit is the example.
        quantile: the share of gradients that ``adaptive`` leaves unclipped, in (0, 1); None otherwise.
        quantile_noise: standard deviation of the noise on that count; None otherwise.
        secure_noise: whether the noise comes from a cryptographic keystream.
        noise_draws: independent draws that make up each coordinate's noise; 4 is the recipe of Holohan and Braghin
            (arXiv 2107.10138) against attacks on floating-point arithmetic.
        grid_bits: the noisy sum is rounded to a grid this many bits below its standard deviation; None leaves it.

    Guarantees:
        - the event and epsilon speak of the same steps, sampling rate and noise as the engine that runs this value;
        - epsilon is pessimistic: never below the true figure.

    Raises:
        PrivacyError: a field is out of range, delta is not below 1/n, q is not B / n, or fields contradict each other.

    >>> plan = PrivacyPlan(1000, 100, 0.1, 30, 1.0, 0.1, 1e-5)
    >>> plan.sum_noise_std
    0.1
    >>> PrivacyPlan.from_dict(plan.to_dict()) == plan
    True
    """

    examples: int
    expected_batch_size: int
    sampling_rate: float
    steps: int
    noise_multiplier: float
    clipping_norm: float
    delta: float
    unit: Literal["example", "user"] = "example"
    neighboring_relation: Literal["add_remove", "zero_out"] = "add_remove"
    sampler: Literal["poisson", "truncated_poisson"] = "poisson"
    accountant: Literal["pld"] = "pld"
    clipping: Literal["flat", "automatic", "adaptive", "per_layer"] = "flat"
    clip_unit: Literal["example", "microbatch"] = "example"
    microbatch_size: int = 1
    max_batch_size: int | None = None
    examples_per_user: int | None = None
    quantile: float | None = None
    quantile_noise: float | None = None
    secure_noise: bool = True
    noise_draws: int = 1
    grid_bits: int | None = None

    def __post_init__(self) -> None:
        _check_sizes(self.examples, self.expected_batch_size)
        if not math.isclose(self.sampling_rate, self.expected_batch_size / self.examples, rel_tol=1e-12):
            raise PrivacyError(
                f"sampling_rate {self.sampling_rate:g} is not expected_batch_size / examples = "
                f"{self.expected_batch_size} / {self.examples}: epsilon would speak of another run"
            )
        if self.steps < 1:
            raise PrivacyError(f"steps = {self.steps}: a plan has at least one step")
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier >= 0):
            raise PrivacyError(f"noise_multiplier = {self.noise_multiplier}: give a finite number, 0 or more")
        if not (math.isfinite(self.clipping_norm) and self.clipping_norm > 0):
            raise PrivacyError(f"clipping_norm = {self.clipping_norm}: give a finite number above 0")
        check_delta(self.delta, self.examples)
        _check_words(self)
        _check_sampler(self)
        _check_clip_unit(self)
        _check_quantile(self)
        if not 1 <= self.noise_draws <= 64:
            raise PrivacyError(f"noise_draws = {self.noise_draws}: give a number from 1 to 64")
        if self.grid_bits is not None and not 0 <= self.grid_bits <= 20:
            raise PrivacyError(f"grid_bits = {self.grid_bits}: give a number from 0 to 20")

    @property
    def sensitivity(self) -> float:
        """How far one unit moves the sum of clipped gradients at most: C, or 2 C where micro-batches are clipped.

        A unit that is added to a micro-batch turns one vector of norm at most C into another.
        """
        return self.clipping_norm * (2 if self.clip_unit == "microbatch" else 1)

    @property
    def gradient_noise_multiplier(self) -> float:
        """Noise on the gradients over their sensitivity: sigma, or a little more where a noisy count shares sigma.

        Andrew et al. (arXiv 1905.03871), theorem 1: (sigma^-2 - (2 sigma_b)^-2)^(-1/2) with sigma_b the noise on the
        count of units minus one half each, whose sensitivity is 1/2.
        """
        sigma = self.noise_multiplier
        if self.quantile_noise is None or sigma == 0:
            return sigma
        return 1 / math.sqrt(1 / sigma**2 - 1 / (2 * self.quantile_noise) ** 2)

    @property
    def sum_noise_std(self) -> float:
        """Standard deviation of the noise on each coordinate of the sum of clipped gradients (at the first C)."""
        return self.gradient_noise_multiplier * self.sensitivity

    @property
    def divisor(self) -> int:
        """What the noisy sum is divided by: the expected number of clipped gradients, a public number."""
        return math.ceil(self.expected_batch_size / self.microbatch_size)

    @property
    def quantile_step(self) -> float:
        """How fast an adaptive C moves: the factor of one step is exp(-step (share unclipped - quantile))."""
        return _QUANTILE_STEP

    @property
    def mechanism(self) -> Mechanism:
        """One step of the plan, as the accountants see it."""
        if self.max_batch_size is None:
            return Mechanism(self.sampling_rate, self.noise_multiplier)
        return Mechanism(self.sampling_rate, self.noise_multiplier, self.max_batch_size, self.examples)

    def event(self, steps: int | None = None) -> dp_accounting.DpEvent:
        """Return the event of the first `steps` steps (default: all): SelfComposed(PoissonSampled(Gaussian))."""
        return self.mechanism.event(self.steps if steps is None else steps)

    def epsilon(self, steps: int | None = None, delta: float | None = None) -> float:
        """Return epsilon after `steps` steps (default: all) at `delta` (default: the plan's), in nats.

        By privacy loss distributions, rounded towards a larger epsilon; 0 for no step, infinity without noise. More
        steps than planned are allowed: a resumed run may have to count some twice. The figure of the whole plan takes
        a second or two the first time and is kept on disk.
        """
        from troth.accounting.pld import composed_epsilon, remembered_epsilon

        at = self.delta if delta is None else delta
        if not 0 < at < 1:
            raise PrivacyError(f"delta = {at}: give a number between 0 and 1")
        if steps is not None and steps < 0:
            raise PrivacyError(f"steps = {steps}: give 0 or more")
        if steps is None or steps == self.steps:
            return remembered_epsilon([(self.mechanism, self.steps)], at)
        return composed_epsilon([(self.mechanism, steps)], at)

    def to_dict(self) -> dict[str, Json]:
        """Return the plan as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> PrivacyPlan:
        """Return the plan that `to_dict` wrote.

        Raises:
            PrivacyError: a key is missing or unknown, or a value is out of range.
        """
        try:
            return cls(**data)  # type: ignore[arg-type]
        except TypeError:
            raise PrivacyError(f"not a privacy plan: keys {', '.join(sorted(map(str, data)))}") from None

    def digest(self) -> str:
        """Return a fingerprint of the plan (SHA-256, hexadecimal): equal plans, equal digests."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def summary(self) -> str:
        """Return the plan in a few words, for tables."""
        return (
            f"{self.steps} steps, sampling rate {self.sampling_rate:.4g}, "
            f"noise multiplier {self.noise_multiplier:.4g}, delta {self.delta:.3g}"
        )


def _check_sizes(examples: int, expected_batch_size: int) -> None:
    if examples < 1:
        raise PrivacyError(f"examples = {examples}: there is nothing to train on")
    if not 1 <= expected_batch_size <= examples:
        raise PrivacyError(
            f"expected_batch_size = {expected_batch_size}: give a number from 1 to the {examples} training examples"
        )


def check_delta(delta: float, examples: int) -> None:
    """Refuse a delta that is not below 1/n: it would allow to publish a whole example.

    Raises:
        PrivacyError: delta is not in (0, 1/examples).
    """
    if not 0 < delta < 1 / examples:
        raise PrivacyError(
            f"target_delta = {delta:g}: must lie above 0 and below 1/n = {1 / examples:.3g} for {examples} examples, "
            f"such as {0.1 / examples:.1g}"
        )


def _check_words(plan: PrivacyPlan) -> None:
    allowed: dict[str, tuple[object, ...]] = {
        "unit": ("example", "user"),
        "sampler": ("poisson", "truncated_poisson"),
        "accountant": ("pld",),
        "clipping": ("flat", "automatic", "adaptive", "per_layer"),
        "clip_unit": ("example", "microbatch"),
        "secure_noise": (True, False),
    }
    for name, values in allowed.items():
        if getattr(plan, name) not in values:
            raise PrivacyError(f"{name} = {getattr(plan, name)!r}: give {' or '.join(map(str, values))}")


def _check_sampler(plan: PrivacyPlan) -> None:
    truncated = plan.sampler == "truncated_poisson"
    relation = "zero_out" if truncated else "add_remove"
    if plan.neighboring_relation != relation:
        raise PrivacyError(
            f"neighboring_relation = {plan.neighboring_relation!r}: sampler {plan.sampler} is accounted for by "
            f"{relation}"
        )
    if truncated != (plan.max_batch_size is not None):
        raise PrivacyError("max_batch_size goes with sampler truncated_poisson, which needs it")
    if plan.max_batch_size is not None and not plan.expected_batch_size <= plan.max_batch_size <= plan.examples:
        raise PrivacyError(
            f"max_batch_size = {plan.max_batch_size}: give a number from expected_batch_size = "
            f"{plan.expected_batch_size} to the {plan.examples} units"
        )


def _check_clip_unit(plan: PrivacyPlan) -> None:
    if (plan.clip_unit == "microbatch") != (plan.microbatch_size > 1):
        raise PrivacyError(
            f"microbatch_size = {plan.microbatch_size} with clip_unit {plan.clip_unit}: micro-batches hold 2 or more "
            "examples, other clip units 1"
        )
    if plan.microbatch_size > plan.expected_batch_size:
        raise PrivacyError(
            f"microbatch_size = {plan.microbatch_size}: give at most expected_batch_size = {plan.expected_batch_size}"
        )
    if plan.clip_unit == "microbatch" and (plan.unit != "example" or plan.clipping == "adaptive"):
        raise PrivacyError("clip_unit microbatch goes with unit example and with clipping flat, automatic or per_layer")
    if (plan.unit == "user") != (plan.examples_per_user is not None):
        raise PrivacyError("examples_per_user goes with unit user, which needs it")
    if plan.examples_per_user is not None and plan.examples_per_user < 1:
        raise PrivacyError(f"examples_per_user = {plan.examples_per_user}: give at least 1")


def _check_quantile(plan: PrivacyPlan) -> None:
    adaptive = plan.clipping == "adaptive"
    if adaptive != (plan.quantile is not None) or adaptive != (plan.quantile_noise is not None):
        raise PrivacyError("quantile and quantile_noise go with clipping adaptive, which needs both")
    if plan.quantile is not None and not 0 < plan.quantile < 1:
        raise PrivacyError(f"quantile = {plan.quantile}: give a number between 0 and 1")
    if plan.quantile_noise is not None and not plan.quantile_noise > plan.noise_multiplier / 2:
        raise PrivacyError(
            f"quantile_noise = {plan.quantile_noise:g}: must exceed half the noise multiplier "
            f"{plan.noise_multiplier:g}, else the count alone would spend more than the plan"
        )


def check_plan(privacy: PrivacyConfig, train: TrainConfig, examples: int) -> None:
    """Refuse a run over `examples` units that no calibration would make possible; takes no time.

    Raises:
        ConfigError: the expected batch size exceeds the number of units.
        PrivacyError: delta is not below 1/n.
    """
    batch = train.expected_batch_size
    if batch > examples > 0:
        what = "users" if privacy.unit == "user" else "training examples"
        raise ConfigError(
            f"train.expected_batch_size = {batch}: exceeds the {examples} {what}; give at most {examples}"
        )
    _check_sizes(examples, batch)
    check_delta(privacy.target_delta, examples)


def make_plan(privacy: PrivacyConfig, train: TrainConfig, examples: int) -> PrivacyPlan:
    """Return the plan of a run over `examples` units: training examples, or users.

    steps = epochs * ceil(n / B). With a target epsilon the noise multiplier is the smallest whose epsilon does not
    exceed it (`calibrate_noise_multiplier`); with a noise multiplier it is taken as given. The cap of truncated Poisson
    sampling is chosen by `choose_max_batch_size` unless it is given.

    Raises:
        ConfigError: the expected batch size exceeds the number of units.
        PrivacyError: delta is not below 1/n, or the target cannot be reached.
    """
    from troth.accounting.calibrate import calibrate_noise_multiplier
    from troth.accounting.truncation import choose_max_batch_size

    check_plan(privacy, train, examples)
    batch, delta = train.expected_batch_size, privacy.target_delta
    rate, steps = batch / examples, train.epochs * math.ceil(examples / batch)
    sigma = privacy.noise_multiplier
    if sigma is None:
        if privacy.target_epsilon is None:
            raise ConfigError("give exactly one of privacy.target_epsilon and privacy.noise_multiplier")
        sigma = calibrate_noise_multiplier(privacy.target_epsilon, delta, rate, steps)
    cap = None
    if privacy.sampler == "truncated_poisson":
        cap = privacy.max_batch_size or choose_max_batch_size(Mechanism(rate, sigma), examples, steps, delta)
        if privacy.target_epsilon is not None and batch <= cap <= examples:
            sigma = calibrate_noise_multiplier(
                privacy.target_epsilon, delta, rate, steps, max_batch_size=cap, units=examples
            )
    adaptive = privacy.clipping == "adaptive"
    return PrivacyPlan(
        examples=examples,
        expected_batch_size=batch,
        sampling_rate=rate,
        steps=steps,
        noise_multiplier=sigma,
        clipping_norm=privacy.clipping_norm,
        delta=delta,
        unit=privacy.unit,
        neighboring_relation="add_remove" if cap is None else "zero_out",
        sampler=privacy.sampler,
        clipping=privacy.clipping,
        clip_unit=privacy.clip_unit,
        microbatch_size=(privacy.microbatch_size or 8) if privacy.clip_unit == "microbatch" else 1,
        max_batch_size=cap,
        examples_per_user=(privacy.examples_per_user or 8) if privacy.unit == "user" else None,
        quantile=(privacy.quantile or 0.5) if adaptive else None,
        quantile_noise=max(batch / 20, 2 * sigma) if adaptive else None,
        secure_noise=privacy.secure_noise,
        noise_draws=privacy.noise_draws,
        grid_bits=privacy.grid_bits,
    )


def plan_for(
    *, examples: int, expected_batch_size: int, epochs: int, epsilon: float, delta: float, **options: object
) -> PrivacyPlan:
    """Return the plan that spends `epsilon` at `delta` in `epochs` passes: `make_plan` for a loop of your own.

    Args:
        examples: n, the number of units to protect: examples, or users.
        expected_batch_size: B, in units.
        epochs: of ceil(n / B) steps each.
        epsilon: above 0, in nats.
        delta: below 1/n.
        options: further keys of the run file's [privacy], such as ``clipping_norm``, ``clipping`` or ``unit``.

    Raises:
        PrivacyError: delta is not below 1/n, or epsilon cannot be reached.
        ConfigError: an option is unknown or has a wrong value.
    """
    from pydantic import ValidationError

    from troth.config import PrivacyConfig, TrainConfig

    try:
        privacy = PrivacyConfig.model_validate({"target_epsilon": epsilon, "target_delta": delta, **options})
        train = TrainConfig(epochs=epochs, expected_batch_size=expected_batch_size)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{'.'.join(map(str, first['loc'])) or 'plan_for'}: {first['msg']}") from None
    return make_plan(privacy, train, examples)
