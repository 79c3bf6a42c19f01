"""`RUN/metrics.jsonl`: a line per step. Rank 0 writes; the others have nothing to write."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import orjson

from training.state import RunState
from ziya.files import atomic_path


def keeps(line: dict[str, Any], state: RunState) -> bool:
    """Whether a line tells of something that `state` has behind it: all of earlier stages, batches before the next one, and
    those that are left out for good."""
    if line["stage"] != state.stage:
        return bool(line["stage"] < state.stage)
    if line["data_index"] < state.data_index:
        return True
    return bool(line["skipped"]) and any(first <= line["data_index"] < end for first, end in state.skipped)


class Metrics:
    """Appends lines; after a resume or a rollback `rewind` drops those of steps that will be made again, so the file is the
    same as that of a run that was never interrupted (times apart)."""

    def __init__(self, run: Path) -> None:
        self.path = run / "metrics.jsonl"

    def rewind(self, state: RunState) -> None:
        """Keep only what lies behind `state`. A line that a kill cut short is dropped."""
        if not self.path.is_file():
            return
        kept = []
        for text in self.path.read_bytes().splitlines():
            try:
                line = orjson.loads(text)
            except orjson.JSONDecodeError:
                continue
            if keeps(line, state):
                kept.append(text)
        with atomic_path(self.path) as temporary:
            temporary.write_bytes(b"".join(text + b"\n" for text in kept))

    def write(self, line: dict[str, Any]) -> None:
        """Append one line in one write, so that readers and kills see whole lines."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, orjson.dumps(line) + b"\n")
        finally:
            os.close(descriptor)
