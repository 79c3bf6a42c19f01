"""RMSNorm in FP32 (Zhang & Sennrich 2019), as LLaMA uses it: the weight multiplies what is back in the input's dtype."""

from __future__ import annotations

import torch


class RMSNorm(torch.nn.Module):
    """x / rms(x) * weight over the last dimension; `weight` [hidden] is the same on every tensor-parallel rank."""

    def __init__(self, hidden: int, eps: float, dtype: torch.dtype, *, sequence_parallel: bool) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden, dtype=dtype))
        # Under sequence parallelism each rank sees its part of the row: the loop sums these gradients over the group.
        self.weight.sequence_parallel = sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        wide = hidden.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(hidden.dtype)
