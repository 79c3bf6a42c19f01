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

from ziya.progress import log

Function = TypeVar("Function", bound=Callable[..., torch.Tensor])


@cache
def available() -> bool:
    """Whether kernels can be compiled and used here: a GPU, Triton, and a compiler that works (Triton needs one for C).

    The last is tried, once a process: a node without a C compiler trains with the plain forms and says so, it does not die.
    """
    if not torch.cuda.is_available() or find_spec("triton") is None:
        return False
    try:
        _works()
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        log(f"warning: fused kernels cannot be compiled here, the plain forms run, slower and in more memory: {reason}")
        return False
    return True


def _works() -> None:
    """Compile and run the smallest kernel on this process's GPU; raises what goes wrong."""
    torch.compile(lambda value: torch.sin(value) + 1.0)(torch.ones(8, device="cuda"))


@cache
def _compiled(function: Callable[..., torch.Tensor], backend: str) -> Any:
    return torch.compile(function, backend=backend)


def compiled(function: Function, backend: str = "inductor") -> Function:
    """`function` compiled, once a process; shapes that change are compiled for in general, too many of them run plain."""
    return cast(Function, _compiled(function, backend))


def choose(function: Function, wanted: bool) -> Function:
    """The fused form of a plain function where it is wanted and can run, else the function itself."""
    return compiled(function) if wanted and available() else function
