"""The debug run's losses as data: `python tests/golden_debug.py` writes tests/golden/debug_losses.json anew.

Do that only when a change is meant to move losses, and say so in the commit. Weights and packs come from numpy's PCG64 as
raw numbers, the one stream that numpy promises never to change; no library's way of drawing can move the golden numbers.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import train_runs
from train_ranks import run_ranks

GOLDEN = Path(__file__).parent / "golden" / "debug_losses.json"
VOCABULARY = 128


def raw(seed: int, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Numbers from 0 to 1, the same for ever."""
    return (np.random.PCG64(seed).random_raw(count) >> np.uint64(11)) * 2.0**-53


def write_inputs(folder: Path) -> None:
    """The base model and the pack of the debug run."""
    import torch
    from safetensors.torch import load_file, save_file

    from ziya.packs import pack_writer

    path = train_runs.write_base(folder / "base", vocab_size=VOCABULARY) / "model.safetensors"
    weights = load_file(path)
    for seed, (name, weight) in enumerate(sorted(weights.items())):
        if "norm" not in name:
            numbers = torch.from_numpy(raw(seed, weight.numel())).view(weight.shape)
            weights[name] = ((numbers - 0.5) * 0.2).to(torch.float32)
    save_file(weights, path, metadata={"format": "pt"})
    rows, length = 64, train_runs.LENGTH
    numbers = raw(1000, rows * (length + 2)).reshape(rows, length + 2)
    with pack_writer(folder / "text", length, np.uint16) as writer:
        for row in numbers:
            # Squares make some tokens far likelier than others: there is something to learn.
            tokens = (3 + (VOCABULARY - 4) * row[:length] ** 2).astype(np.uint16)
            first, second = sorted((1 + (length // 2 - 2) * row[length:]).astype(int))
            sizes = np.array([first, second + 1, length - first - second - 1])
            tokens[np.cumsum(sizes) - 1] = 2
            writer.add(tokens, sizes, np.array([3]))


def train(rank: int, folder: Path) -> list[dict[str, Any]]:
    """All three stages of configs/train/debug_cpu.yaml in this process; {stage, loss, norm, tokens} of each step."""
    from training.config import load_config
    from training.layout import Layout, start_groups, stop_groups
    from training.trainer import Trainer

    overrides = [f"run={folder / 'run'}", f"model.base={folder / 'base'}", f"data.sources.0.packs=[{folder / 'text'}]"]
    config = load_config(train_runs.CONFIG, overrides)
    for stage in config.stages:
        start_groups(Layout())
        trainer = Trainer(config, stage.number, Layout(), SimpleNamespace(asked=False, launch=None))  # type: ignore[arg-type]
        trainer.train()
        trainer.engine.deepspeed.destroy()
        stop_groups()
    kept = {"stage": "stage", "loss": "loss", "grad_norm": "norm", "tokens": "tokens"}
    return [{new: line[old] for old, new in kept.items()} for line in train_runs.lines(folder / "run")]


def measured(folder: Path) -> list[dict[str, Any]]:
    """What the code gives now."""
    write_inputs(folder)
    found: list[dict[str, Any]] = run_ranks(1, train, folder)[0]
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        lines = measured(Path(temporary))
    GOLDEN.write_text("[\n" + ",\n".join(json.dumps(line) for line in lines) + "\n]\n", encoding="utf-8")
