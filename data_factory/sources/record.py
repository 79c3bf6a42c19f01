"""What every reader yields: records, and damaged byte ranges."""

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


@dataclass(slots=True)
class Record:
    """One document as found.

    `offset`, `length`: where its bytes stand in the input (row number and 1 for Parquet; the enclosing compressed member or stream where
    there is one). `key`: its origin (WARC-Record-ID, wiki and page number, the user's id), or "" when the content must make the id.
    `date`: epoch seconds, 0 = unknown. `content`: the payload, bytes before decoding or text; b"" for dropped records. `charset`: as
    declared by the HTTP header, or "". `drop`: a key of `DROPS`, or "" for a document to be processed; `drop_value`: its value.
    `prompt`, `task`: supervised records only.
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
