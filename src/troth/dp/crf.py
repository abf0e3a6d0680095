"""A conditional random field's transitions: small parameters that a module hands out once for each example.

The module names them in one method, given the number of examples, as tensors [batch, *shape] that are the same for
all; whatever is then computed from them, row i of their gradient is example i's, [batch, elements] in all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from torch import nn

from troth.dp.spread import spread
from troth.dp.tape import Rule, Tape

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CRF"]


def _potentials(tape: Tape) -> Callable[..., object]:
    def potentials(module: nn.Module, batch: int) -> object:
        original = cast("Callable[..., object]", cast("Any", type(module)).potentials)
        site = tape.site(module)
        if site is None:
            return original(module, batch)
        with spread(site, lambda parameter: (batch,)):
            return original(module, batch)

    return potentials


CRF = Rule("crf", ("start", "transitions", "end"), _potentials, method="potentials")
