"""Inputs that cannot be cut (one long gzip, zstd or bzip2 stream) are decompressed once into the spool, where byte
ranges can be read.

A spooled file is named by the digest of its input, is renamed into place when whole, and is therefore reused by a
later run. What could not be decompressed is written beside it: (position in the spooled bytes, message).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import orjson

from data_factory.sources.record import Broken, Damage, Record
from data_factory.sources.streams import Compressed, Window
from ziya.files import atomic_path, write_bytes

STEP = 1 << 20  # decompressed bytes per step

Damages = tuple[tuple[int, str], ...]


def must_spool(window: Window, format: str, compression: str, limit: int) -> bool:
    """Whether ranges of the input's bytes are no ranges of its records."""
    from data_factory.sources.warc import holds_many

    if not compression or format == "parquet":
        return False
    if format == "warc" and compression in ("gz", "zst"):
        return holds_many(window, compression, limit)
    if format == "mediawiki" and compression == "bz2":
        return not _is_multistream(window)
    return True


def _is_multistream(window: Window) -> bool:
    """Whether the first bzip2 stream ends within 16 MiB of text: dumps made for random access begin with one that
    holds their head only.
    """
    member = Compressed(window, "bz2").open(0)
    size = 0
    try:
        while not member.done and size < 1 << 24:
            size += len(member.read(STEP))
    except Broken:
        return True  # damage is told by the reader, and costs it one stream
    return member.done


def spool_input(
    path: str, format: str, compression: str, digest: str, folder: Path, limit: int
) -> tuple[Path, Damages]:
    """Decompress `path` into `folder`, unless an earlier run did. Returns (spooled file, damage).

    Lines of JSONL over `limit` bytes keep `limit` + 1 of them, enough to be told as too long, so that a bomb cannot
    fill the disk.
    """
    target = folder / f"{digest}-{limit}.{format}"
    notes = target.with_suffix(".damage.json")
    if not target.exists():
        with atomic_path(target) as temporary, Window(path) as window, temporary.open("wb") as file:
            sink = _Sink(file, limit if format == "jsonl" else None)
            damages = list(_decompress(window, compression, sink, b"\n" if format == "jsonl" else b""))
            write_bytes(notes, orjson.dumps(damages))
    return target, tuple((int(at), str(error)) for at, error in orjson.loads(notes.read_bytes()))


class _Sink:
    """Writes bytes, shortening lines that are over the limit."""

    def __init__(self, file: BinaryIO, limit: int | None) -> None:
        self._file, self._limit = file, limit
        self.size, self._line = 0, 0  # bytes written; bytes of the line that is open

    def write(self, data: bytes) -> None:
        if self._limit is None or self._line + len(data) <= self._limit:
            if self._limit is not None:
                last = data.rfind(b"\n")
                self._line = len(data) - last - 1 if last >= 0 else self._line + len(data)
            self._put(data)
            return
        pieces = data.split(b"\n")
        for number, piece in enumerate(pieces):
            self._put(piece[: max(self._limit + 1 - self._line, 0)])
            self._line += len(piece)
            if number + 1 < len(pieces):
                self._put(b"\n")
                self._line = 0

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self.size += len(data)


def _decompress(window: Window, compression: str, sink: _Sink, separator: bytes) -> Iterator[tuple[int, str]]:
    """Write all members to `sink`; after damage go on at the next member, behind a `separator`. Yields (position in
    the sink, message).
    """
    members = Compressed(window, compression)
    position = members.skip_filler(0)
    while position < window.size:
        try:
            member = members.open(position)
            while data := member.read(STEP):
                sink.write(data)
            position = members.skip_filler(member.end)
        except Broken as error:
            assert members.pattern is not None
            found = (at for at in window.find(members.pattern, position + 1) if members.begins(at))
            after = next(found, window.size)
            yield sink.size, f"compressed bytes {position} to {after}: {error}"
            if after < window.size:
                sink.write(separator)
            position = after


def tell_damage(items: Iterator[Record | Damage], damages: Damages) -> Iterator[Record | Damage]:
    """Join what the reader met with what decompression met: a `Damage` that touches a position of `damages` carries
    its message, and a position that no `Damage` touches is told by itself, so that each is told once.
    """
    left = list(damages)
    for item in items:
        while left and left[0][0] < item.offset:
            at, error = left.pop(0)
            yield Damage(at, 0, error)
        if isinstance(item, Damage) and left and left[0][0] <= item.offset + item.length:
            item.error = f"{left.pop(0)[1]} ({item.error})"
        yield item
    for at, error in left:
        yield Damage(at, 0, error)
