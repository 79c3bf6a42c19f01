"""Accelerators as data, for `ziya-train plan`.

`memory_gib`: what torch reports as total, a little below the name. `peak` (TFLOPS, dense BF16) and `hbm` (GB/s) are the data
sheet's; `link` is the bus rate that NCCL's collectives reach inside a node (GB/s per direction, about 0.8 of the data sheet's
NVLink), `nic` one network port per GPU. `matmul_share` and `attention_share` are the parts of `peak` that large BF16 products
and a flash-attention kernel (forward and backward together) reach: assumptions from published measurements, which
`scripts/bench/train.py` replaces by measured ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from training.flops import PEAKS


@dataclass(frozen=True)
class Gpu:
    """One kind of accelerator and the node it usually sits in."""

    memory_gib: float
    peak: float
    hbm: float
    link: float
    nic: float
    node: int = 8
    matmul_share: float = 0.8
    attention_share: float = 0.5


GPUS = {
    "a100-80g": Gpu(79.2, PEAKS["A100"], 2039, 235, 25),
    "a100-40g": Gpu(39.4, PEAKS["A100"], 1555, 235, 25),
    "a800-80g": Gpu(79.2, PEAKS["A800"], 2039, 160, 25),
    "h100": Gpu(79.2, PEAKS["H100"], 3350, 360, 50, matmul_share=0.7, attention_share=0.4),
    "h800": Gpu(79.2, PEAKS["H800"], 3350, 160, 50, matmul_share=0.7, attention_share=0.4),
    "h200": Gpu(139.8, PEAKS["H200"], 4800, 360, 50, matmul_share=0.7, attention_share=0.4),
    "l40s": Gpu(44.4, PEAKS["L40S"], 864, 20, 25),
    "rtx4090": Gpu(23.6, PEAKS["4090"], 1008, 12, 12.5),
}
