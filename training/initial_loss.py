"""The loss of a model before training, for several vocabularies at once, with one layer in memory at a time.

The vocabularies (base; new rows by each method) share every layer. So the layers are read one after another, and all
variants pass each of them: a 13B model needs the memory of one layer, two tables and the hidden states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from training.architecture import Architecture
from training.attention import per_document
from training.device import device as default_device
from training.hf_files import HFWeights
from training.loss import head_logits
from training.norm import RMSNorm
from training.rotary import frequencies, rotate, tables
from training.rows import Packed, positions_of
from ziya.progress import log
from ziya.tokenizer import Tokenizer

_LOGITS = 256  # positions whose logits are in memory at once
_TALK_EVERY = 10  # layers
_PIECE = 512  # characters of a piece of text, at most


@dataclass(frozen=True)
class Variant:
    """One vocabulary and the same texts in its ids; `documents` are rows of ids that start with a context token."""

    documents: Sequence[Sequence[int]]
    embedding: Sequence[torch.Tensor]  # parts of [tokens, hidden], one below the other, without padding rows
    head: Sequence[torch.Tensor]  # the same


def spread_pieces(texts: Sequence[str], positions: int, budget: int, tokens: int) -> list[str]:
    """Pieces of the texts, evenly spread over them, of about `budget` tokens in all; `tokens`: what the texts have.

    Each piece fits into `positions` even when every character is spelled in four bytes.
    """
    size = max(1, min(_PIECE, (positions - 2) // 4))
    pieces = [text[start : start + size] for text in texts for start in range(0, len(text), size)]
    count = min(len(pieces), max(1, round(budget * len(pieces) / max(tokens, 1))))
    return [pieces[number * len(pieces) // count] for number in range(count)]


def encode_all(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text, without BOS and EOS."""
    ids, ends = tokenizer.encode_batch(texts)
    return [ids[start:end].tolist() for start, end in pairwise(ends.tolist())]


def summed_losses(
    weights: HFWeights, shape: Architecture, variants: Sequence[Variant], device: torch.device | None = None
) -> list[float]:
    """Cross entropy in nats, summed over all tokens but the first of each document, for each variant; in FP32."""
    with torch.no_grad():
        return _summed_losses(weights, shape, variants, device or default_device())


def _summed_losses(
    weights: HFWeights, shape: Architecture, variants: Sequence[Variant], device: torch.device
) -> list[float]:
    rates = frequencies(shape).to(device)
    rows = [_packed(variant.documents, device) for variant in variants]
    hidden = [
        torch.cat(list(variant.embedding))[packed.tokens.cpu()].to(device, torch.float32)
        for variant, packed in zip(variants, rows, strict=True)
    ]
    for number in range(shape.layers):
        layer = _Layer(weights, shape, number, device)
        for place, packed in enumerate(rows):
            hidden[place] = layer(hidden[place], packed, tables(packed.positions, rates))
        if (number + 1) % _TALK_EVERY == 0 and number + 1 < shape.layers:
            log(f"initial loss: {number + 1} of {shape.layers} layers")
    norm = _norm(weights.read("model.norm.weight"), shape, device)
    losses = []
    for variant, packed, states in zip(variants, rows, hidden, strict=True):
        head = torch.cat(list(variant.head)).to(device, torch.float32)
        total = torch.zeros((), dtype=torch.float64, device=device)
        for start in range(0, len(states), _LOGITS):
            part = slice(start, start + _LOGITS)
            logits = head_logits(norm(states[part]), head, 0, len(head))
            each = torch.nn.functional.cross_entropy(logits, packed.targets[part], reduction="none")
            total += (each * packed.weights[part]).sum(dtype=torch.float64)
        losses.append(float(total))
    return losses


def _packed(documents: Sequence[Sequence[int]], device: torch.device) -> Packed:
    lengths = [len(document) for document in documents]
    borders = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    tokens = torch.tensor([token for document in documents for token in document], dtype=torch.int64)
    weights = torch.ones(len(tokens))
    weights[borders[1:].long() - 1] = 0.0  # what follows a document's last token is another document
    positions = positions_of(borders, len(tokens), restart=True)
    return Packed(
        tokens.to(device),
        tokens.roll(-1).to(device),
        weights.to(device),
        positions.to(device),
        borders.to(device),
        max(lengths),
    )


def _norm(weight: torch.Tensor, shape: Architecture, device: torch.device) -> RMSNorm:
    norm = RMSNorm(shape.hidden, shape.norm_eps, torch.float32, sequence_parallel=False)
    norm.weight.data = weight.to(device, torch.float32)
    return norm


class _Layer:
    """One layer of the base model, FP32, on `device`."""

    def __init__(self, weights: HFWeights, shape: Architecture, number: int, device: torch.device) -> None:
        def read(name: str) -> torch.Tensor:
            return weights.read(f"model.layers.{number}.{name}").to(device, torch.float32)

        self.shape = shape
        self.norms = [
            _norm(read(f"{name}.weight"), shape, device) for name in ("input_layernorm", "post_attention_layernorm")
        ]
        self.qkv = [read(f"self_attn.{letter}_proj.weight") for letter in "qkv"]
        self.bias = [read(f"self_attn.{letter}_proj.bias") if shape.qkv_bias else None for letter in "qkv"]
        self.out = read("self_attn.o_proj.weight")
        self.gate, self.up, self.down = (read(f"mlp.{name}_proj.weight") for name in ("gate", "up", "down"))

    def __call__(self, hidden: torch.Tensor, rows: Packed, angles: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        linear = torch.nn.functional.linear
        seen = self.norms[0](hidden)
        query, key, value = (
            linear(seen, weight, bias).view(len(seen), -1, self.shape.head_dim)
            for weight, bias in zip(self.qkv, self.bias, strict=True)
        )
        mixed = per_document(rotate(query, *angles), rotate(key, *angles), value, rows)
        hidden = hidden + linear(mixed.reshape(len(seen), -1), self.out)
        seen = self.norms[1](hidden)
        return hidden + linear(torch.nn.functional.silu(linear(seen, self.gate)) * linear(seen, self.up), self.down)
