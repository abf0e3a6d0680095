"""Which module is clipped by which rule, and why the others cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from troth.dp.convolution import CONVOLUTION
from troth.dp.crf import CRF
from troth.dp.embedding import EMBEDDING
from troth.dp.families import FAMILY_PARENT_RULES, FAMILY_RULES
from troth.dp.linear import CONV1D, LINEAR
from troth.dp.norm import LAYER_NORM, RMS_NORM
from troth.dp.recurrent import GRU, LSTM
from troth.dp.tape import Rule, Site, Tape

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["RULES", "ParameterRule", "coupling_modules", "make_sites", "parameter_rules"]

RULES: Mapping[str, Rule] = {
    "torch.nn.modules.linear.Linear": LINEAR,
    "torch.nn.modules.sparse.Embedding": EMBEDDING,
    "torch.nn.modules.normalization.LayerNorm": LAYER_NORM,
    "torch.nn.modules.normalization.RMSNorm": RMS_NORM,
    "torch.nn.modules.conv.Conv1d": CONVOLUTION,
    "torch.nn.modules.rnn.LSTM": LSTM,
    "torch.nn.modules.rnn.GRU": GRU,
    "transformers.pytorch_utils.Conv1D": CONV1D,
    "troth.tasks.crf.LinearChainCRF": CRF,
    **FAMILY_RULES,
}
"""Rules by the class that defines a module's `forward`: a subclass with a `forward` of its own is another module."""

PARENT_RULES: Mapping[str, Rule] = FAMILY_PARENT_RULES
"""Rules for a parameter whose gradient can be told apart by example only in its parent's method."""

_TIED = frozenset({"embedding", "linear"})


@dataclass(frozen=True)
class ParameterRule:
    """How one parameter of a model is treated under private training.

    Attributes:
        name: the parameter's (first) name in the model.
        shape: its shape.
        rule: ``linear``, ``conv1d``, ``convolution``, ``lstm``, ``gru``, ``crf``, ``embedding``, ``tied_embedding``,
            ``layer_norm``, ``rms_norm``, ``relative_bias``; ``frozen`` where it is not trained; ``unsupported``.
        trainable: whether it is trained.
        supported: whether private training can take it as it is.
        reason: why not, and the way out; empty where it can.
    """

    name: str
    shape: tuple[int, ...]
    rule: str
    trainable: bool
    supported: bool
    reason: str = ""


@dataclass(frozen=True)
class _Owner:
    """One place where a parameter hangs."""

    module_name: str
    module: nn.Module
    attribute: str
    rule: Rule | None
    host: nn.Module


def _definer(module: nn.Module) -> str:
    """Return the dotted name of the class that defines the module's `forward`."""
    for kind in type(module).__mro__:
        if "forward" in vars(kind):
            return f"{kind.__module__}.{kind.__qualname__}"
    return ""


def _parent_rules(model: nn.Module) -> dict[nn.Module, tuple[Rule, nn.Module]]:
    """Return child -> (rule, parent) of the children whose parents clip them."""
    found: dict[nn.Module, tuple[Rule, nn.Module]] = {}
    for module in model.modules():
        rule = PARENT_RULES.get(_definer(module))
        if rule is not None and rule.child is not None and rule.child in module._modules:
            found[module.get_submodule(rule.child)] = (rule, module)
    return found


def _owners(model: nn.Module) -> dict[nn.Parameter, list[_Owner]]:
    """Return every parameter with all places where it hangs, in the model's order."""
    claimed = _parent_rules(model)
    owners: dict[nn.Parameter, list[_Owner]] = {}
    for name, module in model.named_modules():
        rule, host = claimed.get(module, (RULES.get(_definer(module)), module))
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(parameter, []).append(_Owner(name, module, attribute, rule, host))
    return owners


