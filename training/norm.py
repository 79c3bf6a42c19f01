"""RMSNorm in FP32 (Zhang & Sennrich 2019), as LLaMA uses it: the weight multiplies what is back in the input's dtype."""

from __future__ import annotations

import torch

from training import fused


def rms_norm(hidden: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """hidden / rms(hidden) * weight over the last dimension; the division in FP32, in the dtype that came."""
    wide = hidden.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(hidden.dtype)


class RMSNorm(torch.nn.Module):
    """x / rms(x) * weight over the last dimension; `weight` [hidden] is the same on every tensor-parallel rank."""

    def __init__(
        self, hidden: int, eps: float, dtype: torch.dtype, *, sequence_parallel: bool, fuse: bool = False
    ) -> None:
        super().__init__()
        self.eps, self.function = eps, fused.choose(rms_norm, fuse)
        self.weight = torch.nn.Parameter(torch.ones(hidden, dtype=dtype))
        # Under sequence parallelism each rank sees its part of the row: the loop sums these gradients over the group.
        self.weight.sequence_parallel = sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.function(hidden, self.weight, self.eps)
