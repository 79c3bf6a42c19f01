"""Rotary position embedding in FP32 (Su et al. 2021), with LLaMA 3's frequency scaling."""

from __future__ import annotations

import math

import torch

from training.architecture import Architecture


def frequencies(shape: Architecture) -> torch.Tensor:
    """float32 [head_dim / 2]: radians per position."""
    even = torch.arange(0, shape.head_dim, 2, dtype=torch.int64).to(torch.float32)
    plain = 1.0 / (shape.rope_base ** (even / shape.head_dim))
    scaling = shape.rope_scaling
    if scaling is None:
        return plain
    wavelength = 2 * math.pi / plain
    low = scaling.original_positions / scaling.low_freq_factor
    high = scaling.original_positions / scaling.high_freq_factor
    smooth = (scaling.original_positions / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blended = (1 - smooth) * plain / scaling.factor + smooth * plain
    scaled = torch.where(wavelength > low, plain / scaling.factor, plain)
    return torch.where((wavelength <= low) & (wavelength >= high), blended, scaled)


def tables(positions: torch.Tensor, rates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(cosine, sine), float32 [T, 1, head_dim], of int64 positions [T]."""
    angles = positions.to(torch.float32)[:, None] * rates
    both = torch.cat((angles, angles), dim=-1)[:, None, :]
    return both.cos(), both.sin()


def rotate(vectors: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Turn [T, heads, head_dim] by the tables, computed in FP32, returned in the dtype that came."""
    first, second = vectors.float().chunk(2, dim=-1)
    turned = vectors.float() * cosine + torch.cat((-second, first), dim=-1) * sine
    return turned.to(vectors.dtype)
