"""RMSNorm, RoPE and SwiGLU as one kernel each on GPUs, compiled by torch from the plain functions.

The plain functions (norm.py, rotary.py, activation.py) stay the definition: torch.compile turns the same lines into one
Triton kernel forward and one backward, which read their inputs once and keep only them for the backward pass. Under BF16 a
fused kernel does not round between its steps, so it lies nearer to FP32 than the plain form does; in FP32 they are equal
within the order of a sum.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, TypeVar, cast

import torch

Function = TypeVar("Function", bound=Callable[..., torch.Tensor])


def available() -> bool:
    """Whether kernels can be compiled and used here: a GPU, and Triton to compile for it."""
    return torch.cuda.is_available() and find_spec("triton") is not None


@cache
def _compiled(function: Callable[..., torch.Tensor], backend: str) -> Any:
    return torch.compile(function, backend=backend)


def compiled(function: Function, backend: str = "inductor") -> Function:
    """`function` compiled, once a process; shapes that change are compiled for in general, too many of them run plain."""
    return cast(Function, _compiled(function, backend))


def choose(function: Function, wanted: bool) -> Function:
    """The fused form of a plain function where it is wanted and can run, else the function itself."""
    return compiled(function) if wanted and available() else function
