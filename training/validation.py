"""Held-out rows by name (`telemetry.validation`): measured every `validate_every_steps`, at each stage's end, and once with the
untouched model that stage 1 starts from, whose bits per byte are the line above which a model has forgotten.

`RUN/validation.jsonl`, a line per measurement and name: `step`, `stage`, `tokens`; `name`; `loss`: mean over unmasked targets in
nats; `bits_per_byte`; `targets`: how many; `base_bits_per_byte`: of the starting model on the same rows; `data`: identity of
those rows. Lines of the starting model have step 0 and stand first. `ziya-train init` gives the starting model another
tokenizer than the base model has, so bits per byte compare with figures of the base model elsewhere, losses do not.

The same `telemetry.validation_rows` rows are read each time, spread evenly over the pack, in the training micro-batches' size;
rows without targets fill up what the layout needs. They run forward only, through the schedule that trains.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from training.architecture import Architecture
from training.bytes_per_token import I32
from training.config import DataSettings, SourceSettings, TrainConfig
from training.data import GlobalBatch, dealt, micro_batches, read_rows
from training.layout import Place
from training.metrics import JsonLines
from training.packs_index import Sources, check_sources, open_sources
from training.preflight import eos_of
from training.row_losses import row_losses
from training.rows import on_device
from training.state import RunState
from training.telemetry import bits_per_byte, spelled_bytes
from ziya.errors import UserError
from ziya.files import digest

if TYPE_CHECKING:  # it imports megatron-core, which the launching process does without
    from training.engine import Engine


@dataclass(frozen=True)
class HeldOut:
    """Rows of one name. `batch`: the first `rows` count, the rest fills up; `bytes`: of the text that targets spell."""

    name: str
    batch: GlobalBatch
    rows: int
    targets: float
    bytes: int | None
    data: str


def settings_of(config: TrainConfig) -> DataSettings:
    """The run's data settings with the held-out packs as sources."""
    packs = config.telemetry.validation.items()
    return config.data.model_copy(update={"sources": [SourceSettings(name=name, packs=[path]) for name, path in packs]})


def open_validation(
    config: TrainConfig, vocab_used: int, base: Path, *, cache: Path, eos_id: int | None
) -> Sources | None:
    """The held-out packs, checked against the model as those of training are; None when there are none."""
    if not config.telemetry.validation:
        return None
    try:
        sources = open_sources(settings_of(config), eos_id=eos_id, cache=cache)
        check_sources(sources, vocab_used, base)
    except UserError as error:
        raise UserError(f"telemetry.validation: {error}") from error
    empty = [source.name for source in sources.items if not source.rows]
    if empty:
        raise UserError(f"telemetry.validation: {', '.join(empty)} has no rows: leave it out or pack some texts")
    return sources


def trained_on(validation: Sources, sources: Sources) -> list[str]:
    """A warning for each held-out pack that is a pack of training, too."""
    known = {identity: source.name for source in sources.items for identity in source.identity}
    return [
        f"telemetry.validation: {held.name} holds the rows of source {known[identity]}, which is trained on: it cannot tell of "
        "held-out text"
        for held in validation.items
        for identity in held.identity
        if identity in known
    ]


