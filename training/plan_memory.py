"""Bytes that a rank will hold, line by line, without making anything.

States are exact: tests/test_train_plan.py counts the tensors of a real engine. Activations follow what autograd keeps of
`model.py`, counted there too; what the allocator and the libraries add is an allowance, and called so.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from training.architecture import Architecture
from training.config import ModelSettings
from training.layout import Layout
from training.reshard import native_names, native_size
from training.weights import GROUPS, group_of

REDUCTION_ELEMENTS = 500_000_000  # DeepSpeed closes a bucket of gradients once it is longer than this
BUCKET = 200_000_000  # elements of a bucket under ZeRO-2 and 3, as the engine sets it
LIVE = 1_000_000_000  # DeepSpeed's limit of gathered weights under ZeRO-3
CONTEXT_GIB = 2.5  # CUDA context, cuBLAS work space, NCCL buffers: an allowance
SLACK = 0.04  # of the rest: what the caching allocator cannot hand out again, an allowance
PROCESS_GIB = 4.0  # host memory of a rank before it holds a model: libraries, packs' index, read-ahead: an allowance
GIB = 2**30


@dataclass(frozen=True)
class Memory:
    """Of one pipeline stage's rank. `states` lie there always; of `phases` only one is there at a time, so the largest
    counts. All in bytes."""

    states: dict[str, int]
    phases: dict[str, dict[str, int]]
    host: dict[str, int]

    @property
    def total(self) -> int:
        """States, the largest phase, and the allowances for libraries and allocator."""
        used = sum(self.states.values()) + max(sum(lines.values()) for lines in self.phases.values())
        return int(used * (1 + SLACK) + CONTEXT_GIB * GIB)

    @property
    def host_total(self) -> int:
        """Host memory of this rank."""
        return sum(self.host.values())

    def in_short(self, *, gpu: bool) -> dict[str, int]:
        """What a start names; it adds up to `total` on a GPU. Without one the libraries' allowance is that of the host."""
        largest = max(self.phases, key=lambda name: sum(self.phases[name].values()))
        phase = sum(self.phases[largest].values())
        named = {
            "weights": self.states["weights"] + self.states.get("gathered weights", 0),
            "gradients": self.states["gradients"] + self.states.get("bucket", 0),
            "masters and moments": self.states["masters"] + self.states["moments"],
            "activations" if "activations" in self.phases[largest] else f"{largest} (more than activations)": phase,
        }
        total = self.total if gpu else int(sum(named.values()) * (1 + SLACK) + PROCESS_GIB * GIB)
        return named | {"allowances": total - sum(named.values())}


