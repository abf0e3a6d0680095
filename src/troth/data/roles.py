"""Which column plays which role: what a task needs, what a user names, what a column's own name says."""

from __future__ import annotations

from collections.abc import Mapping

from troth.data.raw import Raw, near, shown, shown_names
from troth.data.table import ROLES
from troth.errors import DataError

__all__ = ["REQUIRED", "map_roles"]

REQUIRED: Mapping[str, tuple[str, ...]] = {
    "classification": ("text", "label"),
    "tagging": ("tokens", "tags"),
    "question_answering": ("question", "context", "answers"),
    "seq2seq": ("source", "target"),
    "language_modeling": ("text",),
}
"""The roles a task cannot do without."""

_ABOUT_ROWS = ("id", "user", "group", "time", "original")
"""Roles that any task may use: taken where a column has the role's name, without being asked for."""

_USUAL_NAMES: Mapping[str, tuple[str, ...]] = {
    "text": ("sentence", "utterance", "content", "body", "message", "tweet", "document", "review", "comment"),
    "label": ("intent", "class", "category", "labels", "target", "sentiment", "topic"),
    "tokens": ("words", "sentence", "text"),
    "tags": ("ner_tags", "slots", "labels", "pos_tags", "bio"),
    "question": ("query",),
    "context": ("passage", "paragraph", "document"),
    "answers": ("answer",),
    "source": ("input", "text", "article", "document", "src", "mr"),
    "target": ("output", "summary", "reference", "ref", "tgt"),
}


def _nearest(role: str, names: list[str]) -> str | None:
    """Return the column most likely meant for a role."""
    usual = (name for word in _USUAL_NAMES.get(role, ()) for name in names if name.lower() == word)
    return near(role, names) or next(usual, None)


def _missing_column(raw: Raw, role: str, wanted: str, taken: set[str]) -> DataError:
    """Return the error for a column that is not there, naming the nearest that plays no other role."""
    names = list(raw.columns)
    free = [name for name in names if name not in taken]
    nearest = _nearest(role, free) if wanted == role else near(wanted, free)
    hint = f"write {role} = {shown(nearest)}" if nearest else f"name one: {role} = COLUMN"
    if not nearest and names == ["text"] and raw.source.endswith(".txt"):
        hint = "a .txt file has no column but text; write .jsonl or .csv"
    headless = "; if the file has no header, give columns = [...]" if raw.headed and not nearest else ""
    what = f"no column {shown(wanted)} for the role {role}" if wanted != role else f"no column for the role {role}"
    return DataError(f"{raw.source}: {what}; columns: {shown_names(names)}: {hint}{headless}")


def _missing_columns(raw: Raw, missing: list[str], kind: str) -> DataError:
    """Return the error for a table that lacks several columns of the task: it is hardly a table for that task."""
    first, *others = missing
    also = " and ".join([", ".join(others[:-1]), others[-1]] if len(others) > 1 else others)
    named = ", ".join(f"{role} = COLUMN" for role in missing)
    headless = "; if the file has no header, give columns = [...]" if raw.headed else ""
    return DataError(
        f"{raw.source}: no column for the role {first}, nor for {also}, which {kind} needs; columns: "
        f"{shown_names(raw.columns)}: name them ({named}), or set task.kind to what the columns hold{headless}"
    )


def _check_request(roles: Mapping[str, str], kind: str) -> None:
    if kind not in REQUIRED:
        raise DataError(f"task kind {shown(kind)} is not known; kinds: {', '.join(REQUIRED)}")
    for role in roles:
        if role not in ROLES:
            nearest = near(role, ROLES)
            raise DataError(
                f"role {shown(role)} is not known; "
                + (f"nearest: {nearest}" if nearest else f"roles: {', '.join(ROLES)}")
            )


def map_roles(raw: Raw, roles: Mapping[str, str], kind: str) -> dict[str, str]:
    """Return the column of each role that the table fills.

    A role the task needs, and `id`, `user`, `group`, `time` and `original`, default to a column of the role's own name;
    a role that is named must have its column.

    Args:
        raw: the table.
        roles: column names by role, as the user gave them.
        kind: the task's kind.

    Raises:
        DataError: an unknown role or kind, a missing column (the nearest is named), or a column named for two roles of
            the task.
    """
    _check_request(roles, kind)
    found: dict[str, str] = {}
    absent = [r for r in REQUIRED[kind] if r not in roles and r not in raw.columns and r not in raw.aliases]
    free = [name for name in raw.columns if name not in roles.values()]
    if len(absent) > 1 and not all(_nearest(role, free) for role in absent):
        raise _missing_columns(raw, absent, kind)
    for role in ROLES:
        wanted = roles.get(role, role)
        column = wanted if wanted in raw.columns else raw.aliases.get(wanted)
        if column is not None and (role in roles or role in REQUIRED[kind] or role in _ABOUT_ROWS):
            found[role] = column
        elif role in roles or role in REQUIRED[kind]:
            taken = {roles.get(other, other) for other in REQUIRED[kind] if other != role}
            raise _missing_column(raw, role, wanted, taken)
    needed = REQUIRED[kind]
    for i, role in enumerate(needed):
        other = next((o for o in needed[:i] if found[o] == found[role]), None)
        if other is not None:
            raise DataError(f"{raw.source}: {other} and {role} are the same column {shown(found[role])}; name two")
    return found
