"""A stage on one rank: model, data, books, and the services that `loop.train_stage` calls at its borders."""

from __future__ import annotations

import time
from pathlib import Path

import torch
import torch.distributed as dist

from training import checks, loop
from training.agreement import told
from training.architecture import Architecture, read_architecture
from training.checkpoint import Checkpoints, SaveError
from training.config import TrainConfig
from training.data import GlobalBatch, ReadAhead, micro_batches, open_dataset
from training.device import device
from training.engine import Engine, StepResult
from training.exporting import Exports
from training.hf_files import HFWeights
from training.layout import Layout, Place, place
from training.ledger import Ledger
from training.metrics import Metrics
from training.model import Numerics, build
from training.preflight import eos_of
from training.progress import StageBar
from training.reshard import MASTER, owned
from training.rows import Packed, on_device
from training.sinks import open_sinks
from training.stability import Judge
from training.stages import MODEL, Start, find_start
from training.state import RunState
from training.telemetry import Counts, Telemetry
from training.validation import in_words, open_for_run
from training.watch import Watch
from training.weights import whole_to_native
from ziya.errors import UserError
from ziya.files import read_json
from ziya.progress import log

LEDGER_S = 30.0  # RUN/ledger.json is written at least so often while steps are booked, and at each checkpoint


class Batches:
    """The stage's global batches with this rank's part on its device; threads read ahead. `counts`: of the last one read."""

    def __init__(self, make: ReadAhead[tuple[GlobalBatch, list[Packed], Counts]]) -> None:
        self._make = make
        self.counts: Counts

    def read(self, data_index: int) -> tuple[GlobalBatch, list[Packed]]:
        """(global batch, this data-parallel rank's micro-batches on its device)."""
        batch, rows, self.counts = self._make.read(data_index)
        return batch, [on_device(part) for part in rows]


def fill_from_model(engine: Engine, folder: Path, shape: Architecture, here: Place) -> None:
    """Masters from the safetensors of a Hugging Face folder, in FP32, whatever dtype they have there; moments from zero."""
    with HFWeights(folder) as weights, torch.no_grad():
        for fragment in owned(engine):
            part = whole_to_native(fragment.name, weights.read, shape, here.tensor, here.layout.tensor)
            flat = part.reshape(-1)[fragment.start : fragment.start + fragment.numel]
            fragment.tensors[MASTER].copy_(flat)
        engine.reset_moments()
        engine.refresh()


def first_new_row(base: Path, shape: Architecture) -> int:
    """The first vocabulary row that `ziya-train init` has added; without its init.json all rows are old."""
    path = base / "init.json"
    return int(read_json(path)["vocabulary"]["before"]) if path.is_file() else shape.vocab_used


