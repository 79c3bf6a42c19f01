"""Trafilatura in a worker process of its own, which can be killed when a page takes too long."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import struct
import subprocess
import sys
import time
from typing import Any

from data_factory.html_tables import LONG, row_text

_LENGTH = struct.Struct("<dQ")  # request: seconds, bytes; the answer's seconds are 0
_START_SECONDS = 120.0
_BLOCKS = frozenset({"p", "head", "quote", "item", "row", "list", "table", "lb", "code", "figure", "graphic"})
_INSIDE_LAYOUT = frozenset({"list", "table", "quote", "head"})


class ExtractTimeout(Exception):
    """A page took longer than its time limit; its worker was killed."""


class Trafilatura:
    """Client of one worker, which is started at the first page and again after it was killed."""

    _shared: Trafilatura | None = None
    _owner = 0

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def shared(cls) -> Trafilatura:
        """This process's client (a forked process gets its own)."""
        if cls._shared is None or cls._owner != os.getpid():
            cls._shared, cls._owner = cls(), os.getpid()
        return cls._shared

    def extract(self, html: str, seconds: float) -> str:
        """Text of a page with marks around code. Raises `ExtractTimeout`; a worker that dies raises `RuntimeError`."""
        process = self._process or self._start()
        data = html.encode()
        deadline = time.monotonic() + seconds
        try:
            self._send(process, _LENGTH.pack(seconds, len(data)) + data, deadline)
            _, size = _LENGTH.unpack(self._receive(process, _LENGTH.size, deadline))
            return self._receive(process, size, deadline).decode()
        except ExtractTimeout:
            self.close()
            raise ExtractTimeout(f"extraction took longer than read.extract_seconds ({seconds:g} s)") from None
        except (BrokenPipeError, EOFError) as error:
            self.close()
            raise RuntimeError("the extraction worker died on this page") from error

    def close(self) -> None:
        """Kill the worker."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = [sys.executable, "-c", "from data_factory.trafilatura_worker import serve; serve()"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, bufsize=0)
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        self._process = process
        try:
            self._receive(process, 1, time.monotonic() + _START_SECONDS)  # imports do not count against the first page
        except EOFError as error:
            self.close()
            raise RuntimeError("the extraction worker does not start: is trafilatura installed?") from error
        return process

    @staticmethod
    def _send(process: subprocess.Popen[bytes], data: bytes, deadline: float) -> None:
        assert process.stdin is not None
        view = memoryview(data)
        while view:
            if not select.select([], [process.stdin], [], max(deadline - time.monotonic(), 0))[1]:
                raise ExtractTimeout
            view = view[os.write(process.stdin.fileno(), view[: 1 << 16]) :]

    @staticmethod
    def _receive(process: subprocess.Popen[bytes], size: int, deadline: float) -> bytes:
        assert process.stdout is not None
        parts = []
        while size:
            if not select.select([process.stdout], [], [], max(deadline - time.monotonic(), 0))[0]:
                raise ExtractTimeout
            part = os.read(process.stdout.fileno(), min(size, 1 << 20))
            if not part:
                raise EOFError
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def serve() -> None:
    """The worker: answer pages from stdin on stdout until stdin ends.

    An alarm ends it should it outlive a page's limit because its client died.
    """
    import trafilatura

    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever the libraries print must not enter the answers
    answers.write(b"r")
    answers.flush()
    while head := requests.read(_LENGTH.size):
        seconds, size = _LENGTH.unpack(head)
        signal.setitimer(signal.ITIMER_REAL, seconds + 5)
        text = _text(trafilatura, requests.read(size).decode()).encode()
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(_LENGTH.pack(0.0, len(text)) + text)
        answers.flush()


def _text(trafilatura: Any, html: str) -> str:
    """Text of a page with one line a block, a blank line between paragraphs, and marks around code blocks."""
    from lxml import etree

    found = trafilatura.extract(
        html,
        output_format="xml",
        include_comments=False,
        include_tables=True,
        include_formatting=False,
        deduplicate=False,
    )
    if not found:
        return ""
    root = etree.fromstring(found.encode(), etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=True))
    main = root.find("main")
    pieces: list[str] = []
    _walk(main if main is not None else root, pieces)
    lines = "".join(pieces).split("\n")
    kept = [line for number, line in enumerate(lines) if line.strip() or (number and lines[number - 1].strip())]
    return "\n".join(kept).strip("\n")


def _walk(element: Any, pieces: list[str]) -> None:
    name = element.tag
    if _is_code_block(element):
        pieces.append("\n\x02" + "".join(element.itertext()).strip("\n") + "\x03\n")
    elif name == "table" and (rows := _rows(element)):
        pieces += ["\n", *(f"{row}\n" for row in rows), "\n"]
    else:
        if name == "item":
            pieces.append("• ")
        pieces.append(element.text or "")
        for child in element:
            _walk(child, pieces)
            pieces.append(child.tail or "")
        if name in _BLOCKS:
            pieces.append("\n\n" if name in ("p", "head", "quote", "list", "table") else "\n")
        elif name == "cell":
            pieces.append("\t")


def _is_code_block(element: Any) -> bool:
    return element.tag == "code" and "\n" in "".join(element.itertext()).strip()


def _rows(table: Any) -> list[str]:
    """Lines of a data table (see `html_tables`); none for a layout table."""
    rows, filled, blocks = [], [], 0
    for row in table.iterchildren("row"):
        texts = []
        for cell in row.iterchildren("cell"):
            if any(inner.tag in _INSIDE_LAYOUT or _is_code_block(inner) for inner in cell.iterdescendants()):
                return []
            texts.append(" ".join(" ".join(cell.itertext()).split()))
            blocks += len(texts[-1]) > LONG or len(cell.findall("p")) > 1
        while texts and not texts[-1]:  # rows are padded to the widest
            texts.pop()
        rows.append(texts)
        filled.append(sum(map(bool, texts)))
    if sum(count >= 2 for count in filled) < 2 or 10 * blocks > sum(filled):
        return []
    return [row_text(texts) for texts in rows if texts]
