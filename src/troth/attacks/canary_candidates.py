"""Every code of a pattern as a row of a task: encoded by numbers, scored in float64.

The task encodes the text once for each value of each slot. Where values change tokens of their own slot alone, which is
so wherever words are tokenized one by one, a code's row is put together from these parts, without a text or an object
for each code; some codes are encoded whole to see that both ways agree. Else every code is encoded as a text.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from troth.attacks.canaries import CanaryPlan
from troth.attacks.canary_insertion import canary_roles, refuse_label
from troth.data import from_rows
from troth.errors import ModelError
from troth.tasks import Encoded, MaskedLanguageModeling, Ragged
from troth.tasks.task import IGNORED, evaluating
from troth.tasks.tokens import tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from troth.tasks import Batch, Task

__all__ = ["CandidateScorer", "Candidates", "candidate_losses"]

Integers = NDArray[np.int64]

_AT_ONCE = 4096  # codes encoded together
_ROWS = 512  # rows of a forward pass
_NUMBERS_AT_ONCE = 2**25  # numbers in one forward pass' logits
_PROBES = 8
_OF_TOKENS = ("mask_keys",)  # columns that follow from the row's tokens, and that only training's masks read
_NATS = (
    "language_modeling",
    "seq2seq",
)  # kinds whose loss is a mean over tokens, which codes may have more or fewer of


@dataclass(frozen=True, eq=False)
class _Slot:
    """What a slot's values put into one column: `values` [values, places] at `places` [places]."""

    places: Integers
    values: NDArray[np.generic]


@dataclass(frozen=True, eq=False)
class _Parts:
    """A row put together from numbers: base [columns] -> [length], and what each slot changes in it."""

    base: Encoded
    slots: Mapping[str, tuple[_Slot, ...]]


class Candidates:
    """The codes of a plan as encoded rows.

    Args:
        task: of the model that was trained on the canaries.
        plan: of the canaries.

    Raises:
        ModelError: the model does not know the canaries' label, a value is unknown to its tokenizer, or the text is
            longer than the model reads.
    """

    def __init__(self, task: Task, plan: CanaryPlan) -> None:
        self.task, self.plan = task, plan
        refuse_label(plan, task.kind, task.labels)
        _refuse_untold_label(plan, task)
        _refuse_unknown_values(plan, task)
        if self._encoded(self._first).truncated:
            raise ModelError(f"canaries.pattern: longer than model.max_length = {task.max_length}: raise it")
        self._parts = self._found_parts()

    @property
    def by_numbers(self) -> bool:
        """Whether rows are put together from parts: every code has its slots' tokens at the same places."""
        return self._parts is not None

    def encode(self, digits: Integers) -> Encoded:
        """Return the rows of digits [codes, slots]."""
        return self._encoded(digits) if self._parts is None else _assembled(self._parts, digits)

    def variants(self) -> Integers:
        """Return digits [sum of sizes, slots]: for each slot in turn each of its values, others at their first."""
        sizes = self.plan.parsed.sizes
        rows = np.zeros((sum(sizes), len(sizes)), dtype=np.int64)
        start = 0
        for slot, size in enumerate(sizes):
            rows[start : start + size, slot] = np.arange(size)
            start += size
        return rows

    def places(self, slot: int) -> Integers:
        """Return which tokens of a row change with the slot's value [places]; rows must be `by_numbers`."""
        if self._parts is None:
            raise ModelError(
                "canaries.pattern: a slot's values have different numbers of tokens for this tokenizer, which this "
                "attack does not read; take {d}, or enumerate"
            )
        return self._parts.slots["input_ids"][slot].places

    @property
    def _first(self) -> Integers:
        return np.zeros((1, len(self.plan.parsed.slots)), dtype=np.int64)

    def _encoded(self, digits: Integers) -> Encoded:
        rows = [canary_roles(self.plan, row, self.task.kind, self.task.labels) for row in digits]
        return _without_keys(self.task.encode(from_rows(rows, "canaries")))

    def _found_parts(self) -> _Parts | None:
        """Return the parts, or None where rows cannot be put together from them."""
        base, variants = self._encoded(self._first), self._encoded(self.variants())
        parts = _parts_of(base, variants, self.plan.parsed.sizes)
        if parts is None:
            return None
        sizes = np.array(self.plan.parsed.sizes)
        probes = (np.arange(1, _PROBES + 1)[:, None] * np.array([7, 3, 5, 11])[np.arange(len(sizes)) % 4]) % sizes
        return parts if _same(_assembled(parts, probes), self._encoded(probes)) else None


