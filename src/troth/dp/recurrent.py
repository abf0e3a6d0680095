"""Recurrent layers (`nn.LSTM`, `nn.GRU`): their weights are linear maps shared over time, and are clipped as such.

Forward and backward pass are written by hand: what does not depend on the state before is done for all times at once,
and a step through time is one product and a few element-wise operations for all examples and both directions. The
backward pass leaves the gradients G [batch, time, gates] of what goes into the gates. With inputs X [batch, time, in]
and states before H [batch, time, hidden], one example's gradients are GᵀX and GᵀH; `troth.dp.linear` takes norms and
clipped sums from (X, G) and (H, G).

Names follow torch: i, f, g, o are the input, forget, cell and output gates of an LSTM; r, z, n the reset, update and
new gates of a GRU. Inside, sequences are kept in the order in which their direction reads them, time first
[direction, time, batch, width], so that a step is one contiguous block.
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from troth.dp.tape import LinearUse, Rule, Site, Tape
from troth.errors import UnsupportedModuleError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["GRU", "LSTM"]

Hidden = tuple[Tensor, ...]
"""States of all layers and directions, each [layers * directions, batch, hidden]: (h,) of a GRU, (h, c) of an LSTM."""


@dataclass(frozen=True)
class _Weights:
    """One layer's weights in one direction, under the names that the module gives them."""

    suffix: str
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None

    @classmethod
    def of(cls, module: nn.RNNBase, layer: int, direction: int) -> _Weights:
        suffix = f"_l{layer}" + ("_reverse" if direction else "")
        parameters = module._parameters
        found = [parameters.get(f"{name}{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        return cls(suffix, cast("Tensor", found[0]), cast("Tensor", found[1]), found[2], found[3])

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh


@dataclass(frozen=True)
class _Order:
    """In which order one direction reads the rows of a batch [batch, time].

    Attributes:
        reads: [time * batch] the flat place in [batch, time] that is read at step t of row b (at t * batch + b).
        writes: [batch * time] the flat step at which a place is read.
        last: [batch] the flat step that reads a row's last place.
    """

    reads: Tensor
    writes: Tensor
    last: Tensor

    @classmethod
    def of(cls, lengths: Tensor, time: int, *, reverse: bool) -> _Order:
        """Forwards, or backwards from each row's own end; what lies behind the end is read last, in any case."""
        batch = len(lengths)
        steps = torch.arange(time, device=lengths.device)
        rows = torch.arange(batch, device=lengths.device)
        places = steps.expand(batch, time)  # its own inverse, also when reversed within a length
        if reverse:
            places = torch.where(steps < lengths[:, None], lengths[:, None] - 1 - steps, places)
        return cls(
            reads=(rows[:, None] * time + places).t().reshape(-1),
            writes=(places * batch + rows[:, None]).reshape(-1),
            last=(lengths - 1) * batch + rows,
        )

    def steps(self, places: Tensor) -> Tensor:
        """Return [time * batch, width] in reading order from [batch, time, width]."""
        return places.reshape(-1, places.shape[2]).index_select(0, self.reads)

    def places(self, steps: Tensor) -> Tensor:
        """Return [batch, time, width] from reading order [time, batch, width]."""
        time, batch, width = steps.shape
        return steps.reshape(-1, width).index_select(0, self.writes).view(batch, time, width)


class _Context(FunctionCtx):
    site: Site
    weights: Sequence[_Weights]
    orders: Sequence[_Order]
    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]


def _projected(x: Tensor, weights: Sequence[_Weights], orders: Sequence[_Order], biases: list[Tensor | None]) -> Tensor:
    """Return the inputs' share of the gates [directions, time, batch, gates], all times at once."""
    batch, time, _ = x.shape
    out = x.new_empty(len(weights), time * batch, weights[0].weight_ih.shape[0])
    for d, (w, order, bias) in enumerate(zip(weights, orders, biases, strict=True)):
        if bias is None:
            torch.mm(order.steps(x), w.weight_ih.t(), out=out[d])
        else:
            torch.addmm(bias, order.steps(x), w.weight_ih.t(), out=out[d])
    return out.view(len(weights), time, batch, -1)


def _split(gates: Tensor, parts: int) -> Tensor:
    """Return [..., parts, hidden], a view."""
    return gates.view(*gates.shape[:-1], parts, -1)


def _outputs(states: Tensor, orders: Sequence[_Order]) -> Tensor:
    """Return [batch, time, directions * hidden] from states in reading order."""
    parts = [order.places(states[d]) for d, order in enumerate(orders)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def _output_steps(grad: Tensor, orders: Sequence[_Order]) -> Tensor:
    """Return the outputs' gradient in reading order [directions, time, batch, hidden]."""
    batch, time, _ = grad.shape
    parts = grad.chunk(len(orders), 2)
    return torch.stack([order.steps(part) for order, part in zip(orders, parts, strict=True)]).view(
        len(orders), time, batch, -1
    )


def _hidden_weights(weights: Sequence[_Weights]) -> Tensor:
    """Return [directions, gates, hidden]."""
    return torch.stack([w.weight_hh for w in weights])


def _write(ctx: _Context, x: Tensor, before: Tensor, input_gates: Tensor, hidden_gates: Tensor) -> Tensor | None:
    """Write the uses of all weights on the tape and return the gradient of `x`, where it is wanted.

    Args:
        ctx: the call.
        x: the layer's input [batch, time, in].
        before: the state before each step, in reading order.
        input_gates: gradient of the inputs' share of the gates, in reading order.
        hidden_gates: gradient of the states' share, in reading order; the same tensor where there is no difference.
    """
    site, dx = ctx.site, None
    for d, (w, order) in enumerate(zip(ctx.weights, ctx.orders, strict=True)):
        g = order.places(input_gates[d])
        g_hidden = g if hidden_gates is input_gates else order.places(hidden_gates[d])
        _use(site, w.suffix, "ih", x, g)
        _use(site, w.suffix, "hh", order.places(before[d]), g_hidden)
        if ctx.needs_input_grad[0]:
            part = g @ w.weight_ih
            dx = part if dx is None else dx.add_(part)
    return dx


def _use(site: Site, suffix: str, name: str, x: Tensor, g: Tensor) -> None:
    weight, bias = site.parameter(f"weight_{name}{suffix}"), site.parameter(f"bias_{name}{suffix}")
    x, g = site.tape.rows(site, x, folds=True), site.tape.rows(site, g, folds=True)
    if weight is not None or bias is not None:
        site.tape.write(LinearUse(site.name, weight, bias, x, g))


class _Lstm(torch.autograd.Function):
    """One layer of an LSTM, one or both directions; returns outputs [batch, time, ...] and last cells [d, batch, h]."""

    @staticmethod
    def forward(
        ctx: _Context,
        x: Tensor,
        h: Tensor,
        c: Tensor,
        site: Site,
        weights: Sequence[_Weights],
        orders: Sequence[_Order],
        *tracked: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.site, ctx.weights, ctx.orders = site, weights, orders
        biases = [None if w.bias_ih is None or w.bias_hh is None else w.bias_ih + w.bias_hh for w in weights]
        gates = _projected(x, weights, orders, biases)
        directions, time, batch, width = gates.shape
        hidden = width // 4
        maps = _hidden_weights(weights).mT.contiguous()
        states, cells = (x.new_empty(directions, time + 1, batch, hidden) for _ in range(2))
        states[:, 0], cells[:, 0] = h, c
        squashed = x.new_empty(directions, time, batch, hidden)
        for t in range(time):
            gate = gates[:, t]
            gate.baddbmm_(states[:, t], maps)
            gate[..., : 2 * hidden].sigmoid_()
            gate[..., 2 * hidden : 3 * hidden].tanh_()
            gate[..., 3 * hidden :].sigmoid_()
            i, f, g, o = _split(gate, 4).unbind(2)
            torch.mul(i, g, out=cells[:, t + 1])
            cells[:, t + 1].addcmul_(f, cells[:, t])
            torch.tanh(cells[:, t + 1], out=squashed[:, t])
            torch.mul(o, squashed[:, t], out=states[:, t + 1])
        ctx.save_for_backward(x, gates, states, cells, squashed)
        ends = cells[:, 1:].reshape(directions, time * batch, hidden)
        last = torch.stack([ends[d].index_select(0, order.last) for d, order in enumerate(orders)])
        ctx.set_materialize_grads(False)
        return _outputs(states[:, 1:], orders), last

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, grad: Tensor | None, grad_last: Tensor | None) -> tuple[Tensor | None, ...]:
        x, gates, states, cells, squashed = ctx.saved_tensors
        directions, time = squashed.shape[:2]
        i, f, g, o = _split(gates, 4).unbind(3)
        dh = torch.zeros_like(squashed) if grad is None else _output_steps(grad.to(x.dtype), ctx.orders)
        into_cell = o * (1 - squashed.square())
        # What each gate's input gets per unit of gradient of its cell (i, f, g) or state (o).
        slopes = _split(torch.empty_like(gates), 4)
        torch.mul(g, i * (1 - i), out=slopes[..., 0, :])
        torch.mul(cells[:, :-1], f * (1 - f), out=slopes[..., 1, :])
        torch.mul(i, 1 - g.square(), out=slopes[..., 2, :])
        torch.mul(squashed, o * (1 - o), out=slopes[..., 3, :])
        maps = _hidden_weights(ctx.weights)
        ends = None if grad_last is None else _at_last(grad_last, ctx.orders, squashed)
        dc, after = torch.zeros_like(squashed[:, 0]), torch.zeros_like(squashed[:, 0])
        for t in reversed(range(time)):
            state = dh[:, t].add_(after)
            dc = torch.addcmul(dc if ends is None else dc + ends[:, t], state, into_cell[:, t])
            slopes[:, t, :, :3].mul_(dc.unsqueeze(2))
            slopes[:, t, :, 3].mul_(state)
            dc = dc * f[:, t]
            after = torch.bmm(slopes[:, t].flatten(2), maps)
        gate_grads = slopes.flatten(3)
        dx = _write(ctx, x, states[:, :-1], gate_grads, gate_grads)
        return dx, after, dc, *[None] * (3 + 4 * directions)


def _at_last(grad: Tensor, orders: Sequence[_Order], like: Tensor) -> Tensor:
    """Return zeros in reading order with `grad` [directions, batch, hidden] at each row's last step."""
    out = torch.zeros_like(like)
    for d, order in enumerate(orders):
        out[d].flatten(0, 1).index_copy_(0, order.last, grad[d].to(like.dtype))
    return out


class _Gru(torch.autograd.Function):
    """One layer of a GRU, one or both directions; returns outputs [batch, time, directions * hidden]."""

    @staticmethod
    def forward(
        ctx: _Context,
        x: Tensor,
        h: Tensor,
        site: Site,
        weights: Sequence[_Weights],
        orders: Sequence[_Order],
        *tracked: Tensor | None,
    ) -> Tensor:
        ctx.site, ctx.weights, ctx.orders = site, weights, orders
        gates = _projected(x, weights, orders, [w.bias_ih for w in weights])
        directions, time, batch, width = gates.shape
        hidden = width // 3
        maps = _hidden_weights(weights).mT.contiguous()
        biases = x.new_zeros(directions, 1, width)
        if weights[0].bias_hh is not None:
            biases = torch.stack([cast("Tensor", w.bias_hh) for w in weights])[:, None]
        states = x.new_empty(directions, time + 1, batch, hidden)
        states[:, 0] = h
        recalled = x.new_empty(directions, time, batch, hidden)  # the states' share of n, which r scales, bias and all
        for t in range(time):
            gate, before = gates[:, t], states[:, t]
            own = torch.baddbmm(biases, before, maps)
            gate[..., : 2 * hidden].add_(own[..., : 2 * hidden]).sigmoid_()
            r, z, n = _split(gate, 3).unbind(2)
            recalled[:, t] = own[..., 2 * hidden :]
            n.addcmul_(r, recalled[:, t]).tanh_()
            torch.lerp(n, before, z, out=states[:, t + 1])
        ctx.save_for_backward(x, gates, states, recalled)
        return _outputs(states[:, 1:], orders)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gates, states, recalled = ctx.saved_tensors
        directions, time = recalled.shape[:2]
        r, z, n = _split(gates, 3).unbind(3)
        dh = _output_steps(grad.to(x.dtype), ctx.orders)
        # What each gate's input gets per unit of gradient of the state.
        into_n = (1 - z) * (1 - n.square())
        slopes = _split(torch.empty_like(gates), 3)
        torch.mul(into_n * recalled, r * (1 - r), out=slopes[..., 0, :])
        torch.mul(states[:, :-1] - n, z * (1 - z), out=slopes[..., 1, :])
        torch.mul(into_n, r, out=slopes[..., 2, :])
        maps = _hidden_weights(ctx.weights)
        after = torch.zeros_like(recalled[:, 0])
        for t in reversed(range(time)):
            state = dh[:, t].add_(after)
            slopes[:, t].mul_(state.unsqueeze(2))
            after = torch.baddbmm(state * z[:, t], slopes[:, t].flatten(2), maps)
        input_grads = slopes.clone()
        torch.mul(into_n, dh, out=input_grads[..., 2, :])
        dx = _write(ctx, x, states[:, :-1], input_grads.flatten(3), slopes.flatten(3))
        return dx, after, *[None] * (3 + 4 * directions)


def _padded(module: nn.RNNBase, site: Site, given: Tensor | PackedSequence) -> tuple[Tensor, Tensor]:
    """Return the input as [batch, time, in] and the rows' lengths [batch] on its device."""
    if isinstance(given, PackedSequence):
        x, lengths = pad_packed_sequence(given, batch_first=True)
        return x, lengths.to(x.device)
    if given.dim() != 3:
        raise UnsupportedModuleError(
            f"{site.name} ({type(module).__name__}) works on a tensor of shape {list(given.shape)}, which has no "
            "dimension for the examples of a batch: give it [batch, time, features], or freeze the module"
        )
    x = given if module.batch_first else given.transpose(0, 1)
    return x, torch.full((x.shape[0],), x.shape[1], device=x.device)


def _repacked(out: Tensor, like: PackedSequence, lengths: Tensor) -> PackedSequence:
    """Return [batch, time, width] packed as the input was."""
    if like.sorted_indices is not None:
        out, lengths = out.index_select(0, like.sorted_indices), lengths[like.sorted_indices]
    data = pack_padded_sequence(out, lengths.cpu(), batch_first=True).data
    return PackedSequence(data, like.batch_sizes, like.sorted_indices, like.unsorted_indices)


def _layer(
    site: Site, x: Tensor, states: Hidden, weights: Sequence[_Weights], orders: Sequence[_Order]
) -> tuple[Tensor, Hidden]:
    """Return one layer's outputs [batch, time, directions * hidden] and last states [directions, batch, hidden]."""
    tracked = [tensor for w in weights for tensor in w.tensors]
    ends: Hidden = ()
    if site.rule is LSTM:
        out, cells = _Lstm.apply(x, *states, site, weights, orders, *tracked)  # type: ignore[no-untyped-call]
        ends = (cells,)
    else:
        out = _Gru.apply(x, *states, site, weights, orders, *tracked)  # type: ignore[no-untyped-call]
    # A row's last step stands at its end, or at its start where it was read backwards.
    batch, time, width = out.shape
    places = [order.reads.index_select(0, order.last) for order in orders]
    parts = out.reshape(batch * time, len(orders), width // len(orders))
    last = torch.stack([parts[:, d].index_select(0, place) for d, place in enumerate(places)])
    return out, (last, *ends)


def _run(module: nn.RNNBase, site: Site, given: Tensor | PackedSequence, hidden: Hidden | None) -> object:
    """Return what the module's own `forward` would: outputs, and the last states of all layers."""
    x, lengths = _padded(module, site, given)
    like = next(module.parameters())
    directions = 2 if module.bidirectional else 1
    x = x.to(like.dtype)
    shape = (module.num_layers * directions, x.shape[0], module.hidden_size)
    if hidden is None:
        zeros = x.new_zeros(shape)
        states: Hidden = (zeros, zeros) if site.rule is LSTM else (zeros,)
    else:
        states = hidden
        for state in states:  # torch's own refusal: a state of one row would be handed to all examples
            module.check_hidden_size(state, shape)
    orders = [_Order.of(lengths, x.shape[1], reverse=bool(d)) for d in range(directions)]
    ends: list[Hidden] = []
    for layer in range(module.num_layers):
        weights = [_Weights.of(module, layer, d) for d in range(directions)]
        own = slice(layer * directions, (layer + 1) * directions)
        x, last = _layer(site, x, tuple(s[own].to(like.dtype) for s in states), weights, orders)
        ends.append(last)
        if layer < module.num_layers - 1:
            x = F.dropout(x, module.dropout, module.training)
    final = tuple(torch.cat(parts) for parts in zip(*ends, strict=True))
    out: object = x if module.batch_first else x.transpose(0, 1)
    if isinstance(given, PackedSequence):
        out = _repacked(x, given, lengths)
    return out, final if site.rule is LSTM else final[0]


def _forward(tape: Tape) -> Callable[..., object]:
    def forward(module: nn.RNNBase, input: Tensor | PackedSequence, hx: Tensor | Hidden | None = None) -> object:
        site = tape.site(module)
        if site is None:
            return type(module).forward(module, input, hx)
        states = (hx,) if isinstance(hx, Tensor) else hx
        with torch.autocast(next(module.parameters()).device.type, enabled=False):
            return _run(module, site, input, states)

    return forward


def _refuses(module: nn.Module) -> str | None:
    if cast("nn.RNNBase", module).proj_size:
        return "projects its states (proj_size): make it without, and put an nn.Linear behind it"
    return None


class _Names(Container[str]):
    """The names of a recurrent module's parameters, whatever the number of its layers."""

    _PATTERN: ClassVar = re.compile(r"(weight|bias)_(ih|hh)_l\d+(_reverse)?")

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._PATTERN.fullmatch(name) is not None


LSTM = Rule("lstm", _Names(), _forward, _refuses)
GRU = Rule("gru", _Names(), _forward, _refuses)
