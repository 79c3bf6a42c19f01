"""SwiGLU (Shazeer 2020)."""

from __future__ import annotations

import torch


def swiglu(both: torch.Tensor) -> torch.Tensor:
    """silu(gate) * other of [..., 2 n], gate first -> [..., n], in the dtype that came."""
    gate, other = both.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * other