class CandidateScorer:
    """Losses of codes under one model, in nats: lower where the model finds the completed text more likely.

    Classification and tagging: the loss of the known label given the completed text. Question answering: that of the
    answer's place. Causal language models and sequence to sequence: minus the log-likelihood of the whole text. Masked
    language models: minus the pseudo-log-likelihood of the slots, each masked while the others are seen (Salazar et
    al., ACL 2020, equation 1, over the slots' tokens).

    All is computed in float64 on a copy of the model: a model that has learnt a label by heart gives losses that
    float32 cannot tell apart.
    """

    def __init__(self, task: Task, model: PreTrainedModel, plan: CanaryPlan) -> None:
        self.candidates = Candidates(task, plan)
        self.task = task
        self.model = copy.deepcopy(model).double()

    def losses(self, digits: Integers) -> NDArray[np.float64]:
        """Return the losses [codes] of digits [codes, slots].

        Raises:
            ModelError: the model gives a loss that is not finite.
        """
        wanted = np.asarray(digits, dtype=np.int64)
        if isinstance(self.task, MaskedLanguageModeling):
            found = self._pseudo_losses(self.task.tokenizer.mask_token_id, wanted)
        else:
            found = self._plain_losses(wanted)
        if not np.isfinite(found).all():
            raise ModelError("the model gives a code a loss that is not finite: its weights are broken")
        return found

    def _plain_losses(self, digits: Integers) -> NDArray[np.float64]:
        found = np.zeros(len(digits))
        with evaluating(self.model) as device:
            for start in range(0, len(digits), _AT_ONCE):
                encoded = self.candidates.encode(digits[start : start + _AT_ONCE])
                for rows in _blocks(encoded, self._width):
                    batch = {name: values.to(device) for name, values in self.task.collate(encoded, rows).items()}
                    losses = self.task.per_example_loss(self.model, batch)
                    if self.task.kind in _NATS:
                        losses = losses * _predicted(self.task.kind, batch)
                    found[start + rows] = losses.double().cpu().numpy()
        return found

    def _pseudo_losses(self, mask: int, digits: Integers) -> NDArray[np.float64]:
        total = np.zeros(len(digits))
        for slot in range(digits.shape[1]):
            others = digits.copy()
            others[:, slot] = 0
            contexts, inverse = np.unique(others, axis=0, return_inverse=True)
            logs = self._slot_log_probabilities(mask, contexts, slot)
            total -= logs[inverse.reshape(-1), digits[:, slot]]
        return total

    def _slot_log_probabilities(self, mask: int, contexts: Integers, slot: int) -> NDArray[np.float64]:
        """Return [contexts, values]: the log-probability of each value where the slot is masked."""
        places = self.candidates.places(slot)
        values = self.candidates.variants()
        values = values[sum(self._sizes[:slot]) : sum(self._sizes[: slot + 1])]
        tokens = _matrix(self.candidates.encode(values))[:, places]  # [values, places]
        found = np.zeros((len(contexts), len(values)))
        with evaluating(self.model) as device:
            for start in range(0, len(contexts), _AT_ONCE):
                encoded = self.candidates.encode(contexts[start : start + _AT_ONCE])
                for rows in _blocks(encoded, self._width):
                    ids = torch.from_numpy(_matrix(encoded)[rows]).to(device)
                    ids[:, places] = mask
                    logits = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, places]
                    logs = torch.log_softmax(logits.double(), 2)
                    each = torch.stack([logs[:, i][:, tokens[:, i]] for i in range(len(places))]).sum(0)
                    found[start + rows] = each.cpu().numpy()
        return found

    @property
    def _sizes(self) -> tuple[int, ...]:
        return self.candidates.plan.parsed.sizes

    @property
    def _width(self) -> int:
        """Logits of one token."""
        return len(self.task.labels) or len(self.task.tokenizer)


def candidate_losses(task: Task, model: PreTrainedModel, plan: CanaryPlan, codes: Integers) -> NDArray[np.float64]:
    """Return the losses of codes [codes] in nats, as `CandidateScorer` has them; the model is left as it was.

    Raises:
        ModelError: the task, tokenizer or model does not fit the plan.
    """
    return CandidateScorer(task, model, plan).losses(plan.parsed.digits(codes))


