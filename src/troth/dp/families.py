"""Classes of transformers that keep a `forward` of their own, by the rule that is proven for each.

The families below write the same few forms again under names of their own. Each class stands here because its
`forward` was read and is held to the one-example loop by a test; whatever does not stand here has no rule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from troth.dp.embedding import OWN_EMBEDDING, OWN_POSITIONS, RELATIVE_BIAS
from troth.dp.norm import OWN_LAYER_NORM, OWN_RMS_NORM

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from troth.dp.tape import Rule

__all__ = ["FAMILY_PARENT_RULES", "FAMILY_RULES"]

# family (module) -> the prefix of its classes' names
_RMS_NORM = {
    "arcee": "Arcee",
    "cwm": "Cwm",
    "ernie4_5": "Ernie4_5",
    "eurobert": "EuroBert",
    "exaone4": "Exaone4",
    "gemma": "Gemma",  # 1 + weight, as in all that follow Gemma
    "gemma2": "Gemma2",
    "gemma3": "Gemma3",
    "glm": "Glm",
    "glm4": "Glm4",
    "granite": "Granite",
    "helium": "Helium",
    "hunyuan_v1_dense": "HunYuanDenseV1",
    "hyperclovax": "HyperCLOVAX",
    "llama": "Llama",
    "ministral": "Ministral",
    "ministral3": "Ministral3",
    "mistral": "Mistral",
    "olmo2": "Olmo2",
    "olmo3": "Olmo3",
    "phi3": "Phi3",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "seed_oss": "SeedOss",
    "smollm3": "SmolLM3",
    "t5gemma": "T5Gemma",
    "vaultgemma": "VaultGemma",
}
_RMS_NORM_NAMED_LAYER_NORM = {"t5": "T5", "mt5": "MT5", "umt5": "UMT5"}
_LAYER_NORM = {"cohere": "Cohere", "cohere2": "Cohere2"}
_RELATIVE_POSITIONS = {"t5": "T5", "mt5": "MT5", "umt5": "UMT5"}
_SCALED_WORDS = {
    "bart": "Bart",
    "bigbird_pegasus": "BigBirdPegasus",
    "biogpt": "BioGpt",
    "blenderbot": "Blenderbot",
    "m2m_100": "M2M100",
    "mbart": "MBart",
    "plbart": "PLBart",
}
_SCALED_TEXT_WORDS = {"gemma": "Gemma", "gemma2": "Gemma2", "gemma3": "Gemma3", "vaultgemma": "VaultGemma"}
_POSITIONS = {
    "bart": "Bart",
    "bigbird_pegasus": "BigBirdPegasus",
    "biogpt": "BioGpt",
    "blenderbot": "Blenderbot",
    "blenderbot_small": "BlenderbotSmall",
    "mbart": "MBart",
    "mvp": "Mvp",
    "plbart": "PLBart",
}

_FORMS: Sequence[tuple[Mapping[str, str], str, Rule]] = (
    (_RMS_NORM, "RMSNorm", OWN_RMS_NORM),
    (_RMS_NORM_NAMED_LAYER_NORM, "LayerNorm", OWN_RMS_NORM),
    (_LAYER_NORM, "LayerNorm", OWN_LAYER_NORM),
    (_SCALED_WORDS, "ScaledWordEmbedding", OWN_EMBEDDING),
    (_SCALED_TEXT_WORDS, "TextScaledWordEmbedding", OWN_EMBEDDING),
    (_POSITIONS, "LearnedPositionalEmbedding", OWN_POSITIONS),
)


def _named(families: Mapping[str, str], suffix: str, rule: Rule) -> dict[str, Rule]:
    """Return the rule by the dotted name of each family's class."""
    return {f"transformers.models.{f}.modeling_{f}.{prefix}{suffix}": rule for f, prefix in families.items()}


FAMILY_RULES: Mapping[str, Rule] = {name: rule for form in _FORMS for name, rule in _named(*form).items()}
"""Rules by the dotted name of the class that defines `forward`."""

FAMILY_PARENT_RULES: Mapping[str, Rule] = _named(_RELATIVE_POSITIONS, "Attention", RELATIVE_BIAS)
"""Rules for the child of a class, by the dotted name of that class."""
