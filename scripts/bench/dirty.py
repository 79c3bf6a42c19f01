"""Plant seeded damage in real WARC and JSON lines files, and say what must become of it: for tests and soak runs.

    python scripts/bench/dirty.py OUT_DIR FILE... [--seed 7] [--kinds flip,bomb] [--megabytes 64]

For every input file and kind one damaged copy `<stem>.<kind>.<suffixes>` is written, and OUT_DIR/expected.json tells of
each copy: `documents` (records that a reader must find), `lost` (keys of the lost ones, or line numbers), `added`, and
`quarantined`: byte ranges [offset, length] of the copy (for .jsonl.gz: of the inflated lines); a quarantine row must
begin in each of them, and none elsewhere. Same arguments, same bytes.

WARC files must hold whole records in every gzip member, as crawlers write them.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import random
import re
import sys
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ziya.errors import UserError, run_main
from ziya.files import write_bytes, write_json

DOCUMENT_TYPES = (b"response", b"resource", b"conversion")
_TYPE = re.compile(rb"^WARC-Type:[ \t]*(\S+)", re.IGNORECASE | re.MULTILINE)
_KEY = re.compile(rb"^WARC-Record-ID:[ \t]*<?([^>\s]+)", re.IGNORECASE | re.MULTILINE)
_LENGTH = re.compile(rb"^Content-Length:[ \t]*(\d+)", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Part:
    """A piece of a file: a gzip member or a line. `keys`: its documents; `damaged`: part of a quarantined range."""

    data: bytes
    keys: tuple[str, ...] = ()
    damaged: bool = False


@dataclass
class Options:
    """Sizes of what is planted, in bytes. `limit`: the reader's record limit; larger records are quarantined."""

    big: int = 64 << 20
    limit: int = 256 << 20
    rng: random.Random = field(default_factory=lambda: random.Random(7))