def _refuse_untold_label(plan: CanaryPlan, task: Task) -> None:
    """Refuse a model that was never told the canaries' own label."""
    if task.kind == "classification":
        wanted = {plan.label}
    elif task.kind == "tagging":
        wanted = set(
            canary_roles(plan, np.zeros(len(plan.parsed.slots), dtype=np.int64), "tagging", task.labels)["tags"]
        )
    else:
        return
    if not wanted <= set(task.labels):
        raise ModelError(
            f"the model does not know the canaries' label {plan.label!r}: attack the twin that was trained with them"
        )


def _refuse_unknown_values(plan: CanaryPlan, task: Task) -> None:
    """Refuse a tokenizer that has no token for a value: codes with it could not be told apart."""
    unknown = task.tokenizer.unk_token_id
    values = sorted({value for slot in plan.parsed.slots for value in slot})
    if not isinstance(unknown, int):
        return
    for value, ids in zip(values, tokenize(task.tokenizer, values), strict=True):
        if unknown in ids:
            raise ModelError(f"canaries.pattern: the value {value!r} of a slot is unknown to the model's tokenizer")


def _without_keys(encoded: Encoded) -> Encoded:
    scalars = {name: values for name, values in encoded.scalars.items() if name not in _OF_TOKENS}
    return Encoded(encoded.ragged, scalars, encoded.lengths, encoded.truncated)


def _matrix(encoded: Encoded) -> Integers:
    """Return the ids of rows of one length [rows, time]."""
    ids = encoded.ragged["input_ids"]
    return np.asarray(ids.values).reshape(len(ids), -1)


def _parts_of(base: Encoded, variants: Encoded, sizes: tuple[int, ...]) -> _Parts | None:
    for name, values in variants.scalars.items():
        if (values != base.scalars[name][0]).any():
            return None
    slots = {}
    for name, column in variants.ragged.items():
        first = base.ragged[name].row(0)
        if (column.lengths != len(first)).any():
            return None
        rows = column.values.reshape(len(column), len(first))
        found, start = [], 0
        for size in sizes:
            own = rows[start : start + size]
            places = np.flatnonzero((own != first).any(0))
            found.append(_Slot(places, own[:, places]))
            start += size
        every = np.concatenate([slot.places for slot in found])
        if len(np.unique(every)) != len(every):
            return None
        slots[name] = tuple(found)
    return _Parts(base, slots)


def _assembled(parts: _Parts, digits: Integers) -> Encoded:
    """Return the rows of digits [codes, slots], put together from the parts."""
    count, base = len(digits), parts.base
    ragged = {}
    for name, slots in parts.slots.items():
        first = base.ragged[name].row(0)
        rows = np.repeat(first[None], count, axis=0)
        for slot, part in enumerate(slots):
            rows[:, part.places] = part.values[digits[:, slot]]
        offsets = np.arange(count + 1, dtype=np.int64) * len(first)
        ragged[name] = Ragged(rows.reshape(-1), offsets)
    scalars = {name: np.repeat(values, count, axis=0) for name, values in base.scalars.items()}
    return Encoded(ragged, scalars, np.repeat(base.lengths, count), 0)


def _same(a: Encoded, b: Encoded) -> bool:
    return all(
        np.array_equal(a.ragged[name].offsets, b.ragged[name].offsets)
        and np.array_equal(a.ragged[name].values, b.ragged[name].values)
        for name in b.ragged
    ) and all(np.array_equal(a.scalars[name], b.scalars[name]) for name in b.scalars)


def _blocks(encoded: Encoded, width: int) -> Iterator[Integers]:
    """Yield rows of forward passes whose logits stay small."""
    longest = int(encoded.lengths.max(initial=1))
    size = min(_ROWS, max(1, _NUMBERS_AT_ONCE // (longest * width)))
    for start in range(0, len(encoded), size):
        yield np.arange(start, min(start + size, len(encoded)))


def _predicted(kind: str, batch: Batch) -> Tensor:
    """Return how many tokens each row's mean loss is over [batch]; a causal model does not predict the first."""
    labels = batch["labels"]
    return ((labels if kind == "seq2seq" else labels[:, 1:]) != IGNORED).sum(1)
