"""The benchmark of training: what it counts as work, what its table says, and (soak) that both its commands run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

BENCH = Path(__file__).parents[1] / "scripts" / "bench"
sys.path.append(str(BENCH))

from bench_train import common, table  # noqa: E402

from training.rows import Packed, positions_of  # noqa: E402


def packed(borders: list[int], row: int) -> Packed:
    marks = torch.tensor(borders, dtype=torch.int32)
    tokens = torch.arange(borders[-1]) % 7
    longest = int((marks[1:] - marks[:-1]).max())
    return Packed(tokens, tokens, torch.ones(len(tokens)), positions_of(marks, row, restart=True), marks, longest)


def test_the_peers_mask_is_ours() -> None:
    """Two rows of four, one of them two documents: every token sees what comes before it in its document."""
    mask = common.document_mask(packed([0, 4, 6, 8], 4), 4)[:, 0]
    whole = torch.ones(4, 4).tril().bool()
    halves = torch.block_diag(torch.ones(2, 2).tril(), torch.ones(2, 2).tril()).bool()
    assert torch.equal(mask, torch.stack((whole, halves)))


def test_lengths_of_documents_fill_the_row() -> None:
    rng = np.random.default_rng(0)
    for mean in (16, 64, 1000, 5000):
        for _ in range(50):
            sizes = common._lengths(rng, 4096, mean)
            assert sizes.sum() == 4096 and sizes.min() >= 2
    assert list(common._lengths(rng, 128, 128)) == [128]


def results() -> dict[str, Any]:
    about = {"date": "2026-01-02T00:00:00", "machine": "a GPU", "load": 0.0, "commit": "c", "versions": {"torch": "2"}}
    parity = {
        "equal": True, "mean_loss": 1.0, "mean_loss_transformers": 1.0, "largest_difference_of_a_token": 0.0, "kernel": "k",
    }  # fmt: skip
    fast = {"tokens_per_s": 2000.0, "tflops": 60.0, "peak_gib": 70.0, "recompute": "none"}
    slow = {"tokens_per_s": 1000.0, "tflops": 30.0, "peak_gib": 60.0, "recompute": "layer"}
    micro = {
        "parity": parity, "matrix_tflops": 80.0, "loading_s": 0.001,
        "systems": {"ours": fast, "(a)": slow, "(b)": {"failed": "OutOfMemoryError: too large", "recompute": "layer"}},
    }  # fmt: skip
    pairs = {
        "parity": parity, "median_s": {"ours": 1.2, "plain": 1.0}, "ratio": 1.2, "ratio_range": [1.1, 1.3],
        "loading_s": 0.02, "loading_share": 0.02,
    }  # fmt: skip
    return {
        "gpu": {"about": about, "command": "python", "result": {"data_sheet_tflops": 100.0, "micro 1": micro}},
        "cpu": {"about": about, "command": "python", "result": {"pairs": 1, "one": pairs, "two": {"failed": "a bug"}}},
    }


def test_the_table_tells_shares_goals_and_failures(tmp_path: Path) -> None:
    lines = table.write(tmp_path, results())
    assert json.loads((tmp_path / "train.json").read_text()) == results()
    assert (tmp_path / "train.md").read_text().splitlines() == "\n".join(lines).splitlines()
    assert "| 1 | ours, recompute none | 2,000 | 60 | 75.0 | 60.0 | 70.0 |  |" in lines
    assert "| 1 | (a), recompute layer | 1,000 | 30 | 37.5 | 30.0 | 60.0 | 2.00 times |" in lines
    assert any(line.startswith("| 1 | (b), recompute layer | failed: OutOfMemoryError") for line in lines)
    assert any("1.200 (1.100 to 1.300) | 1.1: MISSED | 2.000 % (MISSED: 1 %)" in line for line in lines)
    assert "| two | failed: a bug | | | | |" in lines
    assert any("Not run on a GPU yet" in line for line in table.write(tmp_path, {}))


@pytest.mark.soak
@pytest.mark.parametrize(
    "command", [["cpu", "--tiny", "--pairs", "2"], ["gpu", "--tiny", "--micro", "1", "--steps", "1"]]
)
def test_its_commands_run(tmp_path: Path, command: list[str]) -> None:
    subprocess.run([sys.executable, str(BENCH / "train.py"), *command, "--output", str(tmp_path)], check=True)
    found = json.loads((tmp_path / "train.json").read_text())
    assert "failed" not in json.dumps(found)
    assert '"equal": true' in json.dumps(found)
