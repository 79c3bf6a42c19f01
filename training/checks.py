"""Invariants that every start proves on the real model and layout before the first step; rank 0 prints them.

Each check is a measurement that fails when the thing is broken, and costs a few tiny rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from training.architecture import Architecture
from training.config import TrainConfig
from training.device import device
from training.engine import Engine
from training.hf_logits import hf_logits
from training.layout import Place
from training.model import Llama
from training.rows import Packed, positions_of
from training.stages import MODEL, Start
from ziya.errors import UserError
from ziya.files import digest

PARITY_TOKENS = 32
SLOW_PARAMETERS = 1_000_000_000  # more take transformers seconds on a CPU, up to 12 for each billion on two busy cores
PARITY = {torch.float32: 1e-3, torch.bfloat16: 5e-2}  # how far logits may be off, as a share of their spread


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
    if start.kind == MODEL:
        if shape.parameters > SLOW_PARAMETERS:
            log(f"comparing the first logits of {shape.parameters / 1e9:.1f} B parameters with transformers', layer by layer")
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
    """The first logits equal those of transformers on the same folder, which one rank reads layer by layer: any size will do."""
    unit = place.layout.tensor
    rows = tiny_row(shape, [-(-PARITY_TOKENS // unit) * unit])
    ours = logits(engine, [rows] * (place.layout.pipeline if place.layout.chunks > 1 else 1))
    judged = torch.zeros(2, dtype=torch.float64)
    if place.last and place.tensor == 0 and place.data == 0:
        dtype = torch.bfloat16 if engine.bf16 else torch.float32
        judged[:] = torch.tensor(_judged(ours[:, : shape.vocab_used].cpu(), rows, start.folder, dtype))
    judged = judged.to(device())
    dist.all_reduce(judged, op=dist.ReduceOp.MAX)
    off, allowed = judged.tolist()
    if not off <= allowed:
        raise RuntimeError(
            f"start-up check failed: logits differ from transformers' by {off:.2g} of their spread ({allowed:.2g} allowed)"
        )
    return f"first logits equal transformers' within {off:.1g} of their spread"


def _judged(ours: torch.Tensor, rows: Packed, folder: Path, dtype: torch.dtype) -> tuple[float, float]:
    """(how far our logits, computed in `dtype`, are off from transformers' in FP32, how far they may be).

    Rounding grows with depth and with the weights' scale: where BF16 is off by more than small models are, transformers' own
    BF16 form tells how much of it is rounding, and twice that is allowed.
    """
    theirs = hf_logits(folder, rows.tokens)[:, : ours.shape[1]]
    if not torch.isfinite(theirs).all():
        raise UserError(f"{folder}: transformers gets logits that are not finite from it: give another model")
    off, allowed = _spread_off(ours, theirs), PARITY[dtype]
    if off > allowed and dtype == torch.bfloat16:
        rounding = _spread_off(hf_logits(folder, rows.tokens, dtype)[:, : ours.shape[1]], theirs)
        allowed = max(allowed, 2 * rounding) if isfinite(rounding) else allowed
    return off, allowed


def _spread_off(found: torch.Tensor, right: torch.Tensor) -> float:
    """Root mean square of the difference over the standard deviation of what is right; infinite when anything is not finite."""
    share = float((found - right).square().mean().sqrt() / right.std().clamp_min(1e-12))
    return share if isfinite(share) else float("inf")


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
