"""Model FLOPs of a step: causal attention counted inside documents, recomputation apart."""

from __future__ import annotations

from training.architecture import Architecture


def per_token(shape: Architecture) -> float:
    """FLOPs of forward and backward per token, attention scores left out: 6 per weight of a matrix that a token meets.

    The embedding is a look-up; the head counts its used and padding rows, both are multiplied.
    """
    attention = shape.hidden * shape.head_dim * (2 * shape.heads + 2 * shape.groups)
    return 6.0 * (shape.layers * (attention + 3 * shape.hidden * shape.ffn) + shape.vocab_size * shape.hidden)


def of_pairs(shape: Architecture, pairs: float) -> float:
    """FLOPs of forward and backward of attention over so many (query, key) pairs that see each other: two products of
    head_dim per head and pair forward, twice that backward."""
    return 12.0 * shape.layers * shape.heads * shape.head_dim * pairs


def of_rows(shape: Architecture, tokens: float, squares: float) -> float:
    """FLOPs of one optimizer step: `tokens` of all rows, `squares` the sum of squared document lengths (a document of n
    tokens has n(n+1)/2 pairs; papers write half the square)."""
    return per_token(shape) * tokens + of_pairs(shape, 0.5 * squares)


def full_length(shape: Architecture, length: int, *, causal: bool = True) -> float:
    """FLOPs per token of rows that are one document of `length` tokens (87.4 / 82.4 GFLOP for the paper's model)."""
    return per_token(shape) + of_pairs(shape, length * (0.5 if causal else 1.0))


def recomputed(shape: Architecture, mode: str, tokens: float, squares: float) -> float:
    """FLOPs that `model.recompute` = `mode` adds to such a step, never counted as the model's: the forward pass of whole layers
    (`layer`), of the attention scores alone (`attention`), or none. What a fused attention kernel computes again inside
    its backward pass is not counted either."""
    scores = of_pairs(shape, 0.5 * squares) / 3.0
    if mode == "layer":
        head = 6.0 * shape.vocab_size * shape.hidden
        return (per_token(shape) - head) * tokens / 3.0 + scores
    return scores if mode == "attention" else 0.0


# Dense BF16 peaks in TFLOPS, from the vendors' data sheets, by a part of the device's name.
PEAKS = {"H200": 989.4, "H100": 989.4, "H800": 989.4, "A100": 312.0, "A800": 312.0, "L40S": 362.0, "4090": 165.2}


def peak_tflops(name: str) -> float | None:
    """The dense BF16 peak of an accelerator by its name, if known (H100 PCIe and NVL run below the SXM figure given)."""
    return next((peak for part, peak in PEAKS.items() if part in name), None)
