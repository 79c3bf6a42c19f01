"""The losses of a global batch by row, the same to the last bit on every rank: what telemetry and validation are made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from training.device import device
from training.layout import Place
from training.rows import Packed

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


def row_losses(
    losses: Sequence[torch.Tensor],
    batches: Sequence[Packed],
    numbers: I64,
    rows: int,
    place: Place,
    told: Sequence[float] = (),
) -> tuple[F64, F64]:
    """(summed loss in nats of each row's unmasked targets, float64 [rows]; what each rank has `told`, float64 [world, n]).

    `losses`: float32 [T] of each micro-batch on the last pipeline stage, nothing elsewhere; `numbers` int64 [micro-batches, k]:
    row of the global batch that each row of a micro-batch is, see `training.data.dealt`. Collective, one reduction over all
    ranks. Each place of it is filled by one rank and the others add zero, so no order of adding can change a bit.
    """
    world, n = dist.get_world_size(), len(told)
    flat = torch.zeros(rows + world * n, dtype=torch.float64, device=device())
    if losses and place.last and place.tensor == 0:
        found = [
            (loss.double() * part.weights.double()).view(numbers.shape[1], -1).sum(1)
            for loss, part in zip(losses, batches, strict=True)
        ]
        flat[torch.from_numpy(numbers.reshape(-1)).to(flat.device)] = torch.cat(found)
    if n:
        begin = rows + dist.get_rank() * n
        flat[begin : begin + n] = torch.tensor(told, dtype=torch.float64)
    dist.all_reduce(flat)
    whole: F64 = flat.cpu().numpy()
    return whole[:rows], whole[rows:].reshape(world, n)
