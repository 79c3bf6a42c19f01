"""JSON lines by byte ranges: a unit reads the lines whose first byte it holds. A broken line costs that line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import orjson

from data_factory.config import Read, Source
from data_factory.sources.fields import record_of
from data_factory.sources.record import Broken, Damage, Record, Unit
from data_factory.sources.streams import BLOCK, Window

BOM = b"\xef\xbb\xbf"


def lines(window: Window, start: int, end: int, limit: int) -> Iterator[tuple[int, int, bytes | None]]:
    """Yield (offset, length, line without its newline) of every line that starts in [start, end); None instead of a
    line over `limit` bytes, which is passed over in bounded memory.
    """
    position = start
    if start:  # the line that holds byte start - 1 is the unit's before
        position = _after_newline(window, start - 1)
    while position < end and position < window.size:
        block = window.exact(position, BLOCK)
        stop = block.rfind(b"\n") + 1
        if not stop:
            line, length = _long_line(window, position, limit)
            yield position, length, line
            position += length
            continue
        at = 0
        while at < stop and position + at < end:
            newline = block.index(b"\n", at)
            yield position + at, newline + 1 - at, block[at:newline] if newline - at <= limit else None
            at = newline + 1
        position += at


def _after_newline(window: Window, position: int) -> int:
    while block := window.piece(position, BLOCK):
        found = block.find(b"\n")
        if found >= 0:
            return position + found + 1
        position += len(block)
    return window.size


def _long_line(window: Window, position: int, limit: int) -> tuple[bytes | None, int]:
    parts, length = [], 0
    while block := window.piece(position + length, BLOCK):
        found = block.find(b"\n")
        part = block if found < 0 else block[: found + 1]
        if length + len(part) <= limit + 1:
            parts.append(part)
        length += len(part)
        if found >= 0:
            break
    line = b"".join(parts).removesuffix(b"\n") if length <= limit + 1 else None
    return (line if line is None or len(line) <= limit else None), length


def parse(line: bytes) -> dict[str, Any]:
    """The object of a line; raises `Broken`. What orjson refuses and others write (NaN, lone surrogates) is read by
    the json module.
    """
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        try:
            value = json.loads(line.decode())
        except UnicodeDecodeError as bad:
            raise Broken(f"the line is not valid UTF-8: {bad.reason} at byte {bad.start}") from bad
        except (ValueError, RecursionError):
            raise Broken(f"the line is not valid JSON: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise Broken(f"the line holds no JSON object but {type(value).__name__}")
    return value


def read_jsonl(unit: Unit, source: Source, read: Read) -> Iterator[Record | Damage]:
    """Records of a JSONL unit; blank lines are passed over. See `read_unit`."""
    with Window(unit.path) as window:
        for offset, length, line in lines(window, unit.start, unit.end, read.record_limit_bytes):
            if line is None:
                yield Damage(
                    offset,
                    length,
                    f"a line of {length} bytes is larger than read.record_limit_bytes ({read.record_limit_bytes})",
                )
                continue
            if offset == 0:
                line = line.removeprefix(BOM)  # noqa: PLW2901
            if not line.strip():
                continue
            try:
                yield record_of(parse(line), source, offset, length, read.record_limit_bytes)
            except Broken as error:
                yield Damage(offset, length, str(error))
