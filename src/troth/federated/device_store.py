"""What devices keep from one turn to their next, on disk: one memory-mapped file a tree, one slot a device seen.

A device that is written again gets a new slot; its old one is kept until the checkpoint that no longer names it is on
disk. Hence the newest checkpoint always finds its devices' memory as it was, whatever was written after it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from troth.federated.algorithm import Algorithm, DeviceMemory, Parameters, ServerState
from troth.files import failing_in_one_line

__all__ = ["DeviceStore", "blank_memory"]

Integers = NDArray[np.int64]
_FIRST_SLOTS = 64


def blank_memory(algorithm: Algorithm, state: ServerState, clients: int) -> dict[str, dict[str, Tensor]]:
    """Return what `clients` devices keep that never took part: trees of [clients, ...]."""
    out: dict[str, dict[str, Tensor]] = {}
    for memory in algorithm.traits.memory:
        names = [n for n in state.parameters if memory.parameters is None or n in memory.parameters]
        out[memory.name] = {n: _initial(memory, state.parameters[n], clients) for n in names}
    return out


def _initial(memory: DeviceMemory, parameter: Tensor, clients: int) -> Tensor:
    if memory.initial == "zeros":
        return parameter.new_zeros((clients, *parameter.shape))
    return parameter.unsqueeze(0).repeat(clients, *[1] * parameter.dim())


class DeviceStore:
    """The memory of a population; see the module's text for what a crash leaves.

    Attributes:
        slots: [devices] int64, the slot of each device; -1 for one that never took part.
    """

    def __init__(self, algorithm: Algorithm, parameters: Parameters, devices: int, folder: Path | None) -> None:
        self._algorithm = algorithm
        self._shapes = {
            memory.name: {n: p for n, p in parameters.items() if memory.parameters is None or n in memory.parameters}
            for memory in algorithm.traits.memory
        }
        self._numbers = sum(p.numel() for tree in self._shapes.values() for p in tree.values())
        self._dtype = next(iter(parameters.values())).detach().cpu().numpy().dtype
        self._temporary = tempfile.TemporaryDirectory(prefix="troth-devices-") if folder is None else None
        self._path = (folder or Path(self._temporary.name if self._temporary else "")) / "devices.bin"
        self._map: np.memmap[tuple[int, int], np.dtype[np.floating]] | None = None
        self.slots: Integers = np.full(devices, -1, dtype=np.int64)
        self._free: list[int] = []
        self._released: list[int] = []
        self._used = 0

    def take_up(self, slots: Integers) -> None:
        """Go on from the slots of a checkpoint; what was written after it is free again."""
        self.slots = slots.astype(np.int64)
        held = self.slots[self.slots >= 0]
        self._used = int(held.max(initial=-1)) + 1
        self._free = sorted(set(range(self._used)) - set(held.tolist()), reverse=True)
        self._released = []
        if self._used:
            self._open(self._used)

    def read(self, state: ServerState, clients: Integers) -> dict[str, dict[str, Tensor]]:
        """Return the trees [clients, ...] of these devices; those never seen start as the algorithm says."""
        out = blank_memory(self._algorithm, state, len(clients))
        known = np.flatnonzero(self.slots[clients] >= 0)
        if not len(known) or self._map is None:
            return out
        flat = torch.from_numpy(np.array(self._map[self.slots[clients[known]]]))
        places, begin = torch.from_numpy(known), 0
        for name, tree in self._shapes.items():
            for parameter, shape in tree.items():
                width = shape.numel()
                values = flat[:, begin : begin + width].view(-1, *shape.shape)
                out[name][parameter][places] = values.to(shape.device)
                begin += width
        return out

    def write(self, clients: Integers, memory: Mapping[str, Parameters]) -> None:
        """Keep the trees [clients, ...] of these devices.

        Raises:
            RunError: the disk is full; nothing of these devices is changed.
        """
        flat = torch.cat([memory[name][p].flatten(1).cpu() for name, tree in self._shapes.items() for p in tree], dim=1)
        slots = [self._free.pop() if self._free else self._next() for _ in range(len(clients))]
        self._open(self._used)
        if self._map is not None:
            self._map[slots] = flat.numpy()
        old = self.slots[clients]
        self._released += old[old >= 0].tolist()
        self.slots[clients] = slots

    def _next(self) -> int:
        self._used += 1
        return self._used - 1

    def flush(self) -> None:
        """Bring all that was written to disk; before the checkpoint that names it."""
        if self._map is not None:
            self._map.flush()

    def release(self) -> None:
        """Free the slots that the newest checkpoint no longer names; after it is on disk."""
        self._free += self._released
        self._released = []

    def _open(self, slots: int) -> None:
        """Map a file of `slots` slots or more; its space is claimed, so that writing to it cannot fail half-way."""
        if self._map is not None and len(self._map) >= slots:
            return
        capacity = _FIRST_SLOTS
        while capacity < slots:
            capacity *= 2
        size = capacity * self._numbers * self._dtype.itemsize
        with failing_in_one_line(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, size)
            finally:
                os.close(descriptor)
        self.flush()
        self._map = np.memmap(self._path, dtype=self._dtype, mode="r+", shape=(capacity, self._numbers))

    def close(self) -> None:
        """Let go of the file; a temporary one is removed."""
        self._map = None
        if self._temporary is not None:
            self._temporary.cleanup()
