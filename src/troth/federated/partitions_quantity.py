"""Quantity skew: clients alike in what they hold, not in how much. Rows are dealt out at random.

Sizes are a law's shares of the rows, rounded by largest remainders, so that they sum to the rows exactly. Small shares
round to nothing: `with_minimum` mends that.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from troth.errors import ConfigError
from troth.federated.partitions_label import log_dirichlet
from troth.federated.partitions_sizes import apportioned, check_size, dealt_sizes

__all__ = ["quantity_dirichlet", "quantity_log_normal", "quantity_zipf"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def quantity_dirichlet(rows: int, clients: int, concentration: float, rng: np.random.Generator) -> Integers:
    """Return [rows] client numbers with sizes in proportion to one draw of Dir(concentration) over clients.

    FedNLP's quantity skew (arXiv 2104.08815) and that of Li et al. 2021 (arXiv 2102.02079). E[n^2] / E[n]^2 is
    1 + (clients - 1) / (clients * concentration + 1) on average.

    Args:
        rows: how many.
        clients: how many.
        concentration: above 0; the larger, the more alike the sizes.
        rng: public randomness.

    Raises:
        ConfigError: no client, or a concentration that is not above 0.
    """
    check_size(rows, clients, 0)
    return _dealt(rows, log_dirichlet(concentration, np.ones(clients), 1, rng)[0], rng)


def quantity_zipf(rows: int, clients: int, exponent: float, rng: np.random.Generator) -> Integers:
    """Return [rows] client numbers with the r-th largest size in proportion to r^-exponent.

    Args:
        rows: how many.
        clients: how many.
        exponent: above 0; the larger, the heavier the heaviest.
        rng: public randomness; it also says who is how heavy.

    Raises:
        ConfigError: no client, or an exponent that is not above 0.
    """
    check_size(rows, clients, 0)
    _check("exponent", exponent)
    return _dealt(rows, -exponent * np.log(rng.permutation(clients) + 1.0), rng)


def quantity_log_normal(rows: int, clients: int, sigma: float, rng: np.random.Generator) -> Integers:
    """Return [rows] client numbers with log-normal sizes; E[n^2] / E[n]^2 is about exp(sigma^2) for many clients.

    Args:
        rows: how many.
        clients: how many.
        sigma: standard deviation of the logarithm of a size, above 0.
        rng: public randomness.

    Raises:
        ConfigError: no client, or a sigma that is not above 0.
    """
    check_size(rows, clients, 0)
    _check("sigma", sigma)
    return _dealt(rows, sigma * rng.standard_normal(clients), rng)


def _check(key: str, value: float) -> None:
    if not (np.isfinite(value) and value > 0):
        raise ConfigError(f"federated.clients: {key} = {value}: must be a number above 0")


def _dealt(rows: int, log_weights: Floats, rng: np.random.Generator) -> Integers:
    return dealt_sizes(apportioned(rows, np.exp(log_weights - log_weights.max()), rng), rng)
