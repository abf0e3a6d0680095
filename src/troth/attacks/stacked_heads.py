"""Many softmax heads on the same frozen features, trained in one program: cheap shadow models.

Head k is trained on the rows with ``inside[k]`` and on nothing else, with its own initial weights and its own public
shuffle, exactly as if it were alone. The heads only share the operations: one batched product in place of K small ones.
The gradient of the cross-entropy is written out (softmax minus one-hot), AdamW (Loshchilov and Hutter, arXiv
1711.05101, algorithm 2, as in torch) is applied to all heads at once.

Stacking saves overhead, not arithmetic: small heads gain several times, while wide ones push each other out of the
cache. `faster_way` measures which it is on the shapes at hand; the way changes rounding, nothing else.

Shadows with frozen features play a **weaker game** than shadows trained like the target, unless the target's encoder
was frozen as well: results from them are to say so.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from troth.errors import ConfigError, DataError, ModelError
from troth.seeds import PublicSeeds

__all__ = ["HeadSettings", "StackedHeads", "Way", "WayMeasured", "faster_way", "train_heads"]

_BETAS, _EPSILON = (0.9, 0.999), 1e-8  # torch's defaults for AdamW
_NUMBERS = 2_000_000  # in memory at a time when heads are applied to many rows
_TIMED_STEPS, _ROUNDS = 3, 3

Way = Literal["stacked", "one by one"]


@dataclass(frozen=True)
class HeadSettings:
    """How each head is trained.

    Attributes:
        classes: number of labels, 2 or more.
        epochs: passes of a head over its own rows.
        learning_rate: of AdamW, constant.
        batch_size: rows in a step; the last one of an epoch may be smaller.
        weight_decay: of AdamW, decoupled, on weights and biases.
        hidden: width of the hidden layer (ReLU); None for a linear head.

    Raises:
        ConfigError: a number outside of its range.
    """

    classes: int
    epochs: int
    learning_rate: float
    batch_size: int
    weight_decay: float = 0.0
    hidden: int | None = None

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise ConfigError(f"classes = {self.classes}: a head tells 2 or more apart")
        for name, value in (("epochs", self.epochs), ("batch_size", self.batch_size), ("hidden", self.hidden)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} = {value}: must be at least 1")
        if not 0 < self.learning_rate < float("inf") or not 0 <= self.weight_decay < float("inf"):
            raise ConfigError(
                f"learning_rate = {self.learning_rate}, weight_decay = {self.weight_decay}: "
                "must be above 0, and not negative"
            )


@dataclass(frozen=True, eq=False)
class StackedHeads:
    """Trained heads.

    Attributes:
        weights: of each layer [heads, outputs, inputs].
        biases: of each layer [heads, outputs, 1].
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.weights[0])

    def log_probabilities(self, features: np.ndarray) -> np.ndarray:
        """Return each head's log-probabilities [heads, rows, classes], float64.

        Raises:
            DataError: features that are not finite, or of another width than those of the training.
        """
        inputs = _inputs(features, self.weights[0])
        found = np.empty((len(self), len(inputs), self.biases[-1].shape[1]))
        for rows, logits in self._parts(inputs):
            found[:, rows] = logits.log_softmax(1).transpose(1, 2).numpy()
        return found

    def true_label(self, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return each head's log-probability of each row's label [heads, rows], float64, in bounded memory.

        Args:
            features: [rows, inputs].
            labels: [rows], int.

        Raises:
            DataError: as in `log_probabilities`, or labels that do not fit.
        """
        inputs = _inputs(features, self.weights[0])
        chosen = _labels(labels, len(inputs), self.biases[-1].shape[1])
        found = np.empty((len(self), len(inputs)))
        for rows, logits in self._parts(inputs):
            of = chosen[None, None, rows].expand(len(self), 1, -1)
            found[:, rows] = (logits.gather(1, of)[:, 0] - logits.logsumexp(1)).numpy()
        return found

    def _parts(self, inputs: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of the rows with the heads' logits there [heads, classes, some rows], float64."""
        heads, width, _ = self.weights[0].shape
        # The first layer is one product for all heads: they see the same rows.
        joined = self.weights[0].reshape(heads * width, -1)
        step = max(1, _NUMBERS // (heads * width))
        for start in range(0, len(inputs), step):
            rows = slice(start, min(start + step, len(inputs)))
            outputs = (joined @ inputs[rows].T).view(heads, width, -1) + self.biases[0]
            for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
                outputs = torch.baddbmm(bias, weight, outputs.clamp(min=0))
            yield rows, outputs.double()


@dataclass(frozen=True)
class WayMeasured:
    """What one step of every head takes, either way.

    Attributes:
        way: the faster one.
        stacked_seconds: wall seconds of one step of all heads in one program.
        one_by_one_seconds: wall seconds of one step of each head, one head after the other.
    """

    way: Way
    stacked_seconds: float
    one_by_one_seconds: float


def train_heads(
    features: np.ndarray,
    labels: np.ndarray,
    inside: np.ndarray,
    settings: HeadSettings,
    *,
    seeds: PublicSeeds,
    way: Way | None = None,
) -> StackedHeads:
    """Return K heads, each trained on its own rows.

    Memory beyond the features: O(K (batch x inputs + parameters of a head)) stacked, a head's share of it one by one,
    and one permutation of each head's rows.

    Guarantees:
    - a head depends on its own rows, the settings and its seeds only: not on the others, their number or the way,
      beyond rounding.

    Args:
        features: [rows, inputs], of any frozen encoder; training is done in their precision, float32 or float64.
        labels: [rows], int.
        inside: [heads, rows], bool: which rows each head is trained on.
        settings: of the training.
        seeds: public seeds of initial weights and shuffles.
        way: ``stacked`` or ``one by one``; None measures which is faster.

    Raises:
        DataError: features that are not finite, shapes that do not fit, or a head without rows.
        ModelError: training diverged.
    """
    work = _Work.of(features, labels, inside, settings, seeds)
    chosen = way or _measured(work).way
    everyone = np.arange(len(work.inside))
    groups = [everyone] if chosen == "stacked" else np.split(everyone, len(everyone))
    trained = [_train(work, heads) for heads in groups]
    weights, biases = (
        tuple(torch.cat(layer) for layer in zip(*part, strict=True)) for part in zip(*trained, strict=True)
    )
    for head in range(len(everyone)):
        if not all(bool(layer[head].isfinite().all()) for layer in (*weights, *biases)):
            raise ModelError(f"shadow head {head} diverged: lower the learning rate ({settings.learning_rate:g})")
    return StackedHeads(weights, biases)


def faster_way(
    features: np.ndarray, labels: np.ndarray, inside: np.ndarray, settings: HeadSettings, *, seeds: PublicSeeds
) -> WayMeasured:
    """Return which way of training is faster, from a few steps of both on these rows that are then thrown away.

    One by one is timed on the first head, whose steps follow each other as they would in training, times the number of
    heads. The two take turns; the fastest round of each counts. Arguments and errors as in `train_heads`.
    """
    return _measured(_Work.of(features, labels, inside, settings, seeds))


def _measured(work: _Work) -> WayMeasured:
    heads = np.arange(len(work.inside))
    steppers = [_stepper(work, heads), _stepper(work, heads[:1])]
    best = [float("inf"), float("inf")]
    for step in steppers:
        step()  # the first one allocates
    for _ in range(_ROUNDS):
        for place, step in enumerate(steppers):
            start = time.perf_counter()
            for _ in range(_TIMED_STEPS):
                step()
            best[place] = min(best[place], (time.perf_counter() - start) / _TIMED_STEPS)
    stacked, alone = best[0], best[1] * len(heads)
    return WayMeasured("stacked" if stacked <= alone else "one by one", stacked, alone)


@dataclass(frozen=True, eq=False)
class _Work:
    """What is to be trained: features [rows, inputs], labels [rows], inside [heads, rows]."""

    features: Tensor
    labels: Tensor
    inside: np.ndarray
    settings: HeadSettings
    seeds: PublicSeeds

    @classmethod
    def of(
        cls,
        features: np.ndarray,
        labels: np.ndarray,
        inside: np.ndarray,
        settings: HeadSettings,
        seeds: PublicSeeds,
    ) -> _Work:
        inputs = _finite(features)
        mask = np.asarray(inside)
        if mask.dtype != np.bool_ or mask.ndim != 2 or mask.shape[1] != len(inputs) or not len(mask):
            raise DataError(
                f"inside: {mask.dtype} of shape {list(mask.shape)} for {len(inputs)} rows: give [heads, rows], bool"
            )
        lonely = np.flatnonzero(~mask.any(1))
        if len(lonely):
            raise DataError(f"inside: shadow head {lonely[0]} has no row to be trained on")
        return cls(inputs, _labels(labels, len(inputs), settings.classes), mask, settings, seeds)

    def batches(self, head: int) -> Iterator[np.ndarray]:
        """Yield the rows of each step of a head, in order: its rows in a new order every epoch."""
        own, size = np.flatnonzero(self.inside[head]), self.settings.batch_size
        for epoch in range(self.settings.epochs):
            order = self.seeds.generator("shadow heads", "shuffle", head, epoch).permutation(own)
            yield from (order[start : start + size] for start in range(0, len(order), size))

    def steps(self, head: int) -> int:
        return self.settings.epochs * -(-int(self.inside[head].sum()) // self.settings.batch_size)

    def initial(self, heads: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
        """Return weights and biases of each layer: uniform in ±1 / √inputs, as in `torch.nn.Linear`."""
        sizes = [self.features.shape[1], self.settings.hidden, self.settings.classes]
        widths = [size for size in sizes if size is not None]
        weights, biases = [], []
        for layer, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            drawn = []
            for head in heads:
                rng = self.seeds.generator("shadow heads", "initial", int(head), layer)
                drawn.append(rng.uniform(-1, 1, (inputs + 1, outputs)) / inputs**0.5)
            both = torch.from_numpy(np.stack(drawn)).to(self.features.dtype)
            weights.append(both[:, :-1].transpose(1, 2).contiguous())
            biases.append(both[:, -1:].transpose(1, 2).contiguous())
        return weights, biases


def _train(work: _Work, heads: np.ndarray) -> tuple[list[Tensor], list[Tensor]]:
    """Return weights and biases of these heads, in their order, trained together."""
    # Heads of more rows have more steps: in this order, those that are not done yet are always the first ones.
    order = np.argsort([-work.steps(int(head)) for head in heads], kind="stable")
    stack = _Stack(work, heads[order])
    while stack.step():
        pass
    back = torch.from_numpy(np.argsort(order))
    return [w[back] for w in stack.weights], [b[back] for b in stack.biases]


def _stepper(work: _Work, heads: np.ndarray) -> Callable[[], object]:
    """Return a function that makes one step of these heads, beginning anew when they are done."""
    order = np.argsort([-work.steps(int(head)) for head in heads], kind="stable")
    stack = _Stack(work, heads[order])

    def step() -> None:
        nonlocal stack
        if not stack.step():
            stack = _Stack(work, heads[order])
            stack.step()

    return step


class _Stack:
    """Heads in training, those of most steps first."""

    def __init__(self, work: _Work, heads: np.ndarray) -> None:
        self._features, self._labels, self._settings = work.features, work.labels, work.settings
        self.weights, self.biases = work.initial(heads.tolist())
        self._first = [torch.zeros_like(p) for p in (*self.weights, *self.biases)]
        self._second = [torch.zeros_like(p) for p in (*self.weights, *self.biases)]
        self._room = [torch.empty_like(p) for p in (*self.weights, *self.biases)]
        self._batches = [work.batches(int(head)) for head in heads]
        self._rows = np.zeros((len(heads), work.settings.batch_size), dtype=np.int64)
        self._taken = 0

    def step(self) -> bool:
        """Take one step of every head that has one left; return whether there was any."""
        found = [batch for batch in (next(batches, None) for batches in self._batches) if batch is not None]
        if not found:
            return False
        self._batches = self._batches[: len(found)]
        sizes = np.array([len(batch) for batch in found])
        rows = self._rows[: len(found), : sizes.max()]
        for into, batch in zip(rows, found, strict=True):
            into[: len(batch)] = batch
            into[len(batch) :] = batch[0]  # weighted by nothing
        shares = (np.arange(rows.shape[1]) < sizes[:, None]) / sizes[:, None]
        self._taken += 1
        weighted = torch.from_numpy(shares).to(self._features.dtype)[:, None]
        self._descend(self._gradients(torch.from_numpy(rows), weighted), len(found))
        return True

    def _gradients(self, rows: Tensor, shares: Tensor) -> list[Tensor]:
        """Return the mean loss's gradient by weights, then by biases, of the first heads.

        Args:
            rows: [heads, batch].
            shares: each row's weight in its head's mean [heads, 1, batch].
        """
        heads, size = rows.shape
        inputs = self._features.index_select(0, rows.reshape(-1)).view(heads, size, -1)
        # Outputs are [heads, width, batch]: few classes as columns would make the products several times slower.
        layers = [inputs.transpose(1, 2)]
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            layers.append(torch.baddbmm(bias[:heads], weight[:heads], layers[-1]).clamp_(min=0))
        error = torch.baddbmm(self.biases[-1][:heads], self.weights[-1][:heads], layers[-1]).softmax(1)
        true = self._labels.index_select(0, rows.reshape(-1)).view(heads, 1, size)
        error.scatter_add_(1, true, error.new_full((1, 1, 1), -1.0).expand(heads, 1, size)).mul_(shares)
        by_weight, by_bias = [], []
        for place in range(len(layers) - 1, -1, -1):
            by_weight.append(error @ layers[place].transpose(1, 2))
            by_bias.append(error.sum(2, keepdim=True))
            if place:
                error = (self.weights[place][:heads].transpose(1, 2) @ error).mul_(layers[place] > 0)
        return by_weight[::-1] + by_bias[::-1]

    def _descend(self, gradients: list[Tensor], heads: int) -> None:
        """Take AdamW's step of the first heads."""
        rate, (slow, slower) = self._settings.learning_rate, _BETAS
        correction = (1 - slower**self._taken) ** 0.5
        moments = (self._first, self._second, self._room)
        for whole, gradient, *kept in zip((*self.weights, *self.biases), gradients, *moments, strict=True):
            parameter, (first, second, room) = whole[:heads], (tensor[:heads] for tensor in kept)
            if self._settings.weight_decay:
                parameter.mul_(1 - rate * self._settings.weight_decay)
            first.lerp_(gradient, 1 - slow)
            second.mul_(slower).addcmul_(gradient, gradient, value=1 - slower)
            torch.sqrt(second, out=room)
            room.div_(correction).add_(_EPSILON)
            parameter.addcdiv_(first, room, value=-rate / (1 - slow**self._taken))


def _finite(features: np.ndarray) -> Tensor:
    array = np.asarray(features)
    if array.ndim != 2 or array.size == 0 or array.dtype not in (np.float32, np.float64):
        raise DataError(
            f"features: {array.dtype} of shape {list(array.shape)}: give [rows, inputs], float32 or float64"
        )
    if not np.isfinite(array).all():
        raise DataError(f"features: row {int(np.argwhere(~np.isfinite(array))[0][0])} has a number that is not finite")
    return torch.from_numpy(np.ascontiguousarray(array))


def _inputs(features: np.ndarray, weight: Tensor) -> Tensor:
    inputs = _finite(features)
    if inputs.shape[1] != weight.shape[2]:
        raise DataError(f"features of width {inputs.shape[1]}: the heads were trained on width {weight.shape[2]}")
    return inputs.to(weight.dtype)


def _labels(labels: np.ndarray, rows: int, classes: int) -> Tensor:
    array = np.asarray(labels)
    if array.shape != (rows,) or not np.issubdtype(array.dtype, np.integer):
        raise DataError(f"labels: {array.dtype} of shape {list(array.shape)} for {rows} rows: give one int for each")
    outside = np.flatnonzero((array < 0) | (array >= classes))
    if len(outside):
        raise DataError(f"labels: row {outside[0]} has {array[outside[0]]}: must lie in 0..{classes - 1}")
    return torch.from_numpy(array.astype(np.int64))