def held_out(
    sources: Sources, number: int, wanted: int, multiple: int, vocab_used: int, spelled: I32 | None
) -> HeldOut:
    """`wanted` rows (or all there are) of a source, filled up to a multiple."""
    source = sources.items[number]
    rows = min(wanted, source.rows)
    chosen = np.arange(rows, dtype=np.int64) * source.rows // rows
    total = -(-rows // multiple) * multiple
    places = np.concatenate([chosen, np.full(total - rows, chosen[0])])
    kinds = np.full(total, number, np.int32)
    columns = read_rows(sources, kinds, places)
    columns["weights"][rows:] = 0.0
    batch = GlobalBatch(
        0, 0, **columns, source=kinds, source_row=places, stream=np.zeros(total, np.int32), place=np.arange(total)
    )
    if (batch.tokens < 0).any() or (batch.tokens >= vocab_used).any():
        raise UserError(
            f"telemetry.validation: {source.packs[0].prefix} holds token ids that the model does not know (0 to "
            f"{vocab_used - 1}): the pack is damaged; copy it again or pack again"
        )
    identity = digest(f"{' '.join(source.identity)} {rows} of {source.rows}".encode())
    return HeldOut(source.name, batch, rows, batch.target_count, spelled_bytes(batch, spelled), identity)


def in_words(line: dict[str, Any]) -> str:
    """A line of validation.jsonl for people."""
    found, base = line["bits_per_byte"], line["base_bits_per_byte"]
    measured = f"loss {line['loss']:.4f}" if found is None else f"{found:.4f} bits per byte"
    beside = f" (starting model {base:.4f})" if base is not None and line["step"] else ""
    return f"step {line['step']}: held-out {line['name']} {measured}{beside}"


class Validation:
    """Measures and writes. Every method is called by all ranks alike; rank 0 writes, and tells `told` each line."""

    def __init__(
        self,
        config: TrainConfig,
        place: Place,
        sources: Sources | None,
        vocab_used: int,
        spelled: I32 | None,
        told: Callable[[dict[str, Any]], None],
    ) -> None:
        self.place, self.told = place, told
        self.settings, self.micro = settings_of(config), config.data.micro_batch_rows
        self.file = JsonLines(Path(config.run) / "validation.jsonl")
        layout = place.layout
        multiple = layout.data * self.micro * (layout.pipeline if layout.chunks > 1 else 1)
        wanted = config.telemetry.validation_rows
        count = len(sources.items) if sources is not None else 0
        self.sets = [held_out(sources, n, wanted, multiple, vocab_used, spelled) for n in range(count)]  # type: ignore[arg-type]
        self.last: tuple[int, int] | None = None
        self.base: dict[tuple[str, str], float | None] = {}

    def rewind(self, state: RunState) -> None:
        """Keep what was measured up to `state`; at the very start of a run nothing is, for another model may start it."""
        found: list[Any] = [None]
        if dist.get_rank() == 0:
            now = (state.stage, state.step)
            begins = now == (1, 0)
            kept = self.file.keep(lambda line: not begins and (line["stage"], line["step"]) <= now)
            base = {(line["name"], line["data"]): line["bits_per_byte"] for line in kept if line["step"] == 0}
            steps = [(line["stage"], line["step"]) for line in kept]
            found = [(max(steps, default=None), base)]
        dist.broadcast_object_list(found, src=0)
        self.last, self.base = found[0]

    @property
    def without_base(self) -> list[str]:
        """Names that the starting model was not measured on."""
        return [held.name for held in self.sets if (held.name, held.data) not in self.base]

    def measure(self, engine: Engine, state: RunState) -> list[dict[str, Any]]:
        """Measure all names, unless that was done at this step of this stage; the lines, which rank 0 has written."""
        now = (state.stage, state.step)
        if not self.sets or self.last == now:
            return []
        lines = [self._line(engine, held, state) for held in self.sets]
        if now == (1, 0):
            self.base |= {(line["name"], line["data"]): line["bits_per_byte"] for line in lines}
        lines = [line | {"base_bits_per_byte": self.base.get((line["name"], line["data"]))} for line in lines]
        self.last = now
        for line in lines if dist.get_rank() == 0 else ():
            self.file.write(line)
            self.told(line)
        return lines

    def measure_base(self, engine: Engine) -> list[dict[str, Any]]:
        """Measure the names that lack it with the starting model, which `engine` holds; its lines go before all others."""
        start = RunState(stage=1)
        missing = self.without_base
        lines = [self._line(engine, held, start) for held in self.sets if held.name in missing]
        lines = [line | {"base_bits_per_byte": line["bits_per_byte"]} for line in lines]
        self.base |= {(line["name"], line["data"]): line["bits_per_byte"] for line in lines}
        if dist.get_rank() == 0:
            known = self.file.read()
            first = [line for line in known if line["step"] == 0]
            self.file.rewrite([*first, *lines, *(line for line in known if line["step"])])
        return lines

    def _line(self, engine: Engine, held: HeldOut, state: RunState) -> dict[str, Any]:
        size = self.place.layout.data
        parts = [
            on_device(part) for part in micro_batches(held.batch, self.place.data, size, self.micro, self.settings)
        ]
        with torch.no_grad():
            losses = engine.forward_backward(parts, 1.0, forward_only=True)
        total = len(held.batch.tokens)
        nats, _ = row_losses(losses, parts, dealt(total, self.place.data, size, self.micro), total, self.place)
        summed = math.fsum(nats[: held.rows])
        return {
            "step": state.step,
            "stage": state.stage,
            "tokens": state.tokens,
            "name": held.name,
            "loss": summed / max(held.targets, 1.0),
            "bits_per_byte": bits_per_byte(summed, held.bytes),
            "targets": int(held.targets),
            "data": held.data,
        }


def open_for_run(
    config: TrainConfig,
    shape: Architecture,
    place: Place,
    spelled: I32 | None,
    told: Callable[[dict[str, Any]], None],
) -> Validation:
    """Open the held-out packs of a run on this rank; `spelled`: bytes of each token, see `bytes_per_token`."""
    base = Path(config.model.base)
    eos = eos_of(base)
    sources = open_validation(config, shape.vocab_used, base, cache=Path(config.run) / "index", eos_id=eos)
    return Validation(config, place, sources, shape.vocab_used, spelled, told)
