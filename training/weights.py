"""Hugging Face weights <-> this layout's weights, tensor by tensor; no whole model is ever in memory twice.

Every native weight is a cut of a whole one. `whole` names: those of Hugging Face.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from training.architecture import Architecture

Read = Callable[[str], torch.Tensor]

_LAYER = "model.layers.{}."

EMBEDDING, MATRIX, PLAIN = "embedding", "matrix", "plain"
GROUPS = (MATRIX, EMBEDDING, PLAIN)
"""Order of the optimizer's groups. DeepSpeed reduces groups together until they are long enough, and copies them for that; the
largest one first stands alone and is reduced where it lies (26 GB a rank for 13B at PP2)."""


def group_of(name: str, weight: torch.Tensor) -> str:
    """The optimizer group of a native weight: embedding and head, other matrices, norms and biases."""
    if name.endswith(("embedding.weight", "head.weight")):
        return EMBEDDING
    return MATRIX if weight.dim() > 1 else PLAIN


def cut_qkv(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, shape: Architecture) -> torch.Tensor:
    """Whole q, k, v (rows = heads x head_dim) -> rows ordered by group: its query heads, its key head, its value head."""
    tail = query.shape[1:]
    q = query.view(shape.groups, -1, shape.head_dim, *tail)
    k = key.view(shape.groups, 1, shape.head_dim, *tail)
    v = value.view(shape.groups, 1, shape.head_dim, *tail)
    return torch.cat((q, k, v), dim=1).reshape(-1, *tail)


def join_qkv(mixed: torch.Tensor, shape: Architecture) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The reverse of `cut_qkv`, of whole weights."""
    tail = mixed.shape[1:]
    per_group = shape.heads // shape.groups
    grouped = mixed.view(shape.groups, per_group + 2, shape.head_dim, *tail)
    q, k, v = grouped.split((per_group, 1, 1), dim=1)
    return q.reshape(-1, *tail), k.reshape(-1, *tail), v.reshape(-1, *tail)


def native_to_whole(name: str, parts: list[torch.Tensor], shape: Architecture) -> dict[str, torch.Tensor]:
    """The parts of native weight `name` on each tensor-parallel rank, in order -> whole Hugging Face tensors."""
    if name == "embedding.weight":
        return {"model.embed_tokens.weight": torch.cat(parts)}
    if name == "head.weight":
        return {"lm_head.weight": torch.cat(parts)}
    if name == "final_norm.weight":
        return {"model.norm.weight": parts[0]}
    _, number, rest = name.split(".", 2)
    prefix = _LAYER.format(number)
    if rest in ("attention.qkv.weight", "attention.qkv.bias"):
        kind = rest.rsplit(".", 1)[1]
        q, k, v = join_qkv(torch.cat(parts), shape)
        return {f"{prefix}self_attn.{letter}_proj.{kind}": part for letter, part in (("q", q), ("k", k), ("v", v))}
    if rest == "attention.out.weight":
        return {f"{prefix}self_attn.o_proj.weight": torch.cat(parts, dim=1)}
    if rest == "mlp.up.weight":
        halves = [part.chunk(2) for part in parts]
        return {
            f"{prefix}mlp.gate_proj.weight": torch.cat([gate for gate, _ in halves]),
            f"{prefix}mlp.up_proj.weight": torch.cat([up for _, up in halves]),
        }
    if rest == "mlp.down.weight":
        return {f"{prefix}mlp.down_proj.weight": torch.cat(parts, dim=1)}
    if rest == "attention_norm.weight":
        return {f"{prefix}input_layernorm.weight": parts[0]}
    if rest == "mlp_norm.weight":
        return {f"{prefix}post_attention_layernorm.weight": parts[0]}
    raise KeyError(name)


def whole_to_native(name: str, read: Read, shape: Architecture, rank: int, ranks: int) -> torch.Tensor:
    """The part of native weight `name` that tensor-parallel rank `rank` of `ranks` holds; `read` gives whole tensors."""

    def rows(whole: torch.Tensor) -> torch.Tensor:
        return whole.chunk(ranks)[rank]

    if name == "embedding.weight":
        return rows(read("model.embed_tokens.weight"))
    if name == "head.weight":
        return rows(read("lm_head.weight"))
    if name == "final_norm.weight":
        return read("model.norm.weight")
    _, number, rest = name.split(".", 2)
    prefix = _LAYER.format(number)
    if rest in ("attention.qkv.weight", "attention.qkv.bias"):
        kind = rest.rsplit(".", 1)[1]
        q, k, v = (read(f"{prefix}self_attn.{letter}_proj.{kind}") for letter in "qkv")
        return rows(cut_qkv(q, k, v, shape))
    if rest == "attention.out.weight":
        return read(f"{prefix}self_attn.o_proj.weight").chunk(ranks, dim=1)[rank]
    if rest == "mlp.up.weight":
        return torch.cat((rows(read(f"{prefix}mlp.gate_proj.weight")), rows(read(f"{prefix}mlp.up_proj.weight"))))
    if rest == "mlp.down.weight":
        return read(f"{prefix}mlp.down_proj.weight").chunk(ranks, dim=1)[rank]
    if rest == "attention_norm.weight":
        return read(f"{prefix}input_layernorm.weight")
    if rest == "mlp_norm.weight":
        return read(f"{prefix}post_attention_layernorm.weight")
    raise KeyError(name)


def fill(chunks: list[torch.nn.Module], read: Read, shape: Architecture, rank: int, ranks: int) -> None:
    """Fill this process's chunks with their cuts of whole weights."""
    with torch.no_grad():
        for chunk in chunks:
            for name, weight in chunk.named_parameters():
                part = whole_to_native(name, read, shape, rank, ranks)
                if part.shape != weight.shape:
                    raise ValueError(f"{name}: {tuple(part.shape)} in the file, {tuple(weight.shape)} in the model")
                weight.copy_(part)
