"""Model FLOPs against the figures of the Ziya2 paper's model (ziya2: 87.4 GFLOP a token in full, 82.4 causal)."""

from __future__ import annotations

import pytest

from training.architecture import Architecture
from training.flops import full_length, of_rows

PAPER = Architecture("llama", 5120, 13824, 40, 40, 40, 128, 39424, 39410, 4096)


def test_the_papers_figures() -> None:
    assert full_length(PAPER, 4096) == pytest.approx(82.4e9, rel=1e-3)
    assert full_length(PAPER, 4096, causal=False) == pytest.approx(87.4e9, rel=1e-3)


def test_documents_count_their_own_pairs_only() -> None:
    whole, halves = of_rows(PAPER, 4096, 4096**2), of_rows(PAPER, 4096, 2 * 2048**2)
    assert whole == pytest.approx(4096 * full_length(PAPER, 4096))
    assert halves == pytest.approx(4096 * full_length(PAPER, 2048))
