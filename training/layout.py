"""Who holds what: tensor, sequence, pipeline and data parallelism, their process groups, DeepSpeed's view of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from training.architecture import Architecture
from ziya.errors import UserError


@dataclass(frozen=True)
class Layout:
    """Sizes of each kind of parallelism; `chunks` > 1 interleaves so many model pieces per pipeline stage."""

    world: int = 1
    tensor: int = 1
    pipeline: int = 1
    chunks: int = 1
    sequence: bool = False
    zero: int = 1

    @property
    def data(self) -> int:
        """Data-parallel size."""
        return self.world // (self.tensor * self.pipeline)

    def __str__(self) -> str:
        text = f"TP{self.tensor}{'+SP' if self.sequence else ''} PP{self.pipeline}"
        return f"{text}{f'x{self.chunks}' if self.chunks > 1 else ''} DP{self.data} ZeRO-{self.zero}"


def check_layout(layout: Layout, shape: Architecture, *, length: int, microbatches: int) -> None:
    """Refuse what is not exact or not possible, with the reason. Raises UserError naming every problem at once.

    `length`: tokens of one micro-batch (rows flattened); `microbatches`: per optimizer step and data-parallel rank.
    """
    problems = []
    if layout.world % (layout.tensor * layout.pipeline):
        problems.append(
            f"{layout.world} processes are not a multiple of parallel.tensor {layout.tensor} x parallel.pipeline "
            f"{layout.pipeline}: change the number of processes or one of the two"
        )
    for name, value in (("heads", shape.heads), ("key-value heads", shape.groups), ("FFN size", shape.ffn)):
        if value % layout.tensor:
            problems.append(f"{value} {name} cannot be cut in {layout.tensor} tensor-parallel parts")
    if shape.vocab_size % layout.tensor:
        problems.append(
            f"{shape.vocab_size} vocabulary rows cannot be cut in {layout.tensor} parts: pad them with `ziya-train init "
            f"--pad-to`"
        )
    if shape.layers % (layout.pipeline * layout.chunks):
        problems.append(
            f"{shape.layers} layers cannot be cut in {layout.pipeline} pipeline stages of {layout.chunks} chunks"
        )
    if layout.sequence and layout.tensor == 1:
        problems.append("parallel.sequence needs parallel.tensor above 1")
    if layout.sequence and length % layout.tensor:
        problems.append(f"{length} tokens of a micro-batch cannot be cut in {layout.tensor} sequence parts")
    if shape.tied and layout.pipeline > 1:
        problems.append(
            "tied embedding and head would sit on different pipeline stages: untie them with `ziya-train init`, or use "
            "parallel.pipeline=1"
        )
    if layout.chunks > 1 and layout.pipeline == 1:
        problems.append("parallel.chunks above 1 interleaves pipeline stages: it needs parallel.pipeline above 1")
    if layout.chunks > 1 and microbatches % layout.pipeline:
        problems.append(
            f"interleaving needs micro-batches ({microbatches}) in multiples of parallel.pipeline ({layout.pipeline})"
        )
    if layout.zero >= 2 and layout.pipeline > 1:
        problems.append(
            f"parallel.zero {layout.zero} cuts gradients up in each backward pass, which a pipeline's schedule interleaves "
            f"between stages: use parallel.zero=1, or parallel.pipeline=1"
        )
    if layout.zero == 0:
        problems.append(
            "parallel.zero 0 clips by a norm of its own per pipeline stage, cannot accumulate BF16 gradients in FP32 and reports "
            "no norm to judge a step by: use parallel.zero=1"
        )
    if problems:
        raise UserError("; ".join(problems))


def start_groups(layout: Layout) -> None:
    """Make megatron-core's process groups; `torch.distributed` must be initialised."""
    from megatron.core import parallel_state

    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=layout.chunks if layout.chunks > 1 else None,
    )


def stop_groups() -> None:
    """End the process groups but the world's, so that other ones can be made.

    megatron-core only forgets them; each gloo group keeps a thread of its own, and a few hundred of those starve a machine.
    """
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    world = dist.distributed_c10d._get_default_group()
    for group in [one for one in dist.distributed_c10d._world.pg_map if one is not world]:
        dist.destroy_process_group(group)


@dataclass(frozen=True)
class Place:
    """Where this process stands."""

    tensor: int
    pipeline: int
    data: int
    layout: Layout

    @property
    def first(self) -> bool:
        """Whether it holds the embedding (of some chunk)."""
        return self.pipeline == 0

    @property
    def last(self) -> bool:
        """Whether it holds the head (of some chunk)."""
        return self.pipeline == self.layout.pipeline - 1


def place(layout: Layout) -> Place:
    """The place of this process; groups must have been started."""
    from megatron.core import parallel_state

    return Place(
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_pipeline_model_parallel_rank(),
        parallel_state.get_data_parallel_rank(),
        layout,
    )


class DeepSpeedView:
    """The `mpu` that DeepSpeed asks: "model parallel" is tensor x pipeline, over which norms and overflows are reduced."""

    def __init__(self) -> None:
        from megatron.core import parallel_state as state

        self._state = state

    def get_model_parallel_group(self) -> Any:
        return self._state.get_model_parallel_group()

    def get_model_parallel_rank(self) -> int:
        return int(dist.get_rank(self.get_model_parallel_group()))

    def get_model_parallel_world_size(self) -> int:
        return int(dist.get_world_size(self.get_model_parallel_group()))

    def get_tensor_model_parallel_group(self) -> Any:
        return self._state.get_tensor_model_parallel_group()

    def get_tensor_model_parallel_rank(self) -> int:
        return int(self._state.get_tensor_model_parallel_rank())

    def get_tensor_model_parallel_world_size(self) -> int:
        return int(self._state.get_tensor_model_parallel_world_size())

    def get_pipeline_model_parallel_group(self) -> Any:
        return self._state.get_pipeline_model_parallel_group()

    def get_pipeline_model_parallel_rank(self) -> int:
        return int(self._state.get_pipeline_model_parallel_rank())

    def get_pipeline_model_parallel_world_size(self) -> int:
        return int(self._state.get_pipeline_model_parallel_world_size())

    def get_data_parallel_group(self) -> Any:
        return self._state.get_data_parallel_group()

    def get_data_parallel_rank(self) -> int:
        return int(self._state.get_data_parallel_rank())

    def get_data_parallel_world_size(self) -> int:
        return int(self._state.get_data_parallel_world_size())

    def get_data_parallel_group_ranks(self) -> list[int]:
        return [int(rank) for rank in dist.get_process_group_ranks(self.get_data_parallel_group())]


def start_distributed(backend: str | None = None) -> None:
    """Join the process group that the launcher's environment describes (nccl on GPUs, gloo on CPUs)."""
    if not dist.is_initialized():
        dist.init_process_group(backend or ("nccl" if torch.cuda.is_available() else "gloo"))
