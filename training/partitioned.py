"""ZeRO-2 and 3 behind the same Engine: DeepSpeed's forward and backward, which cut the gradients (and weights) up at each
micro-batch, and where the parts lie.

They run where there is one pipeline stage. After the last micro-batch each data-parallel rank holds one part of the averaged
FP32 gradients; DeepSpeed's norm is taken inside its optimizer's `step`, so what must happen to gradients before it (sums of
replicated weights, the embeddings-only phase) is put in front of that call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from training.rows import Packed

if TYPE_CHECKING:  # megatron-core takes seconds to import, and commands without ranks read this module too
    from training.engine import Engine
    from training.model import Llama


class Part(NamedTuple):
    """Values start .. start + numel of flattened native weight `name`, at `place` of flat tensor number `flat`."""

    name: str
    weight: torch.nn.Parameter
    start: int
    numel: int
    flat: int
    place: int


class Objective(torch.nn.Module):
    """The whole model with its loss as one module, which DeepSpeed's hooks on inputs and outputs need."""

    def __init__(self, model: Llama) -> None:
        super().__init__()
        self.model = model

    def forward(self, rows: Packed, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        return self.model.loss(self.model(rows), rows, scale)

    def share_head(self) -> None:
        """ZeRO-3 gathers a module's own weights when it runs; the loss reads the head's beside its module."""
        from deepspeed import zero

        zero.register_external_parameter(self, self.model.head_weight)


def settings(stage: int) -> dict[str, Any]:
    """What DeepSpeed must be told beyond the settings of ZeRO-1."""
    found: dict[str, Any] = {"communication_data_type": "fp32", "data_types": {"grad_accum_dtype": "fp32"}}
    if stage == 3:
        # Weights up to this size stay whole; norms and biases are not worth a collective each.
        found["zero_optimization"] = {"stage3_param_persistence_threshold": 10_000}
    return found


def run(engine: Engine, batches: Sequence[Packed], scale: float, *, forward_only: bool) -> list[torch.Tensor]:
    """The losses float32 [T] of each micro-batch; gradients of `scale` * summed loss are reduced to their owners at once."""
    found = []
    for rows in batches:
        if forward_only:
            with torch.no_grad():
                found.append(engine.deepspeed.module(rows, scale)[1])
            continue
        objective, losses = engine.deepspeed(rows, scale)
        engine.deepspeed.backward(objective, scale_wrt_gas=False)
        found.append(losses.detach())
    return found


def parts(engine: Engine) -> Iterator[Part]:
    """The parts of weights whose masters and moments (and, from ZeRO-2 on, gradients) this rank holds."""
    zero = engine.optimizer
    for name, weight in (pair for chunk in engine.chunks for pair in chunk.named_parameters()):
        if engine.layout.zero == 3:
            flat, place, size = zero.grad_position[zero.get_param_id(weight)]
            start = size * torch.distributed.get_rank(weight.ds_process_group)
            numel = min(size, weight.ds_numel - start)
            if numel > 0:
                yield Part(name, weight, start, numel, flat, place)
        elif weight._hp_mapping is not None:
            mapping = weight._hp_mapping
            here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
            yield Part(name, weight, here.start, here.numel, mapping.param_group_index, there.start)


def gradients(engine: Engine) -> Iterator[tuple[Part, torch.Tensor]]:
    """(part, its averaged FP32 gradient, flat and in place), where the last micro-batch has left one."""
    zero = engine.optimizer
    if engine.layout.zero == 3:
        buffers = zero._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition
        for part in parts(engine):
            yield part, buffers[part.weight.ds_id].view(-1)[: part.numel]
        return
    flats: dict[int, dict[int, torch.Tensor]] = {}
    for part in parts(engine):
        if part.flat not in flats:
            if zero._use_compact_grad_partition_buffer(part.flat):
                zero._get_compact_grad_partition_buffer(part.flat)
            held = zero.averaged_gradients.get(part.flat) or []
            places = accumulate((values.numel() for values in held), initial=0)
            flats[part.flat] = dict(zip(places, held, strict=False))
        if part.place in flats[part.flat]:
            yield part, flats[part.flat][part.place].view(-1)[: part.numel]


def masters(engine: Engine) -> list[torch.Tensor]:
    """This rank's flat FP32 masters, in the order that `Part.flat` counts."""
    zero = engine.optimizer
    found: list[torch.Tensor] = (
        zero.fp32_partitioned_groups_flat if engine.layout.zero == 3 else zero.single_partition_of_fp32_groups
    )
    return found


def refresh(engine: Engine) -> None:
    """ZeRO-3: weights anew from the masters."""
    zero = engine.optimizer
    with torch.no_grad():
        zero._partition_all_parameters()
        for number in range(len(zero.fp32_partitioned_groups_flat)):
            zero._reassign_or_swap_out_partitioned_parameters(number)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)
