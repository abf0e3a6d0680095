"""What a causal language model writes after the words of a pattern: greedily, by beam, or drawn from the top k.

No code is enumerated and the model's vocabulary is not cut down to a slot's values: it is what anyone sees who can ask
the model to go on (Carlini et al., arXiv 2012.07805, for sampling from the top k).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import GenerationConfig

from troth.attacks.canaries import CanaryPlan
from troth.data import from_rows
from troth.errors import ConfigError, ModelError
from troth.seeds import PublicSeeds
from troth.tasks import CausalLanguageModeling
from troth.tasks.task import evaluating
from troth.tasks.tokens import pad_id, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from troth.tasks import Task

__all__ = ["Decoding", "PrefixSettings", "prefix_completions"]

Decoding = Literal["greedy", "beam_search", "top_k"]
_MARGIN = 2  # tokens beyond the longest code: a value may be written with a blank of its own


@dataclass(frozen=True)
class PrefixSettings:
    """How the model writes.

    Attributes:
        beams: width of the beam search; all of its beams are guesses.
        top_k: tokens that are drawn from at each step.
        samples: texts drawn.

    Raises:
        ConfigError: a number below 1.
    """

    beams: int = 16
    top_k: int = 40
    samples: int = 256

    def __post_init__(self) -> None:
        if min(self.beams, self.top_k, self.samples) < 1:
            raise ConfigError("prefix extraction: beams, top_k and samples must be 1 or more")


def prefix_completions(
    task: Task,
    model: PreTrainedModel,
    plan: CanaryPlan,
    decoding: Decoding,
    *,
    seeds: PublicSeeds,
    settings: PrefixSettings | None = None,
) -> NDArray[np.int64]:
    """Return different guesses as digits [guesses, slots], whole codes before others, the likeliest first.

    The likeliest are those that beam search has first, or that the top k give most often. From the
    first word on that is not what the pattern wants, digits are -1; texts without any value are no guess.

    Args:
        task: causal language modeling.
        model: left as it was; torch's global generator too.
        plan: of the canaries; its pattern starts with words.
        decoding: ``greedy`` gives one guess.
        seeds: public seed of the drawing.
        settings: None for the defaults.

    Raises:
        ModelError: another task, or a pattern that is longer than the model reads.
        ConfigError: the pattern starts with a slot.
    """
    if not isinstance(task, CausalLanguageModeling):
        raise ModelError(f"prefix extraction: a {task.kind} model does not write on; take a causal language model")
    prefix = plan.parsed.prefix
    if not prefix:
        raise ConfigError(
            "canaries.pattern: for prefix extraction it must start with words that the model goes on from"
        )
    text = " ".join(prefix)
    ids = _prefix_ids(task, text)
    config = _generation(task, decoding, _longest_code(task, plan, text), settings or PrefixSettings())
    with evaluating(model) as device, torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seeds.integer("prefix extraction", decoding))
        generate: Callable[..., Tensor] = cast("Any", model).generate  # transformers types it on a class of its own
        prompt = torch.tensor([ids], device=device)
        written = generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), generation_config=config)
    texts = task.tokenizer.batch_decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    read = [tuple(plan.parsed.read(found.split()).tolist()) for found in texts]
    return _ordered(read, decoding, len(plan.parsed.slots))


def _ordered(read: list[tuple[int, ...]], decoding: Decoding, slots: int) -> NDArray[np.int64]:
    """Return different guesses, those without any value left out and those with all of them first."""
    counted = Counter(digits for digits in read if digits[0] >= 0)
    ranked = [d for d, _ in counted.most_common()] if decoding == "top_k" else list(counted)
    ranked.sort(key=lambda digits: -1 in digits)  # stable: whole codes keep their order
    return np.array(ranked, dtype=np.int64).reshape(-1, slots)


def _prefix_ids(task: CausalLanguageModeling, text: str) -> list[int]:
    """Return the tokens that stand before the first slot, as in a row of the task."""
    encoded = task.encode(from_rows([{"text": text}], "canaries"))
    if encoded.truncated:
        raise ModelError(f"canaries.pattern: longer than model.max_length = {task.max_length}: raise it")
    begin = encoded.ragged["input_ids"].row(0).tolist()
    own = tokenize(task.tokenizer, [text])[0]
    place = next(i for i in range(len(begin)) if begin[i : i + len(own)] == own)
    return [int(token) for token in begin[: place + len(own)]]


def _longest_code(task: CausalLanguageModeling, plan: CanaryPlan, text: str) -> int:
    """Return how many tokens the rest of the text has at most, going by the longest value of each slot."""
    pattern = plan.parsed
    every = [max(range(len(slot)), key=lambda i, slot=slot: len(slot[i])) for slot in pattern.slots]  # type: ignore[misc]
    rows = [" ".join(pattern.complete(every)), text]
    whole, known = (len(ids) for ids in tokenize(task.tokenizer, rows))
    return whole - known + _MARGIN


def _generation(
    task: CausalLanguageModeling, decoding: Decoding, tokens: int, settings: PrefixSettings
) -> GenerationConfig:
    common = {
        "max_new_tokens": tokens,
        "pad_token_id": pad_id(task.tokenizer),
        "eos_token_id": task.tokenizer.eos_token_id,
        "bos_token_id": task.tokenizer.bos_token_id,
    }
    if decoding == "greedy":
        own = {"do_sample": False, "num_beams": 1}
    elif decoding == "beam_search":
        own = {"do_sample": False, "num_beams": settings.beams, "num_return_sequences": settings.beams}
    else:
        own = {"do_sample": True, "top_k": settings.top_k, "num_return_sequences": settings.samples}
    return GenerationConfig(**common, **own)  # type: ignore[no-untyped-call]