def fullest(
    shape: Architecture, layout: Layout, model: ModelSettings, *, length: int, micro: int, rows: int
) -> tuple[int, Memory]:
    """(pipeline stage whose ranks need most, their memory), of micro-batches of `micro` rows of `length` tokens and `rows` rows
    a step."""
    found = [
        of_stage(shape, layout, model, stage=stage, tokens=micro * length, microbatches=rows // (layout.data * micro))
        for stage in range(layout.pipeline)
    ]
    stage = max(range(layout.pipeline), key=lambda number: found[number].total)
    return stage, found[stage]


def of_stage(
    shape: Architecture, layout: Layout, model: ModelSettings, *, stage: int, tokens: int, microbatches: int
) -> Memory:
    """Memory of a rank of pipeline stage `stage`; `tokens` of a micro-batch, `microbatches` a step and data-parallel rank.

    With n the rank's weights (each optimizer group padded to a multiple of 2 x DP), b 2 bytes (BF16) or 4 (FP32):

    weights               b n                (ZeRO-3: b n / DP, and b LIVE gathered ones)
    gradients             4 n                FP32 and full-size on every rank under ZeRO-1 (ZeRO-2, 3: 4 n / DP)
    bucket                under ZeRO-2, 3: (b + 4) BUCKET, gradients that wait for their reduction and their FP32 copies
    masters, moments      4 n / DP, 8 n / DP
    activations           `layer_bytes` x layers of a chunk x tokens x `in_flight`; with recompute=layer the inputs of all
                          layers and one layer whole; the last stage: final norm (as a layer's) and d(loss)/d(hidden) besides
    head                  last stage: rows x hidden x (4 FP32 sum + 4 + b product + b kept) + loss_chunk x rows x (4 + b)
    working space         gradients that flow through one layer, b tokens (4 h + 6 ffn / TP), and of its largest weight, b
    reduction             under ZeRO-1 in BF16, DP > 1: DeepSpeed copies every bucket of more than one group of gradients, 4 each
    update                one temporary of AdamW: 4 n / DP
    host                  weights as they are built, b n, or the checkpoint's copy of masters and moments, 12 n / DP
    """
    sizes = group_sizes(shape, layout, stage)
    bf16 = model.precision == "bf16"
    b = 2 if bf16 else 4
    padded = {kind: -(-size // (2 * layout.data)) * 2 * layout.data for kind, size in sizes.items()}
    whole = sum(padded.values())
    part = whole // layout.data
    states = {
        "weights": b * (part if layout.zero == 3 else whole),
        "gradients": 4 * (part if layout.zero >= 2 else whole),
        "masters": 4 * part,
        "moments": 8 * part,
    }
    if layout.zero >= 2:
        states["bucket"] = (b + 4) * min(whole, BUCKET)
    if layout.zero == 3:
        states["gathered weights"] = b * min(whole, LIVE)
    last = stage == layout.pipeline - 1
    step = {
        "activations": activation_bytes(shape, layout, model, stage, tokens, microbatches),
        "working space": b * (tokens * (4 * shape.hidden + 6 * shape.ffn // layout.tensor))
        + b * 2 * shape.ffn * shape.hidden // layout.tensor,
    }
    if last:
        rows = shape.vocab_size // layout.tensor
        step["head"] = rows * shape.hidden * (8 + 2 * b) + min(model.loss_chunk, tokens) * rows * (4 + b)
    phases = {"forward and backward": step, "update": {"AdamW's temporary": 4 * part}}
    if bf16 and layout.zero == 1 and layout.data > 1:
        phases["reduction"] = {"bucket": 4 * largest_bucket(list(padded.values()))}
    host = {"process": int(PROCESS_GIB * GIB), "weights or checkpoint": max(b * whole, 12 * part)}
    return Memory(states, phases, host)


def largest_bucket(groups: list[int]) -> int:
    """Elements of the largest bucket that DeepSpeed must copy together: it adds groups of gradients in their order and closes
    a bucket once it is longer than REDUCTION_ELEMENTS; a bucket of one group is reduced where it lies."""
    largest, bucket = 0, []
    for number, size in enumerate(groups, 1):
        bucket.append(size)
        if sum(bucket) > REDUCTION_ELEMENTS or number == len(groups):
            largest = max(largest, sum(bucket) if len(bucket) > 1 else 0)
            bucket = []
    return largest


def group_sizes(shape: Architecture, layout: Layout, stage: int) -> dict[str, int]:
    """Optimizer group -> number of weights that a rank of the stage holds, in the engine's order; empty groups left out."""
    once = _sizes(shape, layout.tensor)
    layers = shape.layers // layout.pipeline
    found = {}
    for kind in GROUPS:
        size = layers * once["layer"].get(kind, 0)
        size += once["first"].get(kind, 0) if stage == 0 else 0
        size += once["last"].get(kind, 0) if stage == layout.pipeline - 1 else 0
        if size:
            found[kind] = size
    return found


@lru_cache(maxsize=64)
def _sizes(shape: Architecture, tensor: int) -> dict[str, dict[str, int]]:
    """Weights of one layer, of what the first stage holds besides, and of what the last one does, by optimizer group."""
    found: dict[str, dict[str, int]] = {"layer": {}, "first": {}, "last": {}}
    for name in native_names(shape):
        place = "first" if name == "embedding.weight" else "layer" if name.startswith("layers.0.") else "last"
        if name.startswith("layers.") and place != "layer":
            continue
        size = native_size(name, shape, tensor)
        kind = group_of(name, torch.empty(size, device="meta"))
        found[place][kind] = found[place].get(kind, 0) + size.numel()
    return found


def in_flight(layout: Layout, stage: int, microbatches: int) -> int:
    """Chunks of micro-batches whose activations a stage holds at most: 1F1B holds PP - stage; interleaved, megatron-core warms
    up with 2 (PP - stage - 1) + (chunks - 1) PP and holds one more."""
    if layout.chunks == 1:
        return min(microbatches, layout.pipeline - stage)
    warm = 2 * (layout.pipeline - stage - 1) + (layout.chunks - 1) * layout.pipeline
    return min(microbatches * layout.chunks, warm + 1)


def activation_bytes(
    shape: Architecture, layout: Layout, model: ModelSettings, stage: int, tokens: int, microbatches: int
) -> int:
    """Activations that wait for their backward pass; see `of_stage`."""
    bf16, fused = model.precision == "bf16", model.fused
    b = 2 if bf16 else 4
    kept = layer_bytes(shape, layout, bf16=bf16, recompute=model.recompute, fused=fused)
    per_chunk = shape.layers // (layout.pipeline * layout.chunks)
    total = kept * per_chunk * in_flight(layout, stage, microbatches)
    if model.recompute == "layer":
        total += layer_bytes(shape, layout, bf16=bf16, recompute="none", fused=fused)
    if stage == layout.pipeline - 1:
        share = layout.tensor if layout.sequence else 1
        total += _norm(shape.hidden, b, fused) // share + b * shape.hidden
    return total * tokens


def layer_bytes(shape: Architecture, layout: Layout, *, bf16: bool, recompute: str, fused: bool) -> int:
    """Bytes a token that one layer keeps for its backward pass; b bytes a value, t = TP, s = TP under sequence parallelism
    else 1, q = heads x head_dim, kv = groups x head_dim.

    norms, twice          plain: (4 h FP32 input + 2 b h + 4) / s       fused: (2 b h + 4) / s
    attention             b (q + 2 kv) / t   the projection's output, which the values lie in
                          b (q + kv) / t     rotated queries and keys
                          (b q + 4 heads) / t   output and its log-sums; recompute=attention keeps the output only
    feed-forward          plain: 4 b ffn / t  (gate, other half, silu, product)     fused: 3 b ffn / t
    recompute=layer       b h / s, the input alone
    """
    b = 2 if bf16 else 4
    share, tensor = layout.tensor if layout.sequence else 1, layout.tensor
    if recompute == "layer":
        return b * shape.hidden // share
    wide, narrow = shape.heads * shape.head_dim, shape.groups * shape.head_dim
    attention = b * (wide + 2 * narrow) + b * wide
    if recompute == "none":
        attention += b * (wide + narrow) + 4 * shape.heads
    return (
        2 * (_norm(shape.hidden, b, fused) // share)
        + attention // tensor
        + (3 if fused else 4) * b * shape.ffn // tensor
    )


def _norm(hidden: int, b: int, fused: bool) -> int:
    return 2 * b * hidden + 4 + (0 if fused else 4 * hidden)
