"""HTTP responses as archives store them: status, headers, transfer and content codings."""

from __future__ import annotations

import re
import zlib
from typing import Any

import zstandard

from data_factory.sources.record import Broken

_STATUS = re.compile(rb"HTTP/\d(?:\.\d)?\s+(\d{3})")
_CHARSET = re.compile(r"charset\s*=\s*[\"']?\s*([^\s\"';,]+)", re.IGNORECASE)
_CHUNK = re.compile(rb"[ \t]*([0-9a-fA-F]{1,15})[ \t]*(?:;[^\r\n]*)?\r?\n")
HTML_TYPES = frozenset({"text/html", "application/xhtml+xml", "application/vnd.wap.xhtml+xml"})
TEXT_TYPES = frozenset({"text/plain", "text/markdown", "text/x-markdown", "text/x-rst"})
_UNSURE_TYPES = frozenset(
    {"", "application/octet-stream", "unknown/unknown", "application/unknown", "text/xml", "application/xml"}
)
_BINARY = (
    b"%PDF-",
    b"\x89PNG",
    b"\xff\xd8\xff",
    b"GIF8",
    b"PK\x03\x04",
    b"\x1f\x8b",
    b"\x7fELF",
    b"RIFF",
    b"\x00\x00\x01\x00",
    b"wOFF",
    b"ID3",
)
_HTML_HEAD = re.compile(rb"<(?:!doctype\s+html|html|head|body|title|meta|div|table|p|h[1-6])[\s>/]", re.IGNORECASE)
_BROTLI_PIECE = 64  # a block makes at most 16 MiB, so small pieces bound what one call can return (RFC 7932)
_ZSTD_PIECE = 256  # four bytes make at most 128 KiB (RFC 8878)
_CONTROLS = bytes(set(range(32)) - {9, 10, 12, 13, 27})


def split_headers(block: bytes) -> tuple[bytes, dict[str, str]]:
    """(first line, headers by lower-case name; the first of a repeated header wins; folded lines are joined)."""
    lines = block.replace(b"\r\n", b"\n").split(b"\n")
    headers: dict[str, str] = {}
    name = ""
    for line in lines[1:]:
        if line[:1] in (b" ", b"\t") and name:
            headers[name] += " " + line.strip().decode("utf-8", "replace")
            continue
        key, colon, value = line.partition(b":")
        if not colon:
            name = ""
            continue
        name = key.strip().decode("latin-1").lower()
        if name in headers:
            name = ""
        else:
            headers[name] = value.strip().decode("utf-8", "replace")
    return lines[0], headers


def header_end(data: bytes, start: int = 0) -> tuple[int, int]:
    """(end of the header block, start of the body), or (-1, -1); lines may end in CRLF or LF."""
    crlf, lf = data.find(b"\r\n\r\n", start), data.find(b"\n\n", start)
    if crlf >= 0 and (lf < 0 or crlf < lf):
        return crlf, crlf + 4
    return (lf, lf + 2) if lf >= 0 else (-1, -1)


