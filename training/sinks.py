"""TensorBoard and Weights & Biases beside metrics.jsonl. Both are optional, and training never waits for them or fails with them:
they work in a thread of rank 0; whatever goes wrong there, at import or at any call, is told once and ends that one.

Values are named `train/loss`, `train/loss/SOURCE`, `validation/NAME/bits_per_byte`; x is the step. A skipped batch shows as
`train/skipped` = 1 at the step before it.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from training.config import TrainConfig
from ziya.files import read_json, write_json
from ziya.progress import log

WAITING = 4096  # lines that a slow service may lag behind; later ones are left out
CLOSE_S, FAILED_S = 60.0, 5.0  # how long the end of a stage, and one that failed, waits for what is still under way

Values = dict[str, float]


class Sink(Protocol):
    """One service. `write(step, values)`; `rewind(step)`: steps after it will be made again; `close()`."""

    def write(self, step: int, values: Values) -> None: ...
    def rewind(self, step: int) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Events in RUN/tensorboard. Rewinding tells readers to forget later steps, so a curve has each step once."""

    def __init__(self, run: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._open: Callable[..., Any] = SummaryWriter
        self._folder = str(run / "tensorboard")
        self._writer: Any = None

    def rewind(self, step: int) -> None:
        self.close()
        self._writer = self._open(self._folder, purge_step=step + 1)

    def write(self, step: int, values: Values) -> None:
        self._writer = self._writer or self._open(self._folder)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class WandB:
    """A run of Weights & Biases; its id lies in RUN/wandb.json, so that a resume goes on in the same one. It keeps the first value
    of a step: after a rollback, steps that were made before show as they were the first time."""

    def __init__(self, run: Path, project: str, config: dict[str, Any]) -> None:
        import wandb

        path = run / "wandb.json"
        known = read_json(path) if path.is_file() else {}
        if known.get("project") != project:
            known = {"project": project, "id": uuid.uuid4().hex[:8]}
            write_json(path, known)
        self._run = wandb.init(
            project=project,
            id=known["id"],
            resume="allow",
            name=run.name,
            dir=str(run),
            config=config,
            settings={"console": "off"},  # the rank's output has its place already
        )

    def rewind(self, step: int) -> None:
        """Nothing to do: see the class."""

    def write(self, step: int, values: Values) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


def train_values(line: dict[str, Any]) -> Values:
    """What a line of metrics.jsonl gives to draw."""
    if line["skipped"]:
        return {"train/skipped": 1.0}
    values: Values = {"train/skipped": 0.0}
    for name, value in line.items():
        if name == "loss_by_source":
            values |= {f"train/loss/{source}": loss for source, loss in value.items()}
        elif isinstance(value, (int, float)) and name not in ("step", "skipped"):
            values[f"train/{name}"] = float(value)
    return values


def validation_values(line: dict[str, Any]) -> Values:
    """What a line of validation.jsonl gives to draw."""
    names = ("loss", "bits_per_byte", "base_bits_per_byte")
    return {f"validation/{line['name']}/{name}": line[name] for name in names if line.get(name) is not None}


class Sinks:
    """The services that the settings ask for. Methods return at once; `close` waits, but not for ever."""

    def __init__(self, makers: dict[str, Callable[[], Sink]], warn: Callable[[str], None]) -> None:
        """`makers`: name -> what makes a service (called in the thread, where its package is imported, too)."""
        self._warn, self._waiting = warn, queue.Queue[tuple[str, int, Values] | None](WAITING)
        self._full = False
        self._names = ", ".join(makers)
        self._thread: threading.Thread | None = None
        if makers:
            self._thread = threading.Thread(target=self._work, args=(makers,), name="telemetry", daemon=True)
            self._thread.start()

    def train(self, line: dict[str, Any]) -> None:
        """A line of metrics.jsonl."""
        self._put("write", line["step"], train_values(line))

    def validation(self, line: dict[str, Any]) -> None:
        """A line of validation.jsonl."""
        self._put("write", line["step"], validation_values(line))

    def rewind(self, step: int) -> None:
        """Steps after `step` will be made again; -1: all of them, and what was measured before the first."""
        self._put("rewind", step, {})

    def _put(self, what: str, step: int, values: Values) -> None:
        if self._thread is None:
            return
        try:
            self._waiting.put_nowait((what, step, values))
        except queue.Full:
            if not self._full:
                self._warn(f"warning: {self._names} cannot keep up: values are left out there; metrics.jsonl has all")
            self._full = True

    def _work(self, makers: dict[str, Callable[[], Sink]]) -> None:
        sinks: dict[str, Sink] = {}

        def tried(name: str, act: Callable[[], Any]) -> Any:
            try:
                return act()
            except (Exception, SystemExit) as error:
                sinks.pop(name, None)
                reason = " ".join(str(error).split()) or type(error).__name__
                self._warn(f"warning: {name} gets nothing more: {reason}; training goes on, metrics.jsonl has all")
                return None

        for name, make in makers.items():
            made = tried(name, make)
            if made is not None:
                sinks[name] = made
        while (item := self._waiting.get()) is not None:
            what, step, values = item
            for name, sink in list(sinks.items()):
                tried(name, partial(sink.rewind, step) if what == "rewind" else partial(sink.write, step, values))
        for name, sink in list(sinks.items()):
            tried(name, sink.close)

    def close(self, wait_s: float = CLOSE_S) -> None:
        """Write out what is under way; waits so long at most."""
        if self._thread is None:
            return
        with contextlib.suppress(queue.Full):  # then it hangs, and waiting would be in vain
            self._waiting.put_nowait(None)
            self._thread.join(wait_s)
        if self._thread.is_alive():
            self._warn(f"warning: {self._names} did not end in time: last values may be missing there")
        self._thread = None

    def __enter__(self) -> Sinks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(CLOSE_S if kind is None else FAILED_S)


def open_sinks(config: TrainConfig, rank: int) -> Sinks:
    """What `telemetry.tensorboard` and `telemetry.wandb` ask for; nothing on other ranks than the first."""
    settings, run = config.telemetry, Path(config.run)
    makers: dict[str, Callable[[], Sink]] = {}
    if settings.tensorboard and rank == 0:
        makers["TensorBoard"] = partial(TensorBoard, run)
    if settings.wandb is not None and rank == 0:
        makers["Weights & Biases"] = partial(WandB, run, settings.wandb, config.model_dump(mode="json"))
    return Sinks(makers, log)
