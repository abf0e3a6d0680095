"""Bytes of a file to lines of text, with an error that says what the bytes are when they are no text."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from troth.data.raw import LONGEST_ROW
from troth.errors import DataError

__all__ = ["read_bytes", "read_lines", "read_text", "read_text_bytes", "split_lines"]

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SIGNATURES = (
    (b"\x1f\x8b", "gzip-compressed: decompress it first"),
    (b"PK\x03\x04", "a zip archive (or a spreadsheet): unpack it, or export it as .csv in UTF-8"),
    (b"PAR1", "a Parquet file: name it .parquet"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed: decompress it first"),
    (b"BZh", "bzip2-compressed: decompress it first"),
    (b"\xfd7zXZ", "xz-compressed: decompress it first"),
    (b"\xff\xfe", "UTF-16 text: save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"),
    (b"\xfe\xff", "UTF-16 text: save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"),
)


def read_bytes(path: Path, source: str) -> bytes:
    """Return the bytes of a file.

    Raises:
        DataError: the file cannot be read or has no bytes.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{source}: no such file") from None
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error.strerror}") from None
    if not data:
        raise DataError(f"{source}: empty file (0 bytes); give a file with rows")
    return data


def _line(data: bytes, position: int) -> int:
    return data.count(b"\n", 0, position) + 1


def _check_lines(data: bytes, source: str) -> None:
    """Refuse a line above `LONGEST_ROW` bytes."""
    if len(data) <= LONGEST_ROW:
        return
    ends = np.append(np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == ord("\n")), len(data))
    lengths = np.diff(ends, prepend=-1) - 1
    worst = int(np.argmax(lengths > LONGEST_ROW))
    if lengths[worst] > LONGEST_ROW:
        raise DataError(
            f"{source}: line {worst + 1} has {lengths[worst] / 1e6:.1f} MB; a row may have {LONGEST_ROW / 1e6:g} MB: "
            "split the text into rows, or mend missing line ends"
        )


def read_text_bytes(path: Path, source: str, *, lines: bool = True) -> bytes:
    """Return a file's bytes, known to be UTF-8 text of bearable lines, without a byte order mark.

    Args:
        path: the file.
        source: the file's name in messages.
        lines: whether a row is a line, so that long lines are refused.

    Raises:
        DataError: the bytes are compressed, binary, another encoding, blank, or hold a line above `LONGEST_ROW`.
    """
    data = read_bytes(path, source)
    for signature, what in _SIGNATURES:
        if data.startswith(signature):
            raise DataError(f"{source}: is {what}")
    zero = data.find(b"\0")
    if zero >= 0:
        raise DataError(
            f"{source}: binary, not text: byte 0x00 at offset {zero} (line {_line(data, zero)}); save it as UTF-8 text"
        )
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{source}: not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start} "
            f"(line {_line(data, error.start)}); save it as UTF-8 (if it is Latin-1: iconv -f LATIN1 -t UTF-8)"
        ) from None
    data = data.removeprefix(_BYTE_ORDER_MARK)
    if not data.strip():
        raise DataError(f"{source}: empty file (only blanks); give a file with rows")
    if lines:
        _check_lines(data, source)
    return data


def read_text(path: Path, source: str, *, lines: bool = True) -> str:
    """Return a file's text; see `read_text_bytes`."""
    return read_text_bytes(path, source, lines=lines).decode("utf-8")


def split_lines(data: bytes) -> list[str]:
    """Return the lines of UTF-8 bytes, split at line feeds only (a text may hold U+2028 and the like)."""
    lines = data.decode("utf-8").split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def read_lines(path: Path, source: str) -> list[str]:
    """Return a file's lines without their ends; see `read_text_bytes`."""
    return split_lines(read_text_bytes(path, source))
