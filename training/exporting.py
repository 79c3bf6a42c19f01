"""Exports that fall due while training goes on: one process at a time, on the CPU, none of which training ever waits for.

Rank 0 alone keeps the queue. A checkpoint in it is held against pruning until its export has ended. When the stage ends, rank 0
waits for what is left, after the last thing that all ranks do together; when the run is asked to stop, nothing is waited for:
the running export is ended, and what was not made is made when the run goes on, by the same command or by hand.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from training.checkpoint import whole_checkpoints
from training.state import RunState
from ziya.exports import is_export

LOOK_S = 0.2
END_S = 5.0  # for an export to end when it is told to


class Exports:
    """The queue of one rank; only rank 0's is ever filled."""

    def __init__(self, run: Path, held: set[int], log: Callable[[str], None], *, samples: bool) -> None:
        """`held`: steps that are not pruned, kept up to date here; `samples`: let each exported model write on."""
        self.run, self.held, self.log, self.samples = run, held, log, samples
        self._waiting: deque[int] = deque()
        self._running: tuple[int, subprocess.Popen[bytes]] | None = None

    @property
    def left(self) -> list[int]:
        """Steps whose exports run or wait, in order."""
        return [*([self._running[0]] if self._running is not None else []), *self._waiting]

    def due(self, step: int) -> None:
        """Export the checkpoint of `step` as soon as those before it are made."""
        self.held.add(step)
        self._waiting.append(step)
        self.look()
        if len(self._waiting) > 1:
            self.log(
                f"warning: exports take longer than checkpoint.export_every_tokens gives them: checkpoints of steps "
                f"{', '.join(map(str, self.left))} are kept until they are made"
            )

    def make_up(self, state: RunState) -> None:
        """Take up the last export that was due before `state`, where a stop or a kill left it undone and its checkpoint stands."""
        if state.exported_tokens:
            for stored in whole_checkpoints(self.run):
                made = is_export(self.run / "exports" / f"step-{stored.step}")
                if stored.manifest.tokens == state.exported_tokens and not made:
                    self.due(stored.step)

    def look(self) -> None:
        """See to an export that has ended, and start the next; waits for nothing."""
        if self._running is not None and self._running[1].poll() is not None:
            step, process = self._running
            self._running = None
            self._end(step, f"failed (see {self.run / 'logs' / 'rank-0.log'})" if process.returncode else "")
        while self._running is None and self._waiting:
            step = self._waiting.popleft()
            command = [sys.executable, "-m", "training.cli", "export", str(self.run), "--step", str(step)]
            command += ["--samples"] if self.samples else []
            environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
            try:
                self._running = (step, subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment))
            except OSError as error:
                self._end(step, f"could not be started ({error.strerror})")

    def finish(self, asked: Callable[[], bool]) -> None:
        """Wait until all are made, or until `asked` says that the run must end; collective calls must lie behind all ranks."""
        self.look()
        if self.left and not asked():
            self.log(f"waiting for the export of step {', '.join(map(str, self.left))}")
        while self.left:
            if asked():
                self.stop()
                return
            time.sleep(LOOK_S)
            self.look()

    def stop(self) -> None:
        """End the running export, drop the others, and tell how to come by them."""
        self.look()  # it may have ended by now
        left = self.left
        self._waiting.clear()
        if self._running is not None:
            step, process = self._running
            self._running = None
            process.terminate()
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            with contextlib.suppress(OSError):
                shutil.rmtree(self.run / "exports" / f"step-{step}.tmp")
        for step in left:
            self._end(step, "was not waited for")

    def _end(self, step: int, wrong: str) -> None:
        self.held.discard(step)
        if wrong:
            self.log(f"warning: the export of step {step} {wrong}: `ziya-train export {self.run} --step {step}` makes it")
