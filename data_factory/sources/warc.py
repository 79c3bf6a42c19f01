"""WARC and WET files (ISO 28500), plain or one record per gzip member or zstd frame, by byte ranges.

Whose bytes are whose: a unit reads the records that start in [start, end); it begins at the first valid start at or
after `start`, found by the same function that resynchronises after damage. Damaged bytes belong to the unit that
meets them when reading on from a valid record (or from the head of the file), also where they reach past its end; the
next unit passes over them. So every record is read once and every damaged range is told once, wherever the cuts fall.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from data_factory.config import Read
from data_factory.sources import http
from data_factory.sources.fields import epoch
from data_factory.sources.record import Broken, Damage, Record, Unit
from data_factory.sources.streams import Compressed, Stream, Window

DOCUMENT_TYPES = frozenset({"response", "resource", "conversion"})
HEADER_LIMIT = 1 << 16
_RECORD_LINE = re.compile(rb"^WARC/\d", re.MULTILINE)


def next_record(stream: Stream, limit: int) -> tuple[dict[str, str], bytes] | None:
    """Take one record: (headers, block), the block empty for types that hold no document; None at the member's end.
    Raises `Broken`.
    """
    if not stream.fill(5):
        return None
    end, body = -1, -1
    while True:
        end, body = http.header_end(stream.buffer, stream.at)
        ahead = len(stream.buffer) - stream.at
        if end >= 0 or ahead > HEADER_LIMIT or stream.fill(ahead + 1) == ahead:
            break
    if not stream.buffer.startswith(b"WARC/", stream.at):
        raise Broken("a record does not begin with WARC/")
    if end < 0:
        raise Broken("a record's header has no end")
    _, headers = http.split_headers(stream.buffer[stream.at : end])
    length_text = headers.get("content-length", "")
    if not (length_text.isascii() and length_text.isdigit()):
        raise Broken(f"a record's Content-Length is missing or no number: {length_text[:40]!r}")
    if "warc-type" not in headers:
        raise Broken("a record has no WARC-Type")
    length = int(length_text)
    if length > limit:
        raise Broken(f"a record of {length} bytes is larger than read.record_limit_bytes ({limit})")
    stream.take(body - stream.at)
    if stream.fill(length) < length:
        raise Broken(f"a record of {length} bytes is truncated: {len(stream.buffer) - stream.at} are there")
    block = stream.take(length)
    _pass_separator(stream)
    return headers, block if headers["warc-type"].lower() in DOCUMENT_TYPES else b""


def _pass_separator(stream: Stream) -> None:
    """Pass the blank lines behind a record (two by the standard, some writers differ); raises `Broken` unless a
    record or the end follows.
    """
    for _ in range(8):
        if not stream.fill(1):
            return
        if stream.buffer[stream.at] not in b"\r\n":
            break
        stream.take(1)
    stream.fill(5)
    if not stream.buffer.startswith(b"WARC/", stream.at):
        raise Broken("a record's Content-Length does not match its bytes: no record follows it")


class WarcFile:
    """One WARC file under range reading."""

    def __init__(self, window: Window, compression: str, limit: int) -> None:
        self._window, self._limit = window, limit
        self._members = Compressed(window, compression)
        self._plain = not compression

    def valid(self, position: int) -> bool:
        """Whether a record starts at `position`: the inflated bytes begin with WARC/; in a plain file, where a page
        may quote such a line, the record must also be whole and followed by another or by the end.
        """
        if not self._plain:
            return (self._members.begins(position, 5) or b"") == b"WARC/"
        if self._window.exact(position, 5) != b"WARC/":
            return False
        try:
            return next_record(Stream(self._members.open(position)), self._limit) is not None
        except Broken:
            return False

    def next_start(self, position: int) -> int:
        """The first valid start at or after `position`, or the size of the file."""
        if self._plain and position:  # the match must see the end of the line before it
            found: Iterator[int] = (
                p
                for p in self._window.find(_RECORD_LINE, position - 1)
                if p >= position and self._window.exact(p - 1, 1) == b"\n"
            )
        else:
            found = self._window.find(self._members.pattern or _RECORD_LINE, position)
        return next((p for p in found if self.valid(p)), self._window.size)

    def read(self, start: int, end: int) -> Iterator[tuple[int, int, dict[str, str], bytes] | Damage]:
        """Yield (offset, length, headers, block) of every record that starts in [start, end), and the damage between
        them.
        """
        position = self._members.skip_filler(0) if start == 0 else self.next_start(start)
        while position < self._window.size:
            if position >= end and self.valid(position):
                return  # the next unit's
            error = "no record starts here"
            if position < end:
                if self._plain:
                    try:
                        stream = Stream(self._members.open(position))
                        record = next_record(stream, self._limit)
                        if record is None:
                            return
                        yield position, stream.consumed, *record
                        position += stream.consumed
                        continue
                    except Broken as broken:
                        error = str(broken)
                else:
                    try:
                        member = self._members.open(position)
                        stream = Stream(member)
                        while (record := next_record(stream, self._limit)) is not None:
                            yield position, member.end - position if member.done else 0, *record
                        position = self._members.skip_filler(member.end)
                        continue
                    except Broken as broken:
                        error = str(broken)
            after = self.next_start(position + 1)
            yield Damage(position, after - position, error)
            position = after


def holds_many(window: Window, compression: str, limit: int) -> bool:
    """Whether the first member of a compressed WARC holds more than one record, so that its members are no ranges of
    records.
    """
    members = Compressed(window, compression)
    try:
        stream = Stream(members.open(members.skip_filler(0)))
        return next_record(stream, limit) is not None and stream.fill(1) > 0
    except Broken:
        return False


def read_warc(unit: Unit, read: Read, counts: Counter[str]) -> Iterator[Record | Damage]:
    """Records of a WARC unit; types that hold no document are counted in `counts`, not yielded. See `read_unit`."""
    with Window(unit.path) as window:
        try:
            file = WarcFile(window, unit.compression, read.record_limit_bytes)
        except Broken as error:
            if unit.start == 0:
                yield Damage(0, window.size, str(error))
            return
        for item in file.read(unit.start, unit.end):
            if isinstance(item, Damage):
                yield item
                continue
            offset, length, headers, block = item
            kind = headers["warc-type"].lower()
            if kind not in DOCUMENT_TYPES:
                counts["other_records"] += 1
                counts[f"other_records.{kind}"] += 1
                continue
            try:
                yield _document(offset, length, kind, headers, block, read)
            except Broken as error:
                yield Damage(offset, length, str(error))


def _document(offset: int, length: int, kind: str, headers: dict[str, str], block: bytes, read: Read) -> Record:
    """Turn a response, resource or conversion record into a `Record`; raises `Broken` when its HTTP codings are
    damaged.
    """
    url = headers.get("warc-target-uri", "").strip("<>")  # wget writes <http://...>
    key = headers.get("warc-record-id", "").strip("<>")
    record = Record(offset, length, key, url, epoch(headers.get("warc-date", "")), b"", False, "", "", 0.0, "", "")
    content_type = headers.get("content-type", "")
    if content_type.lower().startswith("application/http"):
        status, fields, body = http.parse_response(block)
        if 300 <= status < 400:
            record.drop, record.drop_value = "read.redirect", float(status)
            return record
        if status != 200:
            record.drop, record.drop_value = "read.status", float(status)
            return record
        content_type = fields.get("content-type", "") or headers.get("warc-identified-payload-type", "")
        body = http.decode_body(fields, body, read.record_limit_bytes, "warc-truncated" in headers)
    else:
        body = block
    if not body.strip():
        record.drop = "read.empty"
        return record
    payload = "text" if kind == "conversion" else http.kind_of(content_type, body)
    if not payload:
        record.drop = "read.not_html"
        return record
    record.content, record.is_html, record.charset = body, payload == "html", http.charset_of(content_type)
    return record
