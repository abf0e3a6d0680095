"""Tables from anything: `read` for one, `load` for the splits of a run file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from troth.data.columns import shape_column
from troth.data.home import home
from troth.data.objects import read_object
from troth.data.raw import Origin, Raw, shown
from troth.data.roles import map_roles
from troth.data.sources import Part, read_part, resolve
from troth.data.table import ROLES, Splits, Table, table_of
from troth.data.validate import check_classes, check_rows, check_same_rows, check_unseen
from troth.errors import DataError

if TYPE_CHECKING:
    import datasets
    import pandas as pd

    from troth.config import DataConfig, TaskConfig

__all__ = ["load", "read"]

_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class _Located:
    """A table, and where its rows stand."""

    table: Table
    origin: Origin


def _shaped(raw: Raw, roles: Mapping[str, str], kind: str) -> pa.Table:
    """Return the columns of a table by role, each in the type of its role."""
    found = map_roles(raw, roles, kind)
    if raw.rows == 0:
        raise DataError(f"{raw.source}: no rows; give a table with rows")
    return pa.table({role: shape_column(raw, role, name) for role, name in found.items()})


def _join(raws: Sequence[Raw], tables: Sequence[pa.Table]) -> pa.Table:
    """Return tables one below the other; all must fill the same roles with the same types."""
    first = tables[0]
    for raw, table in zip(raws[1:], tables[1:], strict=True):
        for role in set(first.column_names) ^ set(table.column_names):
            with_it, without = (raws[0], raw) if role in first.column_names else (raw, raws[0])
            raise DataError(
                f"{without.source}: no column {shown(role)}, which {with_it.source} has; give it in all or in none"
            )
    if len({str(table.schema.field("time").type) for table in tables if "time" in table.column_names}) > 1:
        raise DataError(f"{raws[0].source} and other files: time is of several types; use numbers or strings in all")
    return pa.concat_tables([table.select(first.column_names) for table in tables])


def _assemble(raws: Sequence[Raw], source: str, roles: Mapping[str, str], kind: str, *, training: bool) -> _Located:
    tables = [_shaped(raw, roles, kind) for raw in raws]
    located = _Located(table_of(_join(raws, tables), source), Origin(tuple(raws)))
    check_rows(located.table, located.origin)
    if training:
        check_classes(located.table, kind)
    return located


def _paths(source: object) -> list[str] | None:
    """Return the paths or hub ids that a source is, or None where it is an object."""
    if isinstance(source, (str, Path)):
        return [str(source)]
    if isinstance(source, (list, tuple)) and source and all(isinstance(item, (str, Path)) for item in source):
        return [str(item) for item in source]
    return None


def _source_name(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{texts[0]} and {len(texts) - 1} more"


def _check_distinct(parts: Mapping[str, Sequence[Part]]) -> None:
    """Refuse a file that is read twice, be it in one split or in two."""
    seen: dict[object, tuple[str, Part]] = {}
    for split, members in parts.items():
        for part in members:
            if part.place in seen:
                other, first = seen[part.place]
                both = f"data.{split}" if split == other else f"data.{other} and data.{split}"
                raise DataError(
                    f"{part.source}: read twice, for {both} ({first.source}); a row may be in one split, once: "
                    "give other files or leave the split out"
                )
            seen[part.place] = (split, part)


def read(
    source: str | Path | datasets.Dataset | pd.DataFrame | Sequence[Mapping[str, Any] | str | Path],
    *,
    roles: Mapping[str, str] | None = None,
    kind: str,
    columns: Sequence[str] | None = None,
    folder: Path | None = None,
    split: str = "train",
) -> Table:
    """Return one table from anything, its columns mapped to roles and validated for a task.

    >>> rows = [{"utterance": "play jazz", "intent": "music"}, {"utterance": "lights on", "intent": "light"}]
    >>> table = read(rows, roles={"text": "utterance", "label": "intent"}, kind="classification")
    >>> table.column("text")
    ['play jazz', 'lights on']

    Args:
        source: a file (.jsonl .json .csv .tsv .parquet .conll .txt), a folder of files of one ending or of
            line-aligned ``seq.in``/``seq.out``/``label``, a hub id that lies in the local hub cache (``owner/name``,
            ``owner/name:split``, ``owner/name/config:split``), several of these, a `datasets.Dataset`, a DataFrame or a
            list of dicts.
        roles: names of columns by role; a role left out takes the column of its own name.
        kind: the task's kind, which says which roles are needed.
        columns: names of the columns of a .csv, .tsv or .conll file without a header.
        folder: what relative paths are relative to; the working directory where None.
        split: "train" (two classes are wanted), "validation" or "test"; also the split of a hub id that names none.

    Raises:
        DataError: one line that names file, row, what is wrong and the way out.
    """
    named = dict(roles or {})
    texts = _paths(source)
    if texts is None:
        raw = read_object(source)
        return _assemble([raw], raw.source, named, kind, training=split == "train").table
    base = folder or Path.cwd()
    parts = [part for text in texts for part in resolve(text, folder=base, split=split)]
    _check_distinct({split: parts})
    raws = [read_part(part, columns) for part in parts]
    return _assemble(raws, _source_name(texts), named, kind, training=split == "train").table


def _check_builtin(data: DataConfig, roles: Mapping[str, str]) -> None:
    """Refuse what a run file says of files beside the built-in corpus: it would be passed over."""
    files = {"validation": data.validation, "test": data.test, "columns": data.columns}
    renamed = [role for role, column in roles.items() if column != role]
    for key in (*(key for key, value in files.items() if value is not None), *renamed):
        raise DataError(
            f"data.{key} does not go with data.builtin, which brings its own splits and calls columns by their roles; "
            "drop one of the two"
        )


def load(data: DataConfig, task: TaskConfig, folder: Path) -> Splits:
    """Return the splits that a run file's ``[data]`` names, validated for its task.

    Args:
        data: the section: files, folders or hub ids by split, or the built-in corpus; columns by role.
        task: what is to be learnt; it says which roles are needed.
        folder: the folder of the run file, which paths are relative to.

    Raises:
        DataError: a split cannot be read or is not valid (as `read`); a file or its rows are given for two splits; a
            label of validation or test does not occur in training and ``unseen_labels`` is "refuse".
    """
    roles = data.model_dump(include=set(ROLES), exclude_none=True)
    if data.builtin is not None:
        _check_builtin(data, roles)
        return home(data.builtin, task.kind)
    given = {"train": data.train, "validation": data.validation, "test": data.test}
    texts = {split: _paths(value) or [] for split, value in given.items() if value is not None}
    for split, named in texts.items():
        if not named:
            raise DataError(f"data.{split} = []: no file; give at least one, or leave the key out")
    parts = {
        split: [part for text in named for part in resolve(text, folder=folder, split=split, key=f"data.{split}")]
        for split, named in texts.items()
    }
    _check_distinct(parts)
    located = {}
    for split, members in parts.items():
        raws = [read_part(part, data.columns) for part in members]
        name = _source_name(texts[split])
        located[split] = _assemble(raws, name, roles, task.kind, training=split == "train")
    tables = {split: member.table for split, member in located.items()}
    check_same_rows(tables)
    for member in located.values():
        check_unseen(tables["train"], member.table, member.origin, kind=task.kind, unseen=data.unseen_labels)
    return Splits(tables["train"], tables.get("validation"), tables.get("test"))
