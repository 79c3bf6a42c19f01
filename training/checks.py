"""Invariants that every start proves on the real model and layout before the first step; rank 0 prints them.

Each check is a measurement that fails when the thing is broken, and costs a few tiny rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from training.architecture import Architecture
from training.config import TrainConfig
from training.device import device
from training.engine import Engine
from training.layout import Place
from training.model import Llama
from training.rows import Packed, positions_of
from training.stages import MODEL, Start
from ziya.errors import UserError
from ziya.files import digest

PARITY_PARAMETERS = 300_000_000  # transformers computes larger models too slowly on a CPU
PARITY_TOKENS = 32


def run(
    engine: Engine,
    shape: Architecture,
    place: Place,
    config: TrainConfig,
    first: Sequence[Packed],
    start: Start,
    log: Callable[[str], None],
) -> None:
    """Make all checks; collective. Raises RuntimeError, alike on all ranks, when one fails: a bug, not the user's mistake."""
    data, layout = config.data, place.layout
    micro = data.global_batch_rows // (layout.data * data.micro_batch_rows)
    tokens = data.global_batch_rows * data.sequence_length
    log(
        f"layout: {layout}, {layout.world} processes; {shape.parameters:,} parameters; a step is {data.global_batch_rows} rows = "
        f"{layout.data} x {micro} micro-batches x {data.micro_batch_rows}, {tokens:,} tokens with padding"
    )
    told = [masks(engine, shape, place), equal_batches(place, first), accumulation(engine)]
    if start.kind == MODEL and shape.parameters <= PARITY_PARAMETERS:
        told.append(parity(engine, shape, place, start))
    log("checked: " + "; ".join(told))


def _agree(good: bool, what: str) -> None:
    """Raise on every rank when any has found fault."""
    flag = torch.tensor([0.0 if good else 1.0], device=device())
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    if flag.item():
        raise RuntimeError(f"start-up check failed: {what}")


def tiny_row(shape: Architecture, lengths: Sequence[int], *, change: int | None = None) -> Packed:
    """A packed row of documents of these lengths, all targets counted; `change`: position whose token is another one."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, shape.vocab_used, (sum(lengths) + 1,), generator=generator)
    if change is not None:
        tokens[change] = (tokens[change] + 1) % shape.vocab_used
    borders = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    weights = torch.ones(sum(lengths))
    where = device()
    return Packed(
        tokens[:-1].to(where),
        tokens[1:].to(where),
        weights.to(where),
        positions_of(borders, sum(lengths), restart=True).to(where),
        borders.to(where),
        max(lengths),
    )


def masks(engine: Engine, shape: Architecture, place: Place) -> str:
    """A token of one document changes that document's losses and, to the last bit, no other's."""
    unit = 4 * place.layout.tensor
    lengths = [unit, 2 * unit, unit]
    batches = [tiny_row(shape, lengths), tiny_row(shape, lengths, change=unit + 1)]
    batches *= place.layout.pipeline if place.layout.chunks > 1 else 1  # interleaving needs its multiple
    losses = engine.forward_backward(batches, 1.0, forward_only=True)
    good = True
    if place.last:
        before, after = losses[0], losses[1]
        inside = slice(unit + 2, 3 * unit)
        outside = torch.cat((before[: unit - 1], before[3 * unit :])), torch.cat((after[: unit - 1], after[3 * unit :]))
        good = bool(torch.equal(*outside)) and not bool(torch.equal(before[inside], after[inside]))
    _agree(good, "a token of one document changes the losses of another one, or none at all: the attention mask leaks")
    return "documents do not see each other"


def equal_batches(place: Place, first: Sequence[Packed]) -> str:
    """All ranks of one model hold the same first batch."""
    parts = [
        digest(tensor.cpu().numpy().tobytes())
        for rows in first
        for tensor in (rows.tokens, rows.targets, rows.weights, rows.positions, rows.borders)
    ]
    mine = (place.data, digest(" ".join(parts).encode()))
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    same = len(set(found)) == len({data for data, _ in found})
    _agree(same, "ranks that share a model read different rows")
    return "ranks of one model read the same rows"


def accumulation(engine: Engine) -> str:
    """Gradients are summed in FP32, also under BF16."""
    kinds = {gradient.values.dtype for gradient in engine.gradients()}
    good = kinds <= {torch.float32} and (bool(kinds) or not engine.bf16)
    _agree(good, f"gradients are summed in {', '.join(map(str, kinds)) or 'nothing that can be seen'}, not in FP32")
    return "gradients are summed in FP32"


def parity(engine: Engine, shape: Architecture, place: Place, start: Start) -> str:
    """The first logits equal those of transformers on the same folder."""
    unit = place.layout.tensor
    rows = tiny_row(shape, [-(-PARITY_TOKENS // unit) * unit])
    ours = logits(engine, [rows] * (place.layout.pipeline if place.layout.chunks > 1 else 1))
    allowed = 5e-2 if engine.bf16 else 1e-3
    off = 0.0
    if place.last and place.tensor == 0 and place.data == 0:
        off = _difference(ours[:, : shape.vocab_used], rows, shape, start)
    worst = torch.tensor([off], dtype=torch.float64, device=device())
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    if not worst.item() <= allowed:
        raise RuntimeError(
            f"start-up check failed: logits differ from transformers' by {worst.item():.2g} of their spread ({allowed:g} allowed)"
        )
    return f"first logits equal transformers' within {worst.item():.1g} of their spread"


def _difference(ours: torch.Tensor, rows: Packed, shape: Architecture, start: Start) -> float:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    model = AutoModelForCausalLM.from_pretrained(start.folder, dtype=torch.float32)
    with torch.no_grad():
        theirs = model(rows.tokens[None].cpu()).logits[0, :, : shape.vocab_used].float()
    if not torch.isfinite(theirs).all():
        raise UserError(f"{start.folder}: transformers gets logits that are not finite from it: give another model")
    difference = (ours.cpu() - theirs).square().mean().sqrt() / theirs.std().clamp_min(1e-12)
    return float(difference) if torch.isfinite(difference) else float("inf")


def logits(engine: Engine, batches: Sequence[Packed]) -> torch.Tensor:
    """float32 [T, vocabulary] of the first micro-batch on the last pipeline stage, empty elsewhere."""

    def step(rows: Any, model: Llama) -> tuple[torch.Tensor, Any]:
        return model(next(rows)), partial(_keep, engine, model)

    with torch.no_grad():
        found: list[torch.Tensor] = engine.run_schedule(
            forward_step_func=step,
            data_iterator=[iter(batches) for _ in engine.chunks] if len(engine.chunks) > 1 else iter(batches),
            model=engine.chunks if len(engine.chunks) > 1 else engine.chunks[0],
            num_microbatches=len(batches),
            seq_length=len(batches[0].tokens),
            micro_batch_size=1,
            forward_only=True,
        )
    return found[0] if found else torch.empty(0, 0)


def _keep(engine: Engine, model: Llama, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    with engine.gathered(model.head_weight):
        values = model.logits(hidden).detach()
    zero = torch.zeros((), device=hidden.device)
    return zero, torch.zeros((), dtype=torch.int, device=hidden.device), values
