"""Running steps with markers: finished work with the same identity is skipped, timings are kept apart."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import orjson

from data_factory import measure
from data_factory.executor import Pool, Usage, WorkerDied, measured
from data_factory.measure import MeasureJob
from data_factory.run_state import RunState
from ziya.errors import UserError
from ziya.files import json_bytes, remove_temporaries
from ziya.manifest import identity
from ziya.progress import Board, Progress, log

# Set by tests: kill the whole run (SIGKILL) right after this many pieces of work were recorded.
_KILL_AFTER = "ZIYA_TEST_KILL_AFTER"


class Steps:
    """Runs the steps of one run folder over a pool of workers."""

    def __init__(self, state: RunState, workers: int) -> None:
        self.state, self.markers, self.out = state, state.markers, state.out
        self.pool = Pool(workers)
        self._kill_after = int(os.environ.get(_KILL_AFTER, "0"))

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.__exit__(*error)

    def _record(
        self, step: str, key: str, wanted: str, outputs: Sequence[Path], result: Any, usage: Usage, sub: Any = None
    ) -> None:
        self.markers.finish(step, key, wanted, outputs, result)
        size = sum(path.stat().st_size for path in outputs)
        self.markers.timing(step, key, {**asdict(usage), "bytes": size, **({"sub": sub} if sub else {})})
        if self._kill_after:
            self._kill_after -= 1
            if self._kill_after == 0:
                os.kill(os.getpid(), 9)

    def once(
        self,
        step: str,
        wanted: str,
        function: Callable[[], Any],
        outputs: Sequence[Path] | Callable[[], Sequence[Path]] = (),
    ) -> Any:
        """A global step: run here, once per identity."""
        found = self.markers.result(step, "all", wanted)
        if found is not None:
            return found["value"]
        with Board(self.state.work, 1) as board, Progress(step, 1, "pass", totals=board.totals) as bar:
            self.markers.forget(step)
            value, usage = measured(Board.run, board.path, 0, function, ())
            self._record(step, "all", wanted, outputs() if callable(outputs) else outputs, {"value": value}, usage)
            bar.advance()
        return canonical(value)

    def each(
        self,
        step: str,
        wanted: str,
        function: Callable[..., Any],
        names: Sequence[str],
        arguments: Callable[[str], tuple[Any, ...]],
        outputs: Callable[[str], Sequence[Path]],
    ) -> dict[str, Any]:
        """A step per unit: run by the workers, every unit once per identity. Returns unit name -> result."""
        results = {name: self.markers.result(step, name, wanted) for name in names}
        todo = [name for name in names if results[name] is None]
        if todo:
            with Board(self.state.work, len(todo)) as board, Progress(step, len(todo), totals=board.totals) as bar:
                tasks = [(board.path, number, function, arguments(name)) for number, name in enumerate(todo)]
                for number, value, usage in self.pool.map(Board.run, tasks):
                    name = todo[number]
                    if isinstance(value, WorkerDied):
                        raise UserError(
                            f"step {step} lost its worker on unit {name} ({value.cause}): free memory or use fewer "
                            "--workers, then run again"
                        )
                    assert usage is not None
                    self._record(step, name, wanted, outputs(name), value, usage)
                    results[name] = canonical(value)
                    bar.advance()
        return results

    def apart(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in a worker, which has loaded already what most functions need. Nothing is recorded."""
        ((_, value, _),) = self.pool.map(function, [arguments])
        if isinstance(value, WorkerDied):
            raise UserError(f"a worker died in {function.__name__} ({value.cause}): free memory, then run again")
        return value

    def measure(self, jobs: Sequence[MeasureJob]) -> dict[str, Any]:
        """The measuring step: a record that kills its worker is found by halving and quarantined, all others are kept."""
        wanted = {job.name: self.unit_identity(job) for job in jobs}
        results = {job.name: self.markers.result("measure", job.name, wanted[job.name]) for job in jobs}
        todo = [job for job in jobs if results[job.name] is None]
        place = {job.name: number for number, job in enumerate(todo)}
        if not todo:
            return results
        with Board(self.state.work, len(todo)) as board, Progress("measure", len(todo), totals=board.totals) as bar:
            deaths: dict[str, int] = {}
            while todo:
                again: list[MeasureJob] = []
                tasks = [(board.path, place[job.name], measure.measure_unit, (job,)) for job in todo]
                for number, value, usage in self.pool.map(Board.run, tasks):
                    job = todo[number]
                    if isinstance(value, WorkerDied):
                        deaths[job.name] = deaths.get(job.name, 0) + 1
                        log(f"measure: a worker died on unit {job.name} of {job.unit.label} ({value.cause})")
                        again.append(job)
                        continue
                    assert usage is not None
                    counted, clock = value  # the clock differs between equal runs: never into a marker
                    self._record("measure", job.name, wanted[job.name], job.outputs(), counted, usage, clock)
                    results[job.name] = canonical(counted)
                    bar.advance()
                if again:
                    remove_temporaries(self.out)  # of the dead; nobody works at this moment
                todo = [job if deaths[job.name] < 2 else self._without_killers(job) for job in again]
        return results

    def unit_identity(self, job: MeasureJob) -> str:
        """Identity of one unit's measurements: measuring settings, range and bytes."""
        unit = job.unit
        return identity(
            self.state.unit_settings,
            unit.source,
            unit.label,
            unit.start,
            unit.end,
            unit.limit,
            self.state.inputs[f"{unit.source}/{unit.label}"],
        )

    def _without_killers(self, job: MeasureJob) -> MeasureJob:
        """Find the records that kill a worker by halving the unit; return the job with them as poison."""
        if job.poison:
            raise UserError(
                f"unit {job.name} of {job.unit.label} kills its worker even without records {list(job.poison)}: free "
                "memory or lower read.unit_bytes"
            )
        (_, count, _), *_ = self.pool.map(measure.count_records, [(job,)])
        if isinstance(count, WorkerDied):
            raise UserError(
                f"reading unit {job.name} of {job.unit.label} kills its worker ({count.cause}): lower "
                "read.record_limit_bytes, or remove the file"
            )
        found: list[int] = []
        ranges = [(0, count)]
        while ranges:
            deadly = []
            for number, value, _ in self.pool.map(measure.probe, [(job, first, last) for first, last in ranges]):
                if isinstance(value, WorkerDied):
                    deadly.append(ranges[number])
            ranges = []
            for first, last in sorted(deadly):
                middle = (first + last) // 2
                if last - first == 1:
                    found.append(first)
                else:
                    ranges += [(first, middle), (middle, last)]
        log(f"measure: {len(found)} record(s) of {job.unit.label} that kill their worker are quarantined")
        if not found:
            raise UserError(
                f"workers die on unit {job.name} of {job.unit.label}, but no single record does it: free memory or use fewer --workers"
            )
        return replace(job, poison=tuple(sorted(found)))


def canonical(value: Any) -> Any:
    """A result as its marker will give it back (keys sorted, plain types), so that a resumed run goes on with equal values."""
    return orjson.loads(json_bytes(value))
