"""What must hold between the columns of a table and between the splits of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from troth.data.columns import rows_of_words
from troth.data.raw import Origin, shown
from troth.data.table import Table
from troth.errors import DataError

__all__ = ["check_classes", "check_rows", "check_same_rows", "check_unseen"]

_LABEL_ROLES = {"classification": "label", "tagging": "tags"}


def _check_ids(table: Table, origin: Origin) -> None:
    seen: dict[str, int] = {}
    for row, value in enumerate(table.column("id")):
        first = seen.setdefault(value, row)
        if first != row:
            raise DataError(
                f"{origin.where(row)}: the id {shown(value)} was used before ({origin.where(first)}); make ids unique, "
                "or name another column: id = COLUMN"
            )


def _check_tags(table: Table, origin: Origin) -> None:
    tokens, tags = (pc.list_value_length(table.arrow.column(role)) for role in ("tokens", "tags"))
    row = pc.index(pc.not_equal(tokens, tags), True).as_py()
    if row >= 0:
        raise DataError(f"{origin.where(row)}: {tokens[row]} tokens and {tags[row]} tags; give each token one tag")


def _misplaced(context: str, text: str, start: int) -> str:
    """Return where an answer stands in fact, without a word of it."""
    places = [i for i in range(len(context)) if context.startswith(text, i)]
    if not places:
        return "it does not occur in the context"
    nearest = min(places, key=lambda place: abs(place - start))
    if len(context[:nearest].encode()) == start:
        return f"it stands at {nearest}: answer_start counts characters, not bytes"
    return f"it stands at {nearest}"


def _check_answers(table: Table, origin: Origin) -> None:
    for row, (context, answers) in enumerate(zip(table.column("context"), table.column("answers"), strict=True)):
        if not answers["text"]:
            raise DataError(
                f"{origin.where(row)}: no answer; questions without one (SQuAD 2 impossible ones) are not supported: "
                "drop the row"
            )
        for number, (text, start) in enumerate(zip(answers["text"], answers["answer_start"], strict=True), 1):
            if not text.strip():
                raise DataError(f"{origin.where(row)}: answer {number} is empty; give its text or drop it")
            if start < 0 or not context.startswith(text, start):
                raise DataError(
                    f"{origin.where(row)}: answer {number} is not in the context at answer_start = {start}: "
                    f"{_misplaced(context, text, start)}"
                )


def check_rows(table: Table, origin: Origin) -> None:
    """Check what must hold within each row, and that ids are unique.

    Raises:
        DataError: tokens and tags differ in number, an answer is not where it is said to be, or an id occurs twice.
    """
    if table.has("tokens") and table.has("tags"):
        _check_tags(table, origin)
    if table.has("answers") and table.has("context"):
        _check_answers(table, origin)
    if table.has("id"):
        _check_ids(table, origin)


def _labels(table: Table, role: str) -> pa.ChunkedArray:
    """Return the labels one after the other, or the tags of all tokens."""
    column = table.arrow.column(role)
    return pc.list_flatten(column) if role == "tags" else column


def check_classes(table: Table, kind: str) -> None:
    """Check that a training table has at least two classes (or tags).

    Raises:
        DataError: it has one.
    """
    role = _LABEL_ROLES.get(kind)
    if role is None:
        return
    known = pc.unique(_labels(table, role))
    if len(known) == 1:
        what = "label" if role == "label" else "tag"
        raise DataError(
            f"{table.source}: all {len(table)} rows have the one {what} {shown(known[0])}; there is nothing to "
            f"learn: give rows of two {what}s, or name another column: {role} = COLUMN"
        )


def check_unseen(
    train: Table, other: Table, origin: Origin, *, kind: str, unseen: Literal["refuse", "count_as_error"]
) -> None:
    """Check that every label of a table occurs in training; let it stand where that is to be counted as an error.

    Raises:
        DataError: a label does not occur in training, and `unseen` is "refuse".
    """
    role = _LABEL_ROLES.get(kind)
    if role is None or unseen == "count_as_error":
        return
    labels = _labels(other, role)
    strange = pc.invert(pc.is_in(labels, pc.unique(_labels(train, role))))
    places = pc.indices_nonzero(strange).to_numpy()
    if not places.size:
        return
    rows = np.unique(rows_of_words(other.arrow.column(role))[places]) if role == "tags" else places
    names = pc.unique(pc.filter(labels, strange)).to_pylist()
    what = "label" if role == "label" else "tag"
    raise DataError(
        f"{origin.where(int(rows[0]))}: the {what} {shown(names[0])} does not occur in {train.source} "
        f"({len(names)} unseen in all, in {len(rows)} of {len(other)} rows): drop the rows, or count them as wrong: "
        'data.unseen_labels = "count_as_error"'
    )


def check_same_rows(tables: Mapping[str, Table]) -> None:
    """Check that no two splits hold the same rows in the same order.

    Raises:
        DataError: two splits are copies of one another.
    """
    seen: dict[str, str] = {}
    for split, table in tables.items():
        other = seen.setdefault(table.fingerprint, split)
        if other != split:
            raise DataError(
                f"data.{split} ({table.source}) holds the same rows as data.{other} ({tables[other].source}); a "
                "score on rows trained on says nothing: give other rows, or leave the split out"
            )
