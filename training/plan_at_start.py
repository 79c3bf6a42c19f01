"""The memory plan of the run that starts, told by rank 0 before anything is made, so that what does not fit is known by cause."""

from __future__ import annotations

from collections.abc import Callable

import torch

from training import device, fused
from training.architecture import Architecture
from training.config import TrainConfig
from training.layout import Layout
from training.plan_memory import GIB, fullest


def tell(config: TrainConfig, shape: Architecture, layout: Layout, log: Callable[[str], None]) -> None:
    """One line, in GiB a rank of the fullest pipeline stage; on a GPU a warning when that is more than it has."""
    gpu = torch.cuda.is_available()
    data = config.data
    # `ziya-train plan` takes model.fused at its word; here it is known whether the kernels can run.
    model = config.model.model_copy(update={"fused": config.model.fused and fused.available()})
    stage, memory = fullest(
        shape, layout, model, length=data.sequence_length, micro=data.micro_batch_rows, rows=data.global_batch_rows
    )
    parts = {name: size / GIB for name, size in memory.in_short(gpu=gpu).items()}
    total, there = sum(parts.values()), device.memory() / GIB
    whose = f"this GPU's {there:.1f}" if gpu else f"this machine's {there:.1f}, which all ranks here share"
    which = f" of pipeline stage {stage + 1} of {layout.pipeline}, the fullest" if layout.pipeline > 1 else ""
    log(
        f"memory plan of a rank{which}, in GiB: "
        f"{', '.join(f'{name} {size:.2f}' for name, size in parts.items())}; in all {total:.2f} of {whose}"
    )
    if gpu and total > there:
        log(
            f"warning: the memory plan, {total:.1f} GiB, is above this GPU's {there:.1f}: the run may end for want of memory. Try "
            f"model.recompute=attention or layer, fewer data.micro_batch_rows, parallel.tensor, pipeline or zero; `ziya-train plan` "
            f"ranks layouts"
        )
