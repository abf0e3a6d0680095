"""How many examples go through the model at once, where the run file says ``physical_batch_size = "auto"``.

The rule is measured, not looked up per architecture: one forward pass of the longest row tells how many bytes of
activations an example keeps for the backward pass. What then fits is a matter of two constants.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from transformers import PreTrainedModel

from troth.tasks import Encoded, Task
from troth.training.device import Autocast

__all__ = ["activation_bytes", "physical_batch_size"]

_CPU_BYTES = 2 * 2**30  # of activations: leaves room on a laptop
_CUDA_SHARE = 0.4  # of the device's memory, before what the optimizer and the weights take
_CACHE_BYTES = 24 * 2**20  # on a CPU the private engine is fastest where a batch's activations stay near the caches
_ENOUGH = 32  # examples: fewer starve matrix products
_ENGINE_FACTOR = 2  # the private engine keeps the output gradients beside the activations


def activation_bytes(
    model: PreTrainedModel, task: Task, encoded: Encoded, device: torch.device, autocast: Autocast
) -> int:
    """Return the bytes that one example of the longest row keeps for its backward pass.

    Buffers and random state of the model are left alone (evaluation mode); no gradient is computed.
    """
    weights = {p.data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    longest = np.array([int(np.argmax(encoded.lengths))])
    batch = to_device(task.collate(encoded, longest), device)
    training = model.training
    model.eval()  # type: ignore[no-untyped-call]
    try:
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor), autocast():
            loss = task.per_example_loss(model, batch)  # keeps what was saved alive, so that no address occurs twice
            total = sum(kept.values())
            del loss
    finally:
        model.train(training)
    return max(1, total)


def to_device(batch: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """Return the batch on a device."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def physical_batch_size(longest: int, typical: int, logical: int, device: torch.device, *, private: bool) -> int:
    """Return how many examples to take at once.

    Args:
        longest: bytes that the longest example keeps for its backward pass (`activation_bytes`); bounds memory.
        typical: bytes that an example of mean length keeps; decides what lies near the caches.
        logical: examples of a whole batch; more are never taken at once.
        device: where the model lies.
        private: whether the private engine runs.
    """
    memory = _CPU_BYTES
    if device.type == "cuda":
        memory = int(torch.cuda.get_device_properties(device).total_memory * _CUDA_SHARE)
    factor = _ENGINE_FACTOR if private else 1
    fits = memory // (factor * longest)
    if private and device.type == "cpu":
        fits = min(fits, max(_ENOUGH, _CACHE_BYTES // (factor * typical)))
    return int(max(1, min(fits, logical)))
