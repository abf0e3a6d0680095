"""The names of attacks' measurements: which attack a name belongs to, what it uses, and what is detail or secret."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from troth.report.reading import Run
from troth.results import Json

__all__ = [
    "AUDIT",
    "BLIND",
    "CANARIES",
    "MEMBERSHIP",
    "OF_DEVICES",
    "USES",
    "family",
    "is_detail",
    "is_secret",
    "loss_alone",
    "membership_attacks",
]

MEMBERSHIP, AUDIT, CANARIES = "attack.membership.", "attack.audit.", "attack.canaries."
OF_DEVICES = ("federated.devices.", "federated.unseen_devices.", "federated.personal.")
BLIND = "blind"
USES: Mapping[str, str] = {
    "loss": "the model's loss of the text and its label",
    "modified_entropy": "the model's probabilities of all labels, and which label is right",
    "margin": "the right label's score against the best of the others",
    "quantile": "the score against what a regression expects of a non-member like it",
    "zlib": "the loss against the size of the text when it is compressed",
    "min_k": "the mean log probability of the tokens that the model finds least likely",
    "min_k_plus_plus": "as min_k, each token against the spread over the vocabulary",
    "reference": "the score against that of another model, which did not train on the rows",
    "rmia": "the ratio to shadow models, ranked among rows of the population",
    "lira": "the likelihood of the score under shadow models with and without the row",
    "student_t": "as lira, with the Student t predictive distribution of few shadow models",
    "shokri": "a classifier trained on the outputs of shadow models; the historical baseline",
    "scores": "scores of a file, made elsewhere",
    BLIND: "the words of the text alone; no model",
}
"""What each attack's score is made from, in the order in which attacks are told; the baseline without a model last."""

_MAIN = ("auc", "tpr_at_fpr_0.01")
_LOSS_ALONE = tuple(f"{MEMBERSHIP}loss.{last}" for last in (*_MAIN, "fpr_at_threshold_0.01"))
_LOSS_ROC = f"{MEMBERSHIP}loss.roc"
_SECRET = frozenset(
    {"candidate", "code", "completion", "extracted", "key", "prompt", "secret", "sentence", "text"}
)  # words of a protocol's keys


def family(name: str) -> str:
    """Return the attack that a measurement belongs to.

    >>> family("attack.membership.rmia.tpr_at_fpr_0.01"), family("attack.canaries.decoy.rank")
    ('attack.membership.rmia', 'attack.canaries')
    """
    return ".".join(name.split(".")[: 3 if name.startswith(MEMBERSHIP) else 2])


def is_detail(name: str) -> bool:
    """Return whether a measurement of an attack, or of devices, is told in its section only, not in summaries."""
    if name.startswith(OF_DEVICES):
        return True
    if name in _LOSS_ALONE:
        return False
    if name.startswith(MEMBERSHIP):
        return name.removeprefix(family(name) + ".") not in _MAIN
    return name.startswith(f"{CANARIES}decoy")


def is_secret(name: str, key: str, value: Json) -> bool:
    """Return whether an entry of a canary measurement's protocol may hold a canary's text or code: no page shows it.

    The number of something is no secret: a key in the plural with a whole number.

    >>> is_secret("attack.canaries.rank", "best_code", 4821), is_secret("attack.canaries.rank", "codes", 10000)
    (True, False)
    """
    words = [word.removesuffix("s") for word in key.lower().replace("-", "_").split("_")]
    count = key.endswith("s") and isinstance(value, int)
    return name.startswith((CANARIES, AUDIT)) and not count and not _SECRET.isdisjoint(words)


def membership_attacks(runs: Sequence[Run]) -> list[str]:
    """Return the membership attacks that any run holds, those with a known name first and in their order."""
    found = dict.fromkeys(family(m.name).removeprefix(MEMBERSHIP) for r in runs for m in r.named(MEMBERSHIP))
    others = [a for a in found if a not in USES]
    named = [a for a in USES if a in found]
    return [a for a in named if a != BLIND] + others + [a for a in named if a == BLIND]


def loss_alone(runs: Sequence[Run]) -> bool:
    """Return whether all that is known of membership is the loss attack at one rate, as first versions measured it."""
    names = {m.name for r in runs for m in r.named(MEMBERSHIP)}
    series = {s for r in runs for s in r.series if s.startswith(MEMBERSHIP)}
    return names <= set(_LOSS_ALONE) and series <= {_LOSS_ROC}