def parse_response(block: bytes) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, raw body) of a stored response; raises `Broken` without a status line."""
    match = _STATUS.match(block)
    if match is None:
        raise Broken("the HTTP response has no status line")
    end, body = header_end(block)
    if end < 0:
        end = body = len(block)
    _, headers = split_headers(block[:end])
    return int(match[1]), headers, block[body:]


def charset_of(content_type: str) -> str:
    """The charset parameter of a Content-Type header, or ""."""
    match = _CHARSET.search(content_type)
    return match[1] if match else ""


def kind_of(content_type: str, body: bytes) -> str:
    """`html`, `text` or "" (anything else): by the declared type, by the first bytes where that says nothing."""
    mime = content_type.partition(";")[0].partition(",")[0].strip().lower()
    head = body[:1024].lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.startswith(_BINARY):
        return ""
    if mime in HTML_TYPES:
        return "html"
    if mime in TEXT_TYPES:
        return "text"
    if mime not in _UNSURE_TYPES and "/" in mime:
        return ""
    if _HTML_HEAD.search(head):
        return "html"
    if mime in ("text/xml", "application/xml") or head.startswith(b"<?xml") or not head:
        return ""
    return "text" if head.translate(None, _CONTROLS) == head else ""


def decode_body(headers: dict[str, str], body: bytes, limit: int, truncated: bool) -> bytes:
    """Undo Transfer-Encoding and Content-Encoding.

    Codings that the crawler undid already, but whose header stands, are recognised by their first bytes. `truncated`:
    the archive says that it cut the body, so a coding may end early. Raises `Broken` for damaged codings and bodies
    over `limit` bytes.
    """
    if "chunked" in headers.get("transfer-encoding", "").lower():
        body = _unchunk(body, truncated)
    for coding in reversed([item.strip().lower() for item in headers.get("content-encoding", "").split(",")]):
        if not body or coding in ("", "identity", "none", "utf-8"):
            continue
        if coding in ("gzip", "x-gzip"):
            body = _inflate(body, 31, limit, truncated) if body[:2] == b"\x1f\x8b" else body
        elif coding == "deflate":
            body = _deflate(body, limit, truncated)
        elif coding == "br":
            body = _brotli(body, limit, truncated)
        elif coding == "zstd":
            body = _zstd(body, limit, truncated) if body[:4] == b"\x28\xb5\x2f\xfd" else body
        else:
            raise Broken(f"unknown Content-Encoding {coding[:40]!r}")
    return body


def _unchunk(body: bytes, truncated: bool) -> bytes:
    parts: list[bytes] = []
    at = 0
    while True:
        match = _CHUNK.match(body, at)
        if match is None:
            if at == 0:
                return body  # the crawler removed the chunks and left the header
            if truncated or at >= len(body):
                return b"".join(parts)  # the last, empty chunk is often missing; nothing of the text is
            raise Broken(f"chunked transfer coding is damaged at byte {at} of the body")
        size = int(match[1], 16)
        if size == 0:
            return b"".join(parts)
        start = match.end()
        if start + size > len(body) and not truncated:
            raise Broken(f"chunked transfer coding is truncated: a chunk of {size} bytes has {len(body) - start}")
        parts.append(body[start : start + size])
        at = start + size
        at += 2 if body[at : at + 2] == b"\r\n" else 1 if body[at : at + 1] == b"\n" else 0


def _too_large(limit: int) -> Broken:
    return Broken(f"the decoded body is larger than read.record_limit_bytes ({limit})")


def _inflate(body: bytes, bits: int, limit: int, truncated: bool) -> bytes:
    inflate = zlib.decompressobj(bits)
    try:
        out = inflate.decompress(body, limit + 1)
    except zlib.error as error:
        raise Broken(f"Content-Encoding is damaged: {error}") from error
    if len(out) > limit:
        raise _too_large(limit)
    if not inflate.eof and not truncated:
        raise Broken("Content-Encoding is truncated")
    return out


def _deflate(body: bytes, limit: int, truncated: bool) -> bytes:
    """zlib as RFC 9110 says, raw deflate as many servers send, or nothing when the body is plainly text."""
    for bits in (15, -15):
        try:
            return _inflate(body, bits, limit, truncated)
        except Broken as error:
            if "limit" in str(error):
                raise
    if body.lstrip()[:1] == b"<":
        return body
    raise Broken("Content-Encoding deflate is damaged")


def _brotli(body: bytes, limit: int, truncated: bool) -> bytes:
    try:
        import brotli  # type: ignore[import-untyped]
    except ImportError as error:
        raise Broken("Content-Encoding br needs the package brotli, which is not installed") from error
    if _HTML_HEAD.match(body.lstrip()):
        return body
    decoder: Any = brotli.Decompressor()
    parts: list[bytes] = []
    size = 0
    try:
        for at in range(0, len(body), _BROTLI_PIECE):
            parts.append(decoder.process(body[at : at + _BROTLI_PIECE]))
            size += len(parts[-1])
            if size > limit:
                raise _too_large(limit)
            if decoder.is_finished():
                break
    except brotli.error as error:
        raise Broken(f"Content-Encoding br is damaged: {error}") from error
    if not decoder.is_finished() and not truncated:
        raise Broken("Content-Encoding br is truncated")
    return b"".join(parts)


def _zstd(body: bytes, limit: int, truncated: bool) -> bytes:
    # a decompression object, because the library's stream reader ends a cut frame without a word
    inflate = zstandard.ZstdDecompressor().decompressobj()
    parts: list[bytes] = []
    size = 0
    try:
        for at in range(0, len(body), _ZSTD_PIECE):
            parts.append(inflate.decompress(body[at : at + _ZSTD_PIECE]))
            size += len(parts[-1])
            if size > limit:
                raise _too_large(limit)
            if inflate.eof:
                break
    except (zstandard.ZstdError, MemoryError) as error:
        raise Broken(f"Content-Encoding zstd is damaged: {error}") from error
    if not inflate.eof and not truncated:
        raise Broken("Content-Encoding zstd is truncated")
    return b"".join(parts)
