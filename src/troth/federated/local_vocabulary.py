"""The rows of a token table that clients look up, gathered: a client's problem holds no others.

Rows that a client never looks up have no gradient, hence do not move under SGD, momentum, Adam without weight decay or
a proximal term: leaving them out changes nothing, and saves the table times the number of clients. What a client
uploads then names the words it used: where updates are to hide that, uploads are dense.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

__all__ = ["LocalRows", "LocalTable", "token_table"]

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class LocalRows:
    """Which rows of the token table each client of a chunk holds.

    Attributes:
        client: [rows] place of the client in the chunk, ascending.
        place: [rows] the row's place in the client's table.
        token: [rows] its place in the whole table.
        width: rows in the widest client's table.
        local_ids: [...] what took the place of the token ids.
    """

    client: Tensor
    place: Tensor
    token: Tensor
    width: int
    local_ids: Tensor

    @classmethod
    def of(cls, ids: Integers, vocabulary: int) -> LocalRows:
        """Return the rows that token ids [clients, ...] look up."""
        clients = ids.shape[0]
        owner = np.broadcast_to(np.arange(clients, dtype=np.int64).reshape(-1, *[1] * (ids.ndim - 1)), ids.shape)
        found, inverse = np.unique(owner.ravel() * vocabulary + ids.ravel(), return_inverse=True)
        client, token = np.divmod(found, vocabulary)
        sizes = np.bincount(client, minlength=clients)
        starts = np.cumsum(sizes) - sizes
        place = np.arange(len(found)) - starts[client]
        local = inverse.reshape(ids.shape) - starts[owner]
        owners, places, tokens, ids_there = (
            torch.from_numpy(np.ascontiguousarray(a)) for a in (client, place, token, local)
        )
        return cls(owners, places, tokens, int(sizes.max(initial=1)), ids_there)

    def gather(self, table: Tensor, clients: int) -> Tensor:
        """Return [clients, width, ...] each client's rows of the table, zeros where it has fewer."""
        out = table.new_zeros((clients, self.width, *table.shape[1:]))
        out[self.client, self.place] = table[self.token]
        return out

    def scatter_sum(self, update: Tensor, weights: Tensor, rows: int) -> Tensor:
        """Return [rows, ...]: the sum over clients of weight x update [clients, width, ...], at the whole table."""
        out = update.new_zeros((rows, *update.shape[2:]))
        scaled = update[self.client, self.place] * weights.to(update.dtype)[self.client].view(
            -1, *[1] * (update.dim() - 2)
        )
        return out.index_add_(0, self.token, scaled)


class LocalTable:
    """Takes the place of a token table's forward: looks local ids up, whatever ids it is called with.

    Attributes:
        local_ids: the local ids at the places of the token ids; set before each call.
    """

    def __init__(self, table: nn.Embedding) -> None:
        self._table = table
        self.local_ids: Tensor | None = None

    def __call__(self, ids: Tensor) -> Tensor:
        """Return the looked-up rows; the table's padding row has no gradient, as in torch."""
        if self.local_ids is None:
            return F.embedding(ids, self._table.weight, self._table.padding_idx)
        found = F.embedding(self.local_ids, self._table.weight)
        if self._table.padding_idx is not None:
            found = torch.where((ids == self._table.padding_idx).unsqueeze(-1), found.detach(), found)
        return found


def token_table(model: nn.Module, trained: Collection[str]) -> str | None:
    """Return the name of the parameter that is a plain, trained token table used nowhere else; None if there is none.

    Args:
        model: any model; only transformers' models say which their token table is.
        trained: names of the trained parameters.
    """
    if not isinstance(model, PreTrainedModel):
        return None
    try:
        table = model.get_input_embeddings()
    except NotImplementedError:
        return None
    if type(table) is not nn.Embedding or table.max_norm is not None or table.scale_grad_by_freq or table.sparse:
        return None
    users = sum(1 for module in model.modules() for p in module.parameters(recurse=False) if p is table.weight)
    names = [name for name, p in model.named_parameters() if p is table.weight]
    return names[0] if users == 1 and names and names[0] in trained else None
