"""Canaries planted in the training table of a twin run: one row for each repetition, in the form of the task."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from troth.attacks.canaries import OWN_LABEL, CanaryKey, CanaryPlan, check_key
from troth.data import Table, from_rows
from troth.data.table import table_of
from troth.errors import ConfigError, DataError

__all__ = ["Insertion", "canary_roles", "insert", "refuse_label"]

_QUESTION = "what is the code"
_OUTSIDE = "O"
_LABELLED = ("classification", "tagging")


@dataclass(frozen=True, eq=False)
class Insertion:
    """A table with canaries in it.

    Attributes:
        table: the rows of the given table, then those of the canaries.
        canary_of_row: int64 [rows]: which canary a row repeats, -1 for the given rows.
    """

    table: Table
    canary_of_row: NDArray[np.int64]

    @property
    def share(self) -> float:
        """The canaries' share of the rows, in [0, 1): many canaries change what the model can do."""
        return float((self.canary_of_row >= 0).mean())


def insert(plan: CanaryPlan, key: CanaryKey, table: Table, kind: str) -> Insertion:
    """Return the table with the included canaries planted.

    Where the table has the roles, rows get ids of their own and each canary one new user, whatever its repetitions;
    group and time are those of a row of the table, spread over it.

    Args:
        plan: the public plan.
        key: drawn for it.
        table: training rows of a twin: the shipped model never sees a canary.
        kind: of the task, such as ``tagging``.

    Raises:
        ConfigError: a label that the table has not, or that the task has no place for.
        DataError: the label of the canaries' own is in the table already, or the key does not fit the plan.
    """
    check_key(key, plan)
    known = _known(table, kind)
    refuse_label(plan, kind, known)
    if plan.label == OWN_LABEL and OWN_LABEL in _labels(known, kind):
        raise DataError(f"{table.source}: has the label {OWN_LABEL!r} already; rename it, or name canaries.label")
    chosen = np.flatnonzero(key.included)
    owners = np.repeat(chosen, plan.repeats_of[chosen])
    rows = list(_rows(plan, key, table, kind, known))
    if not rows:
        return Insertion(table, np.full(len(table), -1, dtype=np.int64))
    planted = from_rows(rows, "canaries").arrow
    own = table.arrow
    missing = [name for name in own.column_names if name not in planted.column_names]
    for name in missing:
        planted = planted.append_column(name, pa.nulls(len(planted), own.schema.field(name).type))
    columns = planted.select(own.column_names).cast(own.schema.remove_metadata())
    joined = pa.concat_tables([own.replace_schema_metadata(None), columns])
    owner_of = np.concatenate([np.full(len(table), -1, dtype=np.int64), owners])
    return Insertion(table_of(joined, table.source), owner_of)


def canary_roles(plan: CanaryPlan, digits: NDArray[np.int64], kind: str, known: Collection[str]) -> dict[str, Any]:
    """Return the roles that the task reads of a row with these digits [slots].

    Tagging: each word and each value is a token; values are tagged B- and I- of the label (B- only where the data has
    no I- tag of it). Question answering: the values are the answer. Sequence to sequence: the words before the first
    slot are the source.

    Args:
        plan: the public plan.
        digits: of one code.
        kind: of the task.
        known: labels or tags that there are beside the canaries' own.

    Raises:
        ConfigError: sequence to sequence with a pattern that starts with a slot.
    """
    words = plan.parsed.complete(digits)
    text = " ".join(words)
    if kind == "classification":
        return {"text": text, "label": plan.label}
    if kind == "tagging":
        return {"tokens": words, "tags": _tags(plan, known)}
    if kind == "question_answering":
        places = [place for place, word in enumerate(plan.parsed.words) if word is None]
        start = sum(len(word) + 1 for word in words[: places[0]])
        answer = " ".join(words[places[0] : places[-1] + 1])
        return {
            "question": _QUESTION,
            "context": f"{text} .",
            "answers": {"text": [answer], "answer_start": [start]},
        }
    if kind == "seq2seq":
        prefix = len(plan.parsed.prefix)
        if not prefix:
            raise ConfigError("canaries.pattern: for seq2seq it must start with words: they are the source")
        return {"source": " ".join(words[:prefix]), "target": " ".join(words[prefix:])}
    return {"text": text}


def refuse_label(plan: CanaryPlan, kind: str, known: Collection[str]) -> None:
    """Refuse a label that is neither the canaries' own nor among the known ones (tagging: tags).

    Raises:
        ConfigError: the label is unknown, or the task has none.
    """
    if plan.label == OWN_LABEL:
        return
    if kind not in _LABELLED:
        raise ConfigError(f"canaries.label: a {kind} task has no labels; leave it out")
    if plan.label not in _labels(known, kind):
        raise ConfigError(
            f"canaries.label: the data has no such label; name one of its own, or leave it out for {OWN_LABEL!r}"
        )


def _known(table: Table, kind: str) -> frozenset[str]:
    """Return the table's labels, or tags."""
    if kind == "classification":
        return frozenset(table.column("label"))
    if kind == "tagging":
        return frozenset(tag for tags in table.column("tags") for tag in tags)
    return frozenset()


def _labels(known: Collection[str], kind: str) -> frozenset[str]:
    """Return names of labels: those of classes, or what stands behind B- in tags."""
    if kind == "tagging":
        return frozenset(tag[2:] for tag in known if tag.startswith("B-"))
    return frozenset(known)


def _tags(plan: CanaryPlan, known: Collection[str]) -> list[str]:
    first, further = f"B-{plan.label}", f"I-{plan.label}"
    if plan.label != OWN_LABEL and further not in known:
        further = first
    tags: list[str] = []
    inside = False
    for word in plan.parsed.words:
        tags.append(_OUTSIDE if word is not None else further if inside else first)
        inside = word is None
    return tags


def _rows(
    plan: CanaryPlan, key: CanaryKey, table: Table, kind: str, known: Collection[str]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of the included canaries, repetitions after one another."""
    digits = plan.parsed.digits(key.codes)
    spread = {role: table.column(role) for role in ("group", "time") if table.has(role)}
    names = {role: set(table.column(role)) for role in ("id", "user") if table.has(role)}
    for number in np.flatnonzero(key.included).tolist():
        roles = canary_roles(plan, digits[number], kind, known)
        if spread and len(table):
            place = number * len(table) // plan.count
            roles |= {role: values[place] for role, values in spread.items()}
        if "user" in names:
            roles["user"] = _fresh(f"canary-{number}", names["user"], table, "user")
        for repetition in range(int(plan.repeats_of[number])):
            own = dict(roles)
            if "id" in names:
                own["id"] = _fresh(f"canary-{number}-{repetition}", names["id"], table, "id")
            yield own


def _fresh(name: str, taken: set[Any], table: Table, role: str) -> str:
    if name in taken:
        raise DataError(f"{table.source}: {role} {name!r} is there already: plant canaries in a table without any")
    return name
