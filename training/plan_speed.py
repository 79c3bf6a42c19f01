"""How long a step should take: an estimate from data sheets and stated shares, for ranking layouts, not for promises.

What it leaves out is said by `UNKNOWN`, which `ziya-train plan` prints.
"""

from __future__ import annotations

from dataclasses import dataclass

from training import flops
from training.architecture import Architecture
from training.config import ModelSettings
from training.gpus import Gpu
from training.layout import Layout
from training.plan_memory import group_sizes

UNKNOWN = (
    "rows are taken as one full document each (shorter documents cost less); not counted: padding, launch overhead of small "
    "kernels, smaller matrix products under tensor parallelism, slow or failing nodes, congestion, clocks under load, data "
    "loading, saving and validation. Shares and links are assumptions: replace them by measured ones "
    "(--matmul-share, --attention-share, --link, --nic)"
)


@dataclass(frozen=True)
class Step:
    """Seconds of one optimizer step by cause; `tflops`: model FLOPs a GPU and second, recomputation not counted."""

    compute: float
    bubble: float
    tensor: float
    pipeline: float
    data: float
    update: float
    tokens: int
    tflops: float

    @property
    def seconds(self) -> float:
        """All of them one after another: nothing is taken as overlapped."""
        return self.compute + self.bubble + self.tensor + self.pipeline + self.data + self.update


def estimate(
    shape: Architecture, layout: Layout, model: ModelSettings, gpu: Gpu, *, length: int, micro: int, rows: int
) -> Step:
    """One step of `rows` rows of `length` tokens, `micro` rows a micro-batch. Per micro-batch of T tokens on the slowest stage,
    with t = TP, b = 2 bytes (BF16), L layers a stage:

    matrix products    FLOPs / (t peak matmul_share); attention's / (t peak attention_share); backward is twice forward
    elementwise        3 L T b (10 h / s + 2 (q + kv) / t + 3 ffn / t) / hbm, 2.5 times that unless fused; s = TP under SP
    recomputation      one more forward of attention, or of all
    bubble             (PP - 1) / chunks micro-batches' time
    tensor             4 L exchanges of T h b values (2 more under recompute=layer), each 2 (t - 1) / t of them over the link
    pipeline           2 sends of T h b / s bytes a chunk and micro-batch, over the network where the next stage is elsewhere
    data               once a step: 4 n bytes summed in FP32, 2 (d - 1) / d over the bus, b n gathered; ZeRO-2 and 3 scatter 4 n
                       a micro-batch instead of the sum, ZeRO-3 gathers b n twice a micro-batch
    bus                of ranks of one group: the link inside a node; beyond it, the network ports of its ranks on a node
    update             28 bytes of each weight's states / DP and 16 of each gradient through hbm
    """
    b = 2 if model.precision == "bf16" else 4
    tokens = length * micro
    microbatches = rows // (layout.data * micro)
    layers = shape.layers // layout.pipeline
    matrix = flops.per_token(shape)
    head = 6.0 * shape.vocab_size * shape.hidden
    body = (matrix - head) / layout.pipeline
    seen = flops.of_pairs(shape, 0.5 * length) / layout.pipeline
    forward_again = {"none": 0.0, "attention": seen / 3, "layer": seen / 3}[model.recompute]
    body_again = body / 3 if model.recompute == "layer" else 0.0
    peak = gpu.peak * 1e12 * layout.tensor
    busy = (body + body_again + head) / (peak * gpu.matmul_share) + (seen + forward_again) / (
        peak * gpu.attention_share
    )
    share = layout.tensor if layout.sequence else 1
    wide, narrow = shape.heads * shape.head_dim, shape.groups * shape.head_dim
    values = 10 * shape.hidden / share + (2 * (wide + narrow) + 3 * shape.ffn) / layout.tensor
    passes = (3 + (model.recompute == "layer")) * (1.0 if model.fused else 2.5)
    one = tokens * (busy + passes * layers * b * values / (gpu.hbm * 1e9))

    link, nic = gpu.link * 1e9, gpu.nic * 1e9
    width = tokens * shape.hidden * b
    exchanges = (6 if model.recompute == "layer" else 4) * layers
    across = link if layout.tensor <= gpu.node else nic
    tensor = exchanges * width * 2 * (layout.tensor - 1) / layout.tensor / across
    stages = layout.pipeline
    hop = link if layout.world <= gpu.node else nic
    sends = 0.0 if stages == 1 else 2 * layout.chunks * width / share / hop

    sizes = group_sizes(shape, layout, stages - 1)
    n, d = sum(sizes.values()), layout.data
    ring = (d - 1) / d
    bus = _bus(layout, gpu)
    summed = 2 * 4 * n if layout.zero <= 1 else microbatches * 4 * n
    gathered = b * n * (2 * microbatches if layout.zero == 3 else 1)
    data = ring * (summed + gathered) / bus
    update = (28 * n / d + 16 * n) / (gpu.hbm * 1e9)

    model_flops = rows * length * (matrix + flops.of_pairs(shape, 0.5 * length))
    bubble = (stages - 1) / layout.chunks
    made = Step(
        compute=microbatches * one,
        bubble=bubble * (one + tensor + sends),
        tensor=microbatches * tensor,
        pipeline=microbatches * sends,
        data=data,
        update=update,
        tokens=rows * length,
        tflops=0.0,
    )
    rate = model_flops / made.seconds / layout.world / 1e12
    return Step(**{**made.__dict__, "tflops": rate})


def _bus(layout: Layout, gpu: Gpu) -> float:
    """Bytes a second at which a data-parallel group reduces. Tensor ranks are neighbours, data-parallel ones come next, so
    a node holds node / TP ranks of one group, whose ports work together."""
    if layout.tensor * layout.data <= gpu.node:
        return gpu.link * 1e9
    together = max(1, gpu.node // layout.tensor)
    return min(gpu.link, together * gpu.nic) * 1e9
