"""How far a stage is: a bar with rate and time left on a terminal, a plain line now and then elsewhere.

The launching process shows it, from the last line of RUN/metrics.jsonl: it alone has the terminal in every case (on several
nodes the ranks' output comes through pdsh), and ranks need to tell nothing more than they write anyway. Under a bare
`deepspeed --module training` rank 0 shows it.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import orjson
from tqdm import tqdm

from training.state import RunState
from ziya.progress import log

EVERY_S = 15.0  # between plain lines
_TAIL = 1 << 16  # bytes that hold the last line; longer ones name the documents of skipped batches


class StageBar:
    """Tokens of one stage. `show(line)` takes a line of metrics.jsonl; nothing appears before the first one."""

    def __init__(self, start: RunState, budget: float, every_s: float = EVERY_S) -> None:
        """`start`: where the stage stands when this process begins; `budget`: tokens of the whole stage."""
        self.stage, self.budget, self.every = start.stage, budget, every_s
        self._before = start.tokens - start.stage_tokens
        self._began: tuple[float, int] | None = None  # moment and tokens of the first line: starting up is no measure
        self._told = time.monotonic()
        self._bar: Any = None
        self._terminal = sys.stderr.isatty()

    def show(self, line: dict[str, Any]) -> None:
        """Show where the stage stands after this step."""
        done = min(line["tokens"] - self._before, int(self.budget))  # the last batch may go beyond it
        loss = "not finite" if line["loss"] is None else f"{line['loss']:.4f}"
        if not self._terminal:
            self._tell(line, done, loss)
            return
        if self._bar is None:
            self._bar = tqdm(
                total=int(self.budget), initial=done, desc=f"stage {self.stage}", unit="tok", unit_scale=True,
                file=sys.stderr, leave=False, dynamic_ncols=True, mininterval=0.2, miniters=1,
            )  # fmt: skip
        self._bar.set_postfix_str(f"step {line['step']}, loss {loss}", refresh=False)
        back = done < self._bar.n  # after a rollback, where tqdm would not draw by itself
        self._bar.update(done - self._bar.n)
        if back:
            self._bar.refresh()

    def _tell(self, line: dict[str, Any], done: int, loss: str) -> None:
        now = time.monotonic()
        if now - self._told < self.every:
            return
        self._told = now
        began, first = self._began or (now, done)
        self._began = began, first
        rate = (done - first) / max(now - began, 1e-9)
        left = f", {duration((self.budget - done) / rate)} left" if rate > 0 else ""
        norm = "not finite" if line["grad_norm"] is None else f"{line['grad_norm']:.3g}"
        log(
            f"step {line['step']}: loss {loss}, gradient norm {norm}, {line['tokens_per_s']:,.0f} tokens/s, "
            f"{100.0 * done / self.budget:.1f} % of stage {self.stage}{left}"
        )

    def close(self) -> None:
        """Take the bar from the terminal."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def duration(seconds: float) -> str:
    """Of two units the larger ones: `3 d 4 h`, `5 h 12 min`, `7 min`, `40 s`."""
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{max(seconds, 0.0):.0f} s"


class Follower:
    """Feeds a bar from a metrics.jsonl that another process writes; `look` is cheap when nothing is new."""

    def __init__(self, path: Path, bar: StageBar) -> None:
        self.path, self.bar = path, bar
        self._seen = self._stamp()

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            stat = self.path.stat()
        except OSError:
            return None
        return stat.st_ino, stat.st_size, stat.st_mtime_ns

    def look(self) -> None:
        """Show the last line, if there is a new one of this stage."""
        stamp = self._stamp()
        if stamp is None or stamp == self._seen:
            return
        self._seen = stamp
        line = last_line(self.path)
        if line is not None and line.get("stage") == self.bar.stage:
            self.bar.show(line)


def last_line(path: Path) -> dict[str, Any] | None:
    """The last whole line of a file of JSON lines; None when there is none, or it is very long."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            text = file.read()
    except OSError:
        return None
    end = text.rfind(b"\n")
    try:
        found: dict[str, Any] = orjson.loads(text[text.rfind(b"\n", 0, max(end, 0)) + 1 : max(end, 0)])
    except orjson.JSONDecodeError:
        return None
    return found
