"""megatron-core's schedules on the bare model, DeepSpeed for the reduction, the FP32 masters and the update.

DeepSpeed's own forward and backward are not used in ZeRO-1: after the schedule, gradients of replicated weights under
sequence parallelism are summed over the tensor group, then `engine.step()` reduces over data-parallel ranks, clips and
updates. See training/README.md for why. ZeRO-2 and 3 go through DeepSpeed's backward pass instead: partitioned.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from training import partitioned
from training.config import OptimizerSettings
from training.layout import DeepSpeedView, Layout
from training.model import Llama
from training.rows import Packed
from training.weights import EMBEDDING, GROUPS, PLAIN, group_of


@dataclass(frozen=True)
class StepResult:
    """`loss`: mean over the unmasked targets of the global batch; `norm`: gradient norm before clipping; `reason`: why the
    update was refused, empty when it was made; `losses`: on the last pipeline stage, float32 [T] per micro-batch, else
    empty."""

    loss: float
    norm: float
    reason: str
    losses: list[torch.Tensor]


class Gradient(NamedTuple):
    """The gradient of native weight `name`, or its flat values from `start` on."""

    name: str
    weight: torch.nn.Parameter
    values: torch.Tensor
    start: int = 0


Judgement = Callable[[float, float], str]
"""(loss, gradient norm before clipping) -> why the update must not be made, or an empty string."""

def deepspeed_settings(layout: Layout, optimizer: OptimizerSettings, *, bf16: bool) -> dict[str, Any]:
    """The configuration with which DeepSpeed's ZeRO is exact under schedules that are not its own."""
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": optimizer.clip,
        "steps_per_print": None,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": layout.zero,
            "contiguous_gradients": False,
            "overlap_comm": False,
            "reduce_bucket_size": 200_000_000,
            "allgather_bucket_size": 200_000_000,
        },
        "wall_clock_breakdown": False,
    }
    if layout.zero > 1:
        more = partitioned.settings(layout.zero)
        settings["zero_optimization"] |= more.pop("zero_optimization", {})
        settings |= more
        settings["bf16"] = {"enabled": bf16}
    elif bf16:
        # FP32 accumulation makes DeepSpeed choose BF16_Optimizer; hooks add each micro-batch to the FP32 sum at once.
        settings["bf16"] = {"enabled": True, "immediate_grad_update": True}
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings


