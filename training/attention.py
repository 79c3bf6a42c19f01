"""Attention inside documents: no token sees another document of its packed row. One function per device, all equal.

Source of the mask: Ziya2 paper, stage 1 ("attention mask keeps documents mutually invisible").
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec

import torch
from torch.nn import functional

from training.rows import Packed
from ziya.errors import UserError

Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Packed], torch.Tensor]


def per_document(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: Packed) -> torch.Tensor:
    """Causal attention of each document by torch's SDPA; the form for CPUs, and the reference of the others.

    query [T, heads, d], key and value [T, groups, d] -> [T, heads, d].
    """
    lengths = rows.lengths
    shared = query.shape[1] != key.shape[1]
    outputs = []
    for q, k, v in zip(query.split(lengths), key.split(lengths), value.split(lengths), strict=True):
        outputs.append(
            functional.scaled_dot_product_attention(
                q.transpose(0, 1)[None],
                k.transpose(0, 1)[None],
                v.transpose(0, 1)[None],
                is_causal=True,
                enable_gqa=shared,
            )[0].transpose(0, 1)
        )
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


def flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: Packed, *, deterministic: bool = False
) -> torch.Tensor:
    """The same by flash-attn's variable-length kernel (extra `gpu`), BF16 only; `deterministic`: its backward pass adds in one
    order, which takes more time and memory."""
    from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]

    output: torch.Tensor = flash_attn_varlen_func(
        query,
        key,
        value,
        rows.borders,
        rows.borders,
        rows.longest,
        rows.longest,
        causal=True,
        deterministic=deterministic,
    )
    return output


def torch_varlen(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: Packed) -> torch.Tensor:
    """The same by torch's own variable-length kernel (GPU, torch 2.10 or later), BF16 only. It takes no argument for it, its
    backward pass is deterministic when torch is told so for all kernels: `device.ask_deterministic`."""
    from torch.nn.attention.varlen import varlen_attn

    if query.shape[1] != key.shape[1]:
        repeat = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    output: torch.Tensor = varlen_attn(
        query, key, value, rows.borders, rows.borders, rows.longest, rows.longest, **_causal_arguments()
    )
    return output


@cache
def _causal_arguments() -> dict[str, object]:
    """How this torch asks for a causal mask: `is_causal` at first, a window since."""
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    return {"is_causal": True} if "is_causal" in inspect.signature(varlen_attn).parameters else {"window_size": (-1, 0)}


def choose(name: str = "auto", *, bf16: bool = True, deterministic: bool = False) -> Kernel:
    """The kernel called `name` (`auto`, `flash`, `torch`, `plain`): auto takes flash-attn when installed on a GPU, torch's
    kernel otherwise, and the plain form on CPUs and in FP32, which neither of the two computes in."""
    if name == "plain" or (name == "auto" and not (bf16 and torch.cuda.is_available())):
        return per_document
    if name == "flash" or (name == "auto" and find_spec("flash_attn") is not None):
        return partial(flash, deterministic=deterministic)
    return torch_varlen if find_spec("torch.nn.attention.varlen") is not None else per_document


def check(name: str, *, bf16: bool, here: bool = True) -> None:
    """UserError when the kernel that the config names cannot run in this precision or, where `here`, on this machine."""
    if name not in ("flash", "torch"):
        return
    if here and not torch.cuda.is_available():
        raise UserError(f"model.kernel={name} runs on GPUs only, and torch sees none here: set model.kernel=auto")
    if not bf16:
        raise UserError(
            f"model.kernel={name} computes in BF16 only, and model.precision is fp32: set model.kernel=auto (it takes the plain "
            f"kernel in FP32), or model.precision=bf16"
        )
    if here and name == "flash" and find_spec("flash_attn") is None:
        raise UserError(
            "model.kernel=flash needs the package flash-attn, which is not installed: pip install 'ziya[gpu]', or set "
            "model.kernel=auto"
        )
    if here and name == "torch" and find_spec("torch.nn.attention.varlen") is None:
        raise UserError(
            f"model.kernel=torch needs torch 2.10 or later, and this is {torch.__version__}: set model.kernel=auto"
        )
