"""Reads a user's text files, plain or gzip. Whatever is wrong with one is a UserError of one line that names the file and the line."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from ziya.errors import UserError

BOM = b"\xef\xbb\xbf"
DAMAGED = (OSError, EOFError, zlib.error)  # what an unreadable file or a broken gzip stream raises
SHOWN = 200  # characters of somebody else's text that a message repeats


def brief(value: object) -> str:
    """Text from a file as a message may hold it: one line, not long."""
    text = " ".join(str(value).split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def content(path: Path) -> bytes:
    """The whole file, unpacked, without a byte-order mark."""
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).removeprefix(BOM)
    except DAMAGED as error:
        raise _damaged(path, None, error) from error


def text(path: Path) -> str:
    """The whole file as UTF-8."""
    data = content(path)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        row = data[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {row}: not UTF-8 (byte {error.start}): restore the file") from error


def json_value(line: str | bytes, where: str) -> Any:
    """One JSON value; `where` names its place."""
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise UserError(f"{where}: not valid JSON ({brief(error)}): restore the file") from error


def json_lines(path: Path) -> Iterator[tuple[int, Any, int]]:
    """(number, value, bytes) of every line of a JSONL file that is not empty."""
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                found = line.removeprefix(BOM) if number == 1 else line
                if found.strip():
                    yield number, json_value(found, f"{path}, line {number}"), len(found)
    except DAMAGED as error:
        raise _damaged(path, number, error) from error


def _damaged(path: Path, read: int | None, error: Exception) -> UserError:
    unpacking = path.suffix == ".gz" and not (isinstance(error, OSError) and error.errno)  # the system's errors have a number
    kind = "is not a whole gzip file" if unpacking else "cannot be read"
    after = "" if read is None else f" after line {read}"
    return UserError(f"{path} {kind}{after} ({brief(error)}): restore it or leave it out")


__all__ = ["brief", "content", "json_lines", "json_value", "text"]
