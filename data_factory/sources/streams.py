"""Bytes of inputs: windows over local files and fsspec URLs, and compressed members whose offsets are known.

A member is one gzip member, one zstd frame or one bzip2 stream. Members are inflated piece by piece with a bound on
each piece, so that a small input that inflates to terabytes costs no more than what its reader asks for.
"""

from __future__ import annotations

import bz2
import re
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any, Protocol

import zstandard

from data_factory.sources.record import Broken
from ziya.errors import UserError

BLOCK = 1 << 20  # bytes of one read of the input
PIECE = (
    1 << 14
)  # compressed bytes given to a decompressor at once: what follows a member's end is copied, so pieces are small
PROBE = 1 << 12  # compressed bytes that are enough to inflate a member's first few bytes
MAGICS = {"gz": rb"\x1f\x8b\x08", "zst": rb"\x28\xb5\x2f\xfd", "bz2": rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"}
SKIPPABLE = tuple(bytes((nibble, 0x2A, 0x4D, 0x18)) for nibble in range(0x50, 0x60))
DICTIONARY = b"\x5d\x2a\x4d\x18"


def is_remote(path: str) -> bool:
    """Whether `path` is an fsspec URL rather than a local path."""
    return "://" in path


class Window(AbstractContextManager["Window"]):
    """Random reads from one input through one buffered block.

    Raises `UserError` when the input cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            if is_remote(path):
                import fsspec  # slow to import, for remote inputs only

                self._file: IO[bytes] = fsspec.open(path, "rb").open()
            else:
                self._file = Path(path).open("rb", buffering=0)  # noqa: SIM115
            self.size = self._file.seek(0, 2)
        except (OSError, ValueError, ImportError) as error:
            raise UserError(f"input {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
        self._start, self._block = 0, b""

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def piece(self, position: int, length: int) -> bytes:
        """Between 1 and `length` bytes at `position`; b"" at the end of the input."""
        at = position - self._start
        if not 0 <= at < len(self._block):
            self._file.seek(position)
            self._start, self._block, at = position, self._file.read(max(BLOCK, min(length, 16 * BLOCK))), 0
        return self._block[at : at + length]

    def exact(self, position: int, length: int) -> bytes:
        """`length` bytes at `position`, fewer only at the end of the input."""
        first = self.piece(position, length)
        if len(first) == length or not first:
            return first
        parts, got = [first], len(first)
        while got < length and (more := self.piece(position + got, length - got)):
            parts.append(more)
            got += len(more)
        return b"".join(parts)

    def find(
        self, pattern: re.Pattern[bytes], position: int, end: int | None = None, overlap: int = 64
    ) -> Iterator[int]:
        """Positions of matches (at most `overlap` bytes long) that start in [position, end), in order."""
        end = self.size if end is None else min(end, self.size)
        while position < end:
            block = self.exact(position, BLOCK)
            last = position + len(block) >= self.size
            bound = len(block) if last else len(block) - overlap
            for match in pattern.finditer(block):
                if match.start() >= bound or position + match.start() >= end:
                    break
                yield position + match.start()
            position += bound


class Member(Protocol):
    """Decompressed bytes of one member; `end` is the input position behind it, known once `done`."""

    done: bool
    end: int

    def read(self, size: int) -> bytes:
        """Between 1 and `size` bytes, b"" only when done; raises `Broken`."""


class PlainMember:
    """Uncompressed bytes from `position` to the end of the input."""

    def __init__(self, window: Window, position: int) -> None:
        self._window, self.end, self.done = window, position, position >= window.size

    def read(self, size: int) -> bytes:
        """See `Member`."""
        data = self._window.piece(self.end, size)
        self.end += len(data)
        self.done = self.end >= self._window.size or not data
        return data


class InflatingMember:
    """A gzip member or a bzip2 stream at `position`."""

    def __init__(self, window: Window, position: int, compression: str) -> None:
        self._window, self._position, self._name = window, position, {"gz": "gzip", "bz2": "bzip2"}[compression]
        self._inflate: Any = zlib.decompressobj(31) if compression == "gz" else bz2.BZ2Decompressor()
        self._tail_kept = compression == "bz2"  # bz2 keeps unread input itself, zlib hands it back
        self.done, self.end = False, position

    def read(self, size: int) -> bytes:
        """See `Member`."""
        while not self.done:
            if self._tail_kept:
                data = b"" if not self._inflate.needs_input else self._next()
            else:
                data = self._inflate.unconsumed_tail or self._next()
            try:
                out: bytes = self._inflate.decompress(data, size)
            except (zlib.error, OSError, EOFError) as error:
                raise Broken(f"{self._name} data is damaged: {error}") from error
            if self._inflate.eof:
                self.done, self.end = True, self._position - len(self._inflate.unused_data)
            if out:
                return out
        return b""

    def _next(self) -> bytes:
        data = self._window.piece(self._position, PIECE)
        if not data:
            raise Broken(f"{self._name} data is truncated: the input ends inside it")
        self._position += len(data)
        return data


class ZstdMember:
    """A zstd frame at `position`. Its end is found from the block headers before anything is inflated (RFC 8878,
    section 3.1.1).
    """

    def __init__(self, window: Window, position: int, context: zstandard.ZstdDecompressor) -> None:
        self.end, self.done = self._find_end(window, position), False
        self._window, self._position = window, position
        source: Any = self._Source(window, position, self.end)
        self._reader = context.stream_reader(source, read_size=1 << 16)

    class _Source:
        def __init__(self, window: Window, position: int, end: int) -> None:
            self.window, self.position, self.end = window, position, end

        def read(self, size: int = -1) -> bytes:
            left = self.end - self.position
            data = self.window.piece(self.position, left if size < 0 else min(size, left)) if left else b""
            self.position += len(data)
            return data

    @staticmethod
    def _find_end(window: Window, position: int) -> int:
        head = window.exact(position, 5)
        if len(head) < 5 or head[:4] != b"\x28\xb5\x2f\xfd":
            raise Broken("zstd frame is damaged: no magic number")
        flags = head[4]
        single = flags >> 5 & 1
        position += 5 + (1 - single) + (0, 1, 2, 4)[flags & 3] + (single, 2, 4, 8)[flags >> 6]
        while True:
            header = window.exact(position, 3)
            if len(header) < 3:
                raise Broken("zstd data is truncated: the input ends inside a frame")
            value = int.from_bytes(header, "little")
            kind, size = value >> 1 & 3, value >> 3
            if kind == 3 or (kind != 1 and size > 1 << 17):
                raise Broken("zstd frame is damaged: a block header is not valid")
            position += 3 + (1 if kind == 1 else size)
            if value & 1:
                break
        position += 4 * (flags >> 2 & 1)
        if position > window.size:
            raise Broken("zstd data is truncated: the input ends inside a frame")
        return position

    def read(self, size: int) -> bytes:
        """See `Member`."""
        if self.done:
            return b""
        try:
            data: bytes = self._reader.read(size)
        except (zstandard.ZstdError, MemoryError) as error:
            raise Broken(f"zstd data is damaged: {error}") from error
        self.done = not data
        return data


class Compressed:
    """The members of one compressed (or plain) input."""

    def __init__(self, window: Window, compression: str) -> None:
        self.window, self.compression = window, compression
        self.pattern = re.compile(MAGICS[compression]) if compression else None
        self._context = zstandard.ZstdDecompressor(dict_data=self._dictionary()) if compression == "zst" else None

    def _dictionary(self) -> zstandard.ZstdCompressionDict | None:
        """The dictionary that a WARC.zst carries in a skippable frame at its head (IIPC zstd for WARC 1.0), or None."""
        head = self.window.exact(0, 8)
        if head[:4] != DICTIONARY or len(head) < 8:
            return None
        data = self.window.exact(8, int.from_bytes(head[4:], "little"))
        if data[:4] == b"\x28\xb5\x2f\xfd":
            try:
                data = zstandard.ZstdDecompressor().decompress(data, max_output_size=1 << 26)
            except zstandard.ZstdError as error:
                raise Broken(f"zstd dictionary is damaged: {error}") from error
        return zstandard.ZstdCompressionDict(data)

    def open(self, position: int) -> Member:
        """The member at `position`; raises `Broken` when a zstd frame has no end."""
        if self._context is not None:
            return ZstdMember(self.window, position, self._context)
        return (
            InflatingMember(self.window, position, self.compression)
            if self.compression
            else PlainMember(self.window, position)
        )

    def begins(self, position: int, size: int = 16) -> bytes | None:
        """The first up to `size` decompressed bytes of a member at `position`; None when none starts there."""
        if self.pattern is None:
            return self.window.exact(position, size)
        if not self.pattern.match(self.window.exact(position, 16)):
            return None
        try:
            if self._context is not None:
                return self._context.stream_reader(self.window.exact(position, PROBE)).read(size)
            member, out = self.open(position), b""
            while len(out) < size and (more := member.read(size - len(out))):
                out += more
            return out
        except (Broken, zstandard.ZstdError, MemoryError):
            return None

    def skip_filler(self, position: int) -> int:
        """Pass zstd skippable frames and empty gzip members (the end mark of bgzip) at `position`."""
        while position < self.window.size:
            head = self.window.exact(position, 8)
            if self.compression == "zst" and head[:4] in SKIPPABLE and len(head) == 8:
                position = min(position + 8 + int.from_bytes(head[4:], "little"), self.window.size)
            elif self.compression == "gz" and self.begins(position, 1) == b"":
                member = self.open(position)
                member.read(1)
                position = member.end
            else:
                break
        return position


class Stream:
    """Decompressed bytes of a member with look-ahead. `buffer[at:]` is what was read but not consumed."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self.buffer, self.at, self.consumed = b"", 0, 0

    def fill(self, size: int) -> int:
        """Read until `size` bytes are ahead or the member ends; returns the bytes ahead."""
        ahead = len(self.buffer) - self.at
        if ahead >= size or self._member.done:
            return ahead
        parts = [self.buffer[self.at :]] if ahead else []
        while ahead < size and (more := self._member.read(max(size - ahead, 1 << 16))):
            parts.append(more)
            ahead += len(more)
        self.buffer, self.at = b"".join(parts) if len(parts) != 1 else parts[0], 0
        return ahead

    def take(self, size: int) -> bytes:
        """Consume the next `size` bytes, which must be ahead."""
        data = self.buffer[self.at : self.at + size]
        self.at += size
        self.consumed += size
        return data
