"""WARC, HTTP and gzip bytes of the demo crawl: fixed dates, record ids by hash; same settings, same bytes."""

from __future__ import annotations

import gzip
import hashlib
import json
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EPOCH = 1_682_899_200  # 2023-05-01T00:00:00Z


def iso(minute: int) -> str:
    """A date of the crawl: `minute` minutes after its start, ISO 8601."""
    days, rest = divmod(minute, 1440)
    return f"2023-05-{1 + days % 31:02d}T{rest // 60:02d}:{rest % 60:02d}:00Z"


def record_id(*parts: object) -> str:
    """`urn:uuid:...` from the parts, the same on every machine."""
    digest = hashlib.sha256("\0".join(str(part) for part in parts).encode()).digest()[:16]
    return f"urn:uuid:{uuid.UUID(bytes=digest, version=4)}"


def response(
    body: bytes,
    content_type: str = "text/html; charset=utf-8",
    status: int = 200,
    fields: tuple[tuple[str, str], ...] = (),
) -> bytes:
    """An HTTP response as an archive stores it."""
    phrases = {
        200: "OK",
        204: "No Content",
        301: "Moved Permanently",
        302: "Found",
        404: "Not Found",
        500: "Internal Server Error",
    }
    head = [f"HTTP/1.1 {status} {phrases[status]}", "Server: nginx", *(f"{name}: {value}" for name, value in fields)]
    if content_type:
        head.append(f"Content-Type: {content_type}")
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def chunked_gzip(body: bytes, size: int = 700) -> bytes:
    """A body with `Content-Encoding: gzip` and `Transfer-Encoding: chunked`."""
    packed = gzip.compress(body, 6, mtime=0)
    pieces = [packed[start : start + size] for start in range(0, len(packed), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [*pieces, b""])


def record(kind: str, url: str, key: str, date: str, block: bytes, content_type: str) -> bytes:
    """One WARC 1.0 record with its two blank lines."""
    fields = [("WARC-Type", kind), ("WARC-Record-ID", f"<{key}>"), ("WARC-Date", date)]
    if url:
        fields.append(("WARC-Target-URI", url))
    fields += [("Content-Type", content_type), ("Content-Length", str(len(block)))]
    head = "WARC/1.0\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields)
    return head.encode() + b"\r\n" + block + b"\r\n\r\n"


@dataclass
class InputFile:
    """One input file while it is written: bytes, and what must become of each record in it."""

    name: str
    data: bytearray = field(default_factory=bytearray)
    expected: list[dict[str, Any]] = field(default_factory=list)

    def add(self, record_bytes: bytes, expected: dict[str, Any] | None = None) -> None:
        """Append a record, as a gzip member of its own where the name ends in .gz."""
        self.add_raw(gzip.compress(record_bytes, 6, mtime=0) if self.name.endswith(".gz") else record_bytes, expected)

    def add_raw(self, data: bytes, expected: dict[str, Any] | None = None) -> None:
        """Append bytes as they are."""
        if expected is not None:
            self.expected.append({"file": self.name, "offset": len(self.data), "length": len(data), **expected})
        self.data += data

    def write(self, folder: Path) -> None:
        """Write the file below `folder`."""
        path = folder / self.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(self.data))


def json_line(value: Any) -> bytes:
    """One line of JSON."""
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"
