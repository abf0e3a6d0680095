"""Losses of mixtures of texts, with a gradient in the shares: what attacks by gradients descend.

A *slot* of a text may hold one of several values. Each value has a share; what the model reads at the slot's tokens is
the mixture of the values' embeddings by these shares, words and their characters alike. Where one value has all of
each slot, the loss is that of the text with these values.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from troth.errors import ModelError
from troth.tasks.modeling_tagger import CharacterCNN, TrothTaggerForTokenClassification

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from troth.tasks.task import Batch, Task

__all__ = ["RelaxedInputs", "frozen"]

_KINDS = ("classification", "tagging")


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """Keep autograd from forming gradients of the weights, in eval mode; the model is left as it was found.

    Gradients of the inputs alone are wanted. It takes as long as asking autograd for these alone (measured on models of
    up to 400,000 parameters), but what a backward pass writes of its own accord cannot reach the weights.
    """
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.train(mode=False)
    try:
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        # cuDNN has no backward pass of recurrent layers in eval mode.
        with torch.backends.cudnn.flags(enabled=False):
            yield
    finally:
        for parameter, want in wanted:
            parameter.requires_grad_(want)
        for module, mode in modes:
            module.training = mode


class _Places:
    """The tokens that depend on a slot's value: one entry for each slot and each such token.

    Attributes:
        slot_of: [entries] which slot.
        token_of: [entries] which token of the row.
        rows: [entries, values] rows of the variants' batch, the first one where a slot has fewer values.
    """

    def __init__(self, variants: Batch, sizes: Sequence[int]) -> None:
        ids, characters = variants["input_ids"], variants.get("characters")
        slots, tokens, rows = [], [], []
        start, widest = 0, max(sizes)
        for slot, size in enumerate(sizes):
            own = slice(start, start + size)
            differs = (ids[own] != ids[start]).any(0)
            if characters is not None:
                differs |= (characters[own] != characters[start]).any(0).any(1)
            numbers = [start + min(value, size - 1) for value in range(widest)]
            for token in differs.nonzero()[:, 0].tolist():
                slots.append(slot)
                tokens.append(token)
                rows.append(numbers)
            start += size
        device = ids.device
        self.slot_of = torch.tensor(slots, dtype=torch.long, device=device)
        self.token_of = torch.tensor(tokens, dtype=torch.long, device=device)
        self.rows = torch.tensor(rows, dtype=torch.long, device=device).view(len(slots), widest)


class RelaxedInputs:
    """The loss of a text with slots as a function of the values' shares. Made once, while the model is `frozen`.

    Guarantees:
    - at shares of 0 and 1 the loss is the task's own of that text;
    - the loss of a row depends on the shares of that row alone.

    Args:
        task: classification or tagging.
        model: reads ``inputs_embeds``; the BiLSTM-CRF tagger's bytes are mixed too.
        variants: collated rows, all of one length: for each slot in turn the text with each of the slot's values, the
            other slots at their first.
        sizes: values of each slot; they add up to the rows of `variants`.

    Raises:
        ModelError: another kind of task, a model that reads no embeddings, a value that changes no token, or two slots
            that share one.
    """

    def __init__(self, task: Task, model: PreTrainedModel, variants: Batch, sizes: Sequence[int]) -> None:
        self._task, self._model = task, model
        self._tagger = isinstance(model, TrothTaggerForTokenClassification)
        if task.kind not in _KINDS or (not self._tagger and "inputs_embeds" not in _inputs_of(model)):
            raise ModelError(
                f"{task.kind} by {type(model).__name__}: mixtures of texts are read by classifiers and taggers with "
                "inputs_embeds alone; enumerate the codes, or search them by beam"
            )
        self.sizes = tuple(sizes)
        self._places = places = _Places(variants, sizes)
        tokens = places.token_of.tolist()
        if len(set(tokens)) != len(tokens) or set(places.slot_of.tolist()) != set(range(len(sizes))):
            raise ModelError("two slots share a token, or the tokenizer does not tell a slot's values apart")
        self._template = {name: values[:1] for name, values in variants.items()}
        with torch.no_grad():
            words = cast("Any", model.get_input_embeddings())
            self._base = words(self._template["input_ids"])
            self._values = words(variants["input_ids"][places.rows, places.token_of[:, None]])
            if self._tagger:
                self._set_characters(variants["characters"])

    def losses(self, shares: Tensor) -> Tensor:
        """Return [batch] losses in nats of `shares` [batch, slots, most values of a slot], with a graph.

        Shares of values that a slot does not have must be 0.
        """
        batch = len(shares)
        shares = shares[:, self._places.slot_of]
        logits = self._logits(self._mixed(self._base, torch.einsum("bqv,qvd->bqd", shares, self._values)), shares)
        rows = {name: values.expand(batch, *values.shape[1:]) for name, values in self._template.items()}
        return self._task.per_example_loss(cast("PreTrainedModel", _Answers(self._model, logits)), rows)

    def _logits(self, words: Tensor, shares: Tensor) -> Tensor:
        if not self._tagger:
            mask = self._template["attention_mask"].expand(len(words), -1)
            return cast("Tensor", self._model(inputs_embeds=words, attention_mask=mask).logits)
        model = cast("TrothTaggerForTokenClassification", self._model)
        encoder = model.encoder
        characters = self._mixed(self._character_base, self._characters(shares))
        hidden = encoder.dropout(encoder.norm(torch.cat([words, characters], 2)))
        states = encoder.lstm(hidden)[0]  # all rows have one length: nothing to pack
        return cast("Tensor", model.classifier(model.dropout(states)))

    def _mixed(self, base: Tensor, entries: Tensor) -> Tensor:
        """Return [batch, time, width]: `base` [1, time, width] with the mixtures [batch, entries, width] put in."""
        return base.expand(len(entries), -1, -1).index_copy(1, self._places.token_of, entries)

    def _set_characters(self, characters: Tensor) -> None:
        """Keep the bytes' embeddings of every value, and the convolutions' answers to the fixed words."""
        reader = self._reader
        chosen = characters[self._places.rows, self._places.token_of[:, None]]
        self._inside = (chosen != 0).to(self._base.dtype)  # [entries, values, bytes]
        self._bytes = reader.bytes(chosen) * self._inside[..., None]
        self._character_base = reader(self._template["characters"])

    def _characters(self, shares: Tensor) -> Tensor:
        """Return [batch, entries, filters], the convolutions' largest answers to the mixtures of bytes."""
        mixed = torch.einsum("bqv,qvlc->bqcl", shares, self._bytes)
        inside = torch.einsum("bqv,qvl->bql", shares, self._inside)[:, :, None]
        answers = torch.relu(self._reader.convolution(mixed.flatten(0, 1)))
        return (answers.view(*mixed.shape[:2], *answers.shape[1:]) * inside).amax(3)

    @property
    def _reader(self) -> CharacterCNN:
        return cast("TrothTaggerForTokenClassification", self._model).encoder.characters


class _Answers:
    """Stands for the model where its logits are known, so that the task's own loss reads them."""

    def __init__(self, model: PreTrainedModel, logits: Tensor) -> None:
        self._model, self._logits = model, logits

    def __call__(self, **inputs: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self._logits)

    def losses(self, logits: Tensor, labels: Tensor, attention_mask: Tensor) -> Tensor:
        """Return what the random field over the tags makes of the logits [batch]."""
        return cast("TrothTaggerForTokenClassification", self._model).losses(logits, labels, attention_mask)


def _inputs_of(model: PreTrainedModel) -> Sequence[str]:
    return tuple(inspect.signature(model.forward).parameters)
