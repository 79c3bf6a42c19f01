"""Key-value caches with a prefix that all rows of a batch share.

The prefix is kept once, [1, heads, prefix, dim], and is only spread over the batch inside the layer that reads it; what rows
add of their own is kept a row. Only plain full-attention layers can share; other models run every row whole.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer


class SharedLayer(DynamicLayer):  # type: ignore[misc]
    """One layer: a prefix for all rows and, when `keep`, the rows' own keys and values behind it."""

    def __init__(self, prefix: DynamicLayer | None, keep: bool) -> None:
        super().__init__()
        self.prefix, self.keep = prefix, keep
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [batch, heads, new, dim] -> those of all positions so far [batch, heads, total, dim]."""
        if self.keys is not None and self.values is not None:
            keys, values = torch.cat([self.keys, keys], dim=-2), torch.cat([self.values, values], dim=-2)
        if self.keep:
            self.keys, self.values, self.is_initialized = keys, values, True
        if self.prefix is None:
            return keys, values
        shape = (keys.shape[0], -1, -1, -1)
        return (
            torch.cat([self.prefix.keys.expand(shape), keys], dim=-2),
            torch.cat([self.prefix.values.expand(shape), values], dim=-2),
        )

    def get_seq_length(self) -> int:
        """Positions so far, prefix included."""
        own = self.keys.shape[-2] if self.keys is not None else 0
        return int(own + (self.prefix.keys.shape[-2] if self.prefix is not None else 0))

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Forget all rows but these."""
        assert self.keys is not None and self.values is not None
        self.keys, self.values = self.keys[rows], self.values[rows]


def shareable(model: Any) -> bool:
    """Whether every layer of the model attends over all positions, so that a prefix's cache can be shared."""
    return all(type(layer) is DynamicLayer for layer in _layers(model))


def _layers(model: Any) -> list[Any]:
    """The layers that the model itself would make."""
    config = model.config.get_text_config(decoder=True)
    cache = DynamicCache(config=config)
    return list(cache.layers) or [DynamicLayer()]


def prefix_cache(model: Any) -> Any:
    """An empty cache to run a prefix with."""
    return DynamicCache(config=model.config.get_text_config(decoder=True))


def row_cache(model: Any, prefix: Any | None, keep: bool) -> Any:
    """A cache for rows behind `prefix` (a filled prefix_cache, or None). Without `keep`, one forward only: nothing of the rows
    is stored, and the cache may serve the next batch too.
    """
    if prefix is None and not shareable(model):
        return prefix_cache(model)
    layers = (
        prefix.layers if prefix is not None else [None] * model.config.get_text_config(decoder=True).num_hidden_layers
    )
    return Cache(layers=[SharedLayer(layer, keep) for layer in layers])


def keep_rows(cache: Any, rows: torch.Tensor) -> None:
    """Forget all rows of a kept cache but these."""
    for layer in cache.layers:
        if isinstance(layer, SharedLayer):
            layer.keep_rows(rows)
        else:
            layer.batch_select_indices(rows)


__all__ = ["SharedLayer", "keep_rows", "prefix_cache", "row_cache", "shareable"]