class Trainer:
    """All that a rank holds while stage `number` runs."""

    def __init__(self, config: TrainConfig, number: int, layout: Layout, watching: Watch) -> None:
        self.config, self.stage, self.watching = config, config.stage(number), watching
        self.run, self.base = Path(config.run).absolute(), Path(config.model.base)
        self.rank = dist.get_rank()
        self.shape, self.place = read_architecture(self.base), place(layout)
        self.dataset = open_dataset(
            config,
            config.seed,
            number,
            cache=self.run / "index",
            eos_id=eos_of(self.base),
            vocab_size=self.shape.vocab_used,
        )
        numerics = Numerics(
            bf16=config.model.precision == "bf16",
            kernel=config.model.kernel,
            fused=config.model.fused,
            recompute=config.model.recompute,
            deterministic=config.model.deterministic,
            loss_chunk=config.model.loss_chunk,
            z_loss=config.optimizer.z_loss,
        )
        chunks = [chunk.to(device()) for chunk in build(self.shape, layout, numerics)]
        self.engine = Engine(chunks, layout, config.optimizer)
        self.checkpoints = Checkpoints(self.run, self.engine, layout, self.place, config.checkpoint)
        self.judge = Judge(config.stability)
        self.metrics, self.telemetry = Metrics(self.run), Telemetry(config, self.shape, self.place)
        self.sinks = open_sinks(config, self.rank)
        self.validation = open_for_run(config, self.shape, self.place, self.telemetry.spelled, self.sinks.validation)
        self.batches: Batches
        self.bar: StageBar | None = None
        self.flag = loop.StopFlag()
        self.failed_saves = 0
        self._ledger_written, self._ledger_late = time.monotonic(), False
        self.ledger: Ledger
        self.saved_step = -1
        self.exports = Exports(self.run, self.checkpoints.held, self.log, samples=config.checkpoint.export_samples)
        self._to_export: int | None = None
        self._export_missed = False

    def log(self, text: str) -> None:
        """One line, from rank 0."""
        if self.rank == 0:
            log(text)

    def train(self) -> tuple[str, RunState]:
        """Train until the budget is met or a stop is asked for; (how it ended, the last state)."""
        start, state = self.begin(self.judge)
        if self._late_base():
            start, state = self.begin(self.judge)
        if self.rank == 0 and self.config.checkpoint.export_every_tokens is not None:
            self.exports.make_up(state)
        if self.rank == 0 and self.watching.launch is None:
            self.bar = StageBar(state, self.stage.tokens)
        size, micro = self.place.layout.data, self.config.data.micro_batch_rows

        def make(data_index: int) -> tuple[GlobalBatch, list[Packed], Counts]:
            batch = self.dataset.batch(data_index)
            parts = micro_batches(batch, self.place.data, size, micro, self.config.data)
            return batch, parts, self.telemetry.count(batch)

        with ReadAhead(make, self.config.data.workers) as ahead, self.sinks:
            batches = self.batches = Batches(ahead)
            first = batches.read(state.data_index)[1]
            checks.run(self.engine, self.shape, self.place, self.config, first, start, self.log)
            self._tell_reads(state, planned=True)
            new_rows = first_new_row(self.base, self.shape)
            ended = loop.train_stage(
                self.config, self.stage, self.engine, batches, state, self.judge, self._services(), new_rows=new_rows
            )
        if self.bar is not None:
            self.bar.close()
        self._tell_reads(ended[1], planned=False)
        return ended

    def _tell_reads(self, state: RunState, *, planned: bool) -> None:
        """One line: how often each source was read, by the books of all stages, and will be by the end of this one."""
        now = self.ledger.reads()
        then = self.ledger.planned(max(self.stage.tokens - state.stage_tokens, 0.0)) if planned else {}
        ahead = {name: f" (to be {times:.3g} when stage {self.stage.number} ends)" for name, times in then.items()}
        told_of = ", ".join(f"{name} {times:.3g}{ahead.get(name, '')}" for name, times in now.items())
        self.log(f"times that the run has read each source: {told_of}")

    def end(self, how: str) -> None:
        """See to the exports that are left. Not collective, and it may take long: other ranks have nothing to wait for."""
        if how == loop.STOPPED:
            self.exports.stop()
        else:
            self.exports.finish(lambda: self.watching.asked)

    def validate(self, state: RunState) -> None:
        """Measure held-out rows, unless that was done at this step."""
        for line in self.validation.measure(self.engine, state):
            self.log(in_words(line))

    def _late_base(self) -> bool:
        """Measure the starting model on names that came later than it; true when the engine holds it now."""
        missing = self.validation.without_base
        if missing and self.config.stage(1).init_from is not None:
            self.log(f"warning: {', '.join(missing)}: came after stage 1 began from its init_from: no starting line is drawn")
            return False
        if missing:
            fill_from_model(self.engine, self.base, self.shape, self.place)
            for line in self.validation.measure_base(self.engine):
                self.log(in_words(line))
        return bool(missing)

    def _services(self) -> loop.Services:
        return loop.Services(
            save=self.save,
            restore=lambda judge, ranges: self.begin(judge, ranges)[1],
            report=self.report,
            book=self.book,
            log=self.log,
            validate=self.validate,
            stop=self.stop,
        )

    def begin(self, judge: Judge, ranges: list[list[int]] | None = None) -> tuple[Start, RunState]:
        """Fill model, moments, windows and books from where the stage stands on disk: at its start, and at a rollback, which
        leaves out `ranges` of batches from there on."""
        self._finish(wait=True)
        start = self.checkpoints.ranks.first(lambda: find_start(self.config, self.stage.number))
        if start.kind == MODEL:
            fill_from_model(self.engine, start.folder, self.shape, self.place)
        else:
            self.checkpoints.load(folder=start.folder)
            if not start.moments(self.stage):
                self.engine.reset_moments()
        judge.load(start.windows or Judge(self.config.stability).state())
        self.ledger = Ledger(self.dataset, start.ledger)
        self.saved_step, self._to_export, self._export_missed = start.state.step, None, False
        start.state.leave_out(ranges or [])
        if self.rank == 0:
            self.metrics.rewind(start.state)
            self.sinks.rewind(start.state.step or -1)
            self._write_ledger()
        self.validation.rewind(start.state)
        if start.state.stage == 1 and start.state.step == 0:
            self.validate(start.state)  # the starting model, before anything moves
        return start, start.state

    def save(self, state: RunState, judge: Judge, final: bool) -> None:
        """Write a checkpoint unless nothing was updated since the last one; `final` waits until it is whole.

        One failed save is told and made up for by the next; a second in a row, or a final one, ends the run.
        """
        self._finish(final or state.step > self.saved_step)
        if state.step > self.saved_step:
            self._skips(state)
            every = self.config.checkpoint.export_every_tokens
            due = every is not None and state.tokens - state.exported_tokens >= every
            if due or self._export_missed:
                state.exported_tokens, self._export_missed = state.tokens, False
                self._to_export = state.step
            extras = {"state": state.to_json(), "windows": judge.state(), "ledger": self.ledger.state()}
            extras["config"] = self.config.model_dump(mode="json")
            try:
                self.checkpoints.save(state.step, extras, wait=final)
                self.saved_step = state.step
                if final:
                    self._saved(state.step)
                elif not self.config.checkpoint.background:
                    self._finish(wait=True)
            except SaveError as error:
                self._failed(error, final)
        if self.rank == 0:
            self._write_ledger()

    def _finish(self, wait: bool) -> None:
        """See to the save under way, and to an export that has ended."""
        self.exports.look()
        try:
            step = self.checkpoints.wait() if wait else self.checkpoints.poll()
            if step is not None:
                self._saved(step)
        except SaveError as error:
            self._failed(error, final=False)

    def _saved(self, step: int) -> None:
        """The checkpoint of `step` is whole; the export that is due with it begins."""
        self.failed_saves = 0
        if step == self._to_export:
            self._to_export = None
            if self.rank == 0:
                self.exports.due(step)

    def _failed(self, error: SaveError, final: bool) -> None:
        """Tell a save that failed: nothing of its step is on disk, so whoever saves next must write, and export what was due."""
        self.failed_saves += 1
        if final or self.failed_saves > 1:
            raise error
        self.saved_step = -1
        self._export_missed, self._to_export = self._to_export is not None, None
        self.log(f"warning: {error}; training goes on, the next checkpoint is due as set")

    def stop(self) -> bool:
        """Whether any rank was asked to stop, alike on all of them; sees to a save under way."""
        self._finish(wait=False)
        self.flag.asked = self.flag.asked or self.watching.asked
        return self.flag.agreed()

    def _skips(self, state: RunState) -> None:
        """Enter ranges that are left out into the books."""
        for first, end in state.skipped:
            begin = max(first, self.ledger.stage.data_index)
            if begin < end:
                self.ledger.skip(begin, end)

    def book(self, state: RunState, batch: GlobalBatch) -> None:
        """Count a batch that the model was updated with."""
        self._skips(state)
        self.ledger.book(batch)
        if self.rank == 0 and time.monotonic() - self._ledger_written > LEDGER_S:
            self._write_ledger()

    def _write_ledger(self) -> None:
        """RUN/ledger.json, which others read; the checkpoints hold the books too, so a full disk ends nothing here."""
        self._ledger_written = time.monotonic()
        try:
            self.ledger.write(self.run / "ledger.json")
            self._ledger_late = False
        except (OSError, UserError) as error:
            if not self._ledger_late:
                self.log(f"warning: ledger.json stays behind ({told(error)}); training goes on")
            self._ledger_late = True

    def report(
        self,
        state: RunState,
        batch: GlobalBatch,
        rows: list[Packed],
        result: StepResult,
        rate: float,
        seconds: float,
        waited: float,
    ) -> None:
        """One line of metrics.jsonl; a skipped batch's line names its documents. Collective."""
        line = self.telemetry.line(state, batch, self.batches.counts, rows, result, rate, seconds, waited)
        if self.rank != 0:
            return
        if result.reason:
            line |= {"reason": result.reason, "documents": self.dataset.document_ids(batch)}
        self.metrics.write(line)
        self.sinks.train(line)
        if self.bar is not None:
            self.bar.show(line)
