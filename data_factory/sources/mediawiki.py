"""MediaWiki XML dumps, plain or bzip2 multistream, by byte ranges: a unit reads the pages that begin in its range.

Pages are found in the bytes by their tags (a dump escapes every < of its texts) and parsed one by one by a parser
that refuses document types, entity definitions and external references, so no dump can make a small input grow.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote
from xml.etree.ElementTree import ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from data_factory.config import Read, Source
from data_factory.encodings import sanitise
from data_factory.sources.fields import epoch
from data_factory.sources.record import Broken, Damage, Record, Unit
from data_factory.sources.streams import Compressed, Window
from data_factory.sources.wikitext import plain_text

_OPEN, _CLOSE = b"<page>", b"</page>"
_HEAD_BYTES = 1 << 16  # the head of a dump names the wiki
_STEP = 1 << 18


class _Text:
    """One piece of decompressed text and the stream that it comes from; for plain dumps every piece is its own
    stream.
    """

    def __init__(self, offset: int, data: bytes) -> None:
        self.offset, self.data = offset, data


class _Torn:
    """Damaged input in [offset, end). `begun`: a valid stream starts there, so the damage is its owner's to tell."""

    def __init__(self, offset: int, end: int, error: str, begun: bool) -> None:
        self.offset, self.end, self.error, self.begun = offset, end, error, begun


def _pieces(window: Window, compression: str, start: int) -> Iterator[_Text | _Torn]:
    """Text from the first stream at or after `start` to the end of the input."""
    if not compression:
        while data := window.piece(start, _STEP):
            yield _Text(start, data)
            start += len(data)
        return
    members = Compressed(window, compression)
    assert members.pattern is not None

    def next_stream(position: int) -> int:
        found = window.find(members.pattern, position) if members.pattern else iter(())
        return next((at for at in found if members.begins(at) is not None), window.size)

    position = next_stream(start) if start else 0
    while position < window.size:
        member = members.open(position)
        try:
            while data := member.read(_STEP):
                yield _Text(position, data)
            position = member.end
        except Broken as error:
            after = next_stream(position + 1)
            yield _Torn(position, after, str(error), members.begins(position) is not None)
            position = after


class _Scanner:
    """Finds the pages of a range in pieces of text."""

    def __init__(self, end: int, exact: bool, limit: int) -> None:
        self._end, self._exact, self._limit = end, exact, limit
        self._buffer = bytearray()
        self._origins: list[tuple[int, int]] = []  # (position in the buffer, offset of the stream that begins there)
        self._searched = 0

    def _origin(self, at: int) -> int:
        position, offset = next(item for item in reversed(self._origins) if item[0] <= at)
        return offset + at - position if self._exact else offset

    def _drop(self, size: int) -> None:
        """Forget the first `size` bytes."""
        origins = [(position - size, offset) for position, offset in self._origins if position > size]
        if size < len(self._buffer) and (not origins or origins[0][0] > 0):
            origins.insert(0, (0, self._origin(size)))
        elif self._origins and not origins:
            origins = [(0, self._origin(size))]
        del self._buffer[:size]
        self._origins, self._searched = origins, 0

    def wants(self, offset: int) -> bool:
        """Whether text of the stream at `offset` is needed: it is in the range, or a page of the range is still open."""
        return offset < self._end or (bool(self._buffer) and self._origin(0) < self._end)

    def feed(self, piece: _Text) -> Iterator[tuple[int, int, bytes] | Damage]:
        """Take text; yield the pages that it completes."""
        if not self._origins or self._exact or self._origins[-1][1] != piece.offset:
            self._origins.append((len(self._buffer), piece.offset))
        self._buffer += piece.data
        at = 0
        while True:
            begin = self._buffer.find(_OPEN, at)
            if begin < 0:
                at = max(at, len(self._buffer) - len(_OPEN) + 1)
                while at < len(self._buffer) and not _OPEN.startswith(self._buffer[at:]):
                    at += 1
                break
            if self._origin(begin) >= self._end:
                at = len(self._buffer)
                break
            finish = self._buffer.find(_CLOSE, max(begin, self._searched))
            other = self._buffer.find(_OPEN, begin + 1, finish if finish >= 0 else len(self._buffer))
            if other >= 0:
                yield Damage(
                    self._origin(begin), other - begin if self._exact else 0, "a page has no end before the next begins"
                )
                at, self._searched = other, 0
                continue
            if finish < 0:
                at, searched = begin, len(self._buffer) - len(_CLOSE)
                if len(self._buffer) - begin > self._limit:
                    yield Damage(
                        self._origin(begin),
                        len(self._buffer) - begin if self._exact else 0,
                        f"a page is larger than read.record_limit_bytes ({self._limit})",
                    )
                    at = searched = len(self._buffer)
                self._drop(at)
                self._searched = max(searched - at, 0)
                return
            stop = finish + len(_CLOSE)
            yield self._origin(begin), stop - begin, bytes(self._buffer[begin:stop])
            at, self._searched = stop, 0
        self._drop(at)

    def torn(self) -> Damage | None:
        """Forget an open page, whose end is lost; returns what was lost when a page of the range was open."""
        lost = None
        if self._buffer.startswith(_OPEN):
            lost = Damage(self._origin(0), len(self._buffer) if self._exact else 0, "the text ends inside a page")
        self._buffer.clear()
        self._origins = []
        self._searched = 0
        return lost


