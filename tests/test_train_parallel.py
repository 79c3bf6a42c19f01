"""Every layout of two ranks against transformers' LLaMA on each document alone, and BF16 against one process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("megatron.core")
pytest.importorskip("deepspeed")
pytest.importorskip("transformers")

from train_ranks import Ranks, tiny  # noqa: E402 - it imports torch

LENGTH, ROWS, STEPS, RATE = 32, 4, 20, 1e-3
BORDERS = [[0, 5, 20, 32], [0, 32], [0, 1, 31, 32], [0, 16, 32]]


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens [ROWS, LENGTH + 1], weights [ROWS, LENGTH]) of a step; every third step one row is masked as a whole."""
    generator = torch.Generator().manual_seed(100 + step)
    tokens = torch.randint(0, 512, (ROWS, LENGTH + 1), generator=generator)
    weights = (torch.rand(ROWS, LENGTH, generator=generator) > 0.2).float()
    if step % 3 == 2:
        weights[3] = 0
    return tokens, weights


def packed(tokens: torch.Tensor, weights: torch.Tensor, row: int) -> Any:
    from training.rows import Packed, positions_of

    borders = torch.tensor(BORDERS[row], dtype=torch.int32)
    return Packed(
        tokens[row, :-1].contiguous(),
        tokens[row, 1:].contiguous(),
        weights[row],
        positions_of(borders, LENGTH, restart=True),
        borders,
        int((borders[1:] - borders[:-1]).max()),
    )


def train(rank: int, settings: dict[str, Any], bf16: bool) -> list[tuple[float, float]]:
    """(loss, gradient norm) of each step under a layout."""
    from training import weights as cuts
    from training.config import OptimizerSettings
    from training.engine import Engine
    from training.layout import Layout, place, start_groups, stop_groups
    from training.model import Numerics, build

    layout = Layout(world=2, **settings)
    start_groups(layout)
    here = place(layout)
    _, shape, whole = tiny()
    recompute = {1: "none", 2: "layer"}[layout.chunks]
    chunks = build(shape, layout, Numerics(bf16=bf16, loss_chunk=12, recompute=recompute))
    cuts.fill(chunks, whole.__getitem__, shape, here.tensor, layout.tensor)
    engine = Engine(chunks, layout, OptimizerSettings())
    found = []
    for step in range(STEPS):
        tokens, weights = batch(step)
        mine = [packed(tokens, weights, row) for row in range(here.data, ROWS, layout.data)]
        result = engine.step(mine, float(weights.sum()), RATE, judge=lambda loss, norm: "")
        found.append((result.loss, result.norm))
    engine.deepspeed.destroy()
    stop_groups()
    return found


def reference() -> list[tuple[float, float]]:
    """transformers and torch's AdamW; each document runs alone."""
    model, _, _ = tiny()
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
        ],
        lr=RATE,
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    found = []
    for step in range(STEPS):
        tokens, weights = batch(step)
        optimizer.zero_grad()
        total = torch.zeros(())
        for row in range(ROWS):
            for first, last in zip(BORDERS[row][:-1], BORDERS[row][1:], strict=True):
                logits = model(tokens[row : row + 1, first:last]).logits[0].float()
                losses = torch.nn.functional.cross_entropy(logits, tokens[row, first + 1 : last + 1], reduction="none")
                total = total + (losses * weights[row, first:last]).sum()
        loss = total / weights.sum()
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        optimizer.step()
        found.append((loss.item(), norm))
    return found


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    pool = Ranks(2)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def expected() -> list[tuple[float, float]]:
    return reference()


LAYOUTS = {
    "TP2": {"tensor": 2},
    "TP2+SP": {"tensor": 2, "sequence": True},
    "PP2": {"pipeline": 2},
    "PP2 interleaved": {"pipeline": 2, "chunks": 2},
    "DP2": {},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_trains_as_transformers_does(ranks: Ranks, expected: list[tuple[float, float]], name: str) -> None:
    for found in ranks.run(train, LAYOUTS[name], False):
        for (loss, norm), (wanted, wanted_norm) in zip(found, expected, strict=True):
            assert abs(loss - wanted) < 5e-6
            assert abs(norm - wanted_norm) < 5e-5 * wanted_norm


@pytest.mark.parametrize("name", LAYOUTS)
def test_bf16_stays_near_fp32(ranks: Ranks, expected: list[tuple[float, float]], name: str) -> None:
    for found in ranks.run(train, LAYOUTS[name], True):
        assert abs(found[0][0] - expected[0][0]) < 2e-3
        assert abs(found[0][1] - expected[0][1]) < 0.01 * expected[0][1]
        assert all(abs(loss - wanted) < 1e-2 for (loss, _), (wanted, _) in zip(found, expected, strict=True))
