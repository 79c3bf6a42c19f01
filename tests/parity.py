"""One model trained in any layout, and by transformers with each document alone: what tests of exactness compare."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from train_ranks import tiny

from training.rows import Packed, positions_of

LENGTH, ROWS, STEPS, RATE = 32, 4, 20, 1e-3

PAIRS: dict[str, dict[str, Any]] = {
    "TP2": {"world": 2, "tensor": 2},
    "TP2+SP": {"world": 2, "tensor": 2, "sequence": True},
    "PP2": {"world": 2, "pipeline": 2},
    "PP2x2": {"world": 2, "pipeline": 2, "chunks": 2},
    "DP2": {"world": 2},
    "TP2 PP2": {"world": 4, "tensor": 2, "pipeline": 2},
    "TP2 PP2x2": {"world": 4, "tensor": 2, "pipeline": 2, "chunks": 2},
    "TP2 DP2": {"world": 4, "tensor": 2},
    "TP2+SP PP2": {"world": 4, "tensor": 2, "sequence": True, "pipeline": 2},
    "TP2+SP PP2x2": {"world": 4, "tensor": 2, "sequence": True, "pipeline": 2, "chunks": 2},
    "TP2+SP DP2": {"world": 4, "tensor": 2, "sequence": True},
    "PP2 DP2": {"world": 4, "pipeline": 2},
    "PP2x2 DP2": {"world": 4, "pipeline": 2, "chunks": 2},
}
"""Every legal pair of tensor (with sequence), pipeline (1F1B, interleaved) and data parallelism on at most 4 ranks."""


@dataclass(frozen=True)
class Row:
    """`tokens` int64 [LENGTH + 1]; `weights` float32 [LENGTH]; `borders`: ends of its documents, padding is the last piece."""

    tokens: torch.Tensor
    weights: torch.Tensor
    borders: list[int]


def rows_of(kind: str, step: int) -> list[Row]:
    """The global batch of a step. `packed`: full rows of several documents; each third step one row is masked as a whole.
    `padded`: whole documents and unequal padding after them; each second step one row is nothing but padding."""
    generator = torch.Generator().manual_seed(100 + step)
    made = []
    for number in range(ROWS):
        tokens = torch.randint(3, 512, (LENGTH + 1,), generator=generator)
        weights = (torch.rand(LENGTH, generator=generator) > 0.2).float()
        if kind == "packed":
            borders = [[0, 5, 20, 32], [0, 32], [0, 1, 31, 32], [0, 16, 32]][number]
            if step % 3 == 2 and number == 3:
                weights[:] = 0
        else:
            filled = [29, 17, 8, 23][(number + step) % ROWS]
            if step % 2 and number == 2:
                filled = 0
            borders = sorted({0, filled // 3, filled, LENGTH})
            tokens[filled:] = 0
            weights[max(filled - 1, 0) :] = 0
        made.append(Row(tokens, weights, borders))
    return made


def packed(rows: list[Row]) -> Packed:
    """Rows flattened into one micro-batch; row ends are borders too."""
    ends = [place * LENGTH + border for place, row in enumerate(rows) for border in row.borders[1:]]
    borders = torch.tensor([0, *ends], dtype=torch.int32)
    return Packed(
        torch.cat([row.tokens[:-1] for row in rows]),
        torch.cat([row.tokens[1:] for row in rows]),
        torch.cat([row.weights for row in rows]),
        positions_of(borders, LENGTH, restart=True),
        borders,
        int((borders[1:] - borders[:-1]).max()),
    )


def made(rank: int, settings: dict[str, Any], **numerics: Any) -> tuple[Any, Any, Any]:
    """(engine, place, shape) of this rank, weights filled; process groups are started."""
    from training import weights as cuts
    from training.config import OptimizerSettings
    from training.engine import Engine
    from training.layout import Layout, place, start_groups
    from training.model import Numerics, build

    layout = Layout(**settings)
    start_groups(layout)
    here = place(layout)
    _, shape, whole = tiny()
    chunks = build(shape, layout, Numerics(loss_chunk=12, **numerics))
    cuts.fill(chunks, whole.__getitem__, shape, here.tensor, layout.tensor)
    return Engine(chunks, layout, OptimizerSettings()), here, shape


def done(engine: Any) -> None:
    """Let the next job make its own engine and groups."""
    from training.layout import stop_groups

    engine.deepspeed.destroy()
    stop_groups()


def train(rank: int, settings: dict[str, Any], kind: str, **numerics: Any) -> list[tuple[float, float]]:
    """(loss, gradient norm) of each step under a layout."""
    engine, here, _ = made(rank, settings, **numerics)
    found = []
    for step in range(STEPS):
        rows = rows_of(kind, step)
        mine = [packed([row]) for row in rows[here.data :: here.layout.data]]
        targets = float(sum(row.weights.sum() for row in rows))
        result = engine.step(mine, targets, RATE, judge=lambda loss, norm: "")
        found.append((result.loss, result.norm))
    done(engine)
    return found


def reference(kind: str, dtype: torch.dtype) -> list[tuple[float, float]]:
    """The same by transformers and torch's AdamW; each document runs alone, padding never runs."""
    model, _, _ = tiny()
    model = model.to(dtype)
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    vectors = [weight for weight in model.parameters() if weight.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), eps=1e-8)
    found = []
    for step in range(STEPS):
        optimizer.zero_grad()
        total, targets = torch.zeros((), dtype=dtype), 0.0
        for row in rows_of(kind, step):
            for first, last in pairwise(row.borders):
                if not row.weights[first:last].any():
                    continue
                logits = model(row.tokens[None, first:last]).logits[0].to(dtype)
                losses = torch.nn.functional.cross_entropy(logits, row.tokens[first + 1 : last + 1], reduction="none")
                total = total + (losses * row.weights[first:last]).sum()
                targets += float(row.weights[first:last].sum())
        loss = total / targets
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        optimizer.step()
        found.append((loss.item(), norm))
    return found


