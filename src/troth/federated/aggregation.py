"""How the updates of a round become one: which are refused, which are scaled, and what stands for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from troth.config_federated import AggregationConfig
from troth.federated.algorithm import Parameters

__all__ = ["Screened", "added", "finite", "robust", "screen"]


@dataclass(frozen=True, eq=False)
class Screened:
    """Which clients' updates are taken.

    Attributes:
        taken: [clients] bool.
        scale: [clients] what each update is multiplied by, to keep within the norm bound; 0 where it is not taken.
        rejected: how many were left out, by reason: ``shape``, ``not_finite``, ``norm``.
    """

    taken: Tensor
    scale: Tensor
    rejected: Mapping[str, int] = field(default_factory=dict)


@torch.no_grad()
def screen(update: Parameters, start: Parameters, clients: int, config: AggregationConfig) -> Screened:
    """Return which updates [clients, ...] are taken: of the right shape, finite, and within the norm.

    Args:
        update: what clients sent.
        start: the global parameters in the same layout, [1, ...] or [clients, ...].
        clients: how many there are.
        config: the bounds on a client's L2 norm.
    """
    fits = bool(update) and all(
        name in start and u.shape == (clients, *start[name].shape[1:]) for name, u in update.items()
    )
    if not fits:
        nobody = torch.zeros(clients)
        return Screened(nobody.bool(), nobody, {"shape": clients})
    squares = torch.zeros(clients, dtype=torch.float64)
    for u in update.values():
        norms = torch.linalg.vector_norm(u.flatten(1), dim=1).double().cpu()
        squares += norms.square()
    norm = squares.sqrt()
    sound = torch.isfinite(norm)
    rejected = {"not_finite": int((~sound).sum())}
    taken = sound
    if config.reject_above is not None:
        taken = sound & (norm <= config.reject_above)
        rejected["norm"] = int((sound & ~taken).sum())
    scale = taken.double()
    if config.norm_bound is not None:
        scale = torch.where(taken, (config.norm_bound / norm.clamp(min=1e-300)).clamp(max=1.0), 0.0)
    return Screened(taken, scale, {reason: count for reason, count in rejected.items() if count})


def finite(tree: Parameters) -> bool:
    """Return whether every number is finite; a sum is NaN or infinite as soon as one is (or as it overflows)."""
    return all(bool(torch.isfinite(t.sum())) for t in tree.values())


@torch.no_grad()
def added(total: dict[str, Tensor] | None, tree: Parameters, factor: float = 1.0) -> dict[str, Tensor]:
    """Return the running sum with one more tree, in place; the first tree is copied."""
    if total is None:
        return {name: t * factor for name, t in tree.items()}
    for name, t in tree.items():
        total[name].add_(t, alpha=factor)
    return total


@torch.no_grad()
def robust(updates: Sequence[Parameters], config: AggregationConfig) -> dict[str, Tensor]:
    """Return the coordinate-wise trimmed mean or median of all clients' updates; every client counts alike.

    Yin et al., ICML 2018, arXiv 1803.01498, definitions 1 and 2. The median of an even number is the mean of the two
    in the middle. Needs the memory of all updates of the round.

    Args:
        updates: chunks of updates, each tree [clients, ...].
        config: the rule, and the share trimmed at each end.
    """
    out = {}
    for name in updates[0]:
        ordered = torch.cat([u[name] for u in updates]).sort(dim=0).values
        clients = len(ordered)
        cut = int(config.trim * clients) if config.rule == "trimmed_mean" else (clients - 1) // 2
        out[name] = ordered[cut : clients - cut].mean(dim=0)
    return out
