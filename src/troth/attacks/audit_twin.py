"""The audit of a whole training run: canaries that join a twin's rows once, each by the toss of a coin.

A canary is a row of random letters with a random answer: nothing else in the data says what it says, so that a model
that answers it was trained on it. The coins come from the operating system, as the bound wants them independent of all
else. The bound then speaks of one row of the training data, whatever the model is.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from troth.accounting import PrivacyPlan
from troth.attacks.audit import Claim, EpsilonBound, audit_one_run
from troth.attacks.epsilon_bounds import Curve, dp_sgd_curve
from troth.attacks.membership import MINIMUM_EXAMPLES
from troth.attacks.roc import auc
from troth.data import Table, concatenated, from_rows
from troth.errors import DataError
from troth.results import Json, Measurement
from troth.seeds import PrivateRandomness

__all__ = ["AuditCanaries", "audit_twin", "canary_scores", "make_audit_canaries"]

_WORDS, _LETTERS = 6, 7  # of a canary: some 200 bits, so that no two are alike
_PLAIN_DELTA = 1e-5  # at which a model without a plan is audited


@dataclass(frozen=True, eq=False)
class AuditCanaries:
    """Rows that no one else has, and which of them join the training rows.

    Attributes:
        table: one row a canary, with the roles of the training rows.
        included: bool [canaries], independent fair coins.
        answers: [canaries] number of the answer that each was given; canaries of one answer are compared.
    """

    table: Table
    included: np.ndarray
    answers: np.ndarray

    def training_rows(self, train: Table) -> Table:
        """Return the training rows and the canaries whose coin fell so."""
        return concatenated([train, self.table.take(np.flatnonzero(self.included))], train.source)


def make_audit_canaries(
    train: Table, kind: str, labels: tuple[str, ...], count: int, randomness: PrivateRandomness
) -> AuditCanaries:
    """Return `count` canaries for a table.

    Each has an id and, where the table has users, a user of its own; roles that training does not look at are filled
    with what the first row has.

    Args:
        train: the training rows.
        kind: of the task.
        labels: of the task, in its order; a random one is each canary's (each word's, for a tagger).
        count: of canaries.
        randomness: where letters, answers and coins come from.

    Raises:
        DataError: the training rows are empty.
    """
    if not len(train):
        raise DataError("data.train: there are no rows to put canaries among")
    generator = randomness.generator("attack", "audit canaries")
    alphabet = np.array(list(string.ascii_lowercase))
    drawn = alphabet[generator.integers(len(alphabet), size=(count, 2 * _WORDS, _LETTERS))]
    words = [["".join(word) for word in row] for row in drawn]
    answers = generator.integers(max(len(labels), 1), size=(count, _WORDS))
    first = {role: train.take([0]).column(role)[0] for role in train.roles}
    rows = [
        first | {"id": f"canary-{i}", "user": f"canary-{i}", "original": None} | _content(kind, words[i], own, labels)
        for i, own in enumerate(answers.tolist())
    ]
    kept = [{role: value for role, value in row.items() if role in train.roles} for row in rows]
    coins = randomness.generator("attack", "audit coins").random(count) < 0.5
    same = answers[:, 0] if kind == "classification" else np.zeros(count, dtype=np.int64)
    return AuditCanaries(from_rows(kept, "audit canaries"), coins, same)


def _content(kind: str, words: list[str], answers: list[int], labels: tuple[str, ...]) -> dict[str, object]:
    """Return what a canary says, in the roles of the task."""
    half = words[:_WORDS]
    if kind == "classification":
        return {"text": " ".join(half), "label": labels[answers[0]]}
    if kind == "tagging":
        return {"tokens": half, "tags": [labels[a] for a in answers]}
    if kind == "question_answering":
        answer = {"text": [half[-1]], "answer_start": [len(" ".join(half[:-1])) + 1]}
        return {"question": " ".join(words[_WORDS:]), "context": " ".join(half), "answers": answer}
    if kind == "seq2seq":
        return {"source": " ".join(half), "target": " ".join(words[_WORDS:])}
    return {"text": " ".join(half)}


def canary_scores(losses: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Return minus each canary's loss, above the mean of the canaries with the same answer [canaries].

    What answer a model likes best for senseless text is no sign of memory. The coins play no part in it, hence the
    audit's bound holds for these scores.

    Args:
        losses: of the twin on the canaries [canaries], nats.
        answers: [canaries].

    Raises:
        DataError: a loss that is not finite.
    """
    if not np.isfinite(losses).all():
        row = int(np.flatnonzero(~np.isfinite(losses))[0])
        raise DataError(f"audit: canary {row} has no finite loss under the twin; lower train.learning_rate")
    _, place = np.unique(answers, return_inverse=True)
    means = np.bincount(place, losses) / np.bincount(place)
    return np.asarray(means[place] - losses)


def audit_twin(
    canaries: AuditCanaries, losses: np.ndarray, plan: PrivacyPlan | None, *, training_rows: int, confidence: float
) -> tuple[EpsilonBound, tuple[Measurement, ...]]:
    """Return the bound that a twin's losses prove, and its measurements.

    Args:
        canaries: that the twin was trained with.
        losses: of the twin on all canaries [canaries], nats.
        plan: that the twin was trained under; None without privacy, where there is no claim to test.
        training_rows: of the twin, canaries included.
        confidence: of the bound.

    Raises:
        DataError: a loss that is not finite, or too few canaries.
    """
    scores = canary_scores(losses, canaries.answers)
    delta, epsilon = (_PLAIN_DELTA, None) if plan is None else (plan.delta, plan.epsilon())
    claim = Claim(delta, None if epsilon is None or not np.isfinite(epsilon) else epsilon, confidence)
    bound = audit_one_run(scores, canaries.included, claim, family=_family(plan))
    area = auc(scores[canaries.included], scores[~canaries.included])
    made = bound.measurement()
    facts: dict[str, Json] = {
        "canaries": len(scores),
        "canaries_included": int(canaries.included.sum()),
        "canary_share": float(canaries.included.sum() / training_rows),
        "canary": f"{_WORDS} words of {_LETTERS} random letters with a random answer, inserted once",
        "model": "a twin; the shipped model saw no canary",
        "score": "-loss above the mean of the canaries with the same answer",
        "unit": "example" if plan is None else plan.unit,
    }
    least = min(int(canaries.included.sum()), int((~canaries.included).sum()))
    return bound, (
        replace(made, protocol={**made.protocol, **facts}),
        Measurement(
            "attack.audit.canary_auc",
            area.value,
            area.interval.low,
            area.interval.high,
            area.interval.confidence,
            area.interval.method,
            len(scores),
            "fraction",
            direction="lower",
            neutral=0.5,
            supported=least >= MINIMUM_EXAMPLES,
            outside_guarantee=True,
            protocol=facts,
        ),
    )


def _family(plan: PrivacyPlan | None) -> Callable[[float], Curve] | None:
    """Return the curves of plain DP-SGD; None for other mechanisms, for which the rule that holds for all is used."""
    if plan is None or plan.noise_multiplier == 0:
        return None
    plain = plan.sampler == "poisson" and plan.clip_unit == "example" and plan.clipping != "adaptive"
    return dp_sgd_curve(plan.sampling_rate, plan.steps) if plain else None
