"""What every reader takes and yields: a unit; records and damaged byte ranges."""

from __future__ import annotations

from dataclasses import dataclass

# Reasons that a reader gives by itself, each with the meaning of `drop_value`.
DROPS = {
    "read.not_html": "neither HTML nor plain text (0)",
    "read.redirect": "a redirect: HTTP status, or 0 for a wiki redirect",
    "read.status": "HTTP status other than 200: the status",
    "read.empty": "no body (0)",
    "read.namespace": "a wiki page outside sources[].namespaces: its namespace",
    "read.html_limit_bytes": "an HTML page larger than read.html_limit_bytes: its bytes",
}


@dataclass(frozen=True)
class Unit:
    """One range of one input.

    `number`: position in the plan. `source`: name of the source. `path`: where bytes are read (a local path, an
    fsspec URL or a spooled file), never part of outputs; `label`: the input's path below the root that the user gave.
    `format`: warc, jsonl, parquet or mediawiki; `compression` of the bytes at `path`: "", gz, zst or bz2. [`start`,
    `end`): bytes, or row groups of Parquet. `origin_offset`: position of byte 0 of `path` in the (decompressed)
    input. `limit`: records to read at most, None for all. `damage`: positions in [start, end] of a spooled file where
    decompression failed, with what happened.
    """

    number: int
    source: str
    path: str
    label: str
    format: str
    compression: str
    start: int
    end: int
    origin_offset: int = 0
    limit: int | None = None
    damage: tuple[tuple[int, str], ...] = ()


@dataclass(slots=True)
class Record:
    """One document as found.

    `offset`, `length`: where its bytes stand in the input (row number and 1 for Parquet; the enclosing compressed
    member or stream where there is one). `key`: its origin (WARC-Record-ID, wiki and page number, the user's id), or
    "" when the content must make the id. `date`: epoch seconds, 0 = unknown. `content`: the payload, bytes before
    decoding or text; b"" for dropped records. `charset`: as declared by the HTTP header, or "". `drop`: a key of
    `DROPS`, or "" for a document to be processed; `drop_value`: its value. `prompt`, `task`: supervised records only.
    """

    offset: int
    length: int
    key: str
    url: str
    date: int
    content: bytes | str
    is_html: bool
    charset: str
    drop: str
    drop_value: float
    prompt: str
    task: str


@dataclass(slots=True)
class Damage:
    """One byte range of the input that could not be read; nothing else is lost by it."""

    offset: int
    length: int
    error: str


class Broken(Exception):
    """Bytes that do not follow their format; caught inside the readers and turned into a `Damage`."""
