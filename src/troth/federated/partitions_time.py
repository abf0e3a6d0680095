"""Time slices: clients that follow one another in time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from troth.federated.partitions_sizes import check_size
from troth.federated.stream_events import parse_times

__all__ = ["time_slices"]


def time_slices(times: Sequence[Any] | NDArray[Any], clients: int, source: str = "time") -> NDArray[np.int64]:
    """Return [rows] client numbers: client 0 holds the earliest rows, and so on, in slices of equal numbers of rows.

    Sizes differ by one at most, earlier slices being the larger. Rows of the same time stay in table order; a slice may
    end between two of them. Nothing is drawn.

    Args:
        times: [rows] seconds since 1970 or ISO 8601, see `parse_times`.
        clients: how many.
        source: where the times come from, for messages.

    Raises:
        ConfigError: no client.
        DataError: a row without a time (the first is named), or a time that cannot be read.
    """
    check_size(len(times), clients, 0)
    seconds = parse_times(times, source)
    sizes = np.full(clients, len(seconds) // clients)
    sizes[: len(seconds) % clients] += 1
    out = np.empty(len(seconds), dtype=np.int64)
    out[np.argsort(seconds, kind="stable")] = np.repeat(np.arange(clients), sizes)
    return out