def record_headers(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(header, start of the block, end of the block) of every WARC record in inflated bytes."""
    at = 0
    while at < len(data):
        end = data.find(b"\r\n\r\n", at)
        found = _LENGTH.search(data, at, end) if end >= 0 else None
        if found is None:
            raise UserError("a WARC record has no Content-Length: damage is planted in sound files only")
        block = end + 4
        yield data[at:end], block, block + int(found[1])
        at = block + int(found[1])
        while data[at : at + 2] == b"\r\n":
            at += 2


def document_keys(data: bytes) -> tuple[str, ...]:
    """Record ids of the documents among the records of inflated bytes."""
    keys = []
    for header, _, _ in record_headers(data):
        kind, key = _TYPE.search(header), _KEY.search(header)
        if kind and kind[1].lower() in DOCUMENT_TYPES:
            keys.append(key[1].decode("latin-1") if key else "")
    return tuple(keys)


def members(data: bytes) -> list[Part]:
    """The gzip members of a WARC file."""
    parts, at = [], 0
    while at < len(data):
        engine = zlib.decompressobj(31)
        try:
            inflated = engine.decompress(data[at:]) + engine.flush()
        except zlib.error as error:
            raise UserError(
                f"byte {at} does not begin a gzip member ({error}): damage is planted in sound .gz files only"
            ) from error
        end = len(data) - len(engine.unused_data)
        parts.append(Part(data[at:end], document_keys(inflated)))
        at = end
    return parts


def _pack(data: bytes) -> bytes:
    return gzip.compress(data, 6, mtime=0)


def _response(name: str, body: bytes) -> tuple[bytes, str]:
    """A WARC response record with an HTML body, and its key."""
    key = f"urn:uuid:{uuid.UUID(bytes=hashlib.sha256(name.encode()).digest()[:16], version=4)}"
    block = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + body
    head = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Record-ID: <{key}>\r\nWARC-Date: 2023-05-01T00:00:00Z\r\n"
        f"WARC-Target-URI: http://planted.example/{name}\r\nContent-Type: application/http; msgtype=response\r\n"
        f"Content-Length: {len(block)}\r\n\r\n"
    )
    return head.encode() + block + b"\r\n\r\n", key


def _documents(parts: Sequence[Part]) -> list[int]:
    """Places of the members with a document that have a sound member before and behind them."""
    return [number for number in range(1, len(parts) - 1) if parts[number].keys and not parts[number].damaged]


def _pick(parts: Sequence[Part], options: Options) -> int:
    places = _documents(parts)
    if not places:
        raise UserError("the file has no document between two other members: too short to be damaged")
    return options.rng.choice(places)


def _insert(parts: list[Part], options: Options, part: Part) -> list[Part]:
    place = _pick(parts, options)
    return [*parts[:place], part, *parts[place:]]


def _fails(data: bytes) -> bool:
    """Whether a member cannot be inflated to its end with a right checksum."""
    engine = zlib.decompressobj(31)
    try:
        engine.decompress(data)
    except zlib.error:
        return True
    return not engine.eof


def truncate(parts: list[Part], options: Options) -> list[Part]:
    """The file ends in the middle of a member."""
    place = _pick(parts, options)
    cut = parts[place]
    return [
        *parts[:place],
        Part(cut.data[: options.rng.randrange(len(cut.data) // 4, 3 * len(cut.data) // 4)], (), True),
    ]


def flip(parts: list[Part], options: Options) -> list[Part]:
    """Bytes inside a member are changed."""
    place = _pick(parts, options)
    while True:
        data = bytearray(parts[place].data)
        for _ in range(8):
            data[options.rng.randrange(12, len(data))] ^= options.rng.randrange(1, 256)
        if _fails(bytes(data)):
            return [*parts[:place], Part(bytes(data), (), True), *parts[place + 1 :]]


def cut_head(parts: list[Part], options: Options) -> list[Part]:
    """The first bytes of a member are missing."""
    place = _pick(parts, options)
    data = parts[place].data[options.rng.randrange(1, min(64, len(parts[place].data) // 2)) :]
    return [*parts[:place], Part(data, (), True), *parts[place + 1 :]]


def garbage(parts: list[Part], options: Options) -> list[Part]:
    """Random bytes between two members."""
    data = (
        options.rng.randbytes(options.rng.randrange(1, 4096)).replace(b"\x1f\x8b", b"\x1f\x8c").strip(b"\0\r\n") or b"x"
    )
    return _insert(parts, options, Part(data, (), True))


def duplicate(parts: list[Part], options: Options) -> list[Part]:
    """A member stands twice: a record more, none lost."""
    place = _pick(parts, options)
    return [*parts[:place], parts[place], *parts[place:]]


def not_warc(parts: list[Part], options: Options) -> list[Part]:
    """A sound gzip member that is no WARC record."""
    return _insert(parts, options, Part(_pack(b"<html>a page without its record</html>\n" * 20), (), True))


def bomb(parts: list[Part], options: Options) -> list[Part]:
    """A member of some kilobytes that inflates beyond the record limit."""
    data, _ = _response("bomb", bytes(options.limit + 1))
    return _insert(parts, options, Part(gzip.compress(data, 9, mtime=0), (), True))


def _relabel(part: Part, change: int) -> Part:
    """The member with another Content-Length in its first record."""
    data = gzip.decompress(part.data)
    found = _LENGTH.search(data)
    assert found is not None
    length = max(0, int(found[1]) + change)
    return Part(_pack(data[: found.start(1)] + str(length).encode() + data[found.end(1) :]), (), True)


def long_length(parts: list[Part], options: Options) -> list[Part]:
    """Content-Length promises more bytes than the member has."""
    place = _pick(parts, options)
    return [*parts[:place], _relabel(parts[place], options.rng.randrange(50, 5000)), *parts[place + 1 :]]


def short_length(parts: list[Part], options: Options) -> list[Part]:
    """Content-Length promises fewer bytes than the member has."""
    place = _pick(parts, options)
    return [*parts[:place], _relabel(parts[place], -options.rng.randrange(5, 50)), *parts[place + 1 :]]


def giant_line(parts: list[Part], options: Options) -> list[Part]:
    """A sound page of `options.big` bytes on one line."""
    body = b"<html><body><p>" + b"word and word " * (options.big // 14) + b"</p></body></html>"
    data, key = _response("giant", body)
    whole = len(body) + 80 <= options.limit
    return _insert(parts, options, Part(gzip.compress(data, 1, mtime=0), (key,) if whole else (), not whole))


def invalid_utf8(parts: list[Part], options: Options) -> list[Part]:
    """Invalid UTF-8 inside a page: nothing is lost."""
    place = _pick(parts, options)
    data = gzip.decompress(parts[place].data)
    (header, start, end), *_ = record_headers(data)
    body = data.find(b"\r\n\r\n", start) + 4
    at = options.rng.randrange(body, end) if start < body < end else end
    bad = b"\xff\xfe\xc3\x28\xe4\xb8\xed\xa0\x80"
    header = _LENGTH.sub(b"Content-Length: %d" % (end - start + len(bad)), header)
    packed = _pack(header + b"\r\n\r\n" + data[start:at] + bad + data[at:])
    return [*parts[:place], replace(parts[place], data=packed), *parts[place + 1 :]]


ENTITIES = (
    '<?xml version="1.0"?><!DOCTYPE html [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">'
    '<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;"><!ENTITY file SYSTEM "file:///etc/passwd">]>'
    "<html><body><h1>Entities &amp;amp;amp; tricks</h1><p>&c;&file;</p>"
    "<p>&#0;&#x0;&#xD800;&#xDFFF;&#1114112;&#99999999999999999999;</p>"
    "<p>&lt;script&gt;alert(1)&lt;/script&gt; &nosuch; &copy &#65 &#x41 &;&#;&#x;</p><p>&#2;&#3;&#8203;&#65279;</p>"
    "<p>The page itself is a plain one, and says that markup inside of text stays text.</p></body></html>"
)


def entities(parts: list[Part], options: Options) -> list[Part]:
    """A page full of entity tricks: a record more."""
    data, key = _response("entities", ENTITIES.encode())
    return _insert(parts, options, Part(_pack(data), (key,)))


Mutation = Callable[[list[Part], Options], list[Part]]
WARC_KINDS: dict[str, Mutation] = {
    function.__name__: function
    for function in (
        truncate, flip, cut_head, garbage, duplicate, not_warc, bomb, long_length, short_length, giant_line,
        invalid_utf8, entities,
    )
}  # fmt: skip


def _broken_line(parts: list[Part], options: Options) -> list[Part]:
    """A line loses its end."""
    place = _pick(parts, options)
    data = parts[place].data
    return [*parts[:place], Part(data[: len(data) // 2].rstrip(b"\n") + b"\n", (), True), *parts[place + 1 :]]


def _planted_line(text: bytes, damaged: bool = True) -> Mutation:
    def plant(parts: list[Part], options: Options) -> list[Part]:
        return _insert(parts, options, Part(text + b"\n", () if damaged else ("planted",), damaged))

    return plant


def _giant_json(parts: list[Part], options: Options) -> list[Part]:
    line = b'{"text": "' + b"word and word " * (options.big // 14) + b'"}\n'
    whole = len(line) <= options.limit
    return _insert(parts, options, Part(line, ("planted",) if whole else (), not whole))


JSONL_KINDS: dict[str, Mutation] = {
    "broken_line": _broken_line,
    "duplicate": duplicate,
    "no_text": _planted_line(b'{"title": "a line without text"}'),
    "not_object": _planted_line(b'["a", "list"]'),
    "text_not_string": _planted_line(b'{"text": 12}'),
    "invalid_utf8": _planted_line(b'{"text": "\xff\xfe\xc3("}'),
    "nul_bytes": _planted_line(bytes(200)),
    "giant_line": _giant_json,
}


def lines(data: bytes) -> list[Part]:
    """The lines of a JSONL file; the key of a line is its number."""
    return [Part(line, (str(number),)) for number, line in enumerate(io.BytesIO(data)) if line.strip()]


def account(before: Sequence[Part], after: Sequence[Part]) -> dict[str, Any]:
    """What a reader must find in the damaged file; neighbouring damaged parts are one range."""
    old = [key for part in before for key in part.keys]
    new = [key for part in after for key in part.keys]
    ranges: list[list[int]] = []
    at, open_range = 0, False
    for part in after:
        if part.damaged and open_range:
            ranges[-1][1] += len(part.data)
        elif part.damaged:
            ranges.append([at, len(part.data)])
        open_range = part.damaged
        at += len(part.data)
    lost = [key for key in old if key not in set(new)]
    return {"documents": len(new), "lost": lost, "added": len(new) - len(old) + len(lost), "quarantined": ranges}


def mutate(
    source: Path,
    out: Path,
    seed: int,
    kinds: Sequence[str] | None = None,
    big: int = 64 << 20,
    limit: int = 256 << 20,
) -> dict[str, dict[str, Any]]:
    """Write a damaged copy of `source` per kind (None: all kinds, and `mixed`: all but the large ones, in one file).

    Returns file name -> {"kind", "documents", "lost", "added", "quarantined"}. `big`: bytes of giant pages; `limit`:
    the reader's record limit. UserError for an unknown kind or a file that is damaged already.
    """
    packed = source.name.endswith(".gz")
    is_jsonl = ".jsonl" in source.suffixes
    if not is_jsonl and not packed:
        raise UserError(f"{source} is not a .warc.gz, .wet.gz, .jsonl or .jsonl.gz file")
    known = JSONL_KINDS if is_jsonl else WARC_KINDS
    for kind in kinds or []:
        if kind not in known and kind != "mixed":
            raise UserError(f"unknown kind {kind!r}: {source.name} can have {', '.join([*known, 'mixed'])}")
    data = source.read_bytes()
    before = lines(gzip.decompress(data) if packed else data) if is_jsonl else members(data)
    stem, _, suffix = source.name.partition(".")
    result = {}
    for kind in kinds or [*known, "mixed"]:
        options = Options(big, limit, random.Random(f"{seed} {source.name} {kind}"))
        after = list(before)
        for name in (
            [name for name in known if name not in ("truncate", "bomb", "giant_line")] if kind == "mixed" else [kind]
        ):
            after = known[name](after, options)
        content = b"".join(part.data for part in after)
        name = f"{stem}.{kind}.{suffix}"
        write_bytes(out / name, _pack(content) if is_jsonl and packed else content)
        result[name] = {"kind": kind, **account(before, after)}
    return result


def main() -> int:
    """Command line: damaged copies and expected.json."""
    parser = argparse.ArgumentParser(
        description="Plant seeded damage in WARC and JSONL files, with the expected counts."
    )
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--kinds", help=f"comma-separated; WARC: {', '.join(WARC_KINDS)}; JSONL: {', '.join(JSONL_KINDS)}; mixed"
    )
    parser.add_argument("--megabytes", type=int, default=64, help="size of the giant single-line page")
    parser.add_argument("--limit-megabytes", type=int, default=256, help="read.record_limit_bytes of the reader")
    arguments = parser.parse_args()
    kinds = arguments.kinds.split(",") if arguments.kinds else None
    expected: dict[str, Any] = {}
    for file in arguments.files:
        if not file.is_file():
            raise UserError(f"{file} is not a file: give WARC or JSONL files")
        expected |= mutate(
            file, arguments.out, arguments.seed, kinds, arguments.megabytes << 20, arguments.limit_megabytes << 20
        )
    write_json(arguments.out / "expected.json", expected)
    print(json.dumps(expected, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