def _objection(owner: _Owner) -> str | None:
    """Return why a parameter cannot be clipped where it hangs, or None."""
    where = owner.module_name or "the model itself"
    kind = type(owner.module).__name__
    if owner.rule is None or owner.attribute not in owner.rule.parameters:
        return f"no rule clips {owner.attribute} of {where} ({kind}) per example"
    reason = owner.rule.refuses(owner.module)
    if reason is not None:
        return f"{where} ({kind}) {reason}"
    if owner.rule.method in vars(owner.host):
        method = owner.rule.method
        return (
            f"{where} ({kind}) already has a {method} of its own, as an attached private engine puts it there: call "
            "detach() on that engine, or remove the hook, before another is attached"
        )
    return None


def _ruled(owners: list[_Owner]) -> list[_Owner]:
    """Return the owners that have a rule for the parameter.

    Another owner may merely hold it (BERT's prediction head holds its decoder's bias): where it uses it, the engine's
    guard on the parameter's gradient refuses.
    """
    return [o for o in owners if o.rule is not None and o.attribute in o.rule.parameters]


def _judge(owners: list[_Owner]) -> tuple[str, str]:
    """Return the rule's name and the reason against it (empty: supported) for a parameter with these owners."""
    owners = _ruled(owners) or owners
    for owner in owners:
        reason = _objection(owner)
        if reason is not None:
            return "unsupported", reason
    kinds = {o.rule.kind for o in owners if o.rule is not None}
    attributes = {o.attribute for o in owners}
    if kinds == _TIED:
        return "tied_embedding", ""
    if len(kinds) > 1 or len(attributes) > 1:
        places = " and ".join(f"{o.module_name}.{o.attribute}" for o in owners[:2])
        return "unsupported", f"it is shared by {places}, a combination that no rule clips"
    return kinds.pop(), ""


_WAY_OUT = "; freeze it (requires_grad_(False)) or replace the module"


def parameter_rules(model: nn.Module) -> list[ParameterRule]:
    """Return how each parameter of the model is treated, in the model's order; a shared one stands there once."""
    rules = []
    for parameter, owners in _owners(model).items():
        first = owners[0]
        name = f"{first.module_name}.{first.attribute}".removeprefix(".")
        rule, reason = _judge(owners)
        supported = not reason or not parameter.requires_grad
        rules.append(
            ParameterRule(
                name=name,
                shape=tuple(parameter.shape),
                rule="frozen" if not parameter.requires_grad else rule,
                trainable=parameter.requires_grad,
                supported=supported,
                reason="" if supported else reason + _WAY_OUT,
            )
        )
    return rules


def make_sites(model: nn.Module, tape: Tape) -> Iterator[Site]:
    """Yield the modules that hold trainable parameters, to write on `tape`; all of these must be supported."""
    sites: dict[nn.Module, list[_Owner]] = {}
    trained: dict[nn.Module, dict[str, nn.Parameter]] = {}
    for parameter, owners in _owners(model).items():
        if not parameter.requires_grad:
            continue
        for owner in _ruled(owners):
            sites.setdefault(owner.module, []).append(owner)
            trained.setdefault(owner.module, {})[owner.attribute] = parameter
    for module, owners in sites.items():
        rule = owners[0].rule
        if rule is not None:
            yield Site(tape, owners[0].module_name, module, rule, trained[module], owners[0].host)


def coupling_modules(model: nn.Module) -> list[tuple[str, str]]:
    """Return (name, reason) of modules that mix the examples of a batch, whether or not they hold parameters."""
    found = []
    for name, module in model.named_modules():
        kind = type(module).__name__
        where = name or "the model"
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            found.append((where, f"{kind} mixes the examples of a batch: use LayerNorm"))
        elif isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.track_running_stats:
            found.append((where, f"{kind} keeps statistics of private data: make it with track_running_stats=False"))
        elif isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            found.append(
                (where, f"{kind} splits batches behind the engine's back: attach the engine to the bare model")
            )
    return found
