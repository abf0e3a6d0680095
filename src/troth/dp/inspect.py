"""What `troth doctor` shows: every parameter of a model with its clipping rule, or why it is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from troth.dp.registry import ParameterRule, coupling_modules, parameter_rules
from troth.errors import UnsupportedModuleError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ParameterRule", "inspect", "refuse_unsupported"]


def inspect(model: nn.Module) -> list[ParameterRule]:
    """Return how private training treats each parameter of the model, in the model's order.

    A parameter that hangs at several places (tied weights) stands there once, under its first name. Modules that mix
    the examples of a batch are refused whether or not they hold parameters: where they hold none, they are listed with
    an empty shape under the module's own name.

    >>> from torch import nn
    >>> [(r.name, r.rule) for r in inspect(nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2, bias=False)))]
    [('0.weight', 'linear'), ('0.bias', 'linear'), ('1.weight', 'layer_norm')]
    """
    rules = parameter_rules(model)
    for name, reason in coupling_modules(model):
        rules = [r for r in rules if not r.name.startswith(f"{name}.")]
        rules.append(ParameterRule(name, (), "unsupported", trainable=False, supported=False, reason=reason))
    return rules


def refuse_unsupported(model: nn.Module) -> None:
    """Check that private training can take the model as it is.

    Raises:
        UnsupportedModuleError: names the first parameter or module that it cannot take, and how many more there are.
    """
    bad = [r for r in inspect(model) if not r.supported]
    coupling = [r for r in bad if not r.shape and not r.trainable]
    first = next(iter(coupling or bad), None)
    if first is None:
        return
    more = f" (and {len(bad) - 1} more: troth doctor lists them)" if len(bad) > 1 else ""
    what = "module" if first in coupling else "parameter"
    raise UnsupportedModuleError(f"{what} {first.name} cannot be trained privately: {first.reason}{more}")
