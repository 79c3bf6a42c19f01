"""The few places where megatron-core assumes CUDA; active only where there is none."""

from __future__ import annotations

import os
from typing import Any

import psutil
import torch


def device() -> torch.device:
    """This process's GPU, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def ask_deterministic(wanted: bool) -> None:
    """Call it before process groups and CUDA's work space are made. On a GPU: every kernel gives the same bits each time, where
    `wanted`. CPUs need nothing: what runs here on them has no other form.

    An operation without such a form raises instead of warning, for a reason: under warnings only, torch's flash-attention
    backward (varlen_attn, SDPA) adds in any order as before. torch also keeps NCCL from reducing inside switches then.
    """
    if not (wanted and torch.cuda.is_available()):
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when it starts
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads memory that it has not written
    torch.use_deterministic_algorithms(True)


def memory() -> int:
    """Bytes of this process's GPU, else of this machine."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    return int(psutil.virtual_memory().total)


class _Torch:
    """`torch` as one module of megatron-core sees it: `zeros(..., device="cuda")` lands on the CPU."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def zeros(*size: Any, device: Any = None, **options: Any) -> torch.Tensor:
        return torch.zeros(*size, device=None if device == "cuda" else device, **options)


def _no_compiling() -> None:
    """Keep DeepSpeed from compiling its shared-memory reduction for CPUs at the first start (70 s); gloo reduces there.

    The dictionary is where DeepSpeed looks up which of its operators fit this machine; it fills it on first use.
    """
    import deepspeed.ops

    vars(deepspeed.ops).setdefault("__compatible_ops__", {})


def _set_up_gpu(tensor: int) -> None:
    """Sums inside BF16 products stay in FP32 (torch lets cuBLAS add partial sums in BF16), and the reductions of tensor
    parallelism are queued before the products that hide them, which megatron-core leaves to one queue for all kernels."""
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    if tensor > 1:
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")


def prepare(tensor: int = 1) -> None:
    """Call it before CUDA starts and before models and engines are made: DeepSpeed compiles nothing at start, and where there
    is no GPU megatron-core's parallel layers and schedules run on the CPU. `tensor`: tensor-parallel size.

    `torch.cuda.current_device()` is what megatron-core gives as `device=` of its buffers; without CUDA it only raises,
    so answering with the CPU takes nothing from anybody.
    """
    _no_compiling()
    if torch.cuda.is_available():
        _set_up_gpu(tensor)
        return
    from megatron.core.pipeline_parallel import schedules

    torch.cuda.current_device = lambda: torch.device("cpu")  # type: ignore[assignment,return-value]
    if not isinstance(schedules.torch, _Torch):
        schedules.torch = _Torch()
