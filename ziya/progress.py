"""Progress of long work: a bar with rate and time left on a terminal, plain log lines elsewhere (both on stderr).

A step of few units would be silent for long. So whoever works on a unit calls `done` as it goes, in whatever process,
and the line also tells the documents and bytes seen so far: `measure: 0 of 3 units, 12,288 documents, 35.2 MB, 1.9 MB/s`.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from ziya.files import TEMPORARY

_CELL = 16  # bytes of one task on a board: documents and bytes, two native 64-bit numbers
_at_work: list[Any] = []  # memoryviews of the two numbers of the tasks at work in this process, the innermost last


def log(message: str) -> None:
    """One plain line on stderr, above any bar, also one that another process has drawn on the same terminal."""
    tqdm.write(f"\r\x1b[K{message}" if sys.stderr.isatty() else message, file=sys.stderr)
    sys.stderr.flush()


def counted(number: int, noun: str) -> str:
    """`1 item`, `2,000 items`: a number with its noun, which takes an s."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def done(documents: int, size: int) -> None:
    """Tell that so many more documents and bytes of the task at work are through; costs next to nothing when nobody asks."""
    if _at_work:
        _at_work[-1][0] += documents
        _at_work[-1][1] += size


class Board:
    """What every task has seen, in a file that worker processes write to through a memory map.

    `with Board(folder, tasks) as board: ... board.totals()`; a task runs as `Board.run(board.path, number, function,
    arguments)`. The file is a temporary one of `folder` and only serves the display: work goes on without it.
    """

    def __init__(self, folder: Path, tasks: int) -> None:
        self.path = folder / f"{TEMPORARY}{os.getpid()}-progress"
        empty = bytes(_CELL * tasks)
        try:
            with self.path.open("w+b") as file:
                file.write(empty)  # not a hole: a map of one kills the process that touches it when the disk is full
                file.flush()
                self._numbers = memoryview(mmap.mmap(file.fileno(), len(empty))).cast("q")
        except OSError:  # whatever is wrong here, the step will say it better
            self.path.unlink(missing_ok=True)
            self._numbers = memoryview(empty).cast("q")

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *_: object) -> None:
        self.path.unlink(missing_ok=True)

    def totals(self) -> tuple[int, int]:
        """Documents and bytes seen by all tasks so far."""
        numbers = self._numbers.tolist()
        return sum(numbers[::2]), sum(numbers[1::2])

    @staticmethod
    def run(path: Path, number: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """`function(*arguments)`, whose calls of `done` count for task `number` of the board at `path`."""
        with _counting(path, number):
            return function(*arguments)


@contextlib.contextmanager
def _counting(path: Path, number: int) -> Iterator[None]:
    try:
        with path.open("r+b") as file:
            numbers = memoryview(mmap.mmap(file.fileno(), 0)).cast("q")
    except (OSError, ValueError):  # the board is gone: nobody looks
        yield
        return
    cell = numbers[2 * number : 2 * number + 2]
    cell[0] = cell[1] = 0  # of a worker that died at this task
    _at_work.append(cell)
    try:
        yield
    finally:
        _at_work.pop()


class Progress:
    """`with Progress("measure", total) as bar: bar.advance()`; `total` in `unit`s. `totals`: see `Board.totals`; when it
    is given, the display also moves between two calls of `advance`.
    """

    def __init__(
        self,
        label: str,
        total: int,
        unit: str = "unit",
        every_seconds: float = 15.0,
        totals: Callable[[], tuple[int, int]] | None = None,
    ) -> None:
        self.label, self.total, self.unit, self.every = label, total, unit, every_seconds
        self.count = 0
        self._start = self._last = time.monotonic()
        self._totals = totals
        self._lock = threading.Lock()  # of what `advance` and the watching thread share
        self._ended = threading.Event()
        self._bar = (
            tqdm(total=total, desc=label, unit=unit, file=sys.stderr, leave=False)
            if sys.stderr.isatty() and total > 1
            else None
        )
        self._watch = threading.Thread(target=self._watching, daemon=True) if totals is not None else None
        if self._watch is not None:
            self._watch.start()

    def advance(self, amount: int = 1) -> None:
        """Count `amount` more units as done."""
        with self._lock:
            self.count += amount
            if self._bar is not None:
                self._bar.update(amount)
            else:
                self._tell()

    def _watching(self) -> None:
        while not self._ended.wait(1.0 if self._bar is not None else self.every):
            with self._lock:
                if self._bar is not None:
                    self._bar.set_postfix_str(self._amounts().removeprefix(", "))
                else:
                    self._tell()

    def _amounts(self) -> str:
        """Documents, bytes and rate so far, each after a comma; nothing before the first document."""
        documents, size = self._totals() if self._totals is not None else (0, 0)
        if not documents and not size:
            return ""
        megabytes = size / 1e6
        rate = megabytes / (time.monotonic() - self._start)
        return f"{f', {documents:,} documents' if documents else ''}, {megabytes:,.1f} MB, {rate:.2g} MB/s"

    def _tell(self) -> None:
        """A line, if the last one was long ago."""
        now = time.monotonic()
        if now - self._last < self.every:
            return
        self._last = now
        elapsed = now - self._start
        if self.total == 1:
            log(f"{self.label}: {elapsed:.0f} s so far{self._amounts()}")
            return
        rate = self.count / elapsed
        left = f", {rate:.2g} {self.unit}s/s, {(self.total - self.count) / rate:.0f} s left" if rate else ""
        log(f"{self.label}: {self.count} of {self.total} {self.unit}s{left}{self._amounts()}")

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._watch is not None:
            self._watch.join()
        if self._bar is not None:
            self._bar.close()
        if kind is None:
            log(
                f"{self.label}: {self.count} {self.unit}{'' if self.count == 1 else 's'} in {time.monotonic() - self._start:.1f} s"
            )
