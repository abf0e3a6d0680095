"""One step of private training as the accountants see it: the subsampled Gaussian, and its Rényi divergence."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import dp_accounting

__all__ = ["RENYI_ORDERS", "Mechanism", "best_renyi_epsilon", "renyi_epsilon"]

RENYI_ORDERS: tuple[int, ...] = (*range(2, 65), 80, 96, 128, 192, 256, 512, 1024, 2048, 4096, 16384)
_ROUNDING = 1.0 + 1e-9  # far above the float64 error of the sum below; keeps every divergence an upper bound


@dataclass(frozen=True)
class Mechanism:
    """One step: each unit joins with probability `sampling_rate`; the clipped sum gets Gaussian noise.

    Attributes:
        sampling_rate: q in (0, 1].
        noise_multiplier: sigma, noise standard deviation divided by the sensitivity; 0 means no privacy.
        max_batch_size: truncated Poisson sampling: of a larger sample a uniform subset of this size is kept; None for
            plain Poisson.
        units: the public number of units n, which truncation needs; None for plain Poisson.
    """

    sampling_rate: float
    noise_multiplier: float
    max_batch_size: int | None = None
    units: int | None = None

    @property
    def untruncated(self) -> Mechanism:
        """The same step without a cap: what the capped one tends to as the cap grows, never a bound on it."""
        return Mechanism(self.sampling_rate, self.noise_multiplier)

    def event(self, steps: int) -> dp_accounting.DpEvent:
        """Return the event of `steps` such steps: add-or-remove-one neighbours, zero-out ones where truncated."""
        import dp_accounting

        if self.max_batch_size is not None and self.units is not None:
            step = dp_accounting.TruncatedSubsampledGaussianDpEvent(
                self.units, self.sampling_rate, self.max_batch_size, self.noise_multiplier
            )
        else:
            gaussian = dp_accounting.GaussianDpEvent(self.noise_multiplier)
            step = dp_accounting.PoissonSampledDpEvent(self.sampling_rate, gaussian)
        return dp_accounting.SelfComposedDpEvent(step, steps)

    def covers(self, other: Mechanism) -> bool:
        """Return whether a step of `other` leaks at most what a step of this one leaks, on every pair of data sets.

        More noise is post-processing of less noise, and a lower sampling rate mixes in more of the output without the
        example (joint convexity of the hockey-stick divergence), so both are dominated by this mechanism. Truncated
        steps are compared with steps of the same rate, cap and number of units only.
        """
        quieter = other.noise_multiplier >= self.noise_multiplier
        if self.max_batch_size is not None or other.max_batch_size is not None:
            return quieter and replace(other, noise_multiplier=self.noise_multiplier) == self
        return quieter and other.sampling_rate <= self.sampling_rate

    def renyi(self, order: int) -> float:
        """Return the Rényi divergence of one step at an integer order >= 2, in nats, rounded up.

        Mironov, Talwar and Zhang, 'Rényi differential privacy of the sampled Gaussian mechanism' (arXiv 1908.10530),
        section 3.3: the order-a moment is the sum over k of C(a,k) (1-q)^(a-k) q^k exp((k^2-k)/(2 sigma^2)). The
        terms k = 0 and 1 and the binomial weights of the others sum to 1, hence we take log(1 + sum over k >= 2 of
        weight_k * expm1((k^2-k)/(2 sigma^2))), which loses no digits where q is tiny.

        Infinity for a truncated step: no bound is known to us, so that only privacy loss distributions account for it.
        """
        if self.max_batch_size is not None:
            return math.inf
        return _renyi(self, order)


@lru_cache(maxsize=65536)
def _renyi(mechanism: Mechanism, order: int) -> float:
    from scipy.special import gammaln, logsumexp

    q, sigma = mechanism.sampling_rate, mechanism.noise_multiplier
    if sigma == 0:
        return math.inf
    if q == 1:
        return order / (2 * sigma**2) * _ROUNDING
    k = np.arange(2, order + 1, dtype=np.float64)
    exponent = (k * k - k) / (2 * sigma**2)
    log_weight = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    log_weight += k * math.log(q) + (order - k) * math.log1p(-q)
    log_expm1 = exponent + np.log(-np.expm1(-exponent))
    log_moment = np.logaddexp(0.0, logsumexp(log_weight + log_expm1))
    return max(float(log_moment) / (order - 1) * _ROUNDING, sys.float_info.min)


def renyi_epsilon(order: int, divergence: float, delta: float) -> float:
    """Return the epsilon at `delta` of a mechanism whose Rényi divergence at `order` is at most `divergence`.

    Canonne, Kamath and Steinke, 'The discrete Gaussian for differential privacy' (arXiv 2004.00010), proposition 12:
    epsilon = divergence + log(1 - 1/order) - log(delta * order) / (order - 1); the same as
    ``dp_accounting.rdp.compute_epsilon`` for a single order.
    """
    if divergence <= -math.log1p(-(delta**2)):  # total variation <= sqrt(1 - exp(-KL)) <= delta
        return 0.0
    return max(0.0, divergence + math.log1p(-1 / order) - math.log(delta * order) / (order - 1))


def best_renyi_epsilon(parts: Sequence[tuple[Mechanism, int]], delta: float) -> float:
    """Return an upper bound on the epsilon of (mechanism, steps) parts composed: the best order of `RENYI_ORDERS`."""
    return min(renyi_epsilon(a, math.fsum(m.renyi(a) * n for m, n in parts), delta) for a in RENYI_ORDERS)
