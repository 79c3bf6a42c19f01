"""A pool of worker processes that maps a function over units and survives the death of a worker.

Results arrive in any order; since a unit's outputs depend on the unit alone, order never shows in the outputs. Workers die with
their parent (a killed run leaves no strays that write), and a worker's death is reported as `WorkerDied` for its task only.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, cast

from ziya.errors import UserError

# Ctrl-C and service managers reach the whole process group: the parent decides, and kills its workers.
_PARENTS_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class WorkerDied:
    """What came back instead of a result: the process died (killed, crashed in C code, out of memory)."""

    cause: str


@dataclass(frozen=True)
class Usage:
    """What one task cost: CPU seconds of its process, wall seconds, peak resident bytes during the task."""

    cpu_s: float
    wall_s: float
    peak_rss: int


def reset_peak_rss() -> None:
    """Forget this process's peak memory so far, where the kernel allows it (Linux)."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        pass


def peak_rss() -> int:
    """Peak resident bytes since `reset_peak_rss`, or of the whole process where that cannot be had."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measured(function: Callable[..., Any], *arguments: Any) -> tuple[Any, Usage]:
    """Call a function here and measure it like a task."""
    reset_peak_rss()
    cpu, wall = time.process_time(), time.monotonic()
    value = function(*arguments)
    return value, Usage(time.process_time() - cpu, time.monotonic() - wall, peak_rss())


def rarely_collect() -> None:
    """Look for reference cycles seldom: imports and compiled kernels make some 100,000 objects that stay, among which
    the default looks again and again (half a CPU second a process); batches leave few cycles."""
    gc.set_threshold(100_000, 20, 100)


def _die_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # the parent died before the line above
        os._exit(1)


def _worker(connection: Connection, parent: int) -> None:
    _die_with_parent(parent)
    rarely_collect()
    for number in _PARENTS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    while True:
        try:
            function, arguments = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        except Exception:  # the task does not unpickle here: our bug, not a death
            connection.send(("bug", traceback.format_exc(), None))
            continue
        try:
            value, usage = measured(function, *arguments)
            answer: tuple[str, Any, Usage | None] = ("done", value, usage)
        except UserError as error:
            answer = ("user", str(error), None)
        except MemoryError:
            os._exit(86)  # what a record that exhausts memory looks like: found and quarantined like a crash
        except BaseException:
            answer = ("bug", traceback.format_exc(), None)
        try:
            connection.send(answer)
        except (BrokenPipeError, ConnectionResetError):  # the parent is gone
            return


class Pool:
    """`with Pool(workers) as pool: for task, result, usage in pool.map(function, tasks)`."""

    def __init__(self, workers: int) -> None:
        self.workers = max(1, workers)
        self._context = multiprocessing.get_context("spawn")
        self._idle: list[tuple[Any, Connection]] = []
        self._busy: dict[Connection, tuple[Any, int]] = {}

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for process, connection in [
            *self._idle,
            *((process, connection) for connection, (process, _) in self._busy.items()),
        ]:
            process.kill()  # first: a worker that answers into a closed pipe would tell of it
            process.join()
            connection.close()
        self._idle, self._busy = [], {}

    def _start(self) -> tuple[Any, Connection]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_worker, args=(theirs, os.getpid()), daemon=True)
        resource_tracker.ensure_running()  # `start` would do it, and unblock the signals
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _PARENTS_SIGNALS)  # a worker inherits this
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        return process, ours

    def map(
        self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]
    ) -> Iterator[tuple[int, Any, Usage | None]]:
        """Yield (task number, result or WorkerDied, usage) as tasks end. A UserError of a worker is raised here."""
        waiting = list(range(len(tasks)))[::-1]
        while waiting or self._busy:
            while waiting and len(self._busy) < self.workers:
                process, connection = self._idle.pop() if self._idle else self._start()
                number = waiting.pop()
                try:
                    connection.send((function, tasks[number]))
                except (BrokenPipeError, ConnectionResetError):  # it died while idle: not the task's fault
                    process.join()
                    waiting.append(number)
                    continue
                self._busy[connection] = (process, number)
            for ready in wait(list(self._busy)):
                connection = cast(Connection, ready)
                process, number = self._busy.pop(connection)
                try:
                    kind, value, usage = connection.recv()
                except (EOFError, ConnectionResetError):
                    process.join()
                    connection.close()
                    code = process.exitcode
                    if code == 86:
                        cause = "out of memory"
                    elif code is not None and code < 0:
                        cause = signal.Signals(-code).name
                    else:
                        cause = f"exit code {code}"
                    yield number, WorkerDied(cause), None
                    continue
                self._idle.append((process, connection))
                if kind == "user":
                    raise UserError(value)
                if kind == "bug":
                    raise RuntimeError(f"a worker failed:\n{value}")
                yield number, value, usage
