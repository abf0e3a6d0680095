"""Fingerprints of content: one for a whole table, and a keyed one for each row."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from troth.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from troth.data.table import Table

__all__ = ["content_fingerprint", "row_hashes"]

_ROW_TEXTS = (("text",), ("tokens",), ("question", "context"), ("source", "target"))
_LONGEST_KEY = 64  # bytes, BLAKE2b's limit


def _leaves(name: str, array: pa.Array) -> Iterator[tuple[str, pa.Array]]:
    """Yield the flat arrays that hold a column's values: validity, lengths of lists, and the leaves below them."""
    yield f"{name}/valid", array.is_valid().cast(pa.uint8())
    if pa.types.is_struct(array.type):
        for index, member in enumerate(array.type):
            yield from _leaves(f"{name}.{member.name}", pc.struct_field(array, [index]))
    elif pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        yield f"{name}/lengths", pc.fill_null(pc.list_value_length(array), 0).cast(pa.int64())
        yield from _leaves(f"{name}[]", array.flatten())
    elif pa.types.is_integer(array.type) or pa.types.is_floating(array.type):
        yield name, pc.fill_null(array, 0)
    elif not pa.types.is_null(array.type):
        text = pc.fill_null(array.cast(pa.large_string()), "")
        yield f"{name}/lengths", pc.binary_length(text)
        yield name, text


def _bytes(leaf: pa.Array) -> bytes | memoryview:
    """Return the bytes of a flat array without missing values, its slice honoured."""
    if not pa.types.is_large_string(leaf.type):
        numbers: NDArray[np.generic] = leaf.to_numpy(zero_copy_only=False)
        return numbers.tobytes()
    _, offsets, data = leaf.buffers()
    if data is None or len(leaf) == 0:
        return memoryview(b"")
    bounds = np.frombuffer(offsets, dtype=np.int64)[leaf.offset : leaf.offset + len(leaf) + 1]
    return memoryview(data)[bounds[0] : bounds[-1]]


def content_fingerprint(columns: pa.Table) -> str:
    """Return SHA-256 in hex over column names, types, values and the order of rows.

    Two tables have the same fingerprint when they hold the same values, however Arrow chunks or slices them and
    whichever file they came from; the order of columns does not matter.
    """
    total = hashlib.sha256(b"troth table 1\n")
    for name in sorted(columns.column_names):
        column = columns.column(name)
        hashes: dict[str, hashlib._Hash] = {}
        for chunk in column.chunks or [
            pa.array([], column.type)
        ]:  # running hashes, so that the bounds between chunks leave no trace
            for leaf_name, leaf in _leaves("", chunk):
                hashes.setdefault(leaf_name, hashlib.sha256()).update(_bytes(leaf))
        total.update(f"{len(name.encode())} {name} {column.type} {len(column)}\n".encode())
        for leaf_name in sorted(hashes):
            total.update(f"{len(leaf_name)} {leaf_name} ".encode() + hashes[leaf_name].digest())
    return total.hexdigest()


def _texts(table: Table) -> Iterator[tuple[str, ...]]:
    """Return each row's text of its own: what identifies the row whatever its labels are."""
    for roles in _ROW_TEXTS:
        if all(table.has(role) for role in roles):
            columns = [table.column(role) for role in roles]
            if roles == ("tokens",):
                columns = [[" ".join(tokens) for tokens in columns[0]]]
            return zip(*columns, strict=True)
    raise DataError(f"{table.source}: rows without text, tokens, question and context, or source and target")


def row_hashes(table: Table, key: bytes) -> NDArray[np.uint64]:
    """Return keyed 64-bit digests of the rows (BLAKE2b, RFC 7693) for finding the same rows in two data sets.

    A row is its text: `text`, else `tokens` joined by blanks, else `question` and `context`, else `source` and
    `target`. Labels, tags, answers, ids and users are left out, so that giving a text another label or reading it for
    another task does not hide that it is the same; neither does white space, of which any amount counts as one blank.
    Without the key, digests tell nothing about the rows.

    Args:
        table: the rows.
        key: 1 to 64 secret bytes.

    Returns:
        [rows] uint64. Two different rows share a digest with chance 2^-64.

    Raises:
        DataError: the key has a wrong length, or the table has no column of text.
    """
    if not 1 <= len(key) <= _LONGEST_KEY:
        raise DataError(f"row_hashes: key has {len(key)} bytes; give 1 to {_LONGEST_KEY}")
    keyed = hashlib.blake2b(digest_size=8, key=key)
    digests = []
    for parts in _texts(table):
        row = keyed.copy()
        for part in parts:
            encoded = " ".join(part.split()).encode()
            row.update(len(encoded).to_bytes(8, "little") + encoded)
        digests.append(row.digest())
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)
