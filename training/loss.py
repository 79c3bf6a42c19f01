"""Cross entropy over a vocabulary that tensor-parallel ranks share, in chunks: full logits are never held.

The forward pass computes the gradients of each chunk while its logits are there and keeps only them, so memory is
chunk x vocabulary / TP instead of tokens x vocabulary / TP. Softmax in FP32. Padding rows of the vocabulary are minus
infinity on the rank that owns them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def head_logits(hidden: torch.Tensor, weight: torch.Tensor, first_row: int, used: int) -> torch.Tensor:
    """float32 [T, rows of this rank]; rows from `used` on (padding, counted over all ranks) are minus infinity."""
    logits = (hidden @ weight.t()).float()
    if first_row + weight.shape[0] > used:
        logits[:, max(0, used - first_row) :] = -torch.inf
    return logits


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor,
        scale: float,
        z_loss: float,
        first_row: int,
        used: int,
        chunk: int,
        group: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        losses = torch.zeros(len(hidden), dtype=torch.float32, device=hidden.device)
        needs = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        d_hidden = torch.empty_like(hidden) if needs else None
        d_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if needs else None
        extra = torch.zeros((), dtype=torch.float32, device=hidden.device)
        split = group is not None and dist.get_world_size(group) > 1
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = head_logits(hidden[part], weight, first_row, used)
            top = logits.max(dim=-1).values
            if split:
                dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
            logits -= top[:, None]
            local = targets[part] - first_row
            mine = (local >= 0) & (local < weight.shape[0])
            place = torch.where(mine, local, 0)[:, None]
            chosen = torch.where(mine, logits.gather(1, place)[:, 0], 0.0)
            exponents = logits.exp_()
            pair = torch.stack((exponents.sum(dim=-1), chosen))
            if split:
                dist.all_reduce(pair, group=group)
            total, chosen = pair[0], pair[1]
            log_total = total.log()
            losses[part] = log_total - chosen
            whole = log_total + top  # log of the partition function
            extra += (weights[part] * whole.square()).sum()
            if d_hidden is None or d_weight is None:
                continue
            probabilities = exponents.div_(total[:, None])
            if z_loss:
                probabilities *= (1.0 + 2.0 * z_loss * whole)[:, None]
            probabilities.scatter_add_(1, place, -mine.to(torch.float32)[:, None])
            probabilities *= (weights[part] * scale)[:, None]
            gradient = probabilities.to(hidden.dtype)
            d_hidden[part] = gradient @ weight
            d_weight += (gradient.t() @ hidden[part]).float()
        ctx.save_for_backward(d_hidden, d_weight.to(weight.dtype) if d_weight is not None else None)
        objective = ((losses * weights).sum() + z_loss * extra) * scale
        ctx.mark_non_differentiable(losses)
        return objective, losses

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        d_hidden, d_weight = ctx.saved_tensors
        factor = outputs[0]
        return d_hidden * factor, d_weight * factor, None, None, None, None, None, None, None, None


def cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
    *,
    scale: float = 1.0,
    z_loss: float = 0.0,
    first_row: int = 0,
    used: int | None = None,
    chunk: int = 1024,
    group: Any = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(scale * (sum of weighted losses + z_loss * sum of weighted log-partition squares), losses float32 [T]).

    `hidden` [T, h]; `weight` [rows of this rank, h], rows first_row..; `targets` int64 [T] over the whole vocabulary;
    `weights` float32 [T]; `used`: rows of the vocabulary that are not padding; `group`: tensor-parallel group. The
    gradient of `hidden` is this rank's part: the caller sums it over the group.
    """
    rows = weight.shape[0] if used is None else used
    if not torch.is_grad_enabled():  # inside the function torch no longer tells that nobody asks for gradients
        hidden, weight = hidden.detach(), weight.detach()
    objective, losses = _ChunkedCrossEntropy.apply(
        hidden, weight, targets, weights, scale, z_loss, first_row, rows, chunk, group
    )
    return objective, losses
