"""One flat gradient buffer of which every trainable parameter's `.grad` is a view."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from troth.errors import EngineStateError, UnsupportedModuleError

__all__ = ["FlatGradient"]

_EVERY = 1009  # elements between those whose content is remembered
_ALIGNMENT = 16  # elements: views start on cache lines


class FlatGradient:
    """The buffer that holds noise and clipped sums, so that the noise of a step is one draw and no pass adds it.

    Attributes:
        flat: the buffer [elements], padding between parameters included.
        views: parameter -> its part of the buffer, in the parameter's shape.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        first = next(iter(parameters.values()))
        for name, parameter in parameters.items():
            if parameter.dtype not in {torch.float32, torch.float64}:
                raise UnsupportedModuleError(
                    f"parameter {name} is {parameter.dtype}: keep trainable parameters in float32 and use autocast for "
                    "lower precision"
                )
            if (parameter.dtype, parameter.device) != (first.dtype, first.device):
                raise UnsupportedModuleError(
                    f"parameter {name} is {parameter.dtype} on {parameter.device}, others are {first.dtype} on "
                    f"{first.device}: bring all trainable parameters to one type and device before the engine is made"
                )
        lengths = [math.ceil(p.numel() / _ALIGNMENT) * _ALIGNMENT for p in parameters.values()]
        self.flat = torch.zeros(sum(lengths), dtype=first.dtype, device=first.device)
        self.views: dict[nn.Parameter, Tensor] = {}
        self._names = {p: name for name, p in parameters.items()}
        self._found = {p: p.grad for p in parameters.values()}
        starts = [0, *itertools.accumulate(lengths)]
        for parameter, start in zip(parameters.values(), starts, strict=False):
            self.views[parameter] = self.flat[start : start + parameter.numel()].view(parameter.shape)
        places = [*starts[:-1], *range(_EVERY, len(self.flat), _EVERY)]
        self._places = torch.tensor(places, dtype=torch.int64, device=first.device)
        self._version, self._content = -1, self.flat[self._places]

    def take_over(self) -> None:
        """Make every parameter's gradient its view, whatever it was before."""
        for parameter, view in self.views.items():
            parameter.grad = view

    def attach(self) -> None:
        """Put views back where `zero_grad` dropped them.

        Raises:
            EngineStateError: a gradient was replaced, or its parameter moved to another device or type.
        """
        for parameter, view in self.views.items():
            if parameter.grad is None and parameter.device == view.device and parameter.dtype == view.dtype:
                parameter.grad = view
            elif parameter.grad is not view or view.untyped_storage().data_ptr() != self.flat.data_ptr():
                raise EngineStateError(
                    f"the gradient of {self._names[parameter]} was replaced, or the parameter moved, while the private "
                    "engine was attached: move the model first, and leave gradients to the engine"
                )

    def seal(self) -> None:
        """Remember the buffer as it is: from here on only the engine may write."""
        self._version, self._content = self.flat._version, self.flat[self._places]

    def verify(self) -> None:
        """Check that nobody wrote since `seal`: by its version, and past that by its content at places.

        The first element of every tensor and every 1,009th of the whole are compared.

        Raises:
            EngineStateError: somebody did, hence the noise may be gone.
        """
        if self.flat._version != self._version or not torch.equal(self.flat[self._places], self._content):
            raise EngineStateError(
                "gradients were changed in place between engine.backward and engine.step (gradient clipping, scaling, "
                "zero_grad(set_to_none=False)): their noise may be lost; remove that call and start the batch anew"
            )

    def release(self) -> None:
        """Give the parameters back the gradients that they had before."""
        for parameter, view in self.views.items():
            if parameter.grad is view:
                parameter.grad = self._found[parameter]
