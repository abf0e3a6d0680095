"""What stands in a record as a warning because it empties numbers of their meaning: shared rows, constant models."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from troth.data import Splits, Table
    from troth.runs.stages import Prepared, ScoreBook

__all__ = ["constant_predictions", "shared_ids"]

_NEARLY_ALL = 0.95


def shared_ids(splits: Splits) -> tuple[str, ...]:
    """Return one line for each two splits that have ids in common: how many, and how many of them name equal rows.

    A score on rows that were trained on says nothing about new text; ids that merely count the rows of each file are
    no harm, hence a warning and no refusal.
    """
    tables = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    named = {name: table for name, table in tables.items() if table is not None and table.has("id")}
    told = []
    for (one, first), (other, second) in combinations(named.items(), 2):
        ids = first.column("id"), second.column("id")
        both = set(ids[0]) & set(ids[1])
        if both:
            equal = _equal_rows(first, second, both)
            told.append(
                f"data: {len(both)} of {len(ids[1])} ids of the {other} split also stand in the {one} split, {equal} "
                f"of them with equal rows; measured on rows of the {one} split, a number says nothing about new text: "
                "take them out of one of the two, or give rows ids of their own"
            )
    return tuple(told)


def _equal_rows(first: Table, second: Table, ids: set[str]) -> int:
    """Return how many of the ids name rows that are equal in all that both tables have."""
    roles = [role for role in first.roles if second.has(role)]
    rows = []
    for table in (first, second):
        places = {name: row for row, name in enumerate(table.column("id"))}
        chosen = table.take([places[name] for name in sorted(ids)])
        rows.append(list(zip(*(map(repr, chosen.column(role)) for role in roles), strict=True)))
    return sum(a == b for a, b in zip(*rows, strict=True))


def constant_predictions(prepared: Prepared, book: ScoreBook) -> tuple[str, ...]:
    """Return one line for each split on which a classifier gives almost every row the same label.

    Such a model serves each group as well as the group has that label: gaps between groups then speak of the data.
    """
    if prepared.task.kind != "classification":
        return ()
    told = []
    for name, table in (("validation", prepared.splits.validation), ("test", prepared.splits.test)):
        if table is None:
            continue
        codes, counts = np.unique(book.of(name, table).detail["prediction"], return_counts=True)
        share = counts.max() / counts.sum()
        if share > _NEARLY_ALL:
            label = prepared.task.labels[int(codes[counts.argmax()])]
            gold = float(np.mean([value == label for value in table.column("label")]))
            told.append(
                f"{name}: {share:.1%} of the predictions are the label {_shown(label)}, which {gold:.1%} of the rows "
                "have: the model is nearly constant, and gaps between groups then say how the label is spread over "
                "them, not how they are served"
            )
    return tuple(told)


def _shown(label: str) -> str:
    return repr(label if len(label) <= 40 else f"{label[:37]}...")
