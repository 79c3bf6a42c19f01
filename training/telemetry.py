"""What a step tells: one line of metrics.jsonl on rank 0, made of counts that the reading threads take, the losses by row and
what each rank says of itself.

| name | meaning |
|---|---|
| `loss_by_source` | source -> mean loss (nats) over its unmasked targets in this global batch |
| `bits_per_byte` | loss of the batch in bits over the bytes that its targets spell (`bytes_per_token`); null without a tokenizer |
| `tflops`, `mfu` | model TFLOPS per process: non-padding tokens, causal pairs inside documents; over the device's dense BF16 peak |
| `recompute_tflops` | what `model.recompute` adds to them, never part of `mfu` |
| `tokens_per_s`, `tokens_per_s_per_gpu` | non-padding tokens of all processes, of one |
| `memory_gib` | most that any process ever took: reserved on its device, resident without one |
| `seconds`, `data_wait_s` | of the step, waiting included; the longest that any process waited for its rows |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import psutil
import torch

from training import flops
from training.architecture import Architecture
from training.bytes_per_token import I32, bytes_per_token
from training.config import DataSettings, TrainConfig
from training.data import GlobalBatch, dealt
from training.layout import Place
from training.row_losses import row_losses
from training.rows import Packed
from training.state import RunState

if TYPE_CHECKING:  # it imports megatron-core, which the launching process does without
    from training.engine import StepResult

F64 = npt.NDArray[np.float64]
GIB = float(1 << 30)


@dataclass(frozen=True)
class Counts:
    """What a global batch holds. `targets` float64 [rows]: unmasked ones; `bytes`: of the text that they spell, None when unknown;
    `tokens`: non-padding; `squares`: sum of squared document lengths, without padding."""

    targets: F64
    bytes: int | None
    tokens: int
    squares: float


def count(batch: GlobalBatch, settings: DataSettings, spelled: I32 | None) -> Counts:
    """Count a batch; `spelled`: bytes of each token."""
    targets = batch.weights.sum(axis=1, dtype=np.float64)
    return Counts(targets, spelled_bytes(batch, spelled), batch.token_count, squares(batch, settings))


def spelled_bytes(batch: GlobalBatch, spelled: I32 | None) -> int | None:
    """Bytes of the text that the unmasked targets of a batch spell."""
    if spelled is None:
        return None
    return int(np.take(spelled, batch.tokens[:, 1:])[batch.weights[:, :-1] > 0].sum(dtype=np.int64))


def squares(batch: GlobalBatch, settings: DataSettings) -> float:
    """Sum of squared lengths of what sees itself: documents, or whole rows of sources with `visible: row`; no padding."""
    filled = batch.filled.astype(np.int64)
    row = np.repeat(np.arange(len(filled)), np.diff(batch.pieces))
    ends = np.append(batch.starts[1:], 0)
    ends[batch.pieces[1:] - 1] = batch.tokens.shape[1]
    lengths = np.minimum(ends, filled[row]) - batch.starts  # 0 for padding, which begins where the row is filled
    whole = np.array([source.visible == "row" for source in settings.sources])[batch.source]
    return float((lengths[~whole[row]] ** 2).sum() + (filled[whole] ** 2).sum())


def bits_per_byte(nats: float, size: int | None) -> float | None:
    """`nats` of loss over `size` bytes of text, in bits a byte; None where no bytes are known."""
    return nats / math.log(2.0) / size if size else None


def peak_memory() -> float:
    """GiB that this process took at most: reserved on its device, else resident."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_reserved()) / GIB
    try:  # the peak of this program alone: getrusage's may be that of the process that started it
        text = Path("/proc/self/status").read_text(encoding="ascii")
        return float(text.split("VmHWM:", 1)[1].split(maxsplit=1)[0]) * 1024 / GIB
    except (OSError, IndexError):
        return float(psutil.Process().memory_info().rss) / GIB


class Telemetry:
    """Makes the lines of a stage's steps."""

    def __init__(self, config: TrainConfig, shape: Architecture, place: Place) -> None:
        self.config, self.shape, self.place = config, shape, place
        self.spelled = bytes_per_token(Path(config.model.base), shape.vocab_used)
        self.names = [source.name for source in config.data.sources]
        known = flops.peak_tflops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
        self.peak = config.telemetry.peak_tflops or known

    def count(self, batch: GlobalBatch) -> Counts:
        """Counts of a global batch; for the threads that read ahead."""
        return count(batch, self.config.data, self.spelled)

    def line(
        self,
        state: RunState,
        batch: GlobalBatch,
        counts: Counts,
        rows: Sequence[Packed],
        result: StepResult,
        rate: float,
        seconds: float,
        waited: float,
    ) -> dict[str, Any]:
        """The line of a step. Collective; the same on every rank."""
        data, layout = self.config.data, self.place.layout
        numbers = dealt(len(batch.tokens), self.place.data, layout.data, data.micro_batch_rows)
        nats, told = row_losses(result.losses, rows, numbers, len(batch.tokens), self.place, (waited, peak_memory()))
        by_source = {
            name: float(nats[batch.source == number].sum() / counts.targets[batch.source == number].sum())
            for number, name in enumerate(self.names)
            if counts.targets[batch.source == number].any()
        }
        took = max(seconds, 1e-9)
        processes = layout.world
        speed = flops.of_rows(self.shape, counts.tokens, counts.squares) / took / processes / 1e12
        again = flops.recomputed(self.shape, self.config.model.recompute, counts.tokens, counts.squares)
        return {
            "step": state.step,
            "stage": state.stage,
            "tokens": state.tokens,
            "data_index": state.data_index,
            "loss": result.loss,
            "grad_norm": result.norm,
            "lr": rate,
            "skipped": bool(result.reason),
            "loss_by_source": by_source,
            "bits_per_byte": bits_per_byte(float(nats.sum()), counts.bytes),
            "tokens_per_s": counts.tokens / took,
            "tokens_per_s_per_gpu": counts.tokens / took / processes,
            "seconds": seconds,
            "data_wait_s": float(told[:, 0].max()),
            "tflops": speed,
            "recompute_tflops": again / took / processes / 1e12,
            "mfu": speed / self.peak if self.peak else None,
            "memory_gib": float(told[:, 1].max()),
        }