Piece = tuple[str, int, int, torch.Tensor]
"""(native name, tensor rank, place of the first value in the flattened weight as that rank holds it, values float32)."""


def first_gradients(
    rank: int, settings: dict[str, Any], kind: str, **numerics: Any
) -> tuple[list[Piece], float, float]:
    """(the mean gradients of the global batch before the first update, as this rank holds them; norm; loss)."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    engine, here, _ = made(rank, settings, **numerics)
    rows = rows_of(kind, 1)
    mine = [packed([row]) for row in rows[here.data :: here.layout.data]]
    found: list[Piece] = []

    def look() -> None:
        for name, _, gradient, start in engine.gradients():
            assert gradient.dtype == torch.float32
            values = gradient.detach().clone().view(-1)
            if here.layout.zero == 1:
                dist.all_reduce(values, group=parallel_state.get_data_parallel_group())
                values /= here.layout.data
            found.append((name, here.tensor, start, values))

    freeze = engine._freeze  # the last that sees gradients before the norm
    engine._freeze = lambda: (freeze(), look())
    result = engine.step(mine, float(sum(row.weights.sum() for row in rows)), RATE)
    done(engine)
    return found, result.norm, result.loss


def joined(pieces: list[Piece], tensor: int) -> dict[str, torch.Tensor]:
    """The pieces of all ranks under `tensor` tensor-parallel ranks -> whole tensors by their Hugging Face names."""
    from training.reshard import native_size
    from training.weights import native_to_whole

    _, shape, _ = tiny()
    whole: dict[str, torch.Tensor] = {}
    for name in {piece[0] for piece in pieces}:
        parts = [torch.full((native_size(name, shape, tensor).numel(),), torch.nan) for _ in range(tensor)]
        for other, rank, start, values in pieces:
            if other == name:
                parts[rank][start : start + values.numel()] = values
        whole |= native_to_whole(name, [part.view(native_size(name, shape, tensor)) for part in parts], shape)
    assert all(bool(torch.isfinite(value).all()) for value in whole.values())
    return whole


def alone(rank: int, settings: dict[str, Any], lengths: list[int]) -> float | None:
    """The largest difference of a token's loss between a packed row and its documents one by one; None off the last stage."""
    engine, here, _ = made(rank, settings, bf16=False)
    borders = torch.tensor([0, *lengths]).cumsum(0).tolist()
    rows = [Row(row.tokens, torch.ones(LENGTH), borders) for row in rows_of("packed", 0)[:2]]

    def losses(batches: list[Packed]) -> list[torch.Tensor]:
        found: list[torch.Tensor] = engine.forward_backward(batches, 1.0, forward_only=True)
        return found

    together = losses([packed([row]) for row in rows])
    worst = 0.0
    for first, last in pairwise(borders):
        cut = [_document(row, first, last) for row in rows]
        for whole, part in zip(together, losses(cut), strict=True):
            worst = max(worst, float((whole[first:last] - part).abs().max()))
    done(engine)
    return worst if here.last else None


def _document(row: Row, first: int, last: int) -> Packed:
    size = last - first
    borders = torch.tensor([0, size], dtype=torch.int32)
    return Packed(
        row.tokens[first:last],
        row.tokens[first + 1 : last + 1],
        row.weights[first:last],
        torch.arange(size),
        borders,
        size,
    )
