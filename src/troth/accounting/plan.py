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

__all__ = ["PrivacyPlan", "make_plan"]


@dataclass(frozen=True)
class PrivacyPlan:
    """A run of DP-SGD, fixed before it starts: `steps` steps, each a Poisson sample, a clipped sum and Gaussian noise.

    Attributes:
        examples: n, the number of training examples; treated as public.
        expected_batch_size: B; the sum of clipped gradients is divided by it, never by the batch that was drawn.
        sampling_rate: q = B / n, in (0, 1]: the chance of each example to be in a batch.
        steps: optimizer steps of the whole run.
        noise_multiplier: sigma, noise standard deviation divided by `clipping_norm`; 0 (tests) gives epsilon infinity.
        clipping_norm: C, the bound on one example's gradient in the L2 norm.
        delta: below 1/n.
        unit: what neighbouring data sets differ in.
        neighboring_relation: how they differ in it.
        sampler: how batches are drawn.
        accountant: what `epsilon` is computed with.

    Guarantees:
        - the event and epsilon speak of the same steps, sampling rate and noise as the engine that runs this value;
        - epsilon is pessimistic: never below the true figure.

    Raises:
        PrivacyError: a field is out of range, delta is not below 1/n, or q is not B / n.

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
    unit: Literal["example"] = "example"
    neighboring_relation: Literal["add_remove"] = "add_remove"
    sampler: Literal["poisson"] = "poisson"
    accountant: Literal["pld"] = "pld"

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
        fixed = (self.unit, self.neighboring_relation, self.sampler, self.accountant)
        if fixed != ("example", "add_remove", "poisson", "pld"):
            raise PrivacyError(
                f"{', '.join(fixed)}: this version accounts for unit example, neighbours add_remove, "
                "sampler poisson and accountant pld only"
            )

    @property
    def sum_noise_std(self) -> float:
        """Standard deviation of the noise on each coordinate of the sum of clipped gradients: sigma times C."""
        return self.noise_multiplier * self.clipping_norm

    @property
    def mechanism(self) -> Mechanism:
        """One step of the plan, as the accountants see it."""
        return Mechanism(self.sampling_rate, self.noise_multiplier)

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


def make_plan(privacy: PrivacyConfig, train: TrainConfig, examples: int) -> PrivacyPlan:
    """Return the plan of a run over `examples` training examples.

    steps = epochs * ceil(n / B). With a target epsilon the noise multiplier is the smallest whose epsilon does not
    exceed it (`calibrate_noise_multiplier`); with a noise multiplier it is taken as given.

    Raises:
        ConfigError: the expected batch size exceeds the number of examples.
        PrivacyError: delta is not below 1/n, or the target cannot be reached.
    """
    from troth.accounting.calibrate import calibrate_noise_multiplier

    batch = train.expected_batch_size
    if batch > examples > 0:
        raise ConfigError(
            f"train.expected_batch_size = {batch}: exceeds the {examples} training examples; give at most {examples}"
        )
    _check_sizes(examples, batch)
    _check_sizes(examples, batch)
    check_delta(privacy.target_delta, examples)
    rate, steps = batch / examples, train.epochs * math.ceil(examples / batch)
    if privacy.target_epsilon is not None:
        sigma = calibrate_noise_multiplier(privacy.target_epsilon, privacy.target_delta, rate, steps)
    elif privacy.noise_multiplier is not None:
        sigma = privacy.noise_multiplier
    else:
        raise ConfigError("give exactly one of privacy.target_epsilon and privacy.noise_multiplier")
    return PrivacyPlan(
        examples=examples,
        expected_batch_size=batch,
        sampling_rate=rate,
        steps=steps,
        noise_multiplier=sigma,
        clipping_norm=privacy.clipping_norm,
        delta=privacy.target_delta,
        unit=privacy.unit,
        sampler=privacy.sampler,
    )