def pages(
    window: Window, compression: str, start: int, end: int, limit: int
) -> Iterator[tuple[int, int, bytes] | Damage]:
    """Yield (offset, length, XML) of every page that begins in [start, end), and damage. In bzip2 dumps the offset is
    that of the stream in which the page begins and the length is that of its text.
    """
    scanner = _Scanner(end, not compression, limit)
    passed = False  # whether a stream of the next unit was seen, which tells the damage behind it
    for piece in _pieces(window, compression, start):
        if isinstance(piece, _Torn):
            lost = scanner.torn()
            if piece.offset < end or not (piece.begun or passed):
                yield Damage(piece.offset, piece.end - piece.offset, piece.error)
            elif lost is not None:
                yield lost
            continue
        if not scanner.wants(piece.offset):
            return
        passed = passed or piece.offset >= end
        yield from scanner.feed(piece)
    lost = scanner.torn()
    if lost is not None:
        yield lost


def _wiki(window: Window, compression: str) -> tuple[str, str]:
    """(name of the wiki's database, prefix of its pages' URLs) from the head of the dump; "" where it does not say."""
    head = b""
    try:
        member = Compressed(window, compression).open(0)
        while len(head) < _HEAD_BYTES and (more := member.read(_HEAD_BYTES - len(head))):
            head += more
    except Broken:
        pass
    found = {
        name: re.search(rf"<{name}>([^<]*)</{name}>", head.decode("utf-8", "replace")) for name in ("dbname", "base")
    }
    name = found["dbname"][1] if found["dbname"] else ""
    base = found["base"][1].rpartition("/")[0] + "/" if found["base"] and "/" in found["base"][1] else ""
    return name, base


def read_mediawiki(unit: Unit, source: Source, read: Read) -> Iterator[Record | Damage]:
    """Pages of a MediaWiki unit as plain text with marks around code and formulas. See `read_unit`."""
    with Window(unit.path) as window:
        name, base = _wiki(window, unit.compression)
        for item in pages(window, unit.compression, unit.start, unit.end, read.record_limit_bytes):
            if isinstance(item, Damage):
                yield item
                continue
            offset, length, data = item
            try:
                yield _record(offset, length, fromstring(data, forbid_dtd=True), name, base, source)
            except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
                yield Damage(offset, length, f"a page is not valid XML: {' '.join(str(error).split())[:200]}")


def _record(offset: int, length: int, page: Any, name: str, base: str, source: Source) -> Record:
    title = sanitise((page.findtext("title") or "").strip())
    number = (page.findtext("id") or "").strip()
    url = base + quote(title.replace(" ", "_"), safe="/:(),!*'~@$;") if base else ""
    date = max((epoch(text) for item in page.iter("timestamp") if (text := item.text or "")), default=0)
    record = Record(
        offset, length, f"wiki:{name}:{number}" if number else "", url, date, "", False, "", "", 0.0, "", ""
    )
    namespace = int(page.findtext("ns") or 0)
    revisions = page.findall("revision")
    revision = revisions[-1] if revisions else None
    if namespace not in source.namespaces:
        record.drop, record.drop_value = "read.namespace", float(namespace)
    elif page.find("redirect") is not None:
        record.drop = "read.redirect"
    elif revision is not None and (revision.findtext("model") or "wikitext") != "wikitext":
        record.drop = "read.not_html"
    else:
        text = plain_text(sanitise(revision.findtext("text") or "")) if revision is not None else ""
        if text:
            record.content = f"{title}\n\n{text}" if title else text
        else:
            record.drop = "read.empty"
    return record
