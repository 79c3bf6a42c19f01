"""Rows of new tokens in the input embedding and the output head.

A new character's row is a weighted average, in FP32, of the rows of the tokens that spelled it before (Ziya2, 3.2; the
weights are not published). A plain mean forgets the order of byte tokens: characters whose bytes are the same in another
order would get identical rows. Weights that grow with the position tell them apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import xxhash

Method = Literal["positional", "mean", "random"]
METHODS: tuple[Method, ...] = get_args(Method)
_CHUNK = 1024  # rows whose FP32 form is in memory at once


def new_rows(old: torch.Tensor, spelled: Sequence[Sequence[int]], method: Method, seed: int = 0) -> torch.Tensor:
    """Rows of new tokens [n, hidden] in the dtype of `old` [tokens, hidden]; `spelled[i]`: the old ids of new token i.

    `positional`: weights 1, 2, ... over their sum; `mean`: equal weights; `random`: normal with the old rows' mean and
    deviation in each dimension, drawn on the CPU from `seed`. `old` must hold no padding rows.
    """
    if method == "random":
        return _random_rows(old, len(spelled), seed)
    width = max(map(len, spelled), default=1)
    ids = torch.zeros((len(spelled), width), dtype=torch.int64)
    weights = torch.zeros((len(spelled), width), dtype=torch.float32)
    for number, parts in enumerate(spelled):
        # In one order, a mean of the same tokens is the same to the last bit: collisions count as what they are.
        row = sorted(parts) if method == "mean" else list(parts)
        share = torch.arange(1, len(row) + 1) if method == "positional" else torch.ones(len(row))
        ids[number, : len(row)] = torch.tensor(row, dtype=torch.int64)
        weights[number, : len(row)] = share.to(torch.float32) / share.sum()
    rows = torch.empty((len(spelled), old.shape[1]), dtype=old.dtype)
    for start in range(0, len(spelled), _CHUNK):
        part = slice(start, start + _CHUNK)
        total = torch.zeros((len(ids[part]), old.shape[1]), dtype=torch.float32)
        for place in range(width):
            total += weights[part, place, None] * old[ids[part, place]].float()
        rows[part] = total.to(old.dtype)
    return rows


def _random_rows(old: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    total = torch.zeros(old.shape[1], dtype=torch.float64)
    squares = torch.zeros(old.shape[1], dtype=torch.float64)
    for part in old.split(_CHUNK):
        total += part.double().sum(dim=0)
    mean = total / len(old)
    for part in old.split(_CHUNK):
        squares += (part.double() - mean).square().sum(dim=0)
    deviation = (squares / len(old)).sqrt()
    generator = torch.Generator().manual_seed(seed)
    rows = torch.empty((count, old.shape[1]), dtype=old.dtype)
    for start in range(0, count, _CHUNK):
        drawn = torch.randn((min(_CHUNK, count - start), old.shape[1]), generator=generator)
        rows[start : start + _CHUNK] = (mean.float() + deviation.float() * drawn).to(old.dtype)
    return rows


def collisions(*tables: torch.Tensor) -> int:
    """How many tokens share their rows in all `tables` ([n, hidden] each) with another token, to the last bit."""
    seen: Counter[bytes] = Counter()
    for rows in zip(*(table.contiguous().view(torch.uint8).numpy() for table in tables), strict=True):
        seen[b"".join(xxhash.xxh3_128_digest(row.tobytes()) for row in rows)] += 1
    return sum(count for count in seen.values() if count > 1)


def extended(old: torch.Tensor, new: torch.Tensor, rows: int) -> torch.Tensor:
    """`old`, then `new`, then zeros up to `rows` rows.

    Padding is zero, not a mean: no text and no gradient reaches it (its logits are set to minus infinity), so zero stays
    zero under weight decay, adds nothing to norms, and shows at once what is padding.
    """
    table = torch.zeros((rows, old.shape[1]), dtype=old.dtype)
    table[: len(old)] = old
    table[len(old) : len(old) + len(new)] = new
    return table
