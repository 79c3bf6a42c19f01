"""The systems that are measured: ours, and transformers with DeepSpeed (GPU) or with torch's AdamW alone (CPU)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from bench_train.common import ACCUMULATE, Where, document_mask, hf_model
from training import device, weights
from training.architecture import Architecture
from training.config import OptimizerSettings
from training.engine import Engine
from training.layout import Layout
from training.model import Llama, Numerics, build
from training.rows import Packed

RATE = 1e-4


def ours(
    shape: Architecture,
    where: Where,
    layout: Layout,
    *,
    bf16: bool,
    recompute: str,
    chunk: int = 1024,
    deterministic: bool = True,
) -> list[Llama]:
    """Our model with the weights of `hf_model`."""
    numerics = Numerics(bf16=bf16, recompute=recompute, loss_chunk=chunk, deterministic=deterministic)
    chunks = [part.to(where.device) for part in build(shape, layout, numerics)]
    reference = hf_model(shape, where, torch.bfloat16 if bf16 else torch.float32)
    weights.fill(list(chunks), reference.state_dict().__getitem__, shape, 0, 1)
    del reference
    return chunks


class Ours:
    """`training.engine` as a run uses it; `deterministic`: the setting of that name, on by default as in a run."""

    def __init__(
        self,
        shape: Architecture,
        where: Where,
        layout: Layout,
        *,
        bf16: bool,
        recompute: str,
        deterministic: bool = True,
    ) -> None:
        device.ask_deterministic(deterministic)
        chunks = ours(shape, where, layout, bf16=bf16, recompute=recompute, deterministic=deterministic)
        self.engine = Engine(chunks, layout, OptimizerSettings())

    def step(self, rows: Sequence[Packed], targets: float) -> float:
        """One optimizer step over micro-batches; the loss."""
        return self.engine.step(rows, targets, RATE).loss

    def close(self) -> None:
        """Take DeepSpeed's hooks off; the systems beside it are not asked for the same bits each time."""
        self.engine.deepspeed.destroy()
        torch.use_deterministic_algorithms(False)


class Peer:
    """transformers' LLaMA under DeepSpeed's own engine, ZeRO-1, BF16, its default settings; `masked`: documents do not see each
    other, by a mask given to SDPA. Gradients accumulate as DeepSpeed has it by default, not in FP32 as ours."""

    def __init__(self, shape: Architecture, where: Where, *, masked: bool, recompute: bool) -> None:
        import deepspeed

        self.row, self.masked = shape.positions, masked
        model = hf_model(shape, where, torch.bfloat16)
        if recompute:
            model.gradient_checkpointing_enable()
        self.engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=_adam(model),
            config={
                "train_micro_batch_size_per_gpu": 1,
                "gradient_accumulation_steps": ACCUMULATE,
                "gradient_clipping": 1.0,
                "zero_allow_untested_optimizer": True,
                "zero_optimization": {"stage": 1},
                "bf16": {"enabled": True},
                "steps_per_print": None,
            },
            dist_init_required=False,
        )

    def step(self, rows: Sequence[Packed], targets: float) -> float:
        """One optimizer step; the mean of the micro-batches' losses."""
        total = 0.0
        for part in rows:
            loss = _hf_loss(self.engine, part, self.row, masked=self.masked)
            self.engine.backward(loss)
            self.engine.step()
            total += loss.detach() / len(rows)
        return float(total)

    def close(self) -> None:
        """Take DeepSpeed's hooks off."""
        self.engine.destroy()


class Plain:
    """transformers' LLaMA and torch's AdamW in FP32, as a short script would train it."""

    def __init__(self, shape: Architecture, where: Where, *, masked: bool) -> None:
        self.row, self.masked = shape.positions, masked
        self.model = hf_model(shape, where, torch.float32)
        self.adam = _adam(self.model)

    def step(self, rows: Sequence[Packed], targets: float) -> float:
        """One optimizer step; the loss over all targets."""
        self.adam.zero_grad()
        total = 0.0
        for part in rows:
            loss = _hf_loss(self.model, part, self.row, masked=self.masked) / len(rows)
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.adam.step()
        return float(total)

    def close(self) -> None:
        """Nothing is held elsewhere."""


def _adam(model: torch.nn.Module) -> torch.optim.AdamW:
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    others = [weight for weight in model.parameters() if weight.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), eps=1e-8)


def _hf_loss(model: Any, part: Packed, row: int, *, masked: bool) -> torch.Tensor:
    """transformers' own loss on a micro-batch; targets are given as labels that need no shift."""
    tokens = part.tokens.view(-1, row)
    extra: dict[str, Any] = {}
    if masked:
        extra = {"attention_mask": document_mask(part, row), "position_ids": part.positions.view(-1, row)}
    labels = torch.where(part.weights > 0, part.targets, -100).view(-1, row)
    loss: torch.Tensor = model(input_ids=tokens, labels=labels, shift_labels=labels, use_cache=False, **extra).loss
    return loss


@torch.no_grad()
def parity(shape: Architecture, where: Where, layout: Layout, part: Packed, *, bf16: bool) -> dict[str, Any]:
    """Losses of each token by our model and by transformers' with a document mask, on the same weights and micro-batch."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    model = hf_model(shape, where, dtype)
    row = shape.positions
    logits = model(
        input_ids=part.tokens.view(-1, row),
        attention_mask=document_mask(part, row),
        position_ids=part.positions.view(-1, row),
        use_cache=False,
    ).logits
    theirs = functional.cross_entropy(
        logits.view(-1, logits.shape[-1])[:, : shape.vocab_used].float(), part.targets, reduction="none"
    )
    del logits, model
    where.free()
    (chunk,) = ours(shape, where, layout, bf16=bf16, recompute="none")
    _, losses = chunk.loss(chunk(part), part, 1.0)
    kernel = next(iter(chunk.layers.values())).attention.kernel
    counted = part.weights > 0
    difference = (losses - theirs)[counted].abs()
    found = {
        "kernel": getattr(kernel, "func", kernel).__name__,
        "mean_loss": float(losses[counted].mean()),
        "mean_loss_transformers": float(theirs[counted].mean()),
        "largest_difference_of_a_token": float(difference.max()),
        "mean_difference_of_a_token": float(difference.mean()),
        "limit_of_the_mean_loss": 5e-3 if bf16 else 1e-5,
    }
    found["equal"] = abs(found["mean_loss"] - found["mean_loss_transformers"]) < found["limit_of_the_mean_loss"]
    return found
