"""What a micro-batch is: rows of the recipe flattened into one packed row, with the borders of its documents."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from training.device import device


@dataclass(frozen=True)
class Packed:
    """One micro-batch on this device; every pipeline stage holds one, because every stage masks by the same borders.

    `tokens`, `targets`, `positions`: int64 [T]; `weights` float32 [T]: 1 where the target counts, 0 where it is masked;
    `borders` int32 [documents + 1]: cumulative starts, from 0 to T; `longest`: tokens of the longest document.
    """

    tokens: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    positions: torch.Tensor
    borders: torch.Tensor
    longest: int

    @property
    def lengths(self) -> list[int]:
        """Tokens of each document, on the host."""
        starts = self.borders.tolist()
        return [after - before for before, after in pairwise(starts)]


def positions_of(borders: torch.Tensor, row: int, *, restart: bool) -> torch.Tensor:
    """int64 [T]: place of each token in its document (`restart`), else in its row of `row` tokens."""
    total = int(borders[-1])
    index = torch.arange(total)
    if not restart:
        return index % row
    starts = borders[:-1].to(torch.int64)
    return index - torch.repeat_interleave(starts, (borders[1:] - borders[:-1]).to(torch.int64))


def on_device(rows: Packed) -> Packed:
    """The same micro-batch where the model is."""
    where = device()
    if where.type == "cpu":
        return rows
    names = ("tokens", "targets", "weights", "positions", "borders")
    return replace(rows, **{name: getattr(rows, name).to(where, non_blocking=True) for name in names})
