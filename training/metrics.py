"""`RUN/metrics.jsonl` (a line per step) and `RUN/validation.jsonl` (a line per validation and name). Rank 0 writes; the others
have nothing to write.

Whatever is not in `TIMED` is a function of data, settings and layout alone: a run that was interrupted and one that was not
have the same values, to the last bit.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from training.state import RunState
from ziya.files import atomic_path
from ziya.progress import log

TIMED = (
    "tokens_per_s",
    "tokens_per_s_per_gpu",
    "seconds",
    "data_wait_s",
    "tflops",
    "recompute_tflops",
    "mfu",
    "memory_gib",
)
"""Names in metrics.jsonl whose values depend on the machine and the moment."""


def keeps(line: dict[str, Any], state: RunState) -> bool:
    """Whether a line tells of something that `state` has behind it: all of earlier stages, batches before the next one, and
    those that are left out for good."""
    if line["stage"] != state.stage:
        return bool(line["stage"] < state.stage)
    if line["data_index"] < state.data_index:
        return True
    return bool(line["skipped"]) and any(first <= line["data_index"] < end for first, end in state.skipped)


class JsonLines:
    """A file of JSON lines that is appended to, and rewound where steps are made again. A disk that is full ends nothing: lines
    wait in memory for the next one that can be written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: list[bytes] = []
        self._told = False

    def read(self) -> list[dict[str, Any]]:
        """All whole lines; one that a kill cut short is left out."""
        return read_lines(self.path) + [orjson.loads(text) for text in self._waiting]

    def rewrite(self, lines: list[dict[str, Any]]) -> None:
        """Put these lines in place of the file."""
        with atomic_path(self.path) as temporary:
            temporary.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
        self._waiting = []

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """Drop the lines that are not `wanted`, and what a kill cut short; the lines that stay."""
        if not self.path.is_file() and not self._waiting:
            return []
        kept = [line for line in self.read() if wanted(line)]
        self.rewrite(kept)
        return kept

    def write(self, line: dict[str, Any]) -> None:
        """Append one line in one write, so that readers and kills see whole lines."""
        self._waiting.append(orjson.dumps(line) + b"\n")
        try:
            append(self.path, b"".join(self._waiting))
        except OSError as error:
            if not self._told:
                log(f"warning: {self.path} cannot be written ({error.strerror}): its lines wait; training goes on")
            self._told = True
            return
        self._waiting, self._told = [], False


def append(path: Path, data: bytes) -> None:
    """Append all of `data` to a file or nothing; OSError when it has no room."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        if os.write(descriptor, data) != len(data):
            os.ftruncate(descriptor, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(descriptor)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON lines, [] where there is none."""
    found = []
    for text in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            found.append(orjson.loads(text))
        except orjson.JSONDecodeError:
            continue
    return found


class Metrics(JsonLines):
    """After a resume or a rollback `rewind` drops the lines of steps that will be made again, so the file is the same as that of
    a run that was never interrupted (`TIMED` values apart)."""

    def __init__(self, run: Path) -> None:
        super().__init__(run / "metrics.jsonl")

    def rewind(self, state: RunState) -> None:
        """Keep only what lies behind `state`."""
        self.keep(lambda line: keeps(line, state))