class Engine:
    """The chunks of this process with their optimizer."""

    def __init__(self, chunks: Sequence[Llama], layout: Layout, settings: OptimizerSettings) -> None:
        import deepspeed
        from deepspeed.runtime import bf16_optimizer
        from megatron.core.pipeline_parallel import get_forward_backward_func

        self.chunks, self.layout, self.settings = list(chunks), layout, settings
        self.bf16 = chunks[0].numerics.bf16
        self.partitioned = layout.zero > 1
        whole: torch.nn.Module = torch.nn.ModuleList(self.chunks) if len(self.chunks) > 1 else self.chunks[0]
        objective = partitioned.Objective(self.chunks[0]) if self.partitioned else None
        named = [(name, weight) for chunk in self.chunks for name, weight in chunk.named_parameters()]
        groups: list[dict[str, Any]] = [
            {
                "params": [weight for name, weight in named if group_of(name, weight) == kind],
                "weight_decay": 0.0 if kind == PLAIN else settings.weight_decay,
                "kind": kind,
            }
            for kind in GROUPS
        ]
        self.adam = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=0.0,
            betas=(settings.beta1, settings.beta2),
            eps=settings.epsilon,
        )
        # Between DeepSpeed's norm and the update stands this: a refused step leaves masters and moments as they are.
        self._update, self.adam.step = self.adam.step, self._judged_update
        self._judge: Judgement | None = None
        self._loss = 0.0
        self._norm: float | None = None
        self._reason: str | None = None
        self.frozen_below: int | None = None
        """None: all weights move. Else only rows of embedding and head from this number on (0: all of them)."""
        # It asks for forced reports: nine full garbage collections and prints for each optimizer that is made.
        bf16_optimizer.see_memory_usage = lambda *_, **__: None
        self.deepspeed, self.optimizer, _, _ = deepspeed.initialize(
            model=objective or whole,
            optimizer=self.adam,
            config=deepspeed_settings(layout, settings, bf16=self.bf16),
            mpu=DeepSpeedView(),
            dist_init_required=False,
        )
        self.run_schedule = get_forward_backward_func()
        if self.partitioned:
            if layout.zero == 3 and objective is not None:
                objective.share_head()
            self._finish, self.optimizer.step = self.optimizer.step, self._step_partitioned

    def forward_backward(
        self, batches: Sequence[Packed], scale: float, *, forward_only: bool = False
    ) -> list[torch.Tensor]:
        """Run the schedule over micro-batches; gradients of `scale` * summed loss are left in place, not reduced.

        Returns the losses float32 [T] of each micro-batch on the last stage, nothing elsewhere.
        """
        if self.partitioned:
            return partitioned.run(self, batches, scale, forward_only=forward_only)
        length = len(batches[0].tokens)
        losses: list[torch.Tensor] = self.run_schedule(
            forward_step_func=_forward_step(scale),
            data_iterator=[iter(batches) for _ in self.chunks] if len(self.chunks) > 1 else iter(batches),
            model=self.chunks if len(self.chunks) > 1 else self.chunks[0],
            num_microbatches=len(batches),
            seq_length=length,
            micro_batch_size=1,
            forward_only=forward_only,
        )
        return losses

    def step(
        self, batches: Sequence[Packed], targets: float, rate: float, judge: Judgement | None = None
    ) -> StepResult:
        """One optimizer step: `batches` are this data-parallel rank's micro-batches, `targets` the unmasked targets of the
        global batch, `rate` the learning rate; `judge` may refuse the update and must answer alike on every rank."""
        # DeepSpeed averages over data-parallel ranks, the loss is a sum over them.
        losses = self.forward_backward(batches, self.layout.data / max(targets, 1.0))
        if not self.partitioned:
            self.sum_replicated()
            self._freeze()
        self._loss = self.mean_loss(losses, batches, targets)
        self._judge, self._reason, self._norm = judge, None, None
        for group in self.optimizer.param_groups:
            body = group["kind"] != EMBEDDING
            group["lr"] = 0.0 if body and self.frozen_below is not None else rate
            if not body:
                group["weight_decay"] = 0.0 if self.frozen_below else self.settings.weight_decay
        refused = self.deepspeed.skipped_steps
        self.deepspeed.step()
        norm = float(self.deepspeed.get_global_grad_norm()) if self._norm is None else self._norm
        if self.deepspeed.skipped_steps > refused:  # DeepSpeed met a norm that is not finite, before the update
            self._reason = f"gradient norm {norm}"
        return StepResult(self._loss, norm, self._reason or "", losses)

    def _judged_update(self, closure: Any = None) -> Any:
        """AdamW's step, unless the judge refuses. ZeRO calls it once a group: the first answer holds for the step."""
        if self._judge is not None and self._reason is None:
            self._loss, self._norm = self._of_first(self._loss, float(self.optimizer._global_grad_norm))
            self._reason = self._judge(self._loss, self._norm)
        return None if self._reason else self._update(closure)

    def _of_first(self, loss: float, norm: float) -> tuple[float, float]:
        """Rank 0's numbers. Each rank has summed them in groups of its own, whose order libraries may choose by the places of
        their devices: a last bit apart, two ranks could judge a step on the limit differently, and part for good."""
        if self.layout.world == 1:
            return loss, norm
        pair = torch.tensor([loss, norm], dtype=torch.float64, device=next(self.chunks[0].parameters()).device)
        dist.broadcast(pair, 0)
        first = pair.tolist()
        return first[0], first[1]

    def _step_partitioned(self, *arguments: Any, **options: Any) -> Any:
        """DeepSpeed's optimizer step, gradients made ready before the norm is taken in it."""
        self.sum_replicated()
        self._freeze()
        return self._finish(*arguments, **options)

    def refresh(self) -> None:
        """Weights anew from the masters, gathered over data-parallel ranks; collective."""
        if self.layout.zero == 3:
            partitioned.refresh(self)
        elif hasattr(self.optimizer, "update_lp_params"):
            with torch.no_grad():
                self.optimizer.update_lp_params()

    def gathered(self, weight: torch.nn.Parameter) -> contextlib.AbstractContextManager[Any]:
        """Inside it `weight` is whole on this rank; collective over data-parallel ranks."""
        from deepspeed import zero

        if self.layout.zero != 3:
            return contextlib.nullcontext()
        context: contextlib.AbstractContextManager[Any] = zero.GatheredParameters([weight])
        return context

    def reset_moments(self) -> None:
        """Forget first and second moments and AdamW's step counts; masters stay."""
        for state in self.adam.state.values():
            for value in state.values():
                if isinstance(value, torch.Tensor):
                    value.zero_()

    def _freeze(self) -> None:
        """In the embeddings-only phase: gradients of the body, and of rows below `frozen_below`, become zero before the
        norm, so that neither clipping nor moments see them."""
        if self.frozen_below is None:
            return
        for found in self.gradients():
            if group_of(found.name, found.weight) != EMBEDDING:
                found.values.zero_()
            elif self.frozen_below:
                old = (self.frozen_below - self.chunks[0].first_row) * self.chunks[0].shape.hidden - found.start
                found.values.view(-1)[: max(old, 0)] = 0

    def mean_loss(self, losses: Sequence[torch.Tensor], batches: Sequence[Packed], targets: float) -> float:
        """The global batch's mean loss, on every rank, in float64."""
        from megatron.core import parallel_state

        total = torch.zeros((), dtype=torch.float64, device=batches[0].tokens.device)
        for loss, rows in zip(losses, batches, strict=bool(losses)):
            total += (loss.double() * rows.weights.double()).sum()
        if self.layout.pipeline > 1:
            dist.all_reduce(total, group=parallel_state.get_pipeline_model_parallel_group())
        dist.all_reduce(total, group=parallel_state.get_data_parallel_group())
        return float(total) / max(targets, 1.0)

    def gradients(self) -> Iterator[Gradient]:
        """Gradients as accumulated (FP32 under BF16) of every weight of this rank that has one, in place; under ZeRO-2 and 3
        the parts of them that this rank holds."""
        if self.partitioned:
            for part, values in partitioned.gradients(self):
                yield Gradient(part.name, part.weight, values, part.start)
        elif hasattr(self.optimizer, "fp32_groups_gradients"):
            names = {id(weight): name for chunk in self.chunks for name, weight in chunk.named_parameters()}
            for weights, gradients in zip(
                self.optimizer.bf16_groups, self.optimizer.fp32_groups_gradients, strict=True
            ):
                for weight, gradient in zip(weights, gradients, strict=True):
                    yield Gradient(names[id(weight)], weight, gradient.view(weight.shape))
        else:
            for chunk in self.chunks:
                for name, weight in chunk.named_parameters():
                    if weight.grad is not None:
                        yield Gradient(name, weight, weight.grad)

    def sum_replicated(self) -> None:
        """Sum over the tensor group the gradients of weights that saw only their part of the row (sequence parallel)."""
        from megatron.core import parallel_state

        if not self.layout.sequence:
            return
        parts = [found.values for found in self.gradients() if getattr(found.weight, "sequence_parallel", False)]
        if parts:
            flat = torch.cat([part.reshape(-1) for part in parts])
            dist.all_reduce(flat, group=parallel_state.get_tensor_model_parallel_group())
            for part, whole in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
                part.copy_(whole.view_as(part))


def _forward_step(scale: float) -> Any:
    """megatron-core's forward step: the model on the next micro-batch, and what turns its output into a loss."""

    def step(batches: Iterator[Packed], model: Llama) -> tuple[torch.Tensor, Any]:
        rows = next(batches)
        return model(rows), partial(_loss, model, rows, scale)

    return step


def _loss(model: Llama, rows: Packed, scale: float, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Any]:
    objective, losses = model.loss(hidden, rows, scale)
    # The schedule sums what stands second as tokens, on a device of its own choice; the division is done already.
    return objective, torch.zeros((), dtype=torch.int, device=hidden.device), losses.detach()
